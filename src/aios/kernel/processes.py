"""The process table: how processes come to be, stop, go on and end.

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
from aios.abi.calls import Reason, SpawnAgent, Status
from aios.abi.messages import Usage
from aios.errors import (
    AiosError,
    BudgetExhausted,
    Cancelled,
    Conflict,
    Killed,
    QueueFull,
)
from aios.kernel import access
from aios.kernel.process import Process
from aios.ports import Forget, GrantRow, ProcessRow

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel

STOPPED = "the kernel stopped"
MAX_AID = 2**31 - 1  # numbers go on after the highest one, and a journal's end at 64 bits
RESTARTS = 3  # of a program that asks for restart on-crash


class Kept(Struct):
    """What the journal keeps of a process beside its columns; never its environment."""

    spawned: SpawnAgent
    usage: Usage
    started: float | None
    result: str | None
    exit_reason: str


class Processes:
    """All processes of a kernel, by number."""

    def __init__(self, kernel: Kernel, last_pid: int) -> None:
        self._kernel = kernel
        self.table: dict[int, Process] = {}
        self._last_pid = last_pid
        self.at_cap: set[Process] = set()  # suspended for their budget

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

    def create(self, user: str, parent: Process | None, spawned: SpawnAgent) -> Process:
        """A NEW process with its grant; QueueFull or InvalidCall where a limit says no."""
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
        self._last_pid += 1
        process = Process(self._last_pid, user, parent, spawned, self._kernel.clock.now())
        if parent is not None:
            process.priority = parent.priority if spawned.priority is None else spawned.priority
            process.rights = parent.rights
            process.model = spawned.model or parent.model
            parent.children[process.pid] = process
        if spawned.rights is not None:
            wanted = frozenset(spawned.rights)
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

    def restore(self, row: ProcessRow, now: float) -> None:
        """What a dead kernel left: a zombie that can still be asked about; logins are forgotten."""
        kept = wire.decode(row.detail, Kept)
        trace = self._kernel.trace
        if row.parent is None:
            if row.state == "zombie":
                trace.record(Forget(row.pid))
            else:
                trace.emit(
                    ev.ProcessEnded, row.pid, Forget(row.pid), exit_status=-1, reason=STOPPED
                )
            return
        process = Process(row.pid, row.user, None, kept.spawned, row.created_at)
        process.priority, process.usage, process.result = row.priority, kept.usage, kept.result
        process.started, process.exit_reason = kept.started, kept.exit_reason or STOPPED
        process.exit_status = -1 if row.exit_status is None else row.exit_status
        process.ended = row.ended_at or now
        process.state = "zombie"
        self.table[row.pid] = process
        if row.state != "zombie":
            trace.emit(
                ev.ProcessEnded,
                row.pid,
                # who made it has ended too, but without a parent it would be taken for a login
                msgspec.structs.replace(self.row(process), parent=row.parent),
                exit_status=process.exit_status,
                reason=process.exit_reason,
            )
        self._keep(process, self._reap_later(process))

    def row(self, process: Process) -> ProcessRow:
        return ProcessRow(
            pid=process.pid,
            user=process.user,
            parent=process.parent.pid if process.parent else None,
            program=process.program,
            state=process.state,
            reasons=tuple(sorted(process.reasons)),
            priority=process.priority,
            os_pid=process.os.os_pid if process.os else None,
            os_started=process.os.os_started if process.os else None,
            created_at=process.created,
            ended_at=process.ended,
            exit_status=process.exit_status,
            detail=wire.encode(
                Kept(
                    msgspec.structs.replace(process.spawned, env={}),
                    process.usage,
                    process.started,
                    process.result,
                    process.exit_reason,
                )
            ),
        )

    def status(self, process: Process) -> Status:
        calls = tuple(
            f"{c.id} {c.name} {c.state}" for c in process.calls.values() if c.name != "get_status"
        )
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

    async def launch(self, process: Process, key: str) -> None:
        """Start a process's program; InvalidCall if it cannot be started (the process ends)."""
        spawned = process.spawned
        env = {**(spawned.env or self._kernel.base_env), **self._environment(process, key)}
        try:
            await self._start(process, env)
        except AiosError as error:
            self.ended(process, 127, error.message)
            raise
        self._kernel.spawn_task(self._watch(process, key))

    async def _start(self, process: Process, env: dict[str, str]) -> None:
        """Start its program; what happened to the process meanwhile happens to the program."""
        process.os = await self._kernel.programs.start(
            process.pid, process.spawned.argv, process.spawned.cwd, env
        )
        if process.state == "zombie":
            await self._kernel.programs.kill(process.pid, 0)
        elif process.state == "new":
            self.go_live(process)
        else:  # a next kernel must know the OS process, to end it
            self._kernel.trace.record(self.row(process))
            if process.is_suspended:
                await self._kernel.programs.stop(process.pid)

    def _environment(self, process: Process, key: str) -> dict[str, str]:
        env = {
            "AIOS_KEY": key,
            "AIOS_PID": str(process.pid),
            "AIOS_TASK": process.task,
            "AIOS_PROGRAM": process.program,
            "OPENAI_API_KEY": key,
            "OPENAI_CUSTOM_HEADERS": f"X-Session-ID: {process.pid}",
            "OPENAI_AGENTS_DISABLE_TRACING": "1",
        }
        if self._kernel.socket:
            env["AIOS_URL"] = f"unix:{self._kernel.socket}"
        if self._kernel.base_url:
            env |= {
                "OPENAI_BASE_URL": f"{self._kernel.base_url}/v1",
                "OPENAI_API_BASE": f"{self._kernel.base_url}/v1",
            }
            env.setdefault("AIOS_URL", self._kernel.base_url)
        return env

    async def _watch(self, process: Process, key: str) -> None:
        """Until its program has ended; starts it again if it asked for that."""
        while True:
            status = await self._kernel.programs.wait(process.pid)
            if process.state == "zombie":
                return
            if status == 0 or process.spawned.restart == "never" or process.restarts >= RESTARTS:
                break
            process.restarts += 1
            for call in list(process.calls.values()):
                call.end(Cancelled("its program crashed and is started again"))
            env = {
                **(process.spawned.env or self._kernel.base_env),
                **self._environment(process, key),
            }
            process.exit_status, process.exit_reason, process.result = None, "", None
            try:
                await self._start(process, env)
            except AiosError as error:
                self.ended(process, 127, error.message)
                return
        how = f"exited with status {status}" if status >= 0 else f"ended by signal {-status}"
        if process.exit_status is None:
            process.exit_status = status
        self.ended(process, status, process.exit_reason or how)

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
            if process.os is not None:
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
            if process.os is not None:
                self._kernel.spawn_task(self._kernel.programs.cont(process.pid))
            for scheduler in self._kernel.schedulers.values():
                scheduler.wake(process)
        self._kernel.trace.emit(ev.ProcessResumed, process.pid, self.row(process), reason=reason)

    def exhausted(self, process: Process, wanted: int = 1, stop: bool = False) -> None:
        """At the cap: suspend the process, or fail the call if it asked for that.

        *wanted* is how many tokens it needs to go on.
        """
        what = process.budget.exhausted() or "tokens"
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
        process.wanted = wanted
        self.at_cap.add(process)
        self.suspend(process, "budget")

    def recheck_budgets(self) -> None:
        """After tokens were given back: who stopped only because they were held goes on."""
        for process in list(self.at_cap):
            free = process.budget.tokens_free()
            if (free is None or free >= process.wanted) and process.budget.exhausted() is None:
                self.resume(process, "budget")

    async def _watch_owner(self, process: Process, os_pid: int) -> None:
        await self._kernel.programs.gone(os_pid)
        self.ended(process, -1, "lost: the Python that ran it has ended")

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
        for call in list(process.calls.values()):
            if call.task is not me:
                call.end(Killed(f"process {process.pid} has ended: {reason}."))
        process.mailbox.clear()
        process.seen_mail.clear()
        process.contexts.clear()
        process.tools.clear()
        self._kernel.grants.drop(f"pid:{process.pid}")
        self._kernel.keys.revoke_of(process)
        self._hand_over_children(process)
        self._kernel.trace.emit(
            ev.ProcessEnded,
            process.pid,
            self.row(process),
            exit_status=process.exit_status,
            reason=process.exit_reason,
        )
        for waiter in process.waiters:
            if not waiter.done():
                waiter.set_result(None)
        process.waiters.clear()
        self._keep(process, self._reap_later(process))

    def _keep(self, process: Process, work: Coroutine[Any, Any, None]) -> None:
        """What waits on a process: for the OS process that it is tied to, then to forget it."""
        if process.keeper is not None and process.keeper is not asyncio.current_task():
            process.keeper.cancel()
        process.keeper = self._kernel.spawn_task(work)

    def tie(self, process: Process, os_pid: int) -> None:
        """Let a process end with the OS process in which its caller runs it."""
        self._keep(process, self._watch_owner(process, os_pid))

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

    async def _reap_later(self, process: Process) -> None:
        over = (process.ended or 0.0) + self._kernel.config.kernel.zombie_s
        await self._kernel.clock.sleep(max(0.0, over - self._kernel.clock.now()))
        self.reap(process)

    def reap(self, process: Process) -> None:
        """Forget a zombie."""
        if self.table.get(process.pid) is not process or process.state != "zombie":
            return
        del self.table[process.pid]
        if process.parent is not None:
            process.parent.children.pop(process.pid, None)
        if process.keeper is not None and process.keeper is not asyncio.current_task():
            process.keeper.cancel()
        self._kernel.trace.emit(ev.ProcessReaped, process.pid, Forget(process.pid))

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
