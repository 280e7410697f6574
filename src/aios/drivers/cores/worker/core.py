"""WorkerCore: a core whose engine runs in a process of its own.

It keeps a worker process and speaks to it over a socket pair; nothing heavy is imported here. When
the worker dies, every call in progress raises CoreFailed, the sequences are gone, and the next
``admit`` or ``thaw`` starts another worker, at most *max_restarts* times in a minute.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from itertools import count
from types import NoneType
from typing import Any, TypeVar

import msgspec

from aios.drivers.cores.worker import wire
from aios.errors import CoreFailed, DriverError, SetupError, from_code
from aios.ports import (
    Abilities,
    Admitted,
    Frozen,
    Paged,
    Prompt,
    Residency,
    Slice,
    SliceResult,
)

T = TypeVar("T")

RESTART_WINDOW_S = 60.0
EXIT_S = 5.0  # for a worker whose socket was closed to end by itself
ENVIRONMENT = {
    # Threads that wait spin for some 50 microseconds, then sleep: between two operators that is
    # enough, and on shared cores nobody loses more. Measured for one token on two threads: 18 ms
    # without any spin, 5 with it.
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "3000",
    "GGML_NO_BACKTRACE": "1",  # an abort would start a debugger
}


class _Life:
    """One run of the worker process."""

    def __init__(self) -> None:
        self.process: asyncio.subprocess.Process | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.waiting: dict[int, tuple[asyncio.Future[Any], Any]] = {}
        self.sequences: set[int] = set()
        self.last_words: deque[str] = deque(maxlen=20)
        self.is_over = False
        self.tasks: list[asyncio.Task[None]] = []


class WorkerCore:
    """The engine that ``load(**options)`` of a module makes, in a worker process.

    *source* says in errors what is loaded, *remedy* what to do when it cannot be; *abilities* are
    what is known of it before it is loaded.
    """

    def __init__(
        self,
        abilities: Abilities,
        module: str,
        options: dict[str, Any],
        *,
        source: str,
        remedy: str,
        ram_bytes: int = 0,
        max_restarts: int = 5,
    ) -> None:
        self.abilities, self.name = abilities, abilities.model
        self._load = wire.Load(module, options)
        self._source, self._remedy, self._ram_bytes = source, remedy, ram_bytes
        self._max_restarts = max_restarts
        self._life: _Life | None = None
        self._starting = asyncio.Lock()
        self._starts: deque[float] = deque()
        self._numbers, self._requests = count(1), count(1)
        self._is_closed = False
        self.restarts = 0

    def __repr__(self) -> str:
        return f"<core {self.name}: worker {self.os_pid}, {self.restarts} restarts>"

    @property
    def os_pid(self) -> int | None:
        """The worker's, while it lives."""
        life = self._life
        return life.process.pid if life and life.process and not life.is_over else None

    # --- the worker's life ------------------------------------------------------------------------

    async def start(self) -> None:
        await self._alive()

    async def close(self) -> None:
        self._is_closed = True
        if life := self._life:
            await self._end(life)

    async def _alive(self) -> _Life:
        """The living worker; starts one if there is none."""
        async with self._starting:
            if self._is_closed:
                raise CoreFailed(f"the core {self.name} is closed.")
            if self._life and not self._life.is_over:
                return self._life
            if self._life:
                self._count_restart()
            life = _Life()
            try:
                await self._spawn(life)
                self.abilities = await self._ask(life, self._load, Abilities)
            except CoreFailed as error:
                await self._end(life)
                if self._life is None:  # it never ran: the model or the machine is at fault
                    raise SetupError(
                        f"{self._source} could not be loaded ({error.message}); {self._remedy}."
                    ) from error
                raise
            except BaseException:
                await self._end(life)
                raise
            self._life = life
            return life

    def _count_restart(self) -> None:
        now = time.monotonic()
        while self._starts and now - self._starts[0] > RESTART_WINDOW_S:
            self._starts.popleft()
        if len(self._starts) >= self._max_restarts:
            raise CoreFailed(
                f"the worker of {self.name} died {len(self._starts) + 1} times in a minute; "
                f"it is given up until a minute has passed."
            )
        self._starts.append(now)
        self.restarts += 1

    async def _spawn(self, life: _Life) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            life.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "aios.drivers.cores.worker.process",
                str(theirs.fileno()),
                str(os.getpid()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **{k: os.environ.get(k, v) for k, v in ENVIRONMENT.items()}},
            )
        reader, life.writer = await asyncio.open_unix_connection(sock=ours, limit=1 << 20)
        life.tasks = [
            asyncio.create_task(self._listen(life, reader)),
            asyncio.create_task(_overhear(life)),
        ]

    async def _listen(self, life: _Life, reader: asyncio.StreamReader) -> None:
        """Hand every reply to who waits for it; at the end of the worker, tell them all."""
        decoder = msgspec.msgpack.Decoder(wire.Reply)
        data = bytearray()
        try:
            while received := await reader.read(1 << 20):
                data += received
                for body in wire.split(data):
                    self._settle(life, decoder.decode(body))
        except (ConnectionError, msgspec.DecodeError) as error:
            life.last_words.append(str(error))
        finally:
            life.is_over = True
        assert life.process is not None
        assert life.writer is not None
        life.writer.close()
        status = await life.process.wait()
        await asyncio.wait(life.tasks[1:])
        why = f": {life.last_words[-1].rstrip('.')}" if life.last_words else ""
        ended = f"by signal {-status}" if status < 0 else f"with status {status}"
        for future, _ in life.waiting.values():
            if not future.done():
                future.set_exception(CoreFailed(f"the worker of {self.name} ended {ended}{why}."))
        life.waiting.clear()

    def _settle(self, life: _Life, reply: wire.Reply) -> None:
        future, kind = life.waiting.pop(reply.number)
        if future.done():
            return
        if reply.code:
            future.set_exception(from_code(reply.code, reply.message))
        else:
            future.set_result(msgspec.msgpack.decode(reply.value, type=kind))

    async def _end(self, life: _Life) -> None:
        """Hang up; the worker ends by itself, or is made to."""
        if life.writer:
            life.writer.close()
        if life.process and life.process.returncode is None:
            try:
                await asyncio.wait_for(life.process.wait(), EXIT_S)
            except TimeoutError:
                life.process.kill()
        if life.tasks:
            await asyncio.wait(life.tasks)
        if life.writer:
            await asyncio.gather(life.writer.wait_closed(), return_exceptions=True)
        life.is_over = True

    # --- calls ------------------------------------------------------------------------------------

    async def _ask(self, life: _Life, op: wire.Ops, kind: type[T]) -> T:
        if life.is_over or life.writer is None:
            raise CoreFailed(f"the worker of {self.name} has ended; admit again.")
        number = next(self._requests)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        life.waiting[number] = future, kind
        life.writer.write(wire.frame(wire.Request(number, op)))
        return await future

    def _home(self, sequence: int) -> _Life:
        """The life that a sequence lives in; CoreFailed if it ended."""
        life = self._life
        if life is None or life.is_over or sequence not in life.sequences:
            raise CoreFailed(
                f"sequence {sequence} is not in the core {self.name} (any more); "
                "admit its prompt again."
            )
        return life

    async def admit(self, prompt: Prompt, made: Sequence[int] = (), text: str = "") -> Admitted:
        life, number = await self._alive(), next(self._numbers)
        op = wire.Admit(number, prompt, tuple(made), text)
        return await self._bear(life, number, op, Admitted)

    async def measure(self, prompt: Prompt) -> int:
        return await self._ask(await self._alive(), wire.Measure(prompt), int)

    async def thaw(self, path: str) -> Admitted:
        life, number = await self._alive(), next(self._numbers)
        return await self._bear(life, number, wire.Thaw(number, path), Admitted)

    async def fork(self, sequence: int) -> int:
        life, number = self._home(sequence), next(self._numbers)
        await self._bear(life, number, wire.Fork(sequence, number), NoneType)
        return number

    async def _bear(self, life: _Life, number: int, op: wire.Ops, kind: type[T]) -> T:
        """Ask for a new sequence; nobody else could end it if the caller is cancelled meanwhile."""
        try:
            reply = await self._ask(life, op, kind)
        except asyncio.CancelledError:
            self._tell(life, wire.Release(number))
            raise
        life.sequences.add(number)
        return reply

    async def run(self, sequence: int, grant: Slice) -> SliceResult:
        try:
            return await self._ask(self._home(sequence), wire.Run(sequence, grant), SliceResult)
        except asyncio.CancelledError:
            if (life := self._life) and sequence in life.sequences:
                self._tell(life, wire.Cancel(sequence))
            raise

    async def page_out(self, sequence: int) -> Paged:
        return await self._ask(self._home(sequence), wire.PageOut(sequence), Paged)

    async def page_in(self, sequence: int) -> Paged:
        return await self._ask(self._home(sequence), wire.PageIn(sequence), Paged)

    async def freeze(self, sequence: int, path: str) -> Frozen:
        return await self._ask(self._home(sequence), wire.Freeze(sequence, path), Frozen)

    async def cancel(self, sequence: int) -> None:
        await self._ask(self._home(sequence), wire.Cancel(sequence), NoneType)

    async def release(self, sequence: int) -> None:
        life = self._life
        if life is None or life.is_over or sequence not in life.sequences:
            return
        life.sequences.discard(sequence)
        try:
            await self._ask(life, wire.Release(sequence), NoneType)
        except DriverError:
            pass  # the worker died meanwhile: forgotten all the same

    async def residency(self) -> Residency:
        life = self._life
        if life is None or life.is_over:
            return Residency(0, self.abilities.cells, 0, self._ram_bytes, 0)
        return await self._ask(life, wire.Report(), Residency)

    async def check(self) -> list[str]:
        """Invariants of the worker's pools that do not hold, in numbers."""
        life = self._life
        return await self._ask(life, wire.Check(), list[str]) if life and not life.is_over else []

    def _tell(self, life: _Life, op: wire.Ops) -> None:
        """Ask without waiting for the answer."""
        if life.is_over or life.writer is None:
            return
        number = next(self._requests)
        ignored: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        ignored.add_done_callback(_heard)
        life.waiting[number] = ignored, NoneType
        life.writer.write(wire.frame(wire.Request(number, op)))


def _heard(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # marks it as seen: nobody waits for this answer


async def _overhear(life: _Life) -> None:
    """Keep the last lines the worker prints: llama.cpp says there why it aborts."""
    assert life.process is not None
    assert life.process.stderr is not None
    async for line in life.process.stderr:
        if text := line.decode("utf-8", "replace").strip():
            life.last_words.append(text)


def usable_cpus() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
