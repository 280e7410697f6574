"""A world: programs, an operator and a machine that crashes, all drawn from one seed.

    python tests/simulation/world.py SEED      runs one seed again and prints what happened

``run(seed)`` returns what is wrong at the end, in sentences, and the hash of all events.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import itertools
import random
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import msgspec
from scripts import LOOSE, Actor, Broken, Script, answer, draw, result_of
from simulated import (
    OUTSIDE,
    START,
    Crash,
    Disk,
    LoopClock,
    SimulatedLoop,
    SimulatedPrograms,
    SlowCore,
    Stuck,
)

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.abi import wire
from aios.config import Config, Scheduler
from aios.drivers.journal.memory import MemoryJournal
from aios.errors import AiosError, KernelBug, Killed, StoreFailed
from aios.kernel.process import Process
from aios.kernel.replay import is_told
from aios.kernel.trace import check_ends
from aios.ports import EVERY_CALL, CallFilter, CallHistory
from aios.testing import TestKernel, machine

WORLDS_A_SCENARIO = 4  # crash differently over the same programs: one calm run serves them all
DEADLINE_S = 900.0  # of virtual time: what is not done by then hangs
OUTSIDE_LIFE = 0  # the number of the one life that an outsider has
COMPACTION = "/compact."  # in the place of one; they are counted, also those of a life that is void
GIVEN = 40  # tokens that the operator gives to who is at the cap
TROUBLE_EVERY, TROUBLE_S = 10, 0.3  # worlds, and seconds of a disk that takes nothing
PATIENCE_S = (
    60.0  # with programs after such trouble: they may have failed, and others wait for them
)
IS_OUTSIDE = contextvars.ContextVar("outside", default=False)
KEPT = (abi.Generation, abi.ToolAnswer, abi.Sent, abi.Remembered, abi.StoredVersion, abi.Spawned)
CONFIG = Config(scheduler=Scheduler(quantum=3))


class Deed(NamedTuple):
    """What the operator does at a time, to a program."""

    at: float
    kind: str
    name: str


class Outcome(NamedTuple):
    """How a world ended: what is wrong, the hash of its events, and what its programs said."""

    wrong: list[str]
    hash: str
    transcripts: dict[str, dict[str, Any]]
    steps: int


class World:
    """All that outlives a crash: the disk, the effects, what programs were told, the operator."""

    def __init__(self, seed: int, *, calm: bool = False, disk: type[Disk] = Disk) -> None:
        self.seed, self.disk = seed, disk
        scenario = seed // WORLDS_A_SCENARIO
        self.scripts = draw(scenario)
        self.chance = random.Random(f"{'calm' if calm else 'world'} {seed}")
        self.loop = SimulatedLoop(self.chance, DEADLINE_S, shuffles=seed % 2 == 1)
        self.database = MemoryJournal()
        self.os_pids = itertools.count(100_000)
        self.lives: list[Life] = []
        self.told: dict[tuple[int, str], tuple[str, Any]] = {}
        self.shown: dict[tuple[int, str], str] = {}
        self.effects: Counter[tuple[int, str]] = Counter()
        self.allowed: Counter[tuple[int, str]] = Counter()
        self.keys: dict[str, str] = {}  # of those who run outside
        self.outside: set[asyncio.Task[Any]] = set()  # tasks that outlive a crash
        self.loop.set_task_factory(self._make_task)
        self.names: dict[int, str] = {}
        self.parents: dict[int, int | None] = {}
        self.given: Counter[int] = Counter()  # tokens, by pid, at most
        self.wrong: list[str] = []
        self.plan = [] if calm else self._plan()
        self.suspended_until: dict[str, float] = {}
        self.killed: set[str] = set()
        self.had_trouble = False  # the disk was full for a while: programs may have failed
        self.rolling: set[int] = set()  # back to a snapshot: what they heard since counts no more
        self.forked: set[int] = set()
        self.forks: dict[str, set[str]] = {}  # by their note: where effects had happened before
        self.lost: set[int] = set()

    def _plan(self) -> list[Deed]:
        kinds = ("suspend", "suspend", "core", "policy", "kill", *("rollback", "fork") * 2)
        names = list(self.scripts)
        deeds = [
            Deed(START + self.chance.random() * 2, kind, self.chance.choice(names))
            for kind in kinds
            if self.chance.random() < 0.4
        ]
        if self.seed % TROUBLE_EVERY == 0:
            deeds.append(Deed(START + self.chance.random(), "trouble", ""))
        return sorted(deeds)

    def __repr__(self) -> str:
        return f"<World {self.seed}, {len(self.lives)} lives>"

    def is_alone(self, name: str) -> bool:
        """Whether it is a program of the kernel to which nobody else speaks."""
        return name.startswith("solo") and self.scripts[name].run_by == "kernel"

    def _make_task(self, loop: Any, work: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **options)
        if IS_OUTSIDE.get() and options.get("context") is None:
            self.outside.add(task)
            task.add_done_callback(self.outside.discard)
        return task

    def does(self, name: str, *kinds: str) -> bool:
        """Whether any step of a program is of these kinds."""
        return any(step.kind in kinds for step in self.scripts[name].steps)

    # --- what programs say and do -----------------------------------------------------------------

    def hear(self, actor: Actor, place: str, call: abi.Call, outcome: Any, shown: str = "") -> None:
        """A program was told something; another life of it must be told the same."""
        if actor.life.is_over or actor.pid in self.rolling:
            return
        if self.had_trouble and not isinstance(outcome, KEPT):
            return  # what was wrong, or only looked at, is told also when it cannot be kept
        where = (actor.pid, place)
        heard = (told(outcome), gist(outcome))
        first = self.told.setdefault(where, heard)
        if first != heard:
            self.wrong.append(f"{actor.script.name} at {place} heard {first}, and later {heard}")
        if not isinstance(outcome, abi.Generation) or actor.number == OUTSIDE_LIFE:
            return
        if self.loop.shuffles:
            return  # the order of callbacks is that of what is shown
        if shown != outcome.message.content:
            self.wrong.append(f"{actor.script.name} at {place} was shown {shown!r} of {heard}")

    def unhear(self, pid: int) -> None:
        """What a program was told does not count any more."""
        self.told = {where: heard for where, heard in self.told.items() if where[0] != pid}

    @staticmethod
    def gist(outcome: Any) -> Any:
        return gist(outcome)

    # --- lives ------------------------------------------------------------------------------------

    def run(self, crashes: list[int]) -> None:
        """Until all programs have ended; the n-th life ends after so many steps."""
        random.seed(self.seed)  # the kernel draws seeds of generations
        asyncio.set_event_loop(self.loop)
        pending = iter(crashes)
        while True:
            life = Life(self)
            self.lives.append(life)
            after = next(pending, None)
            self.loop.crash_at = None if after is None else self.loop.steps + after
            try:
                self.loop.run_until_complete(life.main())
                return
            except Crash:
                life.bury()
            except Stuck as error:
                self.wrong.append(f"{error}: {life.living()}")
                life.bury()
                return

    def close(self) -> None:
        for life in self.lives:
            if not life.is_over:
                life.bury()
        for task in self.outside:
            task.cancel()
        if self.outside:
            self.loop.run_until_complete(asyncio.wait(self.outside))
        self.wrong += self.loop.failures
        self.loop.close()


class Life:
    """One life of the machine."""

    kernel: TestKernel

    def __init__(self, world: World) -> None:
        self.world, self.loop = world, world.loop
        self.is_over = False
        self.ready = asyncio.Event()
        self.disk = world.disk(world.database, world.loop, world.chance)
        self.core = SlowCore(answer, world.chance, slots=2)
        self.requests: set[asyncio.Task[Any]] = set()
        self.attended: set[int] = set()

    async def main(self) -> None:
        world = self.world
        async with machine(
            core=self.core,
            journal=self.disk,  # type: ignore[arg-type]
            programs=SimulatedPrograms({"program": self._program}, world.os_pids),
            clock=LoopClock(self.loop),
            config=CONFIG,
        ) as self.kernel:
            self.login = self.kernel.identify(self.kernel.user_key)
            world.wrong += await self.kernel.check()
            self.ready.set()
            await Operator(self).work()
            self.disk.trouble = ""
            await self._examine()
            self.loop.crash_at = None
            self.is_over = True

    def bury(self) -> None:
        """It was cut: its tasks go, whatever they would still have done; nothing is written."""
        self.is_over = True
        self.disk.cut()
        self.loop.deadline += 60  # it takes its time to go
        self.loop.crash_at = None
        for _ in range(10):
            tasks = asyncio.all_tasks(self.loop) - self.world.outside
            if not tasks:
                return
            for task in sorted(tasks, key=lambda task: int(task.get_name().rpartition("-")[2])):
                task.cancel()
            self.loop.run_until_complete(asyncio.wait(tasks, timeout=1))
        raise AssertionError(f"{tasks} would not go")

    def living(self) -> str:
        """Who has not ended, and what it waits for."""
        living = [p for p in self.kernel.processes if p.parent and p.state != "zombie"]
        return ", ".join(f"{p!r} {p.reasons or ''} {[*p.calls.values()]}" for p in living)

    async def trap(self, pid: int, call: abi.Call, on_delta: Any = None) -> Any:
        if self.is_over:
            raise Killed("the machine is off")
        return await self.kernel.trap(pid, call, on_delta)

    def happen(self, pid: int, tool: str, at: str) -> None:
        """An effect outside."""
        if not self.is_over and tool == "count":
            self.world.effects[pid, at] += 1

    async def _program(self, pid: int, env: dict[str, str]) -> int:
        script = self.world.scripts[env["AIOS_PROGRAM"]]
        self.world.names[pid] = script.name
        process = self.kernel.processes.find(pid)
        above = process.parent.pid if process.parent else None
        parent = self.world.parents.setdefault(pid, above)  # also when that one has ended
        actor = Actor(self, script, pid, int(env["AIOS_LIFE"]), int(env["OS_PID"]), parent)
        try:
            await actor.run()
        except (Broken, Killed, StoreFailed):
            raise
        except Exception as error:
            if not self.is_over:
                self.world.wrong.append(f"{script.name} failed: {error!r}")
            raise
        return 0

    # --- the end ----------------------------------------------------------------------------------

    async def _examine(self) -> None:
        """What must hold of the journal when all is over."""
        world, wrong = self.world, self.world.wrong
        events = [event async for event in self.kernel.events(self.login)]
        open_now: list[tuple[str, Any]] = [
            ("process", p.pid) for p in self.kernel.processes if p.state != "zombie"
        ]
        open_now += [("call", id) for p in self.kernel.processes for id in (*p.calls, *p.pending)]
        if not world.had_trouble:  # then events may be missing
            wrong += check_ends(events, open_now)
        wrong += await self.kernel.check()
        self.events = events
        self.transcripts: dict[str, dict[str, Any]] = {}
        for process in self.kernel.processes:
            if process.program not in world.scripts or process.pid in world.lost:
                continue  # a login, or one that never was
            calls = await self.kernel.journal.calls(process.pid, CallFilter(EVERY_CALL))
            valid = [history for history in calls if not history.void]
            if process.exit_status and not (world.killed or world.had_trouble):
                wrong.append(
                    f"{process.program} ended with {process.exit_status}: {process.exit_reason}"
                )
            self.transcripts[f"{process.program}#{process.pid}"] = self._transcript(process, valid)
            wrong += self._effects(process, valid)
            if not world.had_trouble:  # then tokens that nobody saw may be missing
                wrong += self._spent(process, calls)

    def _transcript(self, process: Process, calls: list[CallHistory]) -> dict[str, Any]:
        """What was asked at each place, and what came of it."""
        found: dict[str, Any] = {}
        for history in calls:
            asked = msgspec.json.decode(history.start.request)
            place = asked.get("place")
            if place is None or asked.get("recall") or not is_told(history):
                continue
            if place in found and asked["call"] not in ("tool_register",):
                self.world.wrong.append(f"{process.program} has two calls at {place}: {history}")
            heard = told(of_record(history))
            first = self.world.told.get((process.pid, place))
            if first is not None and first[0] != heard:
                self.world.wrong.append(
                    f"{process.program} heard {first} at {place}, its transcript says {heard}"
                )
            found[place] = (asked["call"], gist(of_record(history)))
        for pid, place in self.world.told:
            if pid == process.pid and place not in found:
                self.world.wrong.append(f"{process.program} at {place}: what was told is lost")
        return found

    def _effects(self, process: Process, calls: list[CallHistory]) -> Iterator[str]:
        """Each effect happened once, if its call says that it did."""
        for history in calls:
            if history.start.name != "tool_call":
                continue
            asked = msgspec.json.decode(history.start.request)
            if asked["name"] != "count" or history.end is None or history.end.state != "done":
                continue
            at = asked["arguments"]["at"]
            done = self.world.effects[process.pid, at]
            allowed = 1 + self.world.allowed[process.pid, at]
            if at in self.world.forks.get(process.spawned.note, ()):
                if done:
                    yield f"{process.program}, a fork, had its effect at {at} again"
            elif not 1 <= done <= allowed:
                yield f"{process.program} had its effect at {at} {done} times, not once"

    def _spent(self, process: Process, calls: list[CallHistory]) -> Iterator[str]:
        """What was spent is what was made; and no more than there was."""
        made = sum(len(history.tokens) for history in calls)
        used = process.usage
        if used.completion_tokens != made:
            yield f"{process.program} used {used.completion_tokens} tokens, but made {made}"
        limit = process.spawned.budget.tokens
        if process.pid in self.world.forked:
            return  # its forks paid with it, and who pays for them may be another since
        if limit is None or self.world.scripts[process.program].run_by != "kernel":
            return
        left, given = process.left().tokens, self.world.given[process.pid]
        if left is None:
            yield f"{process.program} lost its budget"
        elif used.tokens + left > limit + given:
            yield f"{process.program} used {used.tokens} of {limit} + {given}, and has {left} left"
        elif (
            not (given or process.children or process.pid in self.world.forked)
            and used.tokens + left != limit
        ):
            yield f"{process.program} used {used.tokens} of {limit}, and has {left} left"


class Operator:
    """The person at the terminal: starts what is not there, settles, gives, and does deeds."""

    def __init__(self, life: Life) -> None:
        self.life, self.world, self.kernel = life, life.world, life.kernel

    async def ask(self, call: abi.Call) -> Any:
        """Once more while the disk takes nothing."""
        while True:
            try:
                return await self.life.trap(self.life.login, call)
            except StoreFailed:
                await asyncio.sleep(TROUBLE_S)

    async def work(self) -> None:
        for pid in self.world.rolling:  # the machine was cut: they are back, or are not
            self._allow_all(pid)
        self.world.rolling.clear()
        for script in self.world.scripts.values():
            if "." not in script.name:
                await self._begin(script)
        while living := [
            p for p in self.kernel.processes if p.parent is not None and p.state != "zombie"
        ]:
            await self._deeds()
            if self.world.had_trouble and self.life.loop.time() > START + PATIENCE_S:
                for process in living:  # it waits for one that failed
                    await self._try(abi.KillAgent(aid=process.pid))
            for process in living:
                if process.is_suspended:
                    await self._attend(process)
            await asyncio.sleep(0.1)

    async def _begin(self, script: Script) -> None:
        there = [p for p in self.kernel.processes if p.program == script.name]
        outside = script.run_by == "outside"
        if there and (not outside or script.name in self.world.keys):
            return
        for nameless in there:  # its key was lost with the machine
            self.world.lost.add(nameless.pid)
            await self._try(abi.KillAgent(aid=nameless.pid))
        argv = () if outside else ("program",)
        call = abi.SpawnAgent(
            program=script.name,
            argv=argv,
            task=script.name,
            budget=script.budget,
            restart=script.restart,  # type: ignore[arg-type]
            window=script.window,
            strategy=script.strategy,  # type: ignore[arg-type]
            os_pid=OUTSIDE if outside else None,
        )
        spawned = await self.ask(call)
        self.world.names[spawned.aid] = script.name
        if outside:
            self.world.keys[script.name] = spawned.key
            running = Outsider(self.world, script, spawned.aid, spawned.key).run()
            token = IS_OUTSIDE.set(True)
            self.life.loop.create_task(running)
            IS_OUTSIDE.reset(token)

    async def _attend(self, process: Process) -> None:
        """Let a suspended process go on, if its time has come."""
        reasons = set(process.reasons)
        if "diverged" in reasons:
            self.world.wrong.append(f"{process!r} diverged")
            await self._try(abi.KillAgent(aid=process.pid))
            return
        for unknown in list(process.unknown.values()):
            await self._settle(process, unknown.history)
        if "budget" in reasons:
            self.world.given[process.pid] += GIVEN
            more = abi.Limits(tokens=GIVEN, calls=GIVEN, seconds=60.0)
            await self.ask(abi.SetBudget(aid=process.pid, budget=more))
            parent = process.parent
            if parent is not None and parent.parent is not None:  # it pays as well
                self.world.given[parent.pid] += GIVEN
                await self.ask(abi.SetBudget(aid=parent.pid, budget=more))
        if "user" in reasons:
            until = self.world.suspended_until.get(process.program, 0.0)
            if self.life.loop.time() >= until:
                await self._try(abi.ResumeAgent(aid=process.pid))

    async def _settle(self, process: Process, history: CallHistory) -> None:
        """Say what is so: the effect happened, or it did not."""
        at = msgspec.json.decode(history.start.request)["arguments"]["at"]
        happened = self.world.effects[process.pid, at] > 0
        await self._try(
            abi.SettleCall(
                aid=process.pid,
                target=history.start.id,
                outcome="done" if happened else "retry",
                value=result_of(at),
            )
        )

    async def _deeds(self) -> None:
        plan = self.world.plan
        while plan and plan[0].at <= self.life.loop.time():
            deed = plan.pop(0)
            found = [p for p in self.kernel.processes if p.program == deed.name]
            match deed.kind:
                case "core":
                    self.life.core.crash()
                case "trouble":
                    self.world.had_trouble = True
                    self.life.disk.trouble = "the disk is full"
                    self.life.loop.call_later(TROUBLE_S, setattr, self.life.disk, "trouble", "")
                case "policy":
                    policy = self.world.chance.choice(("fifo", "round_robin", "priority"))
                    quantum = self.world.chance.randint(1, 5)
                    await self.ask(abi.SetScheduler(policy=policy, quantum=quantum))
                case "suspend" if found:
                    self.world.suspended_until[deed.name] = deed.at + 1.0
                    await self._try(abi.SuspendAgent(aid=found[0].pid))
                case "rollback" | "fork" if self.world.does(deed.name, "forget"):
                    pass  # what was deleted for good is in no copy
                case "rollback" if found and self.world.is_alone(deed.name):
                    await self._roll_back(self.world.chance.choice(found))
                case "fork" if self.world.does(deed.name, "myself"):
                    pass  # a fork has no mail
                case "fork" if found and self.world.is_alone(deed.name):
                    await self._fork(self.world.chance.choice(found))
                case "kill" if found and "." not in deed.name:  # a child is waited for
                    self.world.killed.add(deed.name)
                    await self._try(abi.KillAgent(aid=found[0].pid))

    async def _roll_back(self, process: Process) -> None:
        """Take it back to one of its snapshots; what it did outside may happen again."""
        marks = [mark for mark in self.kernel.marks.values() if mark.pid == process.pid]
        if not marks:
            await self._try(abi.SnapshotAgent(aid=process.pid))
            return
        mark = self.world.chance.choice(sorted(marks, key=lambda mark: mark.call))
        self.world.rolling.add(process.pid)
        back = await self._try(abi.RollbackAgent(aid=process.pid, snapshot=mark.id))
        self.world.rolling.discard(process.pid)
        if back is None:
            return
        self.world.unhear(process.pid)
        for effect in back.effects:
            if effect.name == "tool_call":
                self.world.allowed[process.pid, effect.request["arguments"]["at"]] += 1

    def _allow_all(self, pid: int) -> None:
        self.world.unhear(pid)
        for where in list(self.world.effects):
            if where[0] == pid:
                self.world.allowed[where] += 1

    async def _fork(self, process: Process) -> None:
        """A copy of it, as it was after one of its calls, which goes on by itself."""
        calls = await self.kernel.journal.calls(process.pid, CallFilter(EVERY_CALL, void=False))
        ended = [history for history in calls if is_told(history)]
        if not ended:
            return
        at = self.world.chance.choice(ended).start.id
        places = {
            msgspec.json.decode(history.start.request)["arguments"]["at"]
            for history in ended
            if history.start.name == "tool_call" and int(history.start.id[1:]) <= int(at[1:])
        }
        self.world.forked.add(process.pid)
        self.world.forks[f"fork of {process.pid} at {at}"] = places
        await self._try(abi.ForkAgent(aid=process.pid, at=at))

    async def _try(self, call: abi.Call) -> Any:
        try:
            return await self.ask(call)
        except KernelBug:
            raise
        except AiosError:
            return None  # too late: it has ended, or goes on already


class Outsider:
    """A program in the operator's own Python: it lives on when the machine crashes."""

    def __init__(self, world: World, script: Script, pid: int, key: str) -> None:
        self.world, self.script, self.pid, self.key = world, script, pid, key

    @property
    def is_over(self) -> bool:
        return False

    @property
    def kernel(self) -> TestKernel:
        return self.world.lives[-1].kernel

    async def run(self) -> None:
        try:
            await Actor(self, self.script, self.pid, OUTSIDE_LIFE, OUTSIDE, None).run()  # type: ignore[arg-type]
        except StoreFailed:
            while True:
                try:
                    await self.trap(self.pid, abi.ExitAgent(exit_status=1))
                    return
                except StoreFailed:
                    await asyncio.sleep(TROUBLE_S)
                except AiosError:
                    return  # it had been told
        except AiosError as error:
            if self.script.name not in self.world.killed and not self.world.had_trouble:
                self.world.wrong.append(f"{self.script.name} failed: {error!r}")

    async def trap(self, pid: int, call: abi.Call, on_delta: Any = None) -> Any:
        """As the SDK does it: what a dead kernel had is asked again of the next one."""
        while True:
            life = self.world.lives[-1]
            while life.is_over or not life.ready.is_set():
                await asyncio.sleep(0.05)
                life = self.world.lives[-1]
            asking = life.trap(pid, call, on_delta)
            request = self.world.loop.create_task(asking, context=contextvars.Context())
            try:
                return await asyncio.shield(request)
            except asyncio.CancelledError:
                if not life.is_over:
                    request.cancel()
                    raise
            except Killed:
                if isinstance(call, abi.ExitAgent):
                    return abi.Done()  # the dead kernel had done it, and could not say so
                if not life.is_over:
                    raise
            except AiosError:
                if not life.is_over:
                    raise

    def happen(self, pid: int, tool: str, at: str) -> None:
        if tool == "count":
            self.world.effects[pid, at] += 1


# --- what was said --------------------------------------------------------------------------------


def of_record(history: CallHistory) -> Any:
    """What a program was told, from the journal."""
    end = history.end
    assert end is not None
    if end.state == "done":
        kind = abi.CALLS[history.start.name].reply
        return wire.decode(end.reply or b"{}", kind)
    return (end.code, end.error)


def told(outcome: Any) -> str:
    """All that a program was told."""
    if isinstance(outcome, AiosError):
        outcome = (outcome.code, outcome.message)
    if isinstance(outcome, abi.StoredFile):  # its content is read again, at its version
        outcome = msgspec.structs.replace(outcome, text=None)
    if isinstance(outcome, abi.Spawned):
        outcome = outcome.aid  # its key is another one in each life
    return wire.encode(outcome).decode()


def gist(outcome: Any) -> Any:
    """What of it is the same in each world: without numbers that depend on who was faster."""
    match outcome:
        case abi.Generation():
            return outcome.message.content
        case abi.ToolAnswer():
            return outcome.content
        case abi.Mail():
            return outcome.body
        case abi.MemoryRecords():
            return [record.text for record in outcome.records]
        case abi.StoredFile():
            return outcome.text
        case abi.Cleared():
            return outcome.count
        case abi.Exit():
            return (outcome.exit_status, outcome.result)
        case AiosError():
            return outcome.code
        case (code, _):
            return code
    return type(outcome).__name__


# --- a run ----------------------------------------------------------------------------------------


@cache
def calm(scenario: int) -> Outcome:
    """How the programs of a scenario end when nothing happens to them."""
    world = World(scenario * WORLDS_A_SCENARIO, calm=True)
    try:
        world.run([])
    finally:
        world.close()
    return _outcome(world)


def _outcome(world: World) -> Outcome:
    last = world.lives[-1]
    if not hasattr(last, "events"):
        return Outcome(world.wrong, "", {}, world.loop.steps)
    hash = hashlib.blake2b()
    for event in last.events:
        if not isinstance(event, ev.KeyIssued | ev.KeyRevoked):  # keys are drawn by the system
            hash.update(wire.encode(event))
    return Outcome(world.wrong, hash.hexdigest(), last.transcripts, world.loop.steps)


def run(seed: int, disk: type[Disk] = Disk) -> Outcome:
    """One world, with its crashes; ``wrong`` is empty when all is well."""
    right = calm(seed // WORLDS_A_SCENARIO)
    world = World(seed, disk=disk)
    crashes = [1 + world.chance.randrange(right.steps) for _ in range(world.chance.randint(1, 4))]
    try:
        world.run(crashes)
    except Exception as error:
        error.add_note(f"run it again: python tests/simulation/world.py {seed}")
        raise
    finally:
        world.close()
    found = _outcome(world)
    found.wrong.extend(f"without any crash: {sentence}" for sentence in right.wrong)
    if world.had_trouble:  # then a program may have failed, and its others with it
        return found
    expected = {name.partition("#")[0]: calls for name, calls in right.transcripts.items()}
    for name, calls in found.transcripts.items():
        script = world.scripts[name.partition("#")[0]]
        comparing = _compare(script, name, expected[script.name], calls, not world.killed)
        found.wrong.extend(comparing)
    return found


def _compare(
    script: Script, name: str, right: dict[str, Any], found: dict[str, Any], is_whole: bool
) -> Iterator[str]:
    """What a program said and heard, against what it says when nothing happens to it."""
    loose = {str(number) for number, step in enumerate(script.steps) if step.kind in LOOSE}
    for place, calls in right.items():
        if place.rpartition("/")[2] in loose or COMPACTION in place:
            continue
        here = found.get(place)
        if here != calls and (here is not None or is_whole):
            yield f"{name} at {place}: {here}, but without a crash {calls}"
    for place in [p for p in found.keys() - right.keys() if COMPACTION not in p]:
        yield f"{name} asked at {place}, which it never does without a crash"


def main() -> int:
    status = 0
    for seed in map(int, sys.argv[1:]):
        found = run(seed)
        lines = [f"seed {seed}: {found.steps} steps, {len(found.wrong)} wrong", *found.wrong]
        sys.stdout.write("\n    ".join(lines) + "\n")
        for name, calls in found.transcripts.items():
            for place, (call, outcome) in calls.items():
                sys.stdout.write(f"    {name:10} {place:20} {call:16} {outcome}\n")
        status |= bool(found.wrong)
    return status


if __name__ == "__main__":
    sys.exit(main())
