"""The process table: how processes come to be, stop, go on and end.

The table owns the processes; what else must hear of a change (the trace, the schedulers, the keys)
is told here, so that no caller can forget one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from aios.abi import events as ev
from aios.abi import wire
from aios.abi.calls import CALLS, Call, Limits, Mail, Reason, SpawnAgent, Spawned, Status
from aios.abi.messages import Usage
from aios.errors import (
    AiosError,
    BudgetExhausted,
    Cancelled,
    Conflict,
    Killed,
    QueueFull,
)
from aios.kernel import access, replay
from aios.kernel.context import Context
from aios.kernel.process import Process
from aios.kernel.replay import Replay, Unknown
from aios.kernel.table import SYSTEM_CALLS
from aios.ports import (
    EVERY_CALL,
    CallEnd,
    CallFilter,
    CallHistory,
    EnvRow,
    Forget,
    GrantRow,
    MarkRow,
    ProcessRow,
    Rewind,
    SpentRow,
    Started,
)

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel

STOPPED = "the kernel stopped"
NOT_STARTED = "not started again: "  # and why, in the note of a process
MAX_AID = 2**31 - 1  # numbers go on after the highest one, and a journal's end at 64 bits
RESTARTS = 3  # of a program that asks for restart on-crash


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

    async def launch(self, process: Process, key: str) -> None:
        """Start a process's program; InvalidCall if it cannot be started (the process ends)."""
        try:
            await self._start(process, process.spawned.env, key)
        except AiosError as error:
            self.ended(process, 127, error.message)
            raise
        self._kernel.spawn_task(self._watch(process))

    async def relaunch(self, process: Process) -> None:
        """Start its program, if it awaits that: a next life, which replays the earlier ones.

        A process with calls that have to be settled first stays suspended.
        """
        async with process.launching:
            if process.awaits_launch and process.state != "zombie":  # else somebody was faster
                await self._relaunch(process)

    async def _relaunch(self, process: Process) -> None:
        kernel = self._kernel
        process.awaits_launch, process.os = False, None
        try:
            await self.end_survivor(process)
            await kernel.trace.durable()
            if await self.look_back(process):
                return
            sealed = await kernel.journal.environment(process.pid)
            given = kernel.vault.open(process.user, sealed) if sealed else b"{}"
        except AiosError as error:
            self.not_started(process, error)
            return
        if process.state == "zombie":
            return
        process.lives += 1
        process.exit_status, process.exit_reason, process.result = None, "", None
        if process.note.startswith(NOT_STARTED):
            process.note = ""
        kernel.trace.emit(ev.ProcessRestarted, process.pid, self.row(process), life=process.lives)
        key = kernel.keys.renew(process)
        try:
            await self._start(process, wire.decode(given, dict[str, str]), key)
        except AiosError as error:
            self.ended(process, 127, error.message)
            return
        kernel.spawn_task(self._watch(process))

    def not_started(self, process: Process, error: AiosError) -> None:
        """Its next life could not be prepared (the disk, a key file): it waits to be resumed."""
        if process.state == "zombie":
            return
        if process.state == "new":  # it has not lived yet
            self.ended(process, 127, error.message)
            return
        process.awaits_launch = True
        process.note = f"{NOT_STARTED}{error.message}"[:200]
        self.suspend(process, "user")

    def go_on(self, process: Process) -> None:
        """A process of a dead kernel is watched again; ``resume`` starts its program, if any."""
        kernel = self._kernel
        if process.state == "zombie":
            for call in list(process.pending):  # it had no time to end them
                self.end_pending(process, call, process.exit_reason)
            self._keep(process, self._reap_later(process))
            return
        if process.state != "new" and process.budget.seconds is not None:
            self.count_seconds(process)
        if "budget" in process.reasons:
            self.at_cap.add(process)
        if process.argv:
            return
        if process.state != "new":
            lives_on = not self._runs_in_program(process)
            process.looking = kernel.spawn_task(self._look_back_once(process, lives_on))
        os_pid = process.spawned.os_pid
        if os_pid is None:
            self._keep(process, self._end_if_silent(process))
        elif not self._runs_in_program(process):
            self.tie(process, os_pid)

    async def end_survivor(self, process: Process) -> None:
        """End what still runs of its program's life under a dead kernel: two never overlap."""
        if process.survivor is not None:
            await self._kernel.programs.end_survivor(process.survivor)
            process.survivor = None

    def is_between_lives(self, process: Process) -> bool:
        """Whether the program that runs it is to be started again: who calls is a survivor."""
        return _program_of(process).awaits_launch

    def _runs_in_program(self, process: Process) -> bool:
        """Whether it is run by the Python of a program that starts again and asks for it again."""
        above = process.parent
        while above is not None:
            if above.awaits_launch:
                return True
            above = above.parent
        return False

    async def _look_back_once(self, process: Process, lives_on: bool) -> None:
        try:
            await self.look_back(process, lives_on)
        finally:
            process.looking = None

    def listen(self, process: Process) -> asyncio.Event:
        """Set at the next call that it makes, or at its end."""
        if process.heard is None:
            process.heard = asyncio.Event()
        return process.heard

    async def either(self, work: Coroutine[Any, Any, Any], seconds: float) -> bool:
        """Wait for *work*, but no longer than so many seconds; whether it came to its end."""
        working = asyncio.ensure_future(work)
        sleeping = asyncio.ensure_future(self._kernel.clock.sleep(seconds))
        try:
            await asyncio.wait({working, sleeping}, return_when=asyncio.FIRST_COMPLETED)
            return working.done()
        finally:
            working.cancel()
            sleeping.cancel()

    async def _end_if_silent(self, process: Process) -> None:
        """One that somebody else runs has so long to come back after a restart."""
        seconds = self._kernel.config.kernel.reconnect_s
        if not await self.either(self.listen(process).wait(), seconds):
            self.ended(process, -1, f"lost: nothing was heard of it {seconds:g} s after a restart")

    def keep_environment(self, process: Process) -> None:
        """Sealed: it may hold keys of others, and a next life needs it."""
        if process.spawned.env:
            sealed = self._kernel.vault.seal(process.user, wire.encode(process.spawned.env))
            self._kernel.trace.record(EnvRow(process.pid, sealed))

    async def take_up(self, child: Process, parent: Process) -> str:
        """A second life runs this child in its own Python again; returns the child's new key.

        One that has ended is told again what it was told.
        """
        key = self._kernel.keys.renew(child)
        if child.looking is not None:
            await asyncio.shield(child.looking)
        if child.state != "new" and not (child.replay is not None and child.replay.is_unused):
            await self._kernel.trace.durable()
            await self.look_back(child)
        is_over = child.state == "zombie"
        program = self._program_of(parent)
        if program and program.os and child.spawned.os_pid is not None and not is_over:
            self.tie(child, program.os.os_pid)
        return key

    async def look_back(self, process: Process, lives_on: bool = False) -> bool:
        """Read back what its earlier lives asked; True if there are calls to be settled first.

        lives_on: the Python that runs it has not died, and works on what it was given.
        """
        kernel = self._kernel
        calls = await kernel.journal.calls(process.pid, CallFilter(EVERY_CALL, void=False))
        is_replayed = replay.is_replayed(SYSTEM_CALLS)
        process.replay = Replay(calls, is_replayed)
        begun = [call for call in calls if call.end is None]
        process.pending = {call.start.id: call.start.name for call in begun}
        for call in begun:
            if not is_replayed(call.start.name):
                self.end_pending(process, call.start.id, STOPPED)
        children = {child.by: child for child in self if child.by}
        for call in begun:
            if child := children.get(call.start.id):  # its effect is there, so it had its result
                replay.settle(kernel, process, call, Spawned(child.pid))
        for call in await replay.outcomes(kernel, process, calls, lives_on):
            process.unknown[call.start.id] = Unknown(call)
            if "unknown_outcome" not in process.reasons:  # else it was told in a kernel before
                kernel.trace.emit(
                    ev.CallUnknown, process.pid, call=call.start.id, name=call.start.name
                )
        if process.unknown:
            process.awaits_launch = bool(process.argv)
            self.suspend(process, "unknown_outcome")
        return bool(process.unknown)

    async def rewind(self, process: Process, mark: MarkRow) -> tuple[list[CallHistory], list[str]]:
        """Take a process back to a snapshot and start its program again.

        Returns what is not undone: the calls since then that did something outside, and the files
        that others changed since.
        """
        process.awaits_launch = bool(process.argv)  # and its program's end is not its own
        async with process.launching:
            if process.state == "zombie":
                raise Conflict(f"process {process.pid} ended before it could be rolled back.")
            return await self._rewind(process, mark)

    async def _rewind(self, process: Process, mark: MarkRow) -> tuple[list[CallHistory], list[str]]:
        kernel = self._kernel
        process.awaits_launch = bool(process.argv)
        why = f"process {process.pid} is rolled back to {mark.id}"
        self.leave_calls(process, why)
        if process.os is not None:
            await kernel.programs.kill(process.pid, kernel.config.kernel.kill_grace_s)
            process.os = None
        try:
            await kernel.trace.durable()
            later = CallFilter(EVERY_CALL, after=mark.call, void=False)
            undone = await kernel.journal.calls(process.pid, later)
            memory = await kernel.memory.rewind(process.pid, mark.call)
            held = await kernel.files.held(process.pid, mark.call)
            files = await kernel.files.rewind(process.pid, mark.call)
            for call in [call.start.id for call in undone if call.start.id in process.pending]:
                self.end_pending(process, call, why)
            rewind = Rewind(process.pid, mark.call, kernel.clock.now())
            kernel.trace.record(rewind, *memory, *files)
            await kernel.trace.durable()
            kernel.memory.recount()  # others may have asked since it was planned
        except AiosError:  # it is what it was, and goes on from there
            if process.argv and process.state == "live":
                await self._relaunch(process)
            raise
        process.pending.clear()
        for unknown in process.unknown.values():
            unknown.answer(Cancelled(why))
        process.unknown.clear()
        process.replay = None
        kernel.marks = {
            id: other
            for id, other in kernel.marks.items()
            if other.pid != process.pid or other.call <= mark.call
        }
        await self._reload(process, mark.call, undone)
        if process.is_suspended:  # it has neither diverged there, nor is anything unknown
            process.reasons -= {"diverged", "unknown_outcome"}
            if not process.reasons:
                process.move("live")
            kernel.trace.record(self.row(process))
        if process.argv and process.state == "live":  # else it starts when it goes on
            await self._relaunch(process)
        return [call for call in undone if self._left_its_mark(call)], held

    async def _reload(self, process: Process, call: int, undone: Iterable[CallHistory]) -> None:
        """Contexts and mailbox as they were after call number *call*."""
        settings = {name: context.setting for name, context in process.contexts.items()}
        rows = await self._kernel.journal.context_at(process.pid, call)
        process.contexts.clear()
        for name in dict.fromkeys(row.context for row in rows):
            own = [row for row in rows if row.context == name]
            process.contexts[name] = context = Context.from_rows(name, own)
            context.setting = settings.get(name, context.setting)
        mail = await self._kernel.journal.mail(process.pid)
        process.mailbox.clear()
        process.mail_size = 0
        for row in mail:
            body = wire.decode(row.mail, Mail)
            process.put_mail(row.number, body, len(wire.encode(body.body)))

    def _left_its_mark(self, call: CallHistory) -> bool:
        """Whether it did something outside that no rollback takes back."""
        entry = SYSTEM_CALLS.get(CALLS.get(call.start.name, Call))
        return entry is not None and entry.effect == "once" and entry.charged

    def caught_up(self, process: Process) -> None:
        """A second life asked for something new; said once."""
        if process.replay is not None and not process.replay.is_over:
            process.replay.is_over = True
            self._kernel.trace.emit(ev.ReplayEnded, process.pid, replayed=process.replay.given)

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

    async def _start(self, process: Process, given: dict[str, str], key: str) -> None:
        """Start its program; what happened to the process meanwhile happens to the program."""
        env = {**(given or self._kernel.base_env), **self._environment(process, key)}
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
            "AIOS_LIFE": str(process.lives),
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

    async def _watch(self, process: Process) -> None:
        """Until its program has ended; starts it again if it asked for that."""
        life = process.lives
        status = await self._kernel.programs.wait(process.pid)
        if process.state == "zombie" or process.awaits_launch or process.lives != life:
            return
        if status and process.spawned.restart == "on-crash" and process.restarts < RESTARTS:
            process.restarts += 1
            process.awaits_launch = True
            self.leave_calls(process, "its program crashed and is started again")
            await self.relaunch(process)
            return
        how = f"exited with status {status}" if status >= 0 else f"ended by signal {-status}"
        if process.exit_status is None:
            process.exit_status = status
        self.ended(process, status, process.exit_reason or how)

    def leave_calls(self, process: Process, reason: str) -> None:
        """Nobody waits for its open calls any more."""
        me = asyncio.current_task()
        for call in list(process.calls.values()):
            if call.task is not me:
                call.end(Cancelled(reason))

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
                self._kernel.spawn_task(self.relaunch(process))
            elif process.os is not None:
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
        program = self._program_of(process)
        await self._kernel.programs.gone(os_pid)
        if program is None or program.state == "zombie":
            self.ended(process, -1, "lost: the Python that ran it has ended")
        else:  # it ends with that program, or is asked for again by its next life
            process.keeper = None

    def _program_of(self, process: Process) -> Process | None:
        """Itself or the nearest above it that is a program of ours: its Python runs the others."""
        above: Process | None = process
        while above is not None and not above.argv:
            above = above.parent
        return above

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
                self._keep(each, self._reap_later(each))
        for each in _payers(process):
            if each.state == "zombie":
                self._keep(each, self._reap_later(each))

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

    def _keep(self, process: Process, work: Coroutine[Any, Any, None]) -> None:
        """What waits on a process: for the OS process that it is tied to, then to forget it."""
        if process.keeper is not None and process.keeper is not asyncio.current_task():
            process.keeper.cancel()
        process.keeper = self._kernel.spawn_task(work)

    def tie(self, process: Process, os_pid: int) -> None:
        """Let a process end with the OS process in which its caller runs it."""
        self._keep(process, self._watch_owner(process, os_pid))

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

    async def _reap_later(self, process: Process) -> None:
        over = (process.ended or 0.0) + self._kernel.config.kernel.zombie_s
        await self._kernel.clock.sleep(max(0.0, over - self._kernel.clock.now()))
        self.reap(process)

    def reap(self, process: Process) -> None:
        """Forget a zombie that nobody needs: what needs it tries again at its own end.

        The next life of a program may run it in its Python again; others may pay with its budget.
        """
        if self.table.get(process.pid) is not process or process.state != "zombie":
            return
        program = _program_of(process)
        if program.argv and program.state != "zombie" or self._pays(process):
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


def _program_of(process: Process) -> Process:
    """The process whose program runs it: itself, or the nearest above that has one."""
    program = process
    while not program.argv and program.parent is not None:
        program = program.parent
    return program
