"""The lives of programs: how a process's program is started, watched, and started again.

A life is one run of a program. What ends it without ending its process (a crash of the kernel or
of the program, a rollback) begins the next one, which replays what the earlier ones were told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from aios.abi import events as ev
from aios.abi import wire
from aios.abi.calls import CALLS, Call, Mail, Spawned
from aios.errors import AiosError, Cancelled, Conflict
from aios.kernel import replay
from aios.kernel.context import Context
from aios.kernel.process import Process
from aios.kernel.processes import STOPPED
from aios.kernel.replay import Replay, Unknown
from aios.kernel.table import SYSTEM_CALLS
from aios.ports import EVERY_CALL, CallFilter, CallHistory, EnvRow, MarkRow, Rewind

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel

NOT_STARTED = "not started again: "  # and why, in the note of a process
RESTARTS = 3  # of a program that asks for restart on-crash


class Lives:
    """Starts the programs of processes, and starts them again."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    # --- a life ---------------------------------------------------------------------------------

    async def launch(self, process: Process, key: str) -> None:
        """Start a process's program; InvalidCall if it cannot be started (the process ends)."""
        try:
            await self._start(process, process.spawned.env, key)
        except AiosError as error:
            self._kernel.processes.ended(process, 127, error.message)
            raise
        self._kernel.spawn_task(self._watch(process))

    def keep_environment(self, process: Process) -> None:
        """Sealed: it may hold keys of others, and a next life needs it."""
        if process.spawned.env:
            sealed = self._kernel.vault.seal(process.user, wire.encode(process.spawned.env))
            self._kernel.trace.record(EnvRow(process.pid, sealed))

    async def _start(self, process: Process, given: dict[str, str], key: str) -> None:
        """Start its program; what happened to the process meanwhile happens to the program."""
        env = {**(given or self._kernel.base_env), **self._environment(process, key)}
        process.os = await self._kernel.programs.start(
            process.pid, process.spawned.argv, process.spawned.cwd, env
        )
        if process.state == "zombie":
            await self._kernel.programs.kill(process.pid, 0)
        elif process.state == "new":
            self._kernel.processes.go_live(process)
        else:  # a next kernel must know the OS process, to end it
            self._kernel.trace.record(self._kernel.processes.row(process))
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
        self._kernel.processes.ended(process, status, process.exit_reason or how)

    def leave_calls(self, process: Process, reason: str) -> None:
        """Nobody waits for its open calls any more."""
        me = asyncio.current_task()
        for call in list(process.calls.values()):
            if call.task is not me:
                call.end(Cancelled(reason))

    # --- the next one ---------------------------------------------------------------------------

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
        kernel.trace.emit(
            ev.ProcessRestarted, process.pid, kernel.processes.row(process), life=process.lives
        )
        key = kernel.keys.renew(process)
        try:
            await self._start(process, wire.decode(given, dict[str, str]), key)
        except AiosError as error:
            kernel.processes.ended(process, 127, error.message)
            return
        kernel.spawn_task(self._watch(process))

    def not_started(self, process: Process, error: AiosError) -> None:
        """Its next life could not be prepared (the disk, a key file): it waits to be resumed."""
        if process.state == "zombie":
            return
        if process.state == "new":  # it has not lived yet
            self._kernel.processes.ended(process, 127, error.message)
            return
        process.awaits_launch = True
        process.note = f"{NOT_STARTED}{error.message}"[:200]
        self._kernel.processes.suspend(process, "user")

    async def end_survivor(self, process: Process) -> None:
        """End what still runs of its program's life under a dead kernel: two never overlap."""
        if process.survivor is not None:
            await self._kernel.programs.end_survivor(process.survivor)
            process.survivor = None

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
                kernel.processes.end_pending(process, call.start.id, STOPPED)
        children = {child.by: child for child in kernel.processes if child.by}
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
            kernel.processes.suspend(process, "unknown_outcome")
        return bool(process.unknown)

    def caught_up(self, process: Process) -> None:
        """A second life asked for something new; said once."""
        if process.replay is not None and not process.replay.is_over:
            process.replay.is_over = True
            self._kernel.trace.emit(ev.ReplayEnded, process.pid, replayed=process.replay.given)

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
        program = parent.runner
        if program and program.os and child.spawned.os_pid is not None and not is_over:
            self._kernel.processes.tie(child, program.os.os_pid)
        return key

    # --- after a crash of the kernel --------------------------------------------------------------

    def go_on(self, process: Process) -> None:
        """A process of a dead kernel is watched again; ``resume`` starts its program, if any."""
        kernel = self._kernel
        if process.state == "zombie":
            for call in list(process.pending):  # it had no time to end them
                kernel.processes.end_pending(process, call, process.exit_reason)
            kernel.processes.keep(process, kernel.processes.reap_later(process))
            return
        if process.state != "new" and process.budget.seconds is not None:
            kernel.processes.count_seconds(process)
        if "budget" in process.reasons:
            kernel.processes.at_cap.add(process)
        if process.argv:
            return
        if process.state != "new":
            lives_on = not self._runs_in_program(process)
            process.looking = kernel.spawn_task(self._look_back_once(process, lives_on))
        os_pid = process.spawned.os_pid
        if os_pid is None:
            kernel.processes.keep(process, self._end_if_silent(process))
        elif not self._runs_in_program(process):
            kernel.processes.tie(process, os_pid)

    def is_between_lives(self, process: Process) -> bool:
        """Whether the program that runs it is to be started again: who calls is a survivor."""
        runner = process.runner
        return runner is not None and runner.awaits_launch

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
            self._kernel.processes.ended(
                process, -1, f"lost: nothing was heard of it {seconds:g} s after a restart"
            )

    # --- a rollback -----------------------------------------------------------------------------

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
                kernel.processes.end_pending(process, call, why)
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
            kernel.trace.record(kernel.processes.row(process))
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
