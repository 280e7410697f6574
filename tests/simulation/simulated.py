"""A machine that is a pure function of its seed: an event loop, a clock, a disk, a core, programs.

Time stands still while anything can go on, and jumps to the next timer when nothing can. What is
ready in one turn of the loop runs in a seeded order. Between any two steps the machine may crash.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from aios.drivers.journal.memory import MemoryJournal
from aios.errors import StoreFailed
from aios.ports import Image, Prompt, Record, Slice, SliceResult, Started
from aios.testing import ScriptedCore, ScriptedPrograms

T = TypeVar("T")
START = 1_000_000.0  # seconds since the epoch, when a world begins
OUTSIDE = 500_000  # the OS process of those who live on when the machine crashes


class Crash(BaseException):
    """The machine was cut between two steps of the loop."""


class Stuck(Exception):
    """Nothing can go on any more, or it takes far too long."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """An event loop without an outside: virtual time, a seeded order, and a count of its steps.

    ``crash_at`` is the step after which it raises Crash; it can be run on after that. shuffles:
    what is ready in one turn runs in any order, as no real loop would; else in that of asyncio.
    """

    def __init__(self, chance: random.Random, deadline_s: float, *, shuffles: bool) -> None:
        super().__init__()
        self._chance, self.shuffles = chance, shuffles
        self._now, self.deadline = START, START + deadline_s
        self.steps = 0
        self.crash_at: int | None = None
        self.failures: list[str] = []  # what nobody caught
        self.set_exception_handler(self._fail)

    def _fail(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, asyncio.CancelledError):  # those go with their machine
            self.failures.append(f"{context['message']}: {error!r}")

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        ready, timers = self._ready, self._scheduled  # type: ignore[attr-defined]
        if not ready:
            while timers and timers[0].cancelled():
                heapq.heappop(timers)
            if not timers:
                raise Stuck("nothing can go on any more")
            self._now = max(self._now, timers[0].when())
            if self._now > self.deadline:
                raise Stuck(f"not done after {self._now - START:.0f} s")
        while timers and timers[0].when() <= self._now:
            ready.append(heapq.heappop(timers))
        turn = list(ready)
        ready.clear()
        if self.shuffles:
            self._chance.shuffle(turn)
        for place, handle in enumerate(turn, 1):
            if handle.cancelled():
                continue
            self.steps += 1
            handle._run()
            if self.steps == self.crash_at:
                ready.extend(turn[place:])
                raise Crash

    def _write_to_self(self) -> None:
        """There is no other thread to wake us."""


class LoopClock:
    """ports.Clock over the loop's time."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.now = self.monotonic = loop.time

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Disk:
    """ports.Journal over a database that outlives the machine; what is not synced yet is lost.

    A sync takes a while and writes what was appended by then. While ``trouble`` is set it fails.
    """

    def __init__(self, database: MemoryJournal, loop: SimulatedLoop, chance: random.Random) -> None:
        self._database, self._loop, self._chance = database, loop, chance
        self._waiting: list[tuple[Sequence[Record], asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._is_cut = False
        self.trouble = ""

    def cut(self) -> None:
        """From now on nothing is written."""
        self._is_cut = True

    def load(self) -> Image:
        return self._database.load()

    def append(self, records: Sequence[Record]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((records, future))
        if self._timer is None:
            delay_s = self._chance.choice((0.0, 0.001, 0.02))
            self._timer = self._loop.call_later(delay_s, self._sync)
        return future

    def _sync(self) -> None:
        self._timer = None
        group, self._waiting = self._waiting, []
        for records, future in group:
            if trouble := "it was cut" if self._is_cut else self.trouble:
                fail(future, trouble)
            else:
                self._database.append(records).add_done_callback(partial(_pass_on, future))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)  # the questions, which the database answers


class LyingDisk(Disk):
    """It says that all is written when nothing is yet: the simulation must notice."""

    def append(self, records: Sequence[Record]) -> asyncio.Future[None]:
        super().append(records)
        done: asyncio.Future[None] = self._loop.create_future()
        self._loop.call_soon(done.set_result, None)
        return done


def _pass_on(future: asyncio.Future[None], done: asyncio.Future[None]) -> None:
    if error := done.exception():
        fail(future, str(error))
    elif not future.done():
        future.set_result(None)


def fail(future: asyncio.Future[None], why: str) -> None:
    if not future.done():
        future.set_exception(StoreFailed(why))
        future.exception()  # seen: nobody needs to await it


class SlowCore(ScriptedCore):
    """Its slices and admissions take time, each another; a crash hits whoever is in one."""

    def __init__(self, script: Callable[[Prompt], str], chance: random.Random, slots: int) -> None:
        super().__init__(script, slots=slots)
        self._times = chance

    async def run(self, sequence: int, grant: Slice) -> SliceResult:
        await asyncio.sleep(self._times.random() * 0.05)
        return await super().run(sequence, grant)

    async def admit(self, prompt: Prompt, made: Sequence[int] = (), text: str = "") -> Any:
        if self._times.random() < 0.3:
            await asyncio.sleep(0.01)
        return await super().admit(prompt, made, text)


class SimulatedPrograms(ScriptedPrograms):
    """Programs as coroutines; each start is another OS process, known to it as OS_PID."""

    def __init__(self, programs: Mapping[str, Any], numbers: Iterator[int]) -> None:
        super().__init__(programs)
        self._numbers = numbers
        self._living: dict[int, asyncio.Task[int]] = {}

    async def start(
        self, pid: int, argv: Sequence[str], cwd: str | None, env: dict[str, str]
    ) -> Started:
        os_pid = next(self._numbers)
        await super().start(pid, argv, cwd, env | {"OS_PID": str(os_pid)})
        self._living[os_pid] = self._task(pid)
        return Started(os_pid, 0.0)

    async def gone(self, os_pid: int) -> None:
        if os_pid in self._living:
            await asyncio.wait({self._living[os_pid]})
        elif os_pid == OUTSIDE:
            await asyncio.Event().wait()
