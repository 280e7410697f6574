"""The kernel: one door, and what stands behind it.

``await kernel.trap(pid, call)`` is the only way in. It finds the process, opens the call in the
trace, asks whether the process may and can afford it, has the handler do it, and ends the call in
the trace, whatever happened. A reply is durable before its caller sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.abi import wire
from aios.abi.calls import Call, KeyInfo, Reason, Reply, SpawnAgent, Status
from aios.abi.events import Event
from aios.abi.messages import Delta
from aios.config import Config
from aios.errors import (
    AiosError,
    BudgetExhausted,
    Cancelled,
    Conflict,
    CoreFailed,
    InvalidCall,
    Killed,
    NotFound,
    QueueFull,
    TimedOut,
    Unauthenticated,
)
from aios.kernel import access
from aios.kernel.generation import LOST_IN_A_ROW
from aios.kernel.process import OpenCall, Process
from aios.kernel.scheduler import Scheduler
from aios.kernel.table import SYSTEM_CALLS
from aios.kernel.trace import Trace
from aios.ports import (
    CallEnd,
    CallRow,
    Clock,
    Cores,
    Forget,
    GrantRow,
    Image,
    Journal,
    KeyRow,
    ProcessRow,
    Programs,
    SnapshotRow,
    Started,
)

VERSION = "0.1.0"
RESTARTS = 3  # of a program that asks for restart on-crash


class Kernel:
    """Decides who runs next, for how many tokens, with what rights and budget."""

    def __init__(
        self,
        config: Config,
        journal: Journal,
        cores: Cores,
        programs: Programs,
        clock: Clock,
        *,
        user: str,
        snapshots: str = "",
        base_env: dict[str, str] | None = None,
    ) -> None:
        self.config, self.journal, self.cores = config, journal, cores
        self.programs, self.clock, self.user = programs, clock, user
        self.snapshot_folder = snapshots
        self.base_env = base_env or {}
        self.base_url: str | None = None  # where programs reach the server, once it listens
        self.socket: str | None = None
        image = journal.load()
        self.trace = Trace(journal, clock, image.last_seq)
        self.processes: dict[int, Process] = {}
        self.grants = access.Grants(image.grants)
        self.keys: dict[str, KeyRow] = {row.hash: row for row in image.keys}
        self.snapshots: dict[str, SnapshotRow] = {row.id: row for row in image.snapshots}
        self.schedulers: dict[str, Scheduler] = {}
        self.policy, self.quantum = config.scheduler.policy, config.scheduler.quantum
        self._opening: dict[str, asyncio.Future[Scheduler]] = {}
        self._logins: dict[tuple[str, str | None], int] = {}
        self._last_pid, self._last_call = image.last_pid, image.last_call
        self._began = clock.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._image: Image | None = image

    def __repr__(self) -> str:
        return f"<kernel: {len(self.processes)} processes, {self.policy}>"

    async def start(self) -> None:
        """End what a dead kernel left behind; after this the door is open."""
        image, self._image = self._image, None
        assert image is not None
        for row in image.processes:
            if row.os_pid is not None and row.os_started is not None and row.state != "zombie":
                await self.programs.end_survivor(Started(row.os_pid, row.os_started))
        now = self.clock.now()
        open_of: dict[int, list[CallRow]] = {}
        for call in image.open_calls:
            open_of.setdefault(call.pid, []).append(call)
        for row in image.processes:
            for call in open_of.pop(row.pid, []):
                end = CallEnd(call.id, "cancelled", now, None, "the kernel stopped")
                self.trace.emit(
                    ev.CallCancelled,
                    row.pid,
                    end,
                    call=call.id,
                    name=call.name,
                    reason="the kernel stopped",
                )
            if row.state != "zombie":
                self.trace.emit(
                    ev.ProcessEnded,
                    row.pid,
                    Forget(row.pid),
                    exit_status=-1,
                    reason="the kernel stopped",
                )
        for hash, key in list(self.keys.items()):
            if key.info.aid is not None:
                del self.keys[hash]
        user = f"user:{self.user}"
        rights = [
            self.grants.add(GrantRow(user, access.ANY, user)),
            self.grants.add(GrantRow(user, access.ANY, access.MACHINE)),
        ]
        await self.trace.emit(ev.KernelStarted, 0, *rights, version=VERSION)

    # --- the door ---------------------------------------------------------------------------------

    async def trap(
        self, pid: int, call: Call, on_delta: Callable[[Delta], None] | None = None
    ) -> Reply:
        """Make a system call as process *pid*; its reply, durable.

        *on_delta* sees what a generation adds, slice by slice. Cancelling the caller's task cancels
        the call.
        """
        caller = self.processes.get(pid)
        if caller is None or caller.state == "zombie" or self._closing:
            raise NotFound(f"process {pid} has ended; it can make no more calls.")
        entry = SYSTEM_CALLS.get(type(call))
        if entry is None:
            raise InvalidCall(f"{type(call).__name__} is not a system call.")
        task = asyncio.current_task()
        assert task is not None
        self._last_call += 1
        name = abi.name_of(call)
        open_call = OpenCall(
            f"c{self._last_call}", name, caller, call, self.clock.now(), task, on_delta
        )
        caller.calls[open_call.id] = open_call
        row = CallRow(open_call.id, pid, name, open_call.started, _kept(call))
        open_call.is_silent = entry.looks and caller.parent is None
        if not open_call.is_silent:
            self.trace.emit(ev.CallStarted, pid, row, call=open_call.id, name=name)
        if caller.state == "new":
            self.go_live(caller)
        watchdog = None
        try:
            target = self._target(caller, call, entry.target)
            try:
                access.check(
                    self.grants,
                    caller,
                    name,
                    target if entry.target != "machine" else None,
                    self.clock.now(),
                )
            except AiosError:
                self.trace.emit(ev.AccessDenied, pid, name=name, resource=entry.target)
                raise
            if call.timeout_s is not None:
                watchdog = self.spawn_task(self._time_out(open_call, call.timeout_s))
            if entry.waits and caller.state == "suspended":
                await self.blocked(open_call, min(caller.reasons))
            if entry.charged:
                while not caller.budget.spend_call():
                    self.exhausted(caller)
                    await self.blocked(open_call, "budget")
            reply = await entry.handler(self, open_call, target, call)
            if entry.waits and caller.state == "suspended":  # done while suspended: told on resume
                await self.blocked(open_call, min(caller.reasons))
        except AiosError as error:
            raise self._failed(open_call, error) from error.__cause__
        except asyncio.CancelledError:
            if open_call.verdict is None:
                self._cancelled(open_call, "its caller went away")
                raise
            task.uncancel()
            raise self._failed(open_call, open_call.verdict) from None
        except BaseException as error:
            self._failed(open_call, AiosError(f"a bug in the kernel: {error!r}"))
            raise
        else:
            del caller.calls[open_call.id]
            open_call.move("done")
            if open_call.is_silent:
                return reply
            end = CallEnd(open_call.id, "done", self.clock.now(), _kept(reply))
            usage = reply.usage if isinstance(reply, abi.Generation) else None
            await self.trace.emit(
                ev.CallCompleted, pid, end, call=open_call.id, name=name, usage=usage
            )
            return reply
        finally:
            if watchdog is not None:
                watchdog.cancel()

    def _target(self, caller: Process, call: Call, kind: str) -> Process:
        if kind != "aid":
            return caller
        aid = (
            getattr(call, "of", None)
            if isinstance(call, abi.SetAid)
            else getattr(call, "aid", None)
        )
        return caller if aid is None else self.find(aid)

    def _failed(self, call: OpenCall, error: AiosError) -> AiosError:
        """End a call in the trace: failed, or cancelled when the error says so."""
        call.process.calls.pop(call.id, None)
        if isinstance(error, Cancelled):
            self._cancelled(call, error.message)
            return error
        call.move("failed")
        if call.is_silent:
            return error
        end = CallEnd(call.id, "failed", self.clock.now(), None, error.message)
        self.trace.emit(
            ev.CallFailed,
            call.process.pid,
            end,
            call=call.id,
            name=call.name,
            code=error.code,
            message=error.message,
        )
        return error

    def _cancelled(self, call: OpenCall, reason: str) -> None:
        call.process.calls.pop(call.id, None)
        call.move("cancelled")
        if call.is_silent:
            return
        end = CallEnd(call.id, "cancelled", self.clock.now(), None, reason)
        self.trace.emit(
            ev.CallCancelled, call.process.pid, end, call=call.id, name=call.name, reason=reason
        )

    async def _time_out(self, call: OpenCall, seconds: float) -> None:
        """End a call after *seconds* in which its process was not suspended."""
        left = seconds
        while left > 0:
            await call.process.wait_running()
            began = self.clock.monotonic()
            await self.clock.sleep(min(left, 1.0))
            if not call.process.is_suspended:
                left -= self.clock.monotonic() - began
        call.end(
            TimedOut(
                f"{call.name} took longer than its timeout_s of {seconds:g}; it was cancelled."
            )
        )

    async def blocked(self, call: OpenCall, reason: Reason) -> None:
        """Wait until the call's process goes on."""
        if not call.process.is_suspended:
            return
        call.move("blocked")
        self.trace.emit(ev.CallBlocked, call.process.pid, call=call.id, reason=reason)
        await call.process.wait_running()
        call.move("active")
        self.trace.emit(ev.CallUnblocked, call.process.pid, call=call.id)

    # --- processes --------------------------------------------------------------------------------

    def find(self, pid: int) -> Process:
        process = self.processes.get(pid)
        if process is None:
            raise access.no_process(pid)
        return process

    def create(self, user: str, parent: Process | None, spawned: SpawnAgent) -> Process:
        """A NEW process with its grant; QueueFull or InvalidCall where a limit says no."""
        limits = self.config.kernel
        if parent is not None:
            living = sum(1 for child in parent.children.values() if child.state != "zombie")
            if living >= limits.children and parent.parent is not None:
                raise QueueFull(
                    f"process {parent.pid} has {living} children, which is the limit; wait for some."
                )
            if parent.depth() + 1 > limits.depth:
                raise QueueFull(
                    f"process {parent.pid} is {limits.depth} deep, which is the limit for a child."
                )
        if len(self.processes) >= limits.processes:
            living = sum(
                1 for p in self.processes.values() if p.state != "zombie" and p.user == user
            )
            if living >= limits.processes:
                raise QueueFull(
                    f"user {user} has {living} processes, which is the limit; end some."
                )
        self._last_pid += 1
        process = Process(self._last_pid, user, parent, spawned, self.clock.now())
        if parent is not None:
            process.priority = parent.priority if spawned.priority is None else spawned.priority
            process.rights = parent.rights
            process.model = spawned.model or parent.model
            parent.children[process.pid] = process
        if spawned.rights is not None:
            wanted = frozenset(spawned.rights)
            process.rights = wanted if process.rights is None else wanted & process.rights
        self.processes[process.pid] = process
        own = GrantRow(f"pid:{process.pid}", access.ANY, f"tree:{process.pid}")
        self.grants.add(own)
        self.trace.emit(
            ev.ProcessCreated,
            process.pid,
            own,
            self.row(process),
            parent=parent.pid if parent else None,
            program=process.program,
        )
        return process

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
            detail=_kept(process.spawned),
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
            model=process.model or self.cores.default,
            usage=process.usage,
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
        process.started = self.clock.now()
        if process.budget.seconds is not None:
            self.count_seconds(process)
        self.trace.emit(
            ev.ProcessStarted,
            process.pid,
            self.row(process),
            os_pid=process.os.os_pid if process.os else None,
        )

    async def launch(self, process: Process, key: str) -> None:
        """Start a process's program; InvalidCall if it cannot be started (the process ends)."""
        spawned = process.spawned
        env = {**(spawned.env or self.base_env), **self._environment(process, key)}
        try:
            process.os = await self.programs.start(process.pid, spawned.argv, spawned.cwd, env)
        except AiosError as error:
            if process.state != "zombie":
                self.ended(process, 127, error.message)
            raise
        if process.state == "zombie":  # killed while it was being started
            await self.programs.kill(process.pid, 0)
            return
        if process.state == "new":
            self.go_live(process)
        self.spawn_task(self._watch(process, key))

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
        if self.socket:
            env["AIOS_URL"] = f"unix:{self.socket}"
        if self.base_url:
            env |= {
                "OPENAI_BASE_URL": f"{self.base_url}/v1",
                "OPENAI_API_BASE": f"{self.base_url}/v1",
            }
            env.setdefault("AIOS_URL", self.base_url)
        return env

    async def _watch(self, process: Process, key: str) -> None:
        """Until its program has ended; starts it again if it asked for that."""
        while True:
            status = await self.programs.wait(process.pid)
            if process.state == "zombie":
                return
            if status == 0 or process.spawned.restart == "never" or process.restarts >= RESTARTS:
                break
            process.restarts += 1
            for call in list(process.calls.values()):
                call.end(Cancelled("its program crashed and is started again"))
            env = {**(process.spawned.env or self.base_env), **self._environment(process, key)}
            process.os = await self.programs.start(
                process.pid, process.spawned.argv, process.spawned.cwd, env
            )
        how = f"exited with status {status}" if status >= 0 else f"ended by signal {-status}"
        if process.exit_status is None:
            process.exit_status = status
        self.ended(process, status, process.exit_reason or how)

    def count_seconds(self, process: Process) -> None:
        """Start booking seconds against a budget that has some."""
        self.spawn_task(self._count_seconds(process))

    async def _count_seconds(self, process: Process) -> None:
        """Book the seconds in which a process lives and is not suspended; stop it at the cap."""
        while process.state != "zombie":
            await process.wait_running()
            left = process.budget.seconds_left()
            if left is None:
                return
            began = self.clock.monotonic()
            await self.clock.sleep(min(0.5, max(left, 0.001)))
            if process.state == "live":
                process.budget.spend_seconds(self.clock.monotonic() - began)
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
                self.spawn_task(self.programs.stop(process.pid))
            for scheduler in self.schedulers.values():
                scheduler.park(process)
        self.trace.emit(ev.ProcessSuspended, process.pid, self.row(process), reason=reason)

    def resume(self, process: Process, reason: Reason) -> None:
        """Take one reason away; with the last one the process goes on. Idempotent."""
        if process.state not in ("live", "suspended"):
            raise Conflict(f"process {process.pid} cannot be resumed while it is {process.state}.")
        if reason not in process.reasons:
            return
        process.reasons.discard(reason)
        if not process.reasons:
            process.move("live")
            if process.os is not None:
                self.spawn_task(self.programs.cont(process.pid))
            for scheduler in self.schedulers.values():
                scheduler.wake(process)
        self.trace.emit(ev.ProcessResumed, process.pid, self.row(process), reason=reason)

    def exhausted(self, process: Process, stop: bool = False) -> None:
        """At the cap: suspend the process, or fail the call if it asked for that."""
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
        self.suspend(process, "budget")

    def recheck_budget(self, process: Process) -> None:
        """After tokens were given back: what stopped only because they were held goes on."""
        if "budget" in process.reasons and process.budget.exhausted() is None:
            self.resume(process, "budget")

    async def kill(self, process: Process, reason: str) -> None:
        """End a process and its descendants, children first."""
        for child in list(process.children.values()):
            await self.kill(child, reason)
        if process.state == "zombie":
            return
        had_program = process.os is not None
        self.ended(process, -15, reason)
        if had_program:
            await self.programs.kill(process.pid, self.config.kernel.kill_grace_s)

    def ended(self, process: Process, status: int, reason: str) -> None:
        """A process is over: its calls, rights and mail go, its children are its user's login's."""
        if process.state == "zombie":
            return
        process.exit_status = status if process.exit_status is None else process.exit_status
        process.exit_reason = process.exit_reason or reason
        process.ended = self.clock.now()
        process.reasons.clear()
        process.move("zombie")
        me = asyncio.current_task()
        for call in list(process.calls.values()):
            if call.task is not me:
                call.end(Killed(f"process {process.pid} has ended: {reason}."))
        process.mailbox.clear()
        process.contexts.clear()
        self.grants.drop(f"pid:{process.pid}")
        self._revoke_key_of(process)
        self._hand_over_children(process)
        self.trace.emit(
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
        self.spawn_task(self._reap_later(process))

    def _hand_over_children(self, process: Process) -> None:
        heir = process.parent if process.parent and process.parent.state != "zombie" else None
        if login := self.processes.get(self._logins.get((process.user, None), 0)):
            heir = login if login.state != "zombie" and login is not process else heir
        for child in list(process.children.values()):
            if child.state != "zombie" and heir is not None:
                del process.children[child.pid]
                child.parent = heir
                heir.children[child.pid] = child

    async def _reap_later(self, process: Process) -> None:
        await self.clock.sleep(self.config.kernel.zombie_s)
        self.reap(process)

    def reap(self, process: Process) -> None:
        """Forget a zombie."""
        if self.processes.get(process.pid) is not process or process.state != "zombie":
            return
        del self.processes[process.pid]
        if process.parent is not None:
            process.parent.children.pop(process.pid, None)
        self.trace.emit(ev.ProcessReaped, process.pid, Forget(process.pid))

    def renumber(self, process: Process, aid: int) -> None:
        if process.state != "new":
            raise Conflict(
                f"process {process.pid} has run already; only a new one can get another number."
            )
        if aid < 1 or aid in self.processes:
            raise Conflict(f"the number {aid} is taken or not above 0; choose a free one.")
        old = process.pid
        del self.processes[old]
        self.grants.drop(f"pid:{old}")
        process.pid = aid
        self._last_pid = max(self._last_pid, aid)
        self.processes[aid] = process
        if process.parent is not None:
            process.parent.children.pop(old, None)
            process.parent.children[aid] = process
        own = self.grants.add(GrantRow(f"pid:{aid}", access.ANY, f"tree:{aid}"))
        rows = [
            KeyRow(
                KeyInfo(row.info.id, row.info.user, row.info.label, aid, row.info.created_at),
                row.hash,
            )
            for row in self.keys.values()
            if row.info.aid == old
        ]
        for row in rows:
            self.keys[row.hash] = row
        self.trace.emit(ev.AidChanged, old, Forget(old), own, *rows, self.row(process), aid=aid)

    # --- keys -------------------------------------------------------------------------------------

    def issue_key(self, user: str, label: str, process: Process | None) -> abi.NewKey:
        """A new key, of a user or of one process; only its hash is kept."""
        key = access.mint()
        hash = access.digest(key)
        info = KeyInfo(
            id=hash[:12],
            user=user,
            label=label,
            aid=process.pid if process else None,
            created_at=self.clock.now(),
        )
        self.keys[hash] = KeyRow(info, hash)
        if process is not None:
            process.key_id = hash
        self.trace.emit(ev.KeyIssued, process.pid if process else 0, self.keys[hash], key=info.id)
        return abi.NewKey(info.id, key)

    def revoke_key(self, hash: str, by: int) -> None:
        row = self.keys.pop(hash)
        info = KeyInfo(
            row.info.id,
            row.info.user,
            row.info.label,
            row.info.aid,
            row.info.created_at,
            self.clock.now(),
        )
        self.trace.emit(ev.KeyRevoked, by, KeyRow(info, hash), key=info.id)

    def _revoke_key_of(self, process: Process) -> None:
        if process.key_id in self.keys:
            self.revoke_key(process.key_id, process.pid)

    def ensure_user_key(self, user: str, *, renew: bool = False) -> str | None:
        """A fresh key for a user who has none yet (or, with *renew*, lost the file it was in)."""
        has = any(
            k.info.user == user and k.info.aid is None and not k.info.revoked_at
            for k in self.keys.values()
        )
        if has and not renew:
            return None
        return self.issue_key(user, "first", None).key

    def identify(self, key: str, session: str | None = None) -> int:
        """The process that a bearer key is; a user's key is that user's login, one per session."""
        row = self.keys.get(access.digest(key))
        if row is None or row.info.revoked_at is not None:
            raise Unauthenticated(
                "this key is not known here, or was revoked; `aios key new` makes one."
            )
        if row.info.aid is not None:
            return row.info.aid
        where = (row.info.user, session)
        login = self.processes.get(self._logins.get(where, 0))
        if login is None or login.state == "zombie":
            program = "login" if session is None else f"login {session}"[:80]
            login = self.create(row.info.user, None, SpawnAgent(program=program))
            self._logins[where] = login.pid
        return login.pid

    # --- cores ------------------------------------------------------------------------------------

    def models(self) -> list[str]:
        return self.cores.names()

    def model_for(self, process: Process, asked: str | None) -> str:
        """Which model answers a process that asks for *asked*."""
        own = process.model or self.cores.default
        if asked is None or asked == own:
            return own
        names = self.cores.names()
        if asked in names:
            return asked
        alias = self.config.server.aliases.get(asked)
        if alias is not None:
            return alias
        if process.wrap_model:
            self.trace.emit(ev.ModelSubstituted, process.pid, asked=asked, used=own)
            return own
        raise NotFound(
            f"there is no model named {asked!r} here; there are {', '.join(names)} "
            "(`aios model pull` and `aios model import` add more)."
        )

    async def scheduler(self, model: str) -> Scheduler:
        """The line in front of a model's core, which is started on first use."""
        if scheduler := self.schedulers.get(model):
            return scheduler
        opening = self._opening.get(model)
        if opening is None:
            opening = asyncio.ensure_future(self._open(model))
            self._opening[model] = opening
        return await asyncio.shield(opening)

    async def _open(self, model: str) -> Scheduler:
        try:
            core = await self.cores.open(model)
            settings = self.config.scheduler
            scheduler = Scheduler(
                model,
                core,
                self.policy,
                self.quantum,
                settings.ageing_s,
                settings.queue,
                self.trace,
                self.clock,
            )
            self.schedulers[model] = scheduler
            return scheduler
        finally:
            del self._opening[model]

    async def core_lost(self, scheduler: Scheduler, error: CoreFailed, lost: int) -> int:
        """A core died under a generation: count it, give up after a few without progress."""
        self.trace.emit(ev.CoreLost, 0, core=scheduler.name, message=error.message)
        if lost >= LOST_IN_A_ROW:
            raise error
        return lost + 1

    # --- views ------------------------------------------------------------------------------------

    def sees(self, caller: Process, pid: int) -> bool:
        """Whether events of *pid* are for *caller*'s eyes."""
        if caller.parent is None:  # a login: all of its user's, and the machine's own
            process = self.processes.get(pid)
            return process is None or process.user == caller.user
        process = self.processes.get(pid)
        return process is not None and process.is_within(caller)

    async def events(
        self, pid: int, after: int = 0, follow: bool = False, of: int | None = None
    ) -> AsyncIterator[Event]:
        """What happened, as far as process *pid* may see it; *of* narrows it to one process."""
        caller = self.find(pid)
        if of is not None and not self.sees(caller, of):
            raise access.no_process(of)
        async for event in self.trace.follow(
            after, of, wait=follow, sees=lambda event: self.sees(caller, event.pid)
        ):
            yield event

    async def report(self) -> dict[str, Any]:
        """The kernel at a glance."""
        states: dict[str, int] = {}
        for process in self.processes.values():
            states[process.state] = states.get(process.state, 0) + 1
        cores = {}
        for name, scheduler in self.schedulers.items():
            residency = await scheduler.core.residency()
            cores[name] = {**wire.plain(residency), **wire.plain(scheduler.report())}
        return {
            "version": VERSION,
            "uptime_s": round(self.clock.monotonic() - self._began, 3),
            "policy": self.policy,
            "quantum": self.quantum,
            "model": self.cores.default,
            "processes": states,
            "calls": sum(len(p.calls) for p in self.processes.values()),
            "events": self.trace.seq,
            "cores": cores,
        }

    async def check(self) -> list[str]:
        """Every invariant that does not hold now, in a sentence each; empty when all is well."""
        found = []
        for process in self.processes.values():
            found += process.budget.check()
            for call in process.calls.values():
                if process.state == "zombie" and call.verdict is None:
                    found.append(f"{call!r} is open but its process has ended")
                if call.task.done():
                    found.append(f"{call!r} is open but nobody waits in it")
        for scheduler in self.schedulers.values():
            found += scheduler.check()
            residency = await scheduler.core.residency()
            sequences = sum(1 for t in scheduler.tickets if t.sequence is not None)
            if residency.sequences > sequences and not scheduler.tickets:
                found.append(
                    f"{scheduler.name} holds {residency.sequences} sequences for {sequences} generations"
                )
        return found

    # --- housekeeping -----------------------------------------------------------------------------

    def spawn_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Background work that ends with the kernel."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """End all processes, then the cores, then the journal."""
        self._closing = True
        roots = [
            p for p in self.processes.values() if p.parent is None or p.parent.state == "zombie"
        ]
        await asyncio.gather(*(self.kill(process, "the kernel stops") for process in roots))
        ending = {call.task for p in self.processes.values() for call in p.calls.values()}
        if ending - {asyncio.current_task()}:  # the cancelled calls come to their end
            await asyncio.wait(
                ending - {asyncio.current_task()}, timeout=self.config.kernel.kill_grace_s
            )
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.trace.close()
        for scheduler in self.schedulers.values():
            await scheduler.core.close()
        await self.programs.close()
        await self.trace.record()
        await self.journal.close()


def _kept(value: Call | Reply) -> bytes:
    """A call or reply as the journal keeps it: without keys and environments."""
    match value:
        case SpawnAgent():
            value = msgspec.structs.replace(value, env={})
        case abi.Spawned() | abi.NewKey():
            value = msgspec.structs.replace(value, key="")
    return wire.encode(value)
