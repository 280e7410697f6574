"""A load of HTTP requests: keep-alive connections, one request at a time on each.

``python -m bench.http_load`` reads a Load as JSON from its standard input and prints an Outcome. It
knows just enough HTTP for servers that send a content-length; a client library would cost more than
the server it measures.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from functools import partial

import msgspec
import uvloop
from msgspec import Struct

HEAD = (
    "POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
    "content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
)


class Load(Struct):
    """*callers* connections, each with its own key, for *requests* in all or *seconds* at most."""

    port: int
    path: str
    body: str
    keys: list[str]
    callers: int
    requests: int
    seconds: float


class Outcome(Struct):
    """errors counts answers other than 200 and connections that broke; body is the last answer."""

    answers: int
    errors: int
    seconds: float
    p50_ms: float
    p99_ms: float
    body: str


class Caller(asyncio.Protocol):
    """One connection: the next request when the last one is answered."""

    def __init__(self, request: bytes, run: Run) -> None:
        self._request, self._run = request, run
        self._transport: asyncio.Transport
        self._buffer = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        if not self._run.may_ask():
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        _, _, length = head.lower().partition(b"content-length: ")
        if len(body) < int(length.split(b"\r\n")[0]):
            return
        self._buffer = b""
        self._run.answered(time.perf_counter() - self._sent, head[9:12] == b"200", body)
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        self._run.lost()


class Run:
    """What all callers of a load share."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._left = load.requests
        self._until = time.perf_counter() + load.seconds
        self._open = load.callers
        self._asked = 0
        self._times: list[float] = []
        self._errors = 0
        self._body = b""
        self.ended = asyncio.Event()

    def may_ask(self) -> bool:
        if self._left <= 0 or time.perf_counter() > self._until:
            return False
        self._left -= 1
        self._asked += 1
        return True

    def answered(self, seconds: float, good: bool, body: bytes) -> None:
        self._times.append(seconds)
        self._errors += not good
        self._body = body

    def lost(self) -> None:
        self._open -= 1
        if not self._open:
            self.ended.set()

    def outcome(self, seconds: float) -> Outcome:
        times = sorted(self._times)
        return Outcome(
            answers=len(times) - self._errors,
            errors=self._errors + self._asked - len(times),
            seconds=seconds,
            p50_ms=times[len(times) // 2] * 1000,
            p99_ms=times[len(times) * 99 // 100] * 1000,
            body=self._body.decode(),
        )


async def drive(load: Load) -> Outcome:
    run = Run(load)
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    for index in range(load.callers):
        head = HEAD.format(
            path=load.path,
            port=load.port,
            key=load.keys[index % len(load.keys)],
            length=len(load.body.encode()),
        )
        request = (head + load.body).encode()
        await loop.create_connection(partial(Caller, request, run), "127.0.0.1", load.port)
    await asyncio.wait_for(run.ended.wait(), load.seconds + 30)
    return run.outcome(time.perf_counter() - began)


def put(load: Load) -> Outcome:
    """Run *load* in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.http_load"],
        input=msgspec.json.encode(load),
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=Outcome)


if __name__ == "__main__":
    wanted = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.stdout.buffer.write(msgspec.json.encode(runner.run(drive(wanted))))
