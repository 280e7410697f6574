"""Calls on what is known of a process, and on the machine itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.errors import InvalidCall
from aios.kernel.policies import POLICIES, check
from aios.kernel.process import OpenCall, Process
from aios.ports import CallHistory

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel


async def sys_get_transcript(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.GetTranscript
) -> abi.Transcript:
    if request.limit < 1:
        raise InvalidCall(f"limit must be at least 1, not {request.limit}.")
    calls = await kernel.journal.calls(target.pid, request.limit)
    return abi.Transcript(tuple(_record(history) for history in calls))


def _record(history: CallHistory) -> abi.CallRecord:
    start, end = history.start, history.end
    return abi.CallRecord(
        id=start.id,
        aid=start.pid,
        name=start.name,
        state=end.state if end else "active",
        started_at=start.started_at,
        ended_at=end.ended_at if end else None,
        request=msgspec.json.decode(start.request),
        reply=msgspec.json.decode(end.reply) if end and end.reply else None,
        error=end.error if end else None,
    )


async def sys_get_log(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.GetLog
) -> abi.Log:
    ended = target.state == "zombie"
    text, offset = await kernel.programs.log(target.pid, request.offset)
    return abi.Log(text, offset, ended)


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
