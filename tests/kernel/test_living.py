"""A process that its caller's own Python runs lives on while its kernel is started again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aios.abi import calls as abi
from aios.abi.messages import ToolSpec
from aios.drivers.journal.memory import MemoryJournal
from aios.testing import TestKernel, machine, settle

PAY = ToolSpec(name="pay", effect="once")
CALL = abi.ToolCall(name="pay", place="1")


async def child(kernel: TestKernel) -> int:
    login = kernel.identify(kernel.user_key)
    return (await kernel.trap(login, abi.SpawnAgent(program="payer"))).aid  # type: ignore[attr-defined]


def start(kernel: TestKernel, pid: int, call: abi.Call) -> asyncio.Future[Any]:
    return asyncio.ensure_future(kernel.trap(pid, call))


async def a_dead_kernel(taken: bool) -> tuple[MemoryJournal, int, str]:
    """What one leaves that died while a tool was called (and its program had begun to run it)."""
    journal = MemoryJournal()
    async with machine(journal=journal) as kernel:
        pid = await child(kernel)
        await kernel.trap(pid, abi.ToolRegister(tools=(PAY,)))
        calling = start(kernel, pid, CALL)
        await settle()
        [id] = [call.id for call in kernel.processes.find(pid).calls.values()]
        if taken:
            invocation = await kernel.trap(pid, abi.ToolNext())
            assert invocation == abi.ToolInvocation(id, "pay", {})
        left = journal.copy()
    await asyncio.wait([calling])
    calling.exception()
    return left, pid, id


@pytest.mark.parametrize("is_called_first", [True, False])
@pytest.mark.parametrize("taken", [True, False])
async def test_a_tool_call_that_never_arrived_is_given_again(
    taken: bool, is_called_first: bool
) -> None:
    journal, pid, id = await a_dead_kernel(taken)
    async with machine(journal=journal) as kernel:
        if is_called_first:
            calling = start(kernel, pid, CALL)
            await settle()
        asking = start(kernel, pid, abi.ToolNext())
        await settle()
        if not is_called_first:
            calling = start(kernel, pid, CALL)
        assert await asking == abi.ToolInvocation(id, "pay", {})
        await kernel.trap(pid, abi.ToolReturn(id=id, content="paid"))
        assert await calling == abi.ToolAnswer("paid")


async def test_one_that_its_program_works_on_is_not_given_again() -> None:
    journal, pid, id = await a_dead_kernel(taken=True)
    async with machine(journal=journal) as kernel:
        asking = start(kernel, pid, abi.ToolNext(busy=(id,)))
        calling = start(kernel, pid, CALL)
        await settle()
        assert not asking.done()
        await kernel.trap(pid, abi.ToolReturn(id=id, content="paid"))
        assert await calling == abi.ToolAnswer("paid")
        assert not asking.done()
        other = start(kernel, pid, abi.ToolCall(name="pay", place="2"))
        invocation = await asking
        await kernel.trap(pid, abi.ToolReturn(id=invocation.id, content="paid again"))
        assert await other == abi.ToolAnswer("paid again")


async def test_its_answer_may_come_before_its_caller_is_back() -> None:
    journal, pid, id = await a_dead_kernel(taken=True)
    async with machine(journal=journal) as kernel:
        await kernel.trap(pid, abi.ToolReturn(id=id, content="paid"))
        assert await kernel.trap(pid, CALL) == abi.ToolAnswer("paid")
