"""Calls on what is known of a process, and on the machine itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.abi import wire
from aios.errors import InvalidCall
from aios.kernel.policies import POLICIES, check
from aios.kernel.process import OpenCall, Process
from aios.ports import EVERY_CALL, CallFilter, CallHistory

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel

DAY_S = 86_400.0
NAME_CHARACTERS = 200  # of an event's name: events hold sizes and ids, contents are data


async def sys_log_event(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.LogEvent
) -> abi.Done:
    name = request.name.strip()
    if not name or len(name) > NAME_CHARACTERS or not name.isprintable():
        raise InvalidCall(
            f"the event's name {request.name[:NAME_CHARACTERS]!r} has {len(request.name)} "
            f"characters; give 1 to {NAME_CHARACTERS} printable ones, and the rest as data."
        )
    # in the transaction that ends the call, as nothing is awaited in between
    size = 0 if request.data is None else len(wire.encode(request.data))
    kernel.trace.emit(ev.EventLogged, target.pid, call=call.id, name=name, bytes=size)
    return abi.Done()


async def sys_get_transcript(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.GetTranscript
) -> abi.Transcript:
    if request.limit < 1:
        raise InvalidCall(f"limit must be at least 1, not {request.limit}.")
    if unknown := sorted(set(request.names) - abi.CALLS.keys()):
        raise InvalidCall(f"there is no call named {unknown[0]!r} to look for.")
    which = CallFilter(
        limit=min(request.limit, EVERY_CALL),
        before=None if request.before is None else number_of(request.before),
        names=request.names,
        text=request.text or None,
        since=request.since,
        until=request.until,
    )
    calls = await kernel.journal.calls(target.pid, which)
    return abi.Transcript(tuple(as_record(target, history) for history in calls))


def number_of(call: str) -> int:
    """A call's number, of its id."""
    digits = call.removeprefix("c")
    if digits == call or not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise InvalidCall(f"{call[:40]!r} is no call's id: they look like c12.")
    return int(digits)


def as_record(process: Process, history: CallHistory) -> abi.CallRecord:
    start, end = history.start, history.end
    return abi.CallRecord(
        id=start.id,
        aid=start.pid,
        name=start.name,
        state=end.state if end else _state(process, start.id),
        started_at=start.started_at,
        ended_at=end.ended_at if end else None,
        request=msgspec.json.decode(start.request),
        reply=msgspec.json.decode(end.reply) if end and end.reply else None,
        error=end.error if end else None,
        void=history.void,
    )


def _state(process: Process, call: str) -> abi.CallState:
    """Of a call without an end."""
    if call in process.unknown:
        return "unknown"
    found = process.calls.get(call)
    return found.state if found else "active"  # a restarted program has not come back to it yet


async def sys_get_log(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.GetLog
) -> abi.Log:
    ended = target.state == "zombie"
    text, offset = await kernel.programs.log(target.pid, request.offset)
    return abi.Log(text, offset, ended)


async def sys_get_journal(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.GetJournal
) -> abi.JournalReport:
    return await kernel.journal.report()


async def sys_prune_journal(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.PruneJournal
) -> abi.Pruning:
    kept = kernel.config.journal
    days = kept.keep_days if request.days is None else request.days
    limit = kept.max_mb << 20 if request.max_bytes is None else request.max_bytes
    if not 0 <= days < math.inf:
        raise InvalidCall(f"days is {days:g}: give 0 or more of them, or leave it out.")
    if limit < 0:
        raise InvalidCall(f"max_bytes is {limit}: give 0 or more, or leave it out.")
    await kernel.trace.durable()  # what was said until now may go as well
    return await kernel.journal.prune(kernel.clock.now() - days * DAY_S, limit)


async def sys_get_scheduler(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.GetScheduler
) -> abi.SchedulerReport:
    return _report(kernel)


async def sys_set_scheduler(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.SetScheduler
) -> abi.SchedulerReport:
    check(request.policy, request.quantum)
    kernel.policy = request.policy or kernel.policy
    kernel.quantum = request.quantum or kernel.quantum
    for scheduler in kernel.schedulers.values():
        scheduler.set(kernel.policy, kernel.quantum)
    kernel.trace.emit(ev.SchedulerChanged, 0, policy=kernel.policy, quantum=kernel.quantum)
    return _report(kernel)


def _report(kernel: Kernel) -> abi.SchedulerReport:
    reports = [scheduler.report() for scheduler in kernel.schedulers.values()]
    return abi.SchedulerReport(
        policy=kernel.policy,
        quantum=kernel.quantum,
        slots=sum(r.slots for r in reports) or kernel.config.core.slots,
        queued=sum(r.queued for r in reports),
        running=sum(r.running for r in reports),
        policies=tuple(POLICIES),
    )
