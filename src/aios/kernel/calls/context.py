"""Calls on generation and contexts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from aios.abi import calls as abi
from aios.abi import wire
from aios.abi.messages import Message
from aios.errors import Conflict, InvalidCall, NotFound
from aios.kernel import generation
from aios.kernel.context import Context
from aios.kernel.generation import Progress
from aios.kernel.process import OpenCall, Process
from aios.ports import Prompt, SnapshotRow

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel


async def sys_generate(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.Generate
) -> abi.Generation:
    model = kernel.model_for(target, request.model)
    async with AsyncExitStack() as stack:
        context = None
        if request.context is not None:
            context = target.contexts.setdefault(request.context, Context(request.context))
            await stack.enter_async_context(context.lock())
        before = context.messages if context else ()
        prompt = Prompt(
            messages=before + request.messages,
            sampling=request.sampling,
            tools=request.tools,
            tool_choice=request.tool_choice,
            schema=request.schema,
        )
        generation.validate(prompt)
        scheduler = await kernel.scheduler(model)
        progress = Progress(prompt, model, request.context, len(request.messages), [])
        answer = await generation.run(kernel, call, scheduler, progress)
        if context is not None:
            _keep(call, context, (*request.messages, answer.message), answer.usage.tokens)
        return answer


def _keep(call: OpenCall, context: Context, turns: Iterable[Message], tokens: int) -> None:
    """Append what was said and heard to its context, durable with the call's end."""
    rows = context.append(call.process.pid, call.id, turns)
    context.tokens = tokens
    call.effects += rows
    call.undo.append(lambda: context.take([row.position for row in rows]))


async def sys_gen_snapshot(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.GenSnapshot
) -> abi.Snapshot:
    running = [c for c in target.calls.values() if c.ticket is not None]
    if request.target is not None:
        running = [c for c in running if c.id == request.target]
    if len(running) != 1:
        raise NotFound(
            f"process {target.pid} has {len(running)} open generations"
            + (f" named {request.target}" if request.target else "")
            + "; a snapshot is taken of one: name its call (`aios inspect` shows them)."
        )
    generating = running[0]
    assert generating.ticket is not None
    ticket, progress = generating.ticket, generating.progress
    scheduler = next((s for s in kernel.schedulers.values() if ticket in s.tickets), None)
    if scheduler is None or progress is None:
        raise Conflict(f"call {generating.id} is not in a core now; try again.")
    async with scheduler.hold(ticket):
        if ticket.sequence is None or ticket not in scheduler.tickets:
            raise Conflict(f"call {generating.id} came to its end before it could be frozen.")
        name = f"s{call.id[1:]}"
        path = os.path.join(kernel.snapshot_folder, f"{name}.snapshot")
        frozen = await scheduler.core.freeze(ticket.sequence, path)
        detail = wire.encode(progress)
    row = SnapshotRow(name, target.pid, path, kernel.clock.now(), detail)
    kernel.snapshots[name] = row
    kernel.trace.record(row)
    return abi.Snapshot(name, progress.model, frozen.tokens, frozen.bytes)


async def sys_gen_restore(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.GenRestore
) -> abi.Generation:
    row = kernel.snapshots.get(request.snapshot)
    if row is None or not kernel.sees(target, row.pid):
        raise NotFound(f"there is no snapshot {request.snapshot!r} that you may see.")
    try:
        progress = wire.decode(row.detail, Progress)
    except InvalidCall as error:
        raise InvalidCall(f"snapshot {row.id} cannot be read: {error}") from error
    scheduler = await kernel.scheduler(progress.model)
    return await generation.run(kernel, call, scheduler, progress, row.path)


async def sys_get_context(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.GetContext
) -> abi.ContextReport:
    context = target.contexts.get(request.context)
    if context is None:
        named = ", ".join(target.contexts) or "none yet"
        raise NotFound(
            f"process {target.pid} has no context named {request.context!r}; it has {named}."
        )
    scheduler = await kernel.scheduler(kernel.model_for(target, None))
    return abi.ContextReport(
        aid=target.pid,
        context=context.name,
        window=scheduler.core.abilities.context_tokens,
        used=context.tokens,
        messages=context.messages if request.messages else (),
    )
