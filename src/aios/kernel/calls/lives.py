"""Calls on a process's lives: forks, snapshots of all of it, rollbacks, settled calls."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.abi import wire
from aios.errors import AiosError, Conflict, InvalidCall, NotFound
from aios.kernel import kept, replay
from aios.kernel.calls.agent import check_limits
from aios.kernel.calls.machine import as_record, number_of
from aios.kernel.context import Context
from aios.kernel.process import OpenCall, Process
from aios.ports import EVERY_CALL, CallEnd, CallFilter, CallHistory, CallRow, ContextRow, MarkRow

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel


# --- forks ----------------------------------------------------------------------------------------


async def sys_fork_agent(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.ForkAgent
) -> abi.Spawned:
    check_limits(request.budget)
    if target.state == "zombie":
        raise Conflict(f"process {target.pid} has ended; only a living one can be forked.")
    await kernel.trace.durable()  # the copy is made of what is on disk
    calls: list[CallHistory] = []
    upto = _position(kernel, target, call)
    if request.at is not None:
        upto = number_of(request.at)
        calls = await kernel.journal.calls(
            target.pid, CallFilter(EVERY_CALL, upto=upto, void=False)
        )
        if not calls or number_of(calls[-1].start.id) != upto:
            raise NotFound(
                f"process {target.pid} has made no call {request.at}; "
                f"`aios history {target.pid}` shows those that it made."
            )
    told = [history for history in calls if replay.is_told(history)]
    open_ones = {history.start.id for history in calls} - {history.start.id for history in told}
    kernel.processes.check_room(target.user, target)
    pid = kernel.processes.next_pid()
    memory = await kernel.memory.copy(target.pid, pid, upto)
    files = await kernel.files.copy(target.pid, pid, upto)
    said = await kernel.journal.context_at(target.pid, upto)
    if target.ended is not None:  # and its records may have gone before they were copied
        kernel.memory.recount()
        raise Conflict(f"process {target.pid} ended before it could be forked.")
    # from here on nothing is awaited: all of it is in one transaction, or nothing
    process = kernel.processes.create(target.user, target, _spawned(target, request), call.id, pid)
    process.seen_files = {owner: dict(seen) for owner, seen in target.seen_files.items()}
    kernel.lives.keep_environment(process)
    kernel.trace.record(*memory, *files)
    numbers = _copy_calls(kernel, process, target, told)
    said = [row for row in said if row.call not in open_ones]  # which have ended meanwhile
    _copy_contexts(kernel, process, target, said, numbers, call)
    if not process.argv:
        key = kernel.keys.issue(target.user, f"process {process.pid}", process)
        return abi.Spawned(process.pid, key.key)
    kernel.processes.go_live(process)
    process.awaits_launch = True
    await kernel.lives.relaunch(process)
    return abi.Spawned(process.pid)


def _spawned(target: Process, request: abi.ForkAgent) -> abi.SpawnAgent:
    """A fork at a call runs the program again; any other is run by the caller."""
    if request.at is not None and target.argv:
        return msgspec.structs.replace(
            target.spawned, budget=request.budget, note=f"fork of {target.pid} at {request.at}"
        )
    return abi.SpawnAgent(
        program=target.program,
        task=target.task,
        budget=request.budget,
        on_exhausted=target.on_exhausted,
        model=target.model,
        wrap_model=target.wrap_model,
        note=f"fork of {target.pid}",
        window=target.spawned.window,
        strategy=target.spawned.strategy,
        retrieve=target.spawned.retrieve,
    )


def _copy_calls(
    kernel: Kernel, process: Process, target: Process, told: list[CallHistory]
) -> dict[int, int]:
    """The original's calls as the fork's own, which its replay is given; old number -> new."""
    numbers = {}
    for history in told:
        number = kernel.next_call()
        numbers[number_of(history.start.id)] = number
        id, start, end = f"c{number}", history.start, history.end
        assert end is not None
        name = start.name
        asked = _as_own(start.request, target.pid, process.pid)
        row = CallRow(id, process.pid, name, start.started_at, asked)
        if name == "generate":  # what it says is there already
            row = kept.row(id, process.pid, name, row.started_at, wire.decode(asked, abi.Generate))
        kernel.trace.emit(ev.CallStarted, process.pid, row, call=id, name=name)
        reply = None if end.reply is None else _as_own(end.reply, target.pid, process.pid)
        ending = CallEnd(id, end.state, end.ended_at, reply, end.error, end.code)
        if end.state == "done":
            kernel.trace.emit(ev.CallCompleted, process.pid, ending, call=id, name=name)
        else:
            kernel.trace.emit(
                ev.CallFailed,
                process.pid,
                ending,
                call=id,
                name=name,
                code=end.code or "aios_error",
                message=end.error or "",
            )
    return numbers


def _as_own(data: bytes, old: int, new: int) -> bytes:
    """A call or a reply, as JSON, in which a process means itself: now it is another."""
    value = msgspec.json.decode(data)
    for name in ("aid", "to", "sender"):
        if value.get(name) == old:
            value[name] = new
    for name in ("owner", "volume"):
        if value.get(name) == f"pid:{old}":
            value[name] = f"pid:{new}"
    return msgspec.json.encode(value)


def _copy_contexts(
    kernel: Kernel,
    process: Process,
    target: Process,
    rows: list[ContextRow],
    numbers: dict[int, int],
    call: OpenCall,
) -> None:
    for name in dict.fromkeys(row.context for row in rows):
        own = [
            msgspec.structs.replace(
                row,
                pid=process.pid,
                call=f"c{numbers.get(number_of(row.call), number_of(call.id))}",
            )
            for row in rows
            if row.context == name
        ]
        context = Context.from_rows(name, own)
        if name in target.contexts:
            context.setting = target.contexts[name].setting
        process.contexts[name] = context
        kernel.trace.record(context.kept(process.pid), *own)


async def keyed_again(
    kernel: Kernel, caller: Process, request: abi.Call, reply: abi.Spawned
) -> abi.Spawned:
    """For a second life: a child that it runs itself has a new key; the old one was not kept."""
    child = kernel.processes.get(reply.aid)
    if child is None or child.argv:
        return reply
    return abi.Spawned(child.pid, await kernel.lives.take_up(child, caller))


# --- snapshots of the whole process ---------------------------------------------------------------


def _position(kernel: Kernel, target: Process, call: OpenCall) -> int:
    """The number of the last call before which all of the process's calls had ended.

    Its own call to be remembered counts as ended: the second life is told its reply.
    """
    own = number_of(call.id)
    begun = [
        number_of(id)
        for id in (*target.calls, *target.pending)
        if id != call.id and (id not in target.calls or target.calls[id].name != "tool_next")
    ]
    return min((own, *(number - 1 for number in begun)))


async def sys_snapshot_agent(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.SnapshotAgent
) -> abi.AgentSnapshot:
    if target.state == "zombie":
        raise Conflict(f"process {target.pid} has ended; a snapshot is taken of a living one.")
    position, now = _position(kernel, target, call), kernel.clock.now()
    detail = wire.encode({"label": request.label[:200]})
    mark = MarkRow(f"a{call.id[1:]}", target.pid, position, now, detail)
    kernel.marks[mark.id] = mark
    call.effects.append(mark)
    call.undo.append(partial(kernel.marks.__delitem__, mark.id))
    kernel.trace.emit(ev.AgentSnapshotTaken, target.pid, snapshot=mark.id)
    return _snapshot(mark)


def _snapshot(mark: MarkRow) -> abi.AgentSnapshot:
    label = msgspec.json.decode(mark.detail)["label"]
    return abi.AgentSnapshot(mark.id, mark.pid, f"c{mark.call}", mark.at, label)


async def sys_list_snapshots(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.ListSnapshots
) -> abi.AgentSnapshots:
    marks = sorted(kernel.marks.values(), key=lambda mark: (mark.at, mark.id))
    return abi.AgentSnapshots(tuple(_snapshot(m) for m in marks if m.pid == target.pid))


async def sys_rollback_agent(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.RollbackAgent
) -> abi.RolledBack:
    mark = kernel.marks.get(request.snapshot)
    if mark is None or mark.pid != target.pid:
        raise NotFound(
            f"process {target.pid} has no snapshot {request.snapshot!r}; "
            f"`aios snapshots {target.pid}` shows those that it has."
        )
    if target.state not in ("live", "suspended"):
        raise Conflict(f"process {target.pid} is {target.state}; only a living one is rolled back.")
    if target is call.process:
        raise InvalidCall(
            f"process {target.pid} cannot roll itself back: its next life would ask for it again; "
            "its parent or its user may."
        )
    effects, held = await kernel.lives.rewind(target, mark)
    kernel.trace.emit(ev.AgentRolledBack, target.pid, snapshot=mark.id)
    return abi.RolledBack(
        target.pid,
        mark.id,
        tuple(as_record(target, history) for history in effects),
        tuple(held),
    )


# --- settled calls --------------------------------------------------------------------------------


async def sys_settle_call(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.SettleCall
) -> abi.Status:
    unknown = target.unknown.get(request.target)
    if unknown is None:
        waiting = ", ".join(target.unknown) or "none"
        raise NotFound(
            f"process {target.pid} has no call {request.target!r} of unknown outcome; "
            f"it has {waiting}."
        )
    outcome: abi.Reply | AiosError | None = None
    match request.outcome:
        case "done":
            value = request.value
            text = value if isinstance(value, str) else wire.encode(value).decode()
            outcome = abi.ToolAnswer("" if value is None else text)
        case "fail":
            outcome = replay.outcome_unknown(request.target)
    if outcome is not None:
        replay.settle(kernel, target, unknown.history, outcome)
    else:
        replay.retry(kernel, target, unknown.history)
    kernel.trace.emit(ev.CallSettled, target.pid, call=request.target, outcome=request.outcome)
    del target.unknown[request.target]
    unknown.answer()
    if not target.unknown:
        kernel.processes.resume(target, "unknown_outcome")
    return kernel.processes.status(target)
