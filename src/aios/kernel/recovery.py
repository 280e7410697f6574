"""Recovery: a kernel that starts on the journal of a dead one goes on where that one was.

``restore`` puts back the process table, budgets, contexts and mailboxes; after it the door is open.
``resume`` then works in the background: it ends what still runs of the dead kernel's programs and
starts them again, a few at a time, those with open calls first; they replay (replay.py).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.abi import wire
from aios.abi.calls import Limits
from aios.abi.messages import Usage
from aios.errors import AiosError
from aios.kernel.context import Context
from aios.kernel.process import Process
from aios.kernel.processes import STOPPED
from aios.ports import ContextRow, Forget, Image, ProcessRow

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel

STARTING_S = 5.0  # a program that has not called by then no longer counts as starting


def restore(kernel: Kernel, image: Image) -> list[ProcessRow]:
    """Put back what *image* holds; the rows of those whose programs are to be started again."""
    processes = kernel.processes
    programs = []
    for row in image.processes:
        process = processes.put(row)
        if process.argv and process.state != "zombie":
            process.awaits_launch = True
            programs.append(row)
    for row in image.processes:
        parent = processes.get(row.parent) if row.parent is not None else None
        if parent is not None:
            processes.link(processes.find(row.pid), parent)
    for call in image.open_calls:
        if caller := processes.get(call.pid):
            caller.pending[call.id] = call.name
    _contents(kernel, image)
    for row in image.processes:
        process = processes.find(row.pid)
        if row.parent is None:
            _restore_login(kernel, process)
        kernel.keys.restore(process)
    for row in image.processes:  # now that the logins are back
        if row.parent is None:
            continue
        process = processes.find(row.pid)
        if process.state != "zombie" and _is_orphan(process):
            if process.parent is not None:
                del process.parent.children[process.pid]
            processes.link(process, kernel.keys.login(process.user))
        kernel.lives.go_on(process)
    processes.link_payers()
    with_calls = {call.pid for call in image.open_calls}
    return sorted(programs, key=lambda row: (row.pid not in with_calls, row.pid))


def _is_orphan(process: Process) -> bool:
    return process.parent is None or process.parent.state == "zombie"


def _restore_login(kernel: Kernel, login: Process) -> None:
    """A login goes on if there is something to go on with; else the next request makes one."""
    for call in list(login.pending):  # who made it was a connection
        kernel.processes.end_pending(login, call, STOPPED)
    keeps = login.contexts or any(child.state != "zombie" for child in login.children.values())
    if login.state == "zombie":
        kernel.trace.record(Forget(login.pid))
    elif not keeps:
        kernel.trace.emit(
            ev.ProcessEnded, login.pid, Forget(login.pid), exit_status=-1, reason=STOPPED
        )
    else:
        return
    for child in login.children.values():
        child.parent = child.payer = None
        child.budget.above = None
    del kernel.processes.table[login.pid]


def _contents(kernel: Kernel, image: Image) -> None:
    """What processes have spent, said, and not yet received."""
    find = kernel.processes.get
    for spent in image.spent:
        if process := find(spent.pid):
            process.usage = wire.decode(spent.usage, Usage)
            left = wire.decode(spent.left, Limits)
            budget = process.budget
            budget.tokens, budget.seconds = left.tokens, left.seconds
            budget.calls, budget.usd = left.calls, left.usd
    said: defaultdict[tuple[int, str], list[ContextRow]] = defaultdict(list)
    for message in image.contexts:
        said[message.pid, message.context].append(message)
    settings = {(setting.pid, setting.context): setting for setting in image.settings}
    for pid, name in sorted(said.keys() | settings.keys()):
        process = find(pid)
        if process is not None and process.state != "zombie":
            rows = said.get((pid, name), [])
            process.contexts[name] = Context.from_rows(name, rows, settings.get((pid, name)))
    for mail in image.mail:
        if process := find(mail.pid):
            body = wire.decode(mail.mail, abi.Mail)
            process.put_mail(mail.number, body, len(wire.encode(body.body)))
    for mail in (*image.taken, *image.mail):
        if process := find(mail.pid):
            process.mail_number = max(process.mail_number, mail.number)
            known = wire.decode(mail.mail, abi.Mail)
            process.seen_mail[known.sender, known.id] = None


async def resume(kernel: Kernel, programs: list[ProcessRow]) -> None:
    """Start the programs of the dead kernel again, so many at a time, in this order."""
    slots = asyncio.Semaphore(kernel.config.kernel.restart_concurrency)
    for row in programs:
        await slots.acquire()
        # each by itself: what is wrong with one holds up no other
        starting = kernel.spawn_task(_resume(kernel, row))
        starting.add_done_callback(lambda _: slots.release())


async def _resume(kernel: Kernel, row: ProcessRow) -> None:
    process = kernel.processes.get(row.pid)
    if process is None:
        return
    await kernel.lives.end_survivor(process)
    if process.state == "zombie" or not process.awaits_launch:
        return
    if process.is_suspended:  # its program starts when it goes on; what is unknown shows at once
        try:
            await kernel.lives.look_back(process)
        except AiosError as error:
            kernel.lives.not_started(process, error)
        return
    heard = kernel.lives.listen(process)
    await kernel.lives.relaunch(process)
    if not process.is_suspended:  # it counts as starting until it has called
        await kernel.lives.either(heard.wait(), STARTING_S)
