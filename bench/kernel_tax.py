"""What the kernel costs beside the work: a call through the door, and a request over HTTP.

The scripted core answers at once, the journal is a file, and every answer is on disk before it is
given. ``trap_cpu_us``: CPU of the whole process, journal thread and callers included, for one
``generate`` of 64 concurrent agents. ``cpu_vs_bare``: CPU of the server's process for one chat
completion, over that of a Starlette app with one route that reads the request and sends the same
bytes, on the same loop and HTTP protocol; ``cpu_vs_plain``: over an ASGI function that does only
that. ``not_durable`` counts answers that were given and are not in the journal afterwards. The
servers take turns; of the rounds the one with the least CPU counts, for the machine may be busy.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import msgspec
import uvloop
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn import Config as UvicornConfig
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from aios import config
from aios.abi.calls import Generate, SpawnAgent, Spawned
from aios.abi.messages import Message, Sampling
from aios.drivers.journal.sqlite import SqliteJournal
from aios.server.app import App
from aios.server.listener import Listener
from aios.testing import TestKernel, machine
from bench.http_load import Load, put

TRAP_CPU_US = 200.0
CPU_VS_BARE = 3.5
CALLERS = (1, 16, 64, 256)
TRAP_CALLERS = 64
ROUNDS = 3
SECONDS = 2.0  # of each measurement, at most
REQUESTS = 20_000  # likewise
WARM_UP = 1_000  # requests before the clock starts

PATH = "/v1/chat/completions"
QUESTION = "What is the capital of France? Answer in one word."
ANSWER = "Paris."
BODY = msgspec.json.encode(
    {
        "model": "scripted",
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": 16,
    }
).decode()


class Ready(Struct):
    """What a server says of itself when it listens."""

    port: int
    keys: list[str]


# --- the servers, each in a process of its own ----------------------------------------------------


@asynccontextmanager
async def agents(folder: Path, count: int) -> AsyncIterator[tuple[TestKernel, list[Spawned]]]:
    """A kernel with its journal in *folder* and *count* processes that their callers run."""
    settings = config.Config(kernel=config.Kernel(children=count))
    journal = SqliteJournal(folder / "journal.db")
    async with machine([ANSWER], journal=journal, config=settings) as kernel:
        user = kernel.identify(kernel.user_key)
        made = [await kernel.trap(user, SpawnAgent(program="bench")) for _ in range(count)]
        yield kernel, [reply for reply in made if isinstance(reply, Spawned)]


async def serve_kernel(folder: Path) -> None:
    async with agents(folder, max(CALLERS)) as (kernel, spawned):
        listener = Listener(App(kernel, config.Server(), lambda: None))
        port, listening = listen()
        await listener.open([listening])
        await measured(Ready(port, [reply.key or "" for reply in spawned]))
        await listener.close(1.0)


def plain_app(body: bytes) -> Any:
    """ASGI and nothing else."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message: MutableMapping[str, Any] = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
        headers = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def starlette_app(body: bytes) -> Any:
    """One route."""

    async def answer(request: Request) -> Response:
        await request.body()
        return Response(body, media_type="application/json")

    return Starlette(routes=[Route(PATH, answer, methods=["POST"])])


async def serve_bare(app: Any) -> None:
    settings = UvicornConfig(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
    )
    settings.load()
    state = ServerState()
    port, listening = listen()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: HttpToolsProtocol(settings, state, {}), sock=listening, backlog=2048
    )
    await measured(Ready(port, ["none"]))
    server.close()


def listen() -> tuple[int, socket.socket]:
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    return listening.getsockname()[1], listening


async def measured(ready: Ready) -> None:
    """Say what is ready, then print this process's CPU seconds for each line read."""
    gc.collect()
    gc.freeze()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    sys.stdout.write(msgspec.json.encode(ready).decode() + "\n")
    sys.stdout.flush()
    while await reader.readline():
        sys.stdout.write(f"{time.process_time()}\n")
        sys.stdout.flush()


class Server:
    """A server process, seen from here."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.kernel_tax", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ready = msgspec.json.decode(self._line(), type=Ready)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _cpu_s(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("cpu\n")
        self._process.stdin.flush()
        return float(self._line())

    def load(self, callers: int, requests: int = REQUESTS) -> dict[str, Any]:
        """Requests of this many callers: CPU microseconds each, answers, errors, times."""
        load = Load(self._ready.port, PATH, BODY, self._ready.keys, callers, requests, SECONDS)
        before = self._cpu_s()
        outcome = put(load)
        cpu_us = (self._cpu_s() - before) / max(1, outcome.answers) * 1e6
        return {"cpu_us": cpu_us, **msgspec.structs.asdict(outcome)}

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


# --- the measurements -----------------------------------------------------------------------------


async def trap_cpu_us(folder: Path, callers: int = TRAP_CALLERS, seconds: float = SECONDS) -> float:
    """CPU microseconds of one generate, of this whole process."""
    call = Generate(
        context=None,
        messages=(Message("user", QUESTION),),
        sampling=Sampling(max_tokens=16),
    )
    async with agents(folder, callers) as (kernel, spawned):
        calls = 0

        async def caller(pid: int, until: Callable[[], bool]) -> None:
            nonlocal calls
            while not until():
                await kernel.trap(pid, call)
                calls += 1

        async def all_callers(seconds: float) -> None:
            end = time.perf_counter() + seconds
            await asyncio.gather(
                *(caller(reply.aid, lambda: time.perf_counter() > end) for reply in spawned)
            )

        await all_callers(seconds / 4)
        gc.collect()
        gc.freeze()
        spent = []
        for _ in range(ROUNDS):
            calls = 0
            before = time.process_time()
            await all_callers(seconds)
            spent.append((time.process_time() - before) / calls * 1e6)
        return min(spent)


def over_http(folder: Path) -> dict[str, Any]:
    """The kernel's server and the bare ones under the same loads, by turns."""
    names = ("cpu_vs_bare", "cpu_vs_plain", "cpu_us", "bare_cpu_us", "requests_per_s", "p99_ms")
    found: dict[str, dict[int, float]] = {name: {} for name in names}
    errors = answers = 0
    kernel = Server("kernel", str(folder))
    warm = kernel.load(16, WARM_UP)
    (folder / "answer").write_text(warm["body"])
    servers = {
        "kernel": kernel,
        "bare": Server("starlette", str(folder / "answer")),
        "plain": Server("plain", str(folder / "answer")),
    }
    for callers in CALLERS:
        best: dict[str, dict[str, Any]] = {}
        for _ in range(ROUNDS):
            for name, server in servers.items():
                told = server.load(callers)
                errors += told["errors"]
                answers += told["answers"] if server is kernel else 0
                best[name] = min(best.get(name, told), told, key=lambda one: one["cpu_us"])
        full = best["kernel"]
        found["cpu_vs_bare"][callers] = round(full["cpu_us"] / best["bare"]["cpu_us"], 2)
        found["cpu_vs_plain"][callers] = round(full["cpu_us"] / best["plain"]["cpu_us"], 2)
        found["cpu_us"][callers] = round(full["cpu_us"], 1)
        found["bare_cpu_us"][callers] = round(best["bare"]["cpu_us"], 1)
        found["requests_per_s"][callers] = round(full["answers"] / full["seconds"])
        found["p99_ms"][callers] = round(full["p99_ms"], 1)
    for server in servers.values():
        server.close()
    kept = apsw.Connection(str(folder / "journal.db")).execute(
        "SELECT count(*) FROM ends JOIN calls USING (number)"
        " WHERE state = 'done' AND name = 'generate'"
    )
    given = answers + warm["answers"]
    return {**found, "errors": errors, "not_durable": max(0, given - next(kept)[0])}


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            trap = runner.run(trap_cpu_us(folder / "trap"))
        figures = {"trap_cpu_us": round(trap, 1), **over_http(folder)}
    ratios = [ratio for callers, ratio in figures["cpu_vs_bare"].items() if callers >= 16]
    return {
        "name": "kernel_tax",
        **figures,
        "goal": f"trap_cpu_us <= {TRAP_CPU_US:g}; cpu_vs_bare <= {CPU_VS_BARE:g} at 16 callers and "
        "above; errors and not_durable 0",
        "met": trap <= TRAP_CPU_US
        and max(ratios) <= CPU_VS_BARE
        and figures["errors"] == figures["not_durable"] == 0,
    }


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        match sys.argv[1:]:
            case ["kernel", folder]:
                runner.run(serve_kernel(Path(folder)))
            case ["plain", answer]:
                runner.run(serve_bare(plain_app(Path(answer).read_bytes())))
            case ["starlette", answer]:
                runner.run(serve_bare(starlette_app(Path(answer).read_bytes())))
