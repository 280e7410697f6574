"""Calls on processes: numbers, states, priorities, life and death, budgets, mail."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.abi import wire
from aios.errors import Conflict, InvalidCall, NotFound, PermissionDenied, QueueFull
from aios.kernel import access, window
from aios.kernel.process import OpenCall, Process
from aios.ports import MailRow, MailTaken

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel

MAX_STATUS = 2**31 - 1
_REMEDIES = {
    "budget": "; `aios budget set {pid} …` lets it go on.",
    "unknown_outcome": "; `aios settle {pid} CALL --done|--retry|--fail` lets it go on.",
}


async def sys_get_aid(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.GetAid
) -> abi.Aid:
    return abi.Aid(target.pid)


async def sys_set_aid(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.SetAid
) -> abi.Aid:
    own = f"pid:{target.pid}"
    kept = await kernel.memory.size(own) + await kernel.files.size(own)
    if kept or target.contexts or target.mailbox:
        raise Conflict(
            f"process {target.pid} has contexts, mail, records or files under its number already; "
            "only one that has nothing yet can get another."
        )
    kernel.processes.renumber(target, request.aid)
    return abi.Aid(target.pid)


async def sys_get_status(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.GetStatus
) -> abi.Status:
    return kernel.processes.status(target)


async def sys_set_status(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.SetStatus
) -> abi.Status:
    if request.note is not None:
        target.note = request.note[:200]
        kernel.trace.record(kernel.processes.row(target))
    if request.status == "suspended":
        kernel.processes.suspend(target, "user")
    elif request.status == "running":
        _resume(kernel, target)
    return kernel.processes.status(target)


async def sys_get_priority(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.GetPriority
) -> abi.Priority:
    return abi.Priority(target.pid, target.priority)


async def sys_set_priority(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.SetPriority
) -> abi.Priority:
    _may_have(call.process, target.parent, request.priority)
    target.priority = request.priority
    kernel.trace.emit(
        ev.PriorityChanged, target.pid, kernel.processes.row(target), priority=request.priority
    )
    for scheduler in kernel.schedulers.values():
        scheduler.wake(target)
    return abi.Priority(target.pid, target.priority)


def _may_have(caller: Process, parent: Process | None, priority: int) -> None:
    """Like nice: anybody may step back; ahead of one's parent only a user's own key may go."""
    if not -20 <= priority <= 19:
        raise InvalidCall(f"a priority is -20 (first) to 19 (last), not {priority}.")
    if parent is not None and priority < parent.priority and caller.parent is not None:
        raise PermissionDenied(
            f"process {caller.pid} may not set priority {priority}, "
            f"ahead of its parent's {parent.priority}."
        )


async def sys_suspend_agent(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.SuspendAgent
) -> abi.Status:
    kernel.processes.suspend(target, "user")
    return kernel.processes.status(target)


async def sys_resume_agent(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.ResumeAgent
) -> abi.Status:
    _resume(kernel, target)
    return kernel.processes.status(target)


def _resume(kernel: Kernel, target: Process) -> None:
    if "diverged" in target.reasons:  # its program is told what was wrong
        kernel.processes.resume(target, "diverged")
    if target.reasons and "user" not in target.reasons:
        why = ", ".join(sorted(target.reasons))
        raise Conflict(
            f"process {target.pid} is suspended for another reason: {why}"
            + _REMEDIES.get(why, ".").format(pid=target.pid)
        )
    kernel.processes.resume(target, "user")


async def sys_spawn_agent(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.SpawnAgent
) -> abi.Spawned:
    if not request.program.strip():
        raise InvalidCall("the program's name is empty; name it after what it runs.")
    if request.priority is not None:
        _may_have(target, target, request.priority)
    if request.model is not None:
        kernel.model_for(target, request.model)
    check_limits(request.budget)
    window.check_size(request.window)
    if unknown := sorted(set(request.rights or ()) - abi.CALLS.keys()):
        raise InvalidCall(f"there is no call named {unknown[0]!r} to have a right to.")
    process = kernel.processes.create(target.user, target, request, call.id)
    key = kernel.keys.issue(target.user, f"process {process.pid}", process)
    if not request.argv:
        if request.os_pid is not None:
            kernel.processes.tie(process, request.os_pid)
        return abi.Spawned(process.pid, key.key)
    kernel.lives.keep_environment(process)
    # to its end, also when the caller goes away: a program half started would be nobody's
    await asyncio.shield(kernel.spawn_task(kernel.lives.launch(process, key.key)))
    return abi.Spawned(process.pid)


def check_limits(budget: abi.Limits) -> None:
    """InvalidCall for an amount below nothing."""
    for name in budget.__struct_fields__:
        amount = getattr(budget, name)
        if amount is not None and amount < 0:
            raise InvalidCall(f"a budget cannot be negative: {name}={amount}.")


async def sys_exit_agent(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.ExitAgent
) -> abi.Done:
    if abs(request.exit_status) > MAX_STATUS:
        raise InvalidCall(
            f"an exit status is a number up to {MAX_STATUS}, not {request.exit_status}."
        )
    target.exit_status, target.result = request.exit_status, request.result
    target.exit_reason = request.reason or f"exited with status {request.exit_status}"
    if target.os is None:  # nothing else would tell that it is over
        kernel.processes.ended(target, request.exit_status, target.exit_reason)
    return abi.Done()


async def sys_kill_agent(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.KillAgent
) -> abi.Exit:
    await kernel.processes.kill(target, request.reason)
    return _exit(target)


async def sys_wait_agent(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.WaitAgent
) -> abi.Exit:
    if target is call.process:
        raise InvalidCall(f"process {target.pid} cannot wait for its own end.")
    while target.state != "zombie":
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        target.waiters.append(over)
        try:
            await over
        finally:
            if over in target.waiters:
                target.waiters.remove(over)
    if request.reap and target.parent is call.process:
        kernel.processes.reap(target)
    return _exit(target)


def _exit(process: Process) -> abi.Exit:
    assert process.exit_status is not None
    return abi.Exit(
        process.pid, process.exit_status, process.exit_reason, process.result, process.usage
    )


async def sys_list_agents(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.ListAgents
) -> abi.Processes:
    now = kernel.clock.now()
    return abi.Processes(
        tuple(
            kernel.processes.status(process)
            for process in kernel.processes
            if (request.all or process.state != "zombie")
            and access.sees(kernel.grants, target, process, now)
        )
    )


async def sys_set_budget(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.SetBudget
) -> abi.UsageReport:
    check_limits(request.budget)
    if target is call.process and target.parent is not None:
        raise PermissionDenied(
            f"process {target.pid} may not change its own budget; its parent or its user may."
        )
    had_seconds = target.budget.seconds is not None
    target.budget.replace(request.budget)
    target.budget.lift(request.budget, target.parent.budget if target.parent else None)
    left = target.left()
    kernel.trace.emit(
        ev.BudgetChanged,
        target.pid,
        *kernel.processes.spent(target),
        tokens=left.tokens,
        seconds=left.seconds,
        calls=left.calls,
        usd=left.usd,
    )
    if not had_seconds and request.budget.seconds is not None and target.state != "new":
        kernel.processes.count_seconds(target)
    for process in kernel.processes:  # it, and those below that it held up
        if (
            "budget" in process.reasons
            and process.is_within(target)
            and process.budget.exhausted() is None
        ):
            kernel.processes.resume(process, "budget")
    return abi.UsageReport(target.pid, target.spent, left)


async def sys_get_usage(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.GetUsage
) -> abi.UsageReport:
    owner, taken = f"pid:{target.pid}", await kernel.programs.taken(target.pid)
    return abi.UsageReport(
        target.pid,
        target.spent,
        target.left(),
        await kernel.memory.size(owner),
        await kernel.files.size(owner),
        taken.cpu_s,
        taken.rss_bytes,
    )


# --- mail -----------------------------------------------------------------------------------------


async def sys_send_message(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.SendMessage
) -> abi.Sent:
    receiver = _addressee(kernel, target, request.to)
    mail = abi.Mail(request.id or call.id, target.pid, request.body, kernel.clock.now())
    if (target.pid, mail.id) in receiver.seen_mail:  # sent again after a time-out: it arrives once
        return abi.Sent(mail.id)
    limits, size = kernel.config.kernel, len(wire.encode(request.body))
    if (
        len(receiver.mailbox) >= limits.mailbox_messages
        or receiver.mail_size + size > limits.mailbox_bytes
    ):
        raise QueueFull(
            f"the mailbox of process {receiver.pid} is full "
            f"({len(receiver.mailbox)} messages, {receiver.mail_size} bytes); "
            "it must receive some first."
        )
    if request.id is not None:
        receiver.seen_mail[target.pid, mail.id] = None
        if len(receiver.seen_mail) > limits.mailbox_messages:
            del receiver.seen_mail[next(iter(receiver.seen_mail))]
    number = receiver.mail_number + 1
    receiver.put_mail(number, mail, size)
    call.effects.append(MailRow(receiver.pid, number, wire.encode(mail)))
    call.undo.append(partial(receiver.unsend, number, mail, size))
    return abi.Sent(mail.id)


def _addressee(kernel: Kernel, sender: Process, to: int | str) -> Process:
    """By number or by program name, among the living processes of the same user."""
    if isinstance(to, int):
        found = [p for p in (kernel.processes.get(to),) if p is not None]
    else:
        found = [p for p in kernel.processes if p.program == to]
    found = [p for p in found if p.user == sender.user and p.state != "zombie"]
    if not found:
        raise NotFound(f"there is no living process {to!r} to send to.")
    if len(found) > 1:
        numbers = ", ".join(str(p.pid) for p in found)
        raise Conflict(f"{to!r} names {len(found)} processes ({numbers}); send to a number.")
    return found[0]


async def sys_recv_message(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.RecvMessage
) -> abi.Mail:
    while True:
        await kernel.blocked(call)  # taken only by one who may have it: a caller may go away
        for number, mail in target.mailbox:
            if request.sender in (None, mail.sender):
                target.mailbox.remove((number, mail))
                size = len(wire.encode(mail.body))
                target.mail_size -= size
                call.effects.append(MailTaken(target.pid, number, call.id))
                call.undo.append(partial(target.put_mail, number, mail, size))
                return mail
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        target.received.append(waiter)
        try:
            await waiter
        finally:
            target.received.remove(waiter)


async def sys_record(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.Record
) -> abi.Recorded:
    # what an earlier life kept is told by its replay: to come here is to be new
    if call.made is not None:  # or to go on with what it had read, and could not be told any more
        request = wire.decode(call.made.start.request, abi.Record)
    return abi.Recorded(request.value, known=not request.recall)
