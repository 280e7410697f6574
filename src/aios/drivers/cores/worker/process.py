"""The worker process: one engine behind one socket.

Started by ``core`` as ``python -m aios.drivers.cores.worker.process FD PARENT``. It ends when the
socket does, and on Linux as soon as its parent dies. One thread does everything: it reads what is
asked between two turns of the engine, of which Load says where it comes from.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any, Protocol

import msgspec

from aios.drivers.cores.worker import wire
from aios.errors import AiosError
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

GRACE_S = 0.002  # for those whose slice just ended to get the next one, before the batch goes on
PR_SET_PDEATHSIG = 1


class Engine(Protocol):
    """What runs a model in here: one call at a time, no asyncio. See ports.Core for the words."""

    abilities: Abilities

    @property
    def is_busy(self) -> bool:
        """Whether ``turn`` has something to do."""

    def turn(self) -> list[tuple[int, SliceResult | AiosError]]:
        """Advance every sequence that holds a slice by one step; the slices that are over."""

    def admit(
        self, number: int, prompt: Prompt, made: Many[int] = (), text: str = ""
    ) -> Admitted: ...

    def measure(self, prompt: Prompt) -> int: ...

    def run(self, number: int, grant: Slice) -> None:
        """Grant a slice; a later turn hands back its result."""

    def fork(self, number: int, new: int) -> None: ...

    def page_out(self, number: int) -> Paged: ...

    def page_in(self, number: int) -> Paged: ...

    def freeze(self, number: int, path: Path) -> Frozen: ...

    def thaw(self, number: int, path: Path) -> Admitted: ...

    def cancel(self, number: int) -> None: ...

    def release(self, number: int) -> None: ...

    def report(self) -> Residency: ...

    def check(self) -> list[str]: ...


class _Hangup(Exception):
    """The core closed its end."""


class Worker:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._data = bytearray()
        self._decoder = msgspec.msgpack.Decoder(wire.Request)
        self._engine: Engine | None = None
        self._runs: dict[int, int] = {}  # sequence -> number of its Run request

    def serve(self) -> None:
        """Until the core hangs up."""
        while True:
            self._read(None)
            while self._engine is not None and self._engine.is_busy:
                self._turn(self._engine)
                self._read(0)

    def _turn(self, engine: Engine) -> None:
        awaited = set()
        for sequence, result in engine.turn():
            self._answer(self._runs.pop(sequence), result)
            if isinstance(result, SliceResult) and result.finish_reason is None:
                awaited.add(sequence)
        deadline = time.monotonic() + GRACE_S
        while awaited - self._runs.keys() and (left := deadline - time.monotonic()) > 0:
            self._read(left)

    def _read(self, wait_s: float | None) -> None:
        """Do what is asked, waiting at most *wait_s* for something (None: as long as it takes)."""
        timeout = None if wait_s is None else wait_s * 1000
        if not self._poll.poll(timeout):
            return
        received = self._connection.recv(1 << 20)
        if not received:
            raise _Hangup
        self._data += received
        for body in wire.split(self._data):
            self._do(self._decoder.decode(body))

    def _do(self, request: wire.Request) -> None:
        op = request.op
        try:
            value = OPS[type(op)](self, op)
        except AiosError as error:
            self._answer(request.number, error)
            return
        if isinstance(op, wire.Run):
            self._runs[op.sequence] = request.number  # answered when the slice is over
        else:
            self._answer(request.number, value)

    def _answer(self, number: int, value: Any) -> None:
        if isinstance(value, AiosError):
            reply = wire.Reply(number, code=value.code, message=value.message)
        else:
            reply = wire.Reply(number, wire.raw(value))
        self._connection.sendall(wire.frame(reply))

    @property
    def engine(self) -> Engine:
        assert self._engine is not None, "Load comes first"
        return self._engine

    def load(self, op: wire.Load) -> Abilities:
        engine: Engine = importlib.import_module(op.module).load(**op.options)
        self._engine = engine
        return engine.abilities


OPS: dict[type[wire.Op], Callable[[Worker, Any], Any]] = {
    wire.Load: Worker.load,
    wire.Admit: lambda w, op: w.engine.admit(op.sequence, op.prompt, op.made, op.text),
    wire.Measure: lambda w, op: w.engine.measure(op.prompt),
    wire.Run: lambda w, op: w.engine.run(op.sequence, op.grant),
    wire.Fork: lambda w, op: w.engine.fork(op.sequence, op.twin),
    wire.PageOut: lambda w, op: w.engine.page_out(op.sequence),
    wire.PageIn: lambda w, op: w.engine.page_in(op.sequence),
    wire.Freeze: lambda w, op: w.engine.freeze(op.sequence, Path(op.path)),
    wire.Thaw: lambda w, op: w.engine.thaw(op.sequence, Path(op.path)),
    wire.Cancel: lambda w, op: w.engine.cancel(op.sequence),
    wire.Release: lambda w, op: w.engine.release(op.sequence),
    wire.Report: lambda w, op: w.engine.report(),
    wire.Check: lambda w, op: w.engine.check(),
}


def die_with(parent: int) -> None:
    """Have Linux kill this process when its parent dies; elsewhere the socket's end must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)


def main() -> None:
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the core's process to answer
    worker = Worker(socket.socket(fileno=descriptor))
    try:
        worker.serve()
    except (_Hangup, BrokenPipeError, ConnectionResetError):
        pass  # the core is gone, and with it all need for us


if __name__ == "__main__":
    main()
