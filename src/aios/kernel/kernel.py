"""The kernel: one door, and what stands behind it.

``await kernel.trap(pid, call)`` is the only way in. It finds the process, opens the call in the
trace, asks whether the process may and can afford it, has the handler do it, and ends the call in
the trace, whatever happened. A reply is durable before its caller sees it.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, NamedTuple

import msgspec

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.abi import wire
from aios.abi.calls import Call, Reply
from aios.abi.events import Event
from aios.abi.messages import Delta
from aios.config import Config
from aios.errors import (
    AiosError,
    Cancelled,
    CoreFailed,
    DriverError,
    InvalidCall,
    Killed,
    StoreFailed,
    TimedOut,
)
from aios.kernel import access, kept, recovery, replay, routing
from aios.kernel.generation import LOST_IN_A_ROW
from aios.kernel.keys import Keys
from aios.kernel.lives import Lives
from aios.kernel.process import OpenCall, Process
from aios.kernel.processes import Processes
from aios.kernel.routing import CoreNow
from aios.kernel.scheduler import Scheduler
from aios.kernel.table import SYSTEM_CALLS, Entry
from aios.kernel.trace import Trace
from aios.ports import (
    CallEnd,
    CallHistory,
    Clock,
    Cores,
    Files,
    GrantRow,
    Image,
    Journal,
    MarkRow,
    Memory,
    ProcessRow,
    Programs,
    SnapshotRow,
    Vault,
)

VERSION = "0.1.0"
FIRST_PRUNE_S = 60.0  # after the start: first the agents, then the dust
DOWN_S = 10.0  # how long a core that failed is asked last
PRUNE_S = 3_600.0  # between two looks at what the journal need not keep


class Trouble(NamedTuple):
    """Why a core failed, and until when others are asked first."""

    message: str
    until: float


class Kernel:
    """Decides who runs next, for how many tokens, with what rights and budget."""

    def __init__(
        self,
        config: Config,
        journal: Journal,
        cores: Cores,
        programs: Programs,
        clock: Clock,
        memory: Memory,
        files: Files,
        vault: Vault,
        *,
        user: str,
        snapshots: str = "",
        base_env: dict[str, str] | None = None,
    ) -> None:
        self.config, self.journal, self.cores = config, journal, cores
        self.programs, self.clock, self.user = programs, clock, user
        self.memory, self.files, self.vault = memory, files, vault
        self.snapshot_folder = snapshots
        self.base_env = base_env or {}
        self.base_url: str | None = None  # where programs reach the server, once it listens
        self.socket: str | None = None
        image = journal.load()
        self.trace = Trace(journal, clock, image.last_seq)
        self.processes = Processes(self, image.last_pid)
        self.lives = Lives(self)
        self.grants = access.Grants(image.grants)
        self.keys = Keys(self, image.keys)
        self.marks: dict[str, MarkRow] = {row.id: row for row in image.marks}
        self.snapshots: dict[str, SnapshotRow] = {row.id: row for row in image.snapshots}
        self.schedulers: dict[str, Scheduler] = {}
        self.on_core: Counter[str] = Counter()  # generations that a core has or is about to have
        self.draining: set[str] = set()  # cores that are sent nothing new
        self.troubles: dict[str, Trouble] = {}  # of cores that failed last, by name
        self.policy, self.quantum = config.scheduler.policy, config.scheduler.quantum
        self._opening: dict[str, asyncio.Future[Scheduler]] = {}
        self.boot = secrets.token_hex(8)  # differs in every start: a client sees that it is another
        self._last_call = image.last_call
        self._began = clock.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = self._is_frozen = False
        self._programs: list[ProcessRow] = []  # whose programs are to be started again
        self._image: Image | None = image

    def __repr__(self) -> str:
        return f"<kernel: {len(self.processes)} processes, {self.policy}>"

    async def start(self) -> None:
        """Put back what a dead kernel left; after this the door is open, and programs come back."""
        image, self._image = self._image, None
        assert image is not None
        programs = recovery.restore(self, image)
        user = f"user:{self.user}"
        rights = [
            self.grants.add(GrantRow(user, access.ANY, user)),
            self.grants.add(GrantRow(user, access.ANY, access.MACHINE)),
        ]
        self.trace.emit(ev.KernelStarted, 0, *rights, version=VERSION)
        await self.memory.start()
        await self.files.start()
        await self.trace.durable()
        self._programs = programs

    def resume(self) -> None:
        """Start the programs of a dead kernel again, in the background; once they can reach us."""
        programs, self._programs = self._programs, []
        self.spawn_task(recovery.resume(self, programs))
        self.spawn_task(self._prune_now_and_then())

    async def _prune_now_and_then(self) -> None:
        """Keep the journal within what the settings say."""
        kept = self.config.journal
        await self.clock.sleep(FIRST_PRUNE_S)
        while True:
            before = self.clock.now() - kept.keep_days * 86_400
            try:
                await self.journal.prune(before, kept.max_mb << 20)
            except StoreFailed:
                pass  # those who write hear of it; the next hour tries again
            await self.clock.sleep(PRUNE_S)

    # --- the door ---------------------------------------------------------------------------------

    async def trap(
        self, pid: int, call: Call, on_delta: Callable[[Delta], None] | None = None
    ) -> Reply:
        """Make a system call as process *pid*; its reply, durable.

        *on_delta* sees what a generation adds, slice by slice. Cancelling the caller's task cancels
        the call.
        """
        caller = self.processes.get(pid)
        if caller is None or self._closing:
            raise _over(pid)
        entry = SYSTEM_CALLS.get(type(call))
        if entry is None:
            raise InvalidCall(f"{type(call).__name__} is not a system call.")
        if caller.state == "zombie":
            told = await replay.tell_again(self, caller, entry, call, on_delta)
            if told is None:
                raise _over(pid)
            return told
        if self.lives.is_between_lives(caller):
            raise Killed(f"the program of process {pid} is started again; this life of it is over.")
        if caller.heard is not None:
            caller.heard.set()
            caller.heard = None
        if caller.looking is not None:
            await asyncio.shield(caller.looking)
        history = None
        if caller.replay is not None and entry.replayed:
            reply, history = await replay.recall(self, caller, entry, call, on_delta)
            if reply is not None:
                return reply
        open_call = self._open_call(caller, call, on_delta, entry, history)
        call, name = open_call.call, open_call.name
        if caller.state == "new":
            self.processes.go_live(caller)
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
                if call.timeout_s < 0:
                    raise InvalidCall(
                        f"timeout_s is {call.timeout_s:g}: give 0 or more seconds, or leave it out."
                    )
                watchdog = self.spawn_task(self._time_out(open_call, call.timeout_s))
            if entry.waits and caller.state == "suspended":
                await self.blocked(open_call)
            if entry.charged and history is None:
                while not caller.budget.spend_call():
                    self.processes.exhausted(caller)
                    await self.blocked(open_call)
                if caller.budget.limits_calls():
                    self.trace.record(*self.processes.spent(caller))
            if entry.effect == "once" and entry.charged:
                await self.trace.durable()  # the intent, before the effect
            reply = await entry.handler(self, open_call, target, call)
        except AiosError as error:
            failed = self._failed(open_call, error)
            await self._kept(open_call)
            raise failed from error.__cause__
        except asyncio.CancelledError:
            if open_call.verdict is None:
                self._cancelled(open_call, "its caller went away")
                raise
            failed = self._failed(open_call, open_call.verdict)
            if open_call.task.uncancel():  # its caller went away as well
                raise
            await self._kept(open_call)
            raise failed from None
        except BaseException as error:
            self._failed(open_call, AiosError(f"a bug in the kernel: {error!r}"))
            raise
        else:
            return await self._done(open_call, reply, entry)
        finally:
            if watchdog is not None:
                watchdog.cancel()

    def next_call(self) -> int:
        """A number for a call, which no other has had."""
        self._last_call += 1
        return self._last_call

    def _open_call(
        self,
        caller: Process,
        call: Call,
        on_delta: Callable[[Delta], None] | None,
        entry: Entry,
        history: CallHistory | None,
    ) -> OpenCall:
        """Begin a call in the trace, or go on with one that an earlier life began."""
        task = asyncio.current_task()
        assert task is not None
        name, now = abi.name_of(call), self.clock.now()
        if history is None:
            call = _drawn(call) if type(call) is abi.Generate else call
            open_call = OpenCall(f"c{self.next_call()}", name, caller, call, now, task, on_delta)
            open_call.is_silent = entry.looks and caller.parent is None
            if not open_call.is_silent:
                row = kept.row(open_call.id, caller.pid, name, now, call)
                self.trace.emit(ev.CallStarted, caller.pid, row, call=open_call.id, name=name)
        else:
            id, began = history.start.id, history.start.started_at
            call = _as_drawn(call, history) if type(call) is abi.Generate else call
            open_call = OpenCall(id, name, caller, call, began, task, on_delta)
            open_call.made = history
            caller.pending.pop(id, None)
            self.trace.emit(ev.CallResumed, caller.pid, call=id, name=name)
        open_call.lost = self.trace.lost
        caller.calls[open_call.id] = open_call
        return open_call

    async def _done(self, call: OpenCall, reply: Reply, entry: Entry) -> Reply:
        """End a call that has its reply: its effects and its end are durable together."""
        process = call.process
        del process.calls[call.id]
        call.move("done")  # from here on nothing ends it any more
        if call.is_silent:
            return reply
        end = CallEnd(call.id, "done", self.clock.now(), wire.encode(kept.kept(reply)))
        usage = reply.usage if isinstance(reply, abi.Generation) else None
        self.trace.emit(
            ev.CallCompleted,
            process.pid,
            *call.effects,
            end,
            call=call.id,
            name=call.name,
            usage=usage,
        )
        try:
            await self.trace.durable()
            if self.trace.lost != call.lost:  # its start may be among it: an end alone is no call
                row = kept.row(call.id, process.pid, call.name, call.started, call.call)
                self.trace.record(row, end)
                await self.trace.durable()
        except StoreFailed:
            for undo in reversed(call.undo):
                undo()
            if not entry.looks:  # what only looked may be told all the same
                raise
        if entry.waits and process.is_suspended:  # done while suspended: told on resume
            await process.wait_running()
        return reply

    def _target(self, caller: Process, call: Call, kind: str) -> Process:
        if kind != "aid":
            return caller
        aid = (
            getattr(call, "of", None)
            if isinstance(call, abi.SetAid)
            else getattr(call, "aid", None)
        )
        return caller if aid is None else self.processes.find(aid)

    def _failed(self, call: OpenCall, error: AiosError) -> AiosError:
        """End a call in the trace: failed, or cancelled when the error says so."""
        call.process.calls.pop(call.id, None)
        if isinstance(error, Cancelled):
            self._cancelled(call, error.message, error.code)
            return error
        call.move("failed")
        if call.is_silent:
            return error
        end = CallEnd(call.id, "failed", self.clock.now(), None, error.message, error.code)
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

    async def _kept(self, call: OpenCall) -> None:
        """Wait until its error is durable: a second life is told the same."""
        if call.is_silent:
            return
        try:
            await self.trace.durable()
        except StoreFailed:
            pass  # what was wrong with the call may be told all the same

    def _cancelled(self, call: OpenCall, reason: str, code: str | None = None) -> None:
        call.process.calls.pop(call.id, None)
        call.move("cancelled")
        if call.is_silent:
            return
        end = CallEnd(call.id, "cancelled", self.clock.now(), None, reason, code)
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

    async def blocked(self, call: OpenCall) -> None:
        """Wait until the call's process goes on."""
        if not call.process.is_suspended:
            return
        call.move("blocked")
        reason = min(call.process.reasons)
        self.trace.emit(ev.CallBlocked, call.process.pid, call=call.id, reason=reason)
        await call.process.wait_running()
        call.move("active")
        self.trace.emit(ev.CallUnblocked, call.process.pid, call=call.id)

    # --- cores ------------------------------------------------------------------------------------

    def identify(self, key: str, session: str | None = None) -> int:
        """The process that a bearer key is; Unauthenticated for a key that is none."""
        return self.keys.identify(key, session)

    def ensure_user_key(self, user: str, *, renew: bool = False) -> str | None:
        """A fresh key for a user who has none yet (or, with *renew*, lost it)."""
        return self.keys.ensure(user, renew=renew)

    def models(self) -> list[str]:
        """All that can be asked for by one name."""
        facts = self.cores.facts()
        names = [name for core in facts for name in (core.name, core.model, *core.classes)]
        return [*dict.fromkeys(names)]

    def model_for(self, process: Process, asked: str | None) -> str:
        """What a process that asks for *asked* means: a core, a model, a class, a list of them."""
        own = process.model or self.cores.default
        if asked is None or asked == own:
            return own
        if asked in self.schedulers:
            return asked
        cores = self.cores_now()
        missing = routing.unknown_in(asked, cores)
        if missing is None:
            return asked
        alias = self.config.server.aliases.get(asked)
        if alias is not None:
            if nothing := routing.unknown_in(alias, cores):
                raise routing.unknown(nothing, cores)
            return alias
        if process.wrap_model:
            self.trace.emit(ev.ModelSubstituted, process.pid, asked=asked, used=own)
            return own
        raise routing.unknown(missing, cores)

    def cores_now(self) -> list[CoreNow]:
        """Every core, with what is known of it at this moment."""
        found, now = [], self.clock.monotonic()
        for facts in self.cores.facts():
            scheduler = self.schedulers.get(facts.name)
            if scheduler is None:
                window, slots, speed = facts.context_tokens, 1, 0.0
            else:
                abilities = scheduler.core.abilities
                window, slots, speed = abilities.context_tokens, abilities.slots, scheduler.speed
            load = self.on_core[facts.name] / max(1, slots)
            is_down = facts.name in self.troubles and now < self.troubles[facts.name].until
            is_draining = facts.name in self.draining
            found.append(CoreNow(facts, load, speed, is_draining, is_down, window))
        return found

    def first_core(self, asked: str) -> str:
        """The core that something asked for would go to now."""
        cores = self.cores_now()
        choices = routing.rank(asked, cores)
        if not choices:
            raise routing.nowhere(asked, cores)
        return choices[0].core

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
            facts = next((one for one in self.cores.facts() if one.name == model), None)
            if facts is None:
                raise routing.unknown(model, self.cores_now())
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
                facts,
            )
            self.schedulers[model] = scheduler
            return scheduler
        finally:
            del self._opening[model]

    def core_lost(self, scheduler: Scheduler, life: int, error: CoreFailed, lost: int) -> int:
        """A core died in that *life* of it: tell it once, give up after a few without progress."""
        if scheduler.core.abilities.shared_fate and life == scheduler.life:
            scheduler.lost()
            self.trace.emit(ev.CoreLost, 0, core=scheduler.name, message=error.message)
        # one on this machine starts again by itself; a server is another's, and others may be up
        if not scheduler.is_here or lost >= LOST_IN_A_ROW:
            raise error
        return lost + 1

    def core_down(self, name: str, error: AiosError) -> None:
        """It failed for good just now: others are asked first for a while."""
        scheduler = self.schedulers.get(name)
        is_here = scheduler is not None and scheduler.is_here  # then core_lost has told
        if name not in self.troubles and not is_here:
            self.trace.emit(ev.CoreLost, 0, core=name, message=error.message)
        self.troubles[name] = Trouble(error.message, self.clock.monotonic() + DOWN_S)

    def core_found(self, scheduler: Scheduler) -> None:
        """It takes sequences, or answers; told when it did not before."""
        trouble = self.troubles.pop(scheduler.name, None)
        if trouble is not None or scheduler.served_in < scheduler.life:
            scheduler.served_in = scheduler.life
            self.trace.emit(ev.CoreRestarted, 0, core=scheduler.name)

    def gate_changed(self, what: str, fields: dict[str, Any]) -> None:
        """A provider's gate says what it did."""
        self.trace.emit(
            ev.GateChanged,
            0,
            gate=fields["gate"],
            what=what,
            seconds=fields.get("seconds"),
            told=fields.get("told", False),
            calls=fields.get("waiting", 0),
        )

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
    ) -> AsyncGenerator[Event, None]:
        """What happened, as far as process *pid* may see it; *of* narrows it to one process."""
        caller = self.processes.find(pid)
        if of is not None and not (self.processes.has_been(of) and self.sees(caller, of)):
            raise access.no_process(of)
        async for event in self.trace.follow(
            after, of, wait=follow, sees=lambda event: self.sees(caller, event.pid)
        ):
            yield event

    async def report(self) -> dict[str, Any]:
        """The kernel at a glance."""
        states: dict[str, int] = {}
        for process in self.processes:
            states[process.state] = states.get(process.state, 0) + 1
        cores = {}
        for name, scheduler in self.schedulers.items():
            cores[name] = wire.plain(scheduler.report())
            try:
                cores[name] |= wire.plain(await scheduler.core.residency())
            except DriverError as error:  # it is being started again
                cores[name]["error"] = error.message
        return {
            "version": VERSION,
            "boot": self.boot,
            "uptime_s": round(self.clock.monotonic() - self._began, 3),
            "policy": self.policy,
            "quantum": self.quantum,
            "model": self.cores.default,
            "processes": states,
            "calls": sum(len(p.calls) for p in self.processes),
            "events": self.trace.seq,
            "cores": cores,
        }

    async def check(self) -> list[str]:
        """Every invariant that does not hold now, in a sentence each; empty when all is well."""
        found = []
        for process in self.processes:
            found += process.budget.check()
            for call in process.calls.values():
                if process.state == "zombie" and call.verdict is None:
                    found.append(f"{call!r} is open but its process has ended")
                if call.task.done():
                    found.append(f"{call!r} is open but nobody waits in it")
        for scheduler in self.schedulers.values():
            found += scheduler.check()
            try:
                residency = await scheduler.core.residency()
            except DriverError as error:
                found.append(f"{scheduler.name} does not answer: {error.message}")
                continue
            sequences = sum(1 for t in scheduler.tickets if t.sequence is not None)
            if residency.sequences > sequences and not scheduler.tickets:
                found.append(
                    f"{scheduler.name} holds {residency.sequences} sequences "
                    f"for {sequences} generations"
                )
        return found

    # --- housekeeping -----------------------------------------------------------------------------

    def spawn_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Background work that ends with the kernel."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def freeze(self) -> None:
        """From now on nothing is written, and nothing acknowledged: as if the machine were cut.

        What ``close`` then ends goes on in the next kernel.
        """
        self._closing = True
        await self.trace.freeze()
        self._is_frozen = True

    async def close(self) -> None:
        """End all processes, then the cores, then the journal."""
        self._closing = True
        roots = [p for p in self.processes if p.parent is None or p.parent.state == "zombie"]
        await asyncio.gather(
            *(self.processes.kill(process, "the kernel stops") for process in roots)
        )
        ending = {call.task for p in self.processes for call in p.calls.values()}
        if ending - {asyncio.current_task()}:  # the cancelled calls come to their end
            await asyncio.wait(
                ending - {asyncio.current_task()}, timeout=self.config.kernel.kill_grace_s
            )
        background: list[asyncio.Future[Any]] = [*self._tasks, *self._opening.values()]
        for work in background:
            work.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        self.trace.close()
        for scheduler in self.schedulers.values():
            await scheduler.core.close()
        await self.programs.close()
        await self.memory.close()
        await self.files.close()
        if not self._is_frozen:
            await self.trace.durable()
        await self.journal.close()


def _over(pid: int) -> Killed:
    return Killed(f"process {pid} has ended; it can make no more calls.")


def _drawn(call: abi.Generate) -> abi.Generate:
    """With a seed, chosen before the call is journaled: a recompute must draw the same."""
    if call.sampling.seed is not None:
        return call
    sampling = msgspec.structs.replace(call.sampling, seed=random.getrandbits(31), drawn=True)
    return msgspec.structs.replace(call, sampling=sampling)


def _as_drawn(call: abi.Generate, history: CallHistory) -> abi.Generate:
    """With the seed that was drawn when an earlier life began the call."""
    first = wire.decode(history.start.request, abi.Generate)
    return msgspec.structs.replace(call, sampling=first.sampling)
