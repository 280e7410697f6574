"""Calls on generation and contexts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from aios.abi import calls as abi
from aios.abi import wire
from aios.abi.messages import Message
from aios.errors import Conflict, ContextOverflow, InvalidCall, KernelBug, NotFound
from aios.kernel import compaction, generation, retrieval, window
from aios.kernel.compaction import Work
from aios.kernel.context import Context, Turn
from aios.kernel.generation import Progress
from aios.kernel.process import OpenCall, Process
from aios.kernel.routing import Route
from aios.kernel.scheduler import Scheduler
from aios.ports import Prompt, SnapshotRow

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel

COMPACTIONS = 3  # for one generation: a second one speaks in the same context meanwhile


async def sys_generate(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.Generate
) -> abi.Generation:
    generation.validate(_prompt(request, request.messages, target))
    request = _capped(request, kernel.config.kernel.max_new_tokens)
    asked = kernel.model_for(target, request.model)
    context = target.contexts.get(request.context or "")
    said = (*(context.messages if context else ()), *request.messages)
    characters = sum(len(message.content) for message in said)
    call.route = Route(kernel, call, asked, characters)
    return await call.route.run(partial(_generate_on, kernel, call, target, request))


async def _generate_on(
    kernel: Kernel,
    call: OpenCall,
    target: Process,
    request: abi.Generate,
    scheduler: Scheduler,
) -> abi.Generation:
    """On one core; when another has begun it, from where that one was."""
    model, begun = scheduler.name, call.progress
    if begun is not None and not begun.tokens:
        begun = None  # nothing of it is left: this core's window may be another
    if request.context is None:
        if begun is not None:
            return await generation.run(kernel, call, scheduler, begun)
        found = await retrieval.look_up(kernel, call, request, request.messages, scheduler)
        prompt = _prompt(request, retrieval.put(request.messages, found), target)
        return await generation.run(kernel, call, scheduler, Progress(prompt, model, None, []))
    context = target.contexts.setdefault(request.context, Context(request.context))
    if begun is not None:
        async with context.lock():
            answer = await generation.run(kernel, call, scheduler, begun)
            _keep(call, context, (*request.messages, answer.message), answer.usage.tokens)
            return answer
    said = (*context.messages, *request.messages)
    await _leave_for_a_wider_window(kernel, call, scheduler, said)
    found = await retrieval.look_up(kernel, call, request, said, scheduler)

    def after(turns: Iterable[Turn]) -> Prompt:
        said = (*(turn.message for turn in turns), *request.messages)
        return _prompt(request, retrieval.put(said, found), target)

    work = Work(kernel, call, target, context, scheduler)
    for left in reversed(range(COMPACTIONS + 1)):
        async with context.lock():
            fitting = await compaction.fit(work, after, is_last=not left)
            if isinstance(fitting, Prompt):
                progress = Progress(fitting, model, context.name, [])
                answer = await generation.run(kernel, call, scheduler, progress)
                _keep(call, context, (*request.messages, answer.message), answer.usage.tokens)
                return answer
        shorter = abi.CompactContext(
            context=context.name,
            tokens=fitting,
            model=model,
            # a second life finds it there, and has the same prompt
            place=call.inner(f"compact.{context.setting.compactions}"),
        )
        await kernel.trap(target.pid, shorter)
    raise KernelBug(f"call {call.id} neither fitted its context nor failed")


async def _leave_for_a_wider_window(
    kernel: Kernel, call: OpenCall, scheduler: Scheduler, said: tuple[Message, ...]
) -> None:
    """ContextOverflow rather than a shorter context, while another core has room for all of it."""
    window = scheduler.core.abilities.context_tokens
    if call.route is None or not call.route.has_larger(window):
        return
    length = await compaction.length(kernel, scheduler, said)
    if length >= window:
        raise ContextOverflow(
            f"the context has {length} tokens, and the window of {scheduler.name} is {window}."
        )


def _capped(request: abi.Generate, most: int) -> abi.Generate:
    """With an answer of at most so many tokens; 0 is no limit."""
    asked = request.sampling.max_tokens
    if not most or (asked is not None and asked <= most):
        return request
    return msgspec.structs.replace(
        request, sampling=msgspec.structs.replace(request.sampling, max_tokens=most)
    )


def _prompt(request: abi.Generate, messages: tuple[Message, ...], process: Process) -> Prompt:
    return Prompt(
        messages=messages,
        sampling=request.sampling,
        tools=request.tools,
        tool_choice=request.tool_choice,
        schema=request.schema,
        session=f"aios-{process.pid}",
        priority=process.priority,
    )


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


# --- contexts -------------------------------------------------------------------------------------


async def sys_get_context(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.GetContext
) -> abi.ContextReport:
    work = await _work(kernel, call, target, _context(target, request.context))
    used = await work.length(work.context.turns)
    return _report(work, used, messages=request.messages)


async def sys_exp_context(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.ExpContext
) -> abi.ContextReport:
    work = await _work(kernel, call, target, _context(target, request.context, make=True))
    most = work.scheduler.core.abilities.context_tokens
    window.check_size(request.window, most)
    used = await work.length(work.context.turns)
    _set(work, window=most if request.window is None else request.window)
    return _report(work, used)


async def sys_clr_context(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.ClrContext
) -> abi.ContextReport:
    context = _context(target, request.context)
    async with context.lock():
        work = await _work(kernel, call, target, context)
        stay = [turn for turn in context.turns if turn.message.pinned and not request.pins]
        used = await work.length(stay)
        gone = [turn for turn in context.turns if turn not in stay]
        compaction.change(call, target, context, gone, [])
        call.effects.append(context.kept(target.pid))  # there still, though there is nothing in it
        context.tokens = used
        return _report(work, used)


async def sys_set_context(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.SetContext
) -> abi.ContextReport:
    context = _context(target, request.context, make=True)
    async with context.lock():
        work = await _work(kernel, call, target, context)
        turns = context.turns
        if request.messages is not None:
            turns = context.after(request.messages)
        used = await work.length(turns)
        if request.messages is not None:
            compaction.change(call, target, context, context.turns, turns)
            context.tokens = used
        if request.strategy is not None:
            _set(work, strategy=request.strategy)
        return _report(work, used)


async def sys_compact_context(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.CompactContext
) -> abi.ContextReport:
    context = _context(target, request.context)
    async with context.lock():
        work = await _work(kernel, call, target, context, request.model)
        goal = work.window // 2 if request.tokens is None else request.tokens
        if goal < 0:
            raise InvalidCall(f"a context cannot be cut to {goal} tokens; give 0 or more.")
        used = await compaction.compact(work, goal, request.strategy or work.strategy)
        return _report(work, used)


def _context(process: Process, name: str, *, make: bool = False) -> Context:
    """A process's context by name; NotFound if it has none, unless one may be made."""
    found = process.contexts.get(name)
    if found is None and make and process.state != "zombie":
        found = process.contexts.setdefault(name, Context(name))
    if found is None:
        named = ", ".join(process.contexts) or "none yet"
        raise NotFound(f"process {process.pid} has no context named {name!r}; it has {named}.")
    return found


async def _work(
    kernel: Kernel, call: OpenCall, process: Process, context: Context, model: str | None = None
) -> Work:
    scheduler = await kernel.scheduler(kernel.first_core(kernel.model_for(process, model)))
    return Work(kernel, call, process, context, scheduler)


def _set(work: Work, **values: Any) -> None:
    """Change how a context is kept within its window, durable with the call's end."""
    context, was = work.context, work.context.setting
    context.setting = msgspec.structs.replace(was, **values)
    work.call.effects.append(context.kept(work.process.pid))
    work.call.undo.append(lambda: setattr(context, "setting", was))


def _report(work: Work, used: int, *, messages: bool = False) -> abi.ContextReport:
    context = work.context
    return abi.ContextReport(
        aid=work.process.pid,
        context=context.name,
        window=work.window,
        used=used,
        pinned=len(window.staying(context.turns)),
        strategy=work.strategy,
        compactions=context.setting.compactions,
        dropped=context.setting.dropped,
        messages=context.messages if messages else (),
    )
