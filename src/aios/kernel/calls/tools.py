"""Calls on tools.

A tool here is a function of the calling program. tool_call checks the arguments, hands the
invocation to the program (which waits in tool_next) and waits for its tool_return: the call is open
for exactly as long as the tool runs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aios.abi import calls as abi
from aios.errors import InvalidCall, NotFound
from aios.kernel import replay
from aios.kernel.process import OpenCall, Process
from aios.kernel.schema import mismatch

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel


async def sys_tool_register(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.ToolRegister
) -> abi.ToolSpecs:
    tools = {tool.name: tool for tool in request.tools}
    if len(tools) < len(request.tools):
        raise InvalidCall("two of the tools have the same name; each needs its own.")
    if reserved := {"auto", "none", "required", ""} & tools.keys():
        raise InvalidCall(
            f"a tool cannot be named {min(reserved)!r}: tool_choice gives that a meaning."
        )
    target.tools = tools
    return abi.ToolSpecs(tuple(tools.values()))


async def sys_tool_list(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.ToolList
) -> abi.ToolSpecs:
    return abi.ToolSpecs(tuple(target.tools.values()))


async def sys_tool_call(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.ToolCall
) -> abi.ToolAnswer:
    tool = target.tools.get(request.name)
    if tool is None:
        named = ", ".join(target.tools) or "none"
        raise NotFound(
            f"there is no tool named {request.name!r}; process {target.pid} has {named}."
        )
    if wrong := mismatch(request.arguments, tool.parameters):
        raise InvalidCall(f"the arguments of {tool.name} do not fit its schema: {wrong}.")
    # there already if its program, which lives on, was faster than its caller
    answer = target.pending_tools.setdefault(call.id, asyncio.get_running_loop().create_future())
    if call.id not in target.taken_tools:  # else its program works on it since before a crash
        target.invocations.append(abi.ToolInvocation(call.id, tool.name, request.arguments))
        _tell(target)
    try:
        content, is_error = await answer
    finally:
        target.pending_tools.pop(call.id, None)
        for invocation in list(target.invocations):
            if invocation.id == call.id:  # cancelled before the program took it
                target.invocations.remove(invocation)
    return abi.ToolAnswer(content, is_error)


async def sys_tool_next(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.ToolNext
) -> abi.ToolInvocation:
    for id in target.taken_tools.difference(request.busy):  # given by a dead kernel, never received
        target.taken_tools.discard(id)
        if id in target.pending_tools:  # else its call is about to say so itself
            asked = target.calls[id].call
            assert isinstance(asked, abi.ToolCall)
            target.invocations.append(abi.ToolInvocation(id, asked.name, asked.arguments))
    while not target.invocations:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        target.tool_waiters.append(waiter)
        try:
            await waiter
        finally:
            target.tool_waiters.remove(waiter)
    return target.invocations.popleft()


def _tell(process: Process) -> None:
    for waiter in process.tool_waiters:
        if not waiter.done():
            waiter.set_result(None)


async def sys_tool_return(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.ToolReturn
) -> abi.Done:
    answer = target.pending_tools.get(request.id)
    if answer is None and request.id in target.taken_tools:
        history = target.replay.get(request.id) if target.replay is not None else None
        if history is not None:  # its caller has not come back yet
            outcome = abi.ToolAnswer(request.content, request.is_error)
            replay.settle(kernel, target, history, outcome)
            return abi.Done()
        if request.id in target.calls:  # it is coming back just now
            answer = asyncio.get_running_loop().create_future()
            target.pending_tools[request.id] = answer
    if answer is None or answer.done():
        raise NotFound(f"no tool call {request.id!r} of process {target.pid} waits for an answer.")
    answer.set_result((request.content, request.is_error))
    return abi.Done()
