"""The process table: how processes come to be, stop, go on and end (their programs: lives.py).

The table owns the processes; what else must hear of a change (the trace, the schedulers, the keys)
is told here, so that no caller can forget one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from aios.abi import events as ev
from aios.abi import wire
from aios.abi.calls import Limits, Reason, SpawnAgent, Status
from aios.abi.messages import Usage
from aios.errors import (
    AiosError,
    BudgetExhausted,
    Conflict,
    Killed,
    QueueFull,
)
from aios.kernel import access
from aios.kernel.process import Process
from aios.ports import (
    CallEnd,
    Forget,
    GrantRow,
    ProcessRow,
    SpentRow,
    Started,
)

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel

STOPPED = "the kernel stopped"
MAX_AID = 2**31 - 1  # numbers go on after the highest one, and a journal's end at 64 bits


class Kept(Struct, omit_defaults=True):
    """What the journal keeps of a process beside its columns; never its environment."""

    spawned: SpawnAgent
    usage: Usage
    started: float | None
    result: str | None
    exit_reason: str
    note: str = ""
    model: str | None = None
    rights: tuple[str, ...] | None = None
    lives: int = 1
    restarts: int = 0
    by: str = ""
    payer: int | None = None  # if it is not the parent


class Processes:
    """All processes of a kernel, by number."""

    def __init__(self, kernel: Kernel, last_pid: int) -> None:
        self._kernel = kernel
        self.table: dict[int, Process] = {}
        self._last_pid = last_pid
        self.at_cap: set[Process] = set()  # suspended for their budget
        self._payers: dict[int, int] = {}  # who pays for whom, as a dead kernel left it

    def has_been(self, pid: int) -> bool:
        """Whether there is or once was a process *pid*; 0 is the machine itself."""
        return 0 <= pid <= self._last_pid

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self.table.values()))

    def __len__(self) -> int:
        return len(self.table)

    def get(self, pid: int) -> Process | None:
        return self.table.get(pid)

    def find(self, pid: int) -> Process:
        process = self.table.get(pid)
        if process is None:
            raise access.no_process(pid)
        return process

    def next_pid(self) -> int:
        """A number for a process, which no other has had."""
        self._last_pid += 1
        return self._last_pid

    def check_room(self, user: str, parent: Process | None) -> None:
        """QueueFull where a limit says that there can be no other process."""
        limits = self._kernel.config.kernel
        if parent is not None and parent.parent is not None:  # a login may have any number
            living = sum(1 for child in parent.children.values() if child.state != "zombie")
            if living >= limits.children:
                raise QueueFull(
                    f"process {parent.pid} has {living} children, the limit; wait for some to end."
                )
            if parent.depth() + 1 > limits.depth:
                raise QueueFull(
                    f"process {parent.pid} is {limits.depth} deep, which is the limit for a child."
                )
        if len(self.table) >= limits.processes:
            living = sum(1 for p in self.table.values() if p.state != "zombie" and p.user == user)
            if living >= limits.processes:
                raise QueueFull(
                    f"user {user} has {living} processes, which is the limit; end some."
                )

    def create(
        self,
        user: str,
        parent: Process | None,
        spawned: SpawnAgent,
        by: str = "",
        pid: int | None = None,
    ) -> Process:
        """A NEW process with its grant; QueueFull or InvalidCall where a limit says no.

        by is the call that makes it: after a crash it tells that the call had its effect.
        """
        self.check_room(user, parent)
        number = self.next_pid() if pid is None else pid
        process = Process(number, user, parent, spawned, self._kernel.clock.now())
        process.by = by
        if parent is not None:
            process.priority = parent.priority if spawned.priority is None else spawned.priority
            process.rights = parent.rights
            process.model = spawned.model or parent.model
            parent.children[process.pid] = process
        if spawned.rights is not None:
            wanted = access.asked(spawned)
            process.rights = wanted if process.rights is None else wanted & process.rights
        self.table[process.pid] = process
        own = GrantRow(f"pid:{process.pid}", access.ANY, f"tree:{process.pid}")
        self._kernel.grants.add(own)
        self._kernel.trace.emit(
            ev.ProcessCreated,
            process.pid,
            own,
            self.row(process),
            parent=parent.pid if parent else None,
            program=process.program,
        )
        return process

    def put(self, row: ProcessRow) -> Process:
        """A process as a dead kernel left it; who its parent is, is told by ``link``."""
        kept = wire.decode(row.detail, Kept)
        process = Process(row.pid, row.user, None, kept.spawned, row.created_at)
        process.state, process.reasons = row.state, set(row.reasons)
        process.priority, process.usage, process.result = row.priority, kept.usage, kept.result
        process.started, process.ended = kept.started, row.ended_at
        process.exit_status, process.exit_reason = row.exit_status, kept.exit_reason
        process.note, process.model = kept.note, kept.model
        process.rights = None if kept.rights is None else frozenset(kept.rights)
        process.lives, process.restarts, process.by = kept.lives, kept.restarts, kept.by
        if row.os_pid is not None and row.os_started is not None:
            process.survivor = Started(row.os_pid, row.os_started)
        if kept.payer is not None:
            self._payers[row.pid] = kept.payer
        self.table[row.pid] = process
        return process

    def link(self, child: Process, parent: Process) -> None:
        """Make *parent* the parent of a process that has none; it pays with the parent's budget."""
        child.parent = parent
        parent.children[child.pid] = child
        _pay(child, parent)

    def link_payers(self) -> None:
        """Let those whose parents had ended stay under the budgets of these."""
        for pid, payer in self._payers.items():
            if found := self.get(payer):
                _pay(self.find(pid), found)
        self._payers.clear()

    def row(self, process: Process) -> ProcessRow:
        os = process.os or process.survivor
        return ProcessRow(
            pid=process.pid,
            user=process.user,
            parent=process.parent.pid if process.parent else None,
            program=process.program,
            state=process.state,
            reasons=tuple(sorted(process.reasons)),
            priority=process.priority,
            os_pid=os.os_pid if os else None,
            os_started=os.os_started if os else None,
            created_at=process.created,
            ended_at=process.ended,
            exit_status=process.exit_status,
            detail=wire.encode(
                Kept(
                    msgspec.structs.replace(process.spawned, env={}),
                    # of the living it is told with what is left (spent)
                    process.usage if process.state == "zombie" else Usage(),
                    process.started,
                    process.result,
                    process.exit_reason,
                    process.note,
                    process.model,
                    None if process.rights is None else tuple(sorted(process.rights)),
                    process.lives,
                    process.restarts,
                    process.by,
                    process.payer.pid
                    if process.payer is not None and process.payer is not process.parent
                    else None,
                )
            ),
        )

    def status(self, process: Process) -> Status:
        calls = tuple(
            f"{c.id} {c.name} {c.state}" for c in process.calls.values() if c.name != "get_status"
        ) + tuple(f"{u.id} {u.name} unknown" for u in process.unknown.values())
        return Status(
            aid=process.pid,
            user=process.user,
            parent=process.parent.pid if process.parent else None,
            program=process.program,
            status=process.status,
            state=process.state,
            reasons=tuple(sorted(process.reasons)),
            note=process.note,
            priority=process.priority,
            model=process.model or self._kernel.cores.default,
            usage=process.spent,
            budget=process.left(),
            residency=process.residency,
            open_calls=calls,
            contexts=tuple(process.contexts),
            children=tuple(process.children),
            task=process.task,
            argv=process.argv,
            os_pid=process.os.os_pid if process.os else None,
            exit_status=process.exit_status,
            exit_reason=process.exit_reason,
            result=process.result,
            created_at=process.created,
            started_at=process.started,
            ended_at=process.ended,
            lives=process.lives,
        )

    def go_live(self, process: Process) -> None:
        process.move("live")
        process.started = self._kernel.clock.now()
        if process.budget.seconds is not None:
            self.count_seconds(process)
        self._kernel.trace.emit(
            ev.ProcessStarted,
            process.pid,
            self.row(process),
            os_pid=process.os.os_pid if process.os else None,
        )

    def spent(self, process: Process) -> list[SpentRow]:
        """What it and those who pay with it have spent and have left, for the journal."""
        rows = []
        each: Process | None = process
        while each is not None:
            left = each.left()
            if each is process or left != Limits():
                rows.append(SpentRow(each.pid, wire.encode(each.usage), wire.encode(left)))
            each = each.payer
        return rows

    def count_seconds(self, process: Process) -> None:
        """Start booking seconds against a budget that has some."""
        self._kernel.spawn_task(self._count_seconds(process))

    async def _count_seconds(self, process: Process) -> None:
        """Book the seconds in which a process lives and is not suspended; stop it at the cap."""
        while process.state != "zombie":
            await process.wait_running()
            left = process.budget.seconds_left()
            if left is None:
                return
            began = self._kernel.clock.monotonic()
            # at the cap only one that asked to fail is still live; its calls end now and then
            await self._kernel.clock.sleep(min(0.5, max(left, 0.001)) if left else 0.1)
            if process.state == "live":
                process.budget.spend_seconds(self._kernel.clock.monotonic() - began)
                self._kernel.trace.record(*self.spent(process))
                if not process.budget.seconds:
                    self.exhausted(process, stop=True)

    def suspend(self, process: Process, reason: Reason) -> None:
        """No new slice, no new call; its program is stopped. Idempotent."""
        if process.state not in ("live", "suspended"):
            raise Conflict(
                f"process {process.pid} cannot be suspended while it is {process.state}."
            )
        if reason in process.reasons:
            return
        process.reasons.add(reason)
        if process.state == "live":
            process.move("suspended")
            if process.os is not None and not process.awaits_launch:
                self._kernel.spawn_task(self._kernel.programs.stop(process.pid))
            for scheduler in self._kernel.schedulers.values():
                scheduler.park(process)
        self._kernel.trace.emit(ev.ProcessSuspended, process.pid, self.row(process), reason=reason)

    def resume(self, process: Process, reason: Reason) -> None:
        """Take one reason away; with the last one the process goes on. Idempotent."""
        if process.state not in ("live", "suspended"):
            raise Conflict(f"process {process.pid} cannot be resumed while it is {process.state}.")
        if reason not in process.reasons:
            return
        process.reasons.discard(reason)
        if reason == "budget":
            self.at_cap.discard(process)
        if not process.reasons:
            process.move("live")
            if process.awaits_launch:
                self._kernel.spawn_task(self._kernel.lives.relaunch(process))
            elif process.os is not None:
                self._kernel.spawn_task(self._kernel.programs.cont(process.pid))
            for scheduler in self._kernel.schedulers.values():
                scheduler.wake(process)
        self._kernel.trace.emit(ev.ProcessResumed, process.pid, self.row(process), reason=reason)

    def exhausted(
        self, process: Process, wanted: int = 1, stop: bool = False, rate: float = 0.0
    ) -> None:
        """At the cap: suspend the process, or fail the call if it asked for that.

        *wanted* is how many tokens it needs to go on, at *rate* dollars each.
        """
        free = process.budget.tokens_free()
        short = "tokens" if free is not None and free < wanted else "usd" if rate else "tokens"
        what = process.budget.exhausted() or short
        if process.on_exhausted == "fail":
            error = BudgetExhausted(
                f"process {process.pid} has no {what} left in its budget; "
                f"give it more with `aios budget set {process.pid} {what}=N`."
            )
            if not stop:
                raise error
            for call in list(process.calls.values()):
                call.end(error)
            return
        process.wanted, process.wanted_usd = wanted, rate
        self.at_cap.add(process)
        self.suspend(process, "budget")

    def recheck_budgets(self) -> None:
        """After tokens were given back: who stopped only because they were held goes on."""
        for process in list(self.at_cap):
            free = process.budget.tokens_free(process.wanted_usd)
            if (free is None or free >= process.wanted) and process.budget.exhausted() is None:
                self.resume(process, "budget")

    async def _watch_owner(self, process: Process, os_pid: int) -> None:
        program = process.runner
        await self._kernel.programs.gone(os_pid)
        if program is None or program.state == "zombie":
            self.ended(process, -1, "lost: the Python that ran it has ended")
        else:  # it ends with that program, or is asked for again by its next life
            process.keeper = None

    async def kill(self, process: Process, reason: str) -> None:
        """End a process and its descendants, children first; returns when their programs are gone.

        All end in one step: a parent that went on while its children's programs are being ended
        could make more of them. And it is done to the end, whoever stops waiting for it.
        """
        grace_s = self._kernel.config.kernel.kill_grace_s
        dying = [p for p in process.subtree() if p.state != "zombie"]
        programs = []
        for each in dying:
            self.ended(each, -15, reason)
            if each.os is not None:
                programs.append(
                    self._kernel.spawn_task(self._kernel.programs.kill(each.pid, grace_s))
                )
        if programs:
            await asyncio.shield(asyncio.gather(*programs))

    def ended(self, process: Process, status: int, reason: str) -> None:
        """A process is over: its calls, rights and mail go, its children are its user's login's."""
        if process.state == "zombie":
            return
        process.exit_status = status if process.exit_status is None else process.exit_status
        process.exit_reason = process.exit_reason or reason
        process.ended = self._kernel.clock.now()
        process.reasons.clear()
        self.at_cap.discard(process)
        process.move("zombie")
        me = asyncio.current_task()
        over = Killed(f"process {process.pid} has ended: {reason}.")
        for call in list(process.calls.values()):
            if call.task is not me:
                call.end(over)
        self._end_pending(process, over)
        if process.heard is not None:
            process.heard.set()
        process.mailbox.clear()
        process.seen_mail.clear()
        process.contexts.clear()
        process.tools.clear()
        self._kernel.grants.drop(f"pid:{process.pid}")
        self._kernel.keys.revoke_of(process)
        self._end_children_in_it(process)
        self._hand_over_children(process)
        self._kernel.trace.emit(
            ev.ProcessEnded,
            process.pid,
            self.row(process),
            *self._kernel.memory.ended(process.pid),
            *self._kernel.files.ended(process.pid),
            exit_status=process.exit_status,
            reason=process.exit_reason,
        )
        for waiter in process.waiters:
            if not waiter.done():
                waiter.set_result(None)
        process.waiters.clear()
        for each in process.subtree():
            if each.state == "zombie":  # it, and what its program ran in its Python
                self.keep(each, self.reap_later(each))
        for each in _payers(process):
            if each.state == "zombie":
                self.keep(each, self.reap_later(each))

    def _end_pending(self, process: Process, over: AiosError) -> None:
        """What an earlier life had begun and no later one came back to ends with the process."""
        for unknown in process.unknown.values():
            unknown.answer(over)
        process.unknown.clear()
        for call in list(process.pending):
            self.end_pending(process, call, over.message)
        process.replay = None

    def end_pending(self, process: Process, call: str, reason: str) -> None:
        """End a call of a dead life that none comes back to."""
        name = process.pending.pop(call)
        end = CallEnd(call, "cancelled", self._kernel.clock.now(), None, reason)
        self._kernel.trace.emit(
            ev.CallCancelled, process.pid, end, call=call, name=name, reason=reason
        )

    def keep(self, process: Process, work: Coroutine[Any, Any, None]) -> None:
        """What waits on a process: for the OS process that it is tied to, then to forget it."""
        if process.keeper is not None and process.keeper is not asyncio.current_task():
            process.keeper.cancel()
        process.keeper = self._kernel.spawn_task(work)

    def tie(self, process: Process, os_pid: int) -> None:
        """Let a process end with the OS process in which its caller runs it."""
        self.keep(process, self._watch_owner(process, os_pid))

    def _end_children_in_it(self, process: Process) -> None:
        """Those that its program ran in its own Python, and did not ask for again in this life."""
        for child in list(process.children.values()):
            is_untied = child.keeper is None and child.spawned.os_pid is not None
            if child.state != "zombie" and not child.argv and is_untied:
                self.ended(child, -1, "lost: the Python that ran it has ended")

    def _hand_over_children(self, process: Process) -> None:
        heir = process.parent if process.parent and process.parent.state != "zombie" else None
        login = self._kernel.keys.login_of(process.user)
        if login is not None and login is not process:
            heir = login
        for child in list(process.children.values()):
            if child.state != "zombie" and heir is not None:
                del process.children[child.pid]
                child.parent = heir
                heir.children[child.pid] = child
                self._kernel.trace.record(self.row(child))

    async def reap_later(self, process: Process) -> None:
        over = (process.ended or 0.0) + self._kernel.config.kernel.zombie_s
        await self._kernel.clock.sleep(max(0.0, over - self._kernel.clock.now()))
        self.reap(process)

    def reap(self, process: Process) -> None:
        """Forget a zombie that nobody needs: what needs it tries again at its own end.

        The next life of a program may run it in its Python again; others may pay with its budget.
        """
        if self.table.get(process.pid) is not process or process.state != "zombie":
            return
        runner = process.runner
        if runner is not None and runner.state != "zombie" or self._pays(process):
            return
        del self.table[process.pid]
        if process.parent is not None:
            process.parent.children.pop(process.pid, None)
        if process.keeper is not None and process.keeper is not asyncio.current_task():
            process.keeper.cancel()
        self._kernel.keys.revoke_of(process)
        self._kernel.trace.emit(
            ev.ProcessReaped,
            process.pid,
            Forget(process.pid),
            *self._kernel.files.forgotten(process.pid),
        )

    def _pays(self, process: Process) -> bool:
        """Whether living ones pay with its budget."""
        return process.left() != Limits() and any(
            process in _payers(other) for other in self if other.state != "zombie"
        )

    def renumber(self, process: Process, aid: int) -> None:
        if process.state != "new":
            raise Conflict(
                f"process {process.pid} has run already; only a new one can get another number."
            )
        if not 1 <= aid <= MAX_AID or aid in self.table:
            raise Conflict(f"the number {aid} is taken or not 1 to {MAX_AID}; choose a free one.")
        old = process.pid
        del self.table[old]
        self._kernel.grants.drop(f"pid:{old}")
        process.pid = aid
        self._last_pid = max(self._last_pid, aid)
        self.table[aid] = process
        if process.parent is not None:
            process.parent.children.pop(old, None)
            process.parent.children[aid] = process
        own = self._kernel.grants.add(GrantRow(f"pid:{aid}", access.ANY, f"tree:{aid}"))
        rows = self._kernel.keys.renumber(old, aid)
        self._kernel.trace.emit(
            ev.AidChanged, old, Forget(old), own, *rows, self.row(process), aid=aid
        )


def _pay(process: Process, payer: Process) -> None:
    process.payer, process.budget.above = payer, payer.budget


def _payers(process: Process) -> Iterator[Process]:
    """Those with whose budgets it pays, beside its own."""
    payer = process.payer
    while payer is not None:
        yield payer
        payer = payer.payer
