"""What the kernel costs in front of a model server: tokens a second, and the time to the first one.

``ratio`` is tokens a second through the kernel (journal on disk, gate, OpenAI core) over those of
the same load straight to the server over httpx2, ``first_token_ms`` what the kernel adds to the
time until the first token. Two servers, each in a process of its own on the loopback: a scripted
one that makes each token in the same time, and llama.cpp's own. The two ways take turns, and who
goes first; all rounds count, and of the times to the first token the lower quartile; no prompt is
asked twice. The goal for the first token is for the scripted server: the time that llama.cpp takes
for a prompt varies by more than that.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import uvloop

from aios.abi.calls import Generate, Generation
from aios.abi.messages import Delta, Message, Sampling
from aios.drivers.clock import SystemClock
from aios.drivers.cores.gate import Gate
from aios.drivers.cores.openai.core import OpenAICore
from aios.drivers.journal.sqlite import SqliteJournal
from aios.testing import FaultyServer, ScriptedCores, machine
from bench import engine

RATIO, FIRST_TOKEN_MS = 0.95, 5.0
CALLERS = 4  # at once; two cores feed no more of llama.cpp's
ROUNDS = 5
PAIRS = 40  # of single requests, for the first token
TOKEN_S = 0.01  # of the scripted server
TOKENS, LLAMA_TOKENS = 200, 24  # of an answer
numbers = itertools.count(50_000)


# --- the servers ----------------------------------------------------------------------------------


async def serve_scripted() -> None:
    loop = asyncio.get_running_loop()
    text = " ".join(f"word{number}" for number in range(TOKENS))
    async with FaultyServer([text], token_s=TOKEN_S) as server:
        sys.stdout.write(server.url + "\n")
        sys.stdout.flush()
        await loop.run_in_executor(None, sys.stdin.read)


def serve_llama() -> None:
    server = engine.Server(str(engine.model()), threads=1)  # the other core is for who asks
    sys.stdout.write(f"http://{server.place}/v1\n")
    sys.stdout.flush()
    sys.stdin.read()


@contextmanager
def served(kind: str) -> Iterator[str]:
    """The address of a server, which ends with the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.remote", kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=engine.environment(),
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()  # llama.cpp's would wait for connections that we hold


# --- the two ways ---------------------------------------------------------------------------------


class Straight:
    """Over httpx2, as a program without a kernel would ask."""

    def __init__(self, url: str, model: str, tokens: int) -> None:
        self._url, self._model, self._tokens = url, model, tokens
        limits = httpx2.Limits(max_keepalive_connections=0)  # see drivers/cores/openai/discovery.py
        self._http = httpx2.AsyncClient(timeout=60, limits=limits)

    async def ask(self, messages: tuple[Message, ...], tokens: int) -> tuple[int, float]:
        body = {
            "model": self._model,
            "messages": [{"role": one.role, "content": one.content} for one in messages],
            "max_tokens": tokens,
            "temperature": 0,
            "top_k": 0,
            "top_p": 1,
            "min_p": 0,
            "seed": 1,
            "ignore_eos": True,
            "stream": True,
        }
        started, first, made = time.perf_counter(), 0.0, 0
        async with self._http.stream("POST", f"{self._url}/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                choices = msgspec.json.decode(line[6:])["choices"]
                if choices and choices[0]["delta"].get("content"):
                    first = first or time.perf_counter() - started
                    made += 1
        return made, first


class Kernel:
    """The same through the one door."""

    def __init__(self, kernel: Any) -> None:
        self._kernel, self._pid = kernel, kernel.identify(kernel.user_key)

    async def ask(self, messages: tuple[Message, ...], tokens: int) -> tuple[int, float]:
        started, first = time.perf_counter(), 0.0

        def hear(delta: Delta) -> None:
            nonlocal first
            if delta.text:
                first = first or time.perf_counter() - started

        sampling = Sampling(max_tokens=tokens, seed=1, ignore_end=True)
        call = Generate(messages=messages, context=None, sampling=sampling)
        reply = await self._kernel.trap(self._pid, call, hear)
        assert isinstance(reply, Generation)
        return reply.usage.completion_tokens, first


@asynccontextmanager
async def ways(url: str, tokens: int, folder: Path) -> AsyncIterator[tuple[Kernel, Straight]]:
    core = OpenAICore(url, "", "served", gate=Gate("bench", SystemClock()))
    await core.start()
    names = [model.name for model in (await core.health()).models]
    journal = SqliteJournal(folder / "journal.db")
    straight = Straight(url, names[0], tokens)
    async with machine(cores=ScriptedCores(core), journal=journal) as kernel:
        yield Kernel(kernel), straight
    await core.close()
    await straight._http.aclose()


async def rate(way: Kernel | Straight, tokens: int) -> float:
    """Tokens a second of some callers at once."""
    started = time.perf_counter()
    made = await asyncio.gather(
        *(way.ask(engine.question(next(numbers)), tokens) for _ in range(CALLERS))
    )
    assert all(count == tokens for count, _ in made), made
    return sum(count for count, _ in made) / (time.perf_counter() - started)


def quarter(times: Sequence[float]) -> float:
    """The time that the fastest quarter took at most: the machine may be busy with others."""
    return sorted(times)[len(times) // 4]


async def measure(
    kind: str, tokens: int, rounds: int = ROUNDS, pairs: int = PAIRS
) -> dict[str, float]:
    """One server: *rounds* of some callers at once, and *pairs* of single requests."""
    with served(kind) as url, tempfile.TemporaryDirectory() as place:
        async with ways(url, tokens, Path(place)) as (kernel, straight):
            for way in (kernel, straight):
                await way.ask(engine.question(next(numbers)), 2)  # warm
            rates: list[tuple[float, float]] = []
            for number in range(rounds):
                found = {}
                for way in (kernel, straight) if number % 2 else (straight, kernel):
                    found[way] = await rate(way, tokens)
                rates.append((found[kernel], found[straight]))
            firsts: list[tuple[float, float]] = []
            for number in range(pairs):
                found = {}
                for way in (kernel, straight) if number % 2 else (straight, kernel):
                    _, found[way] = await way.ask(engine.question(next(numbers)), 2)
                firsts.append((found[kernel], found[straight]))
    own, other = zip(*firsts, strict=True)
    return {
        "kernel": round(statistics.median(own for own, _ in rates), 1),
        "straight": round(statistics.median(other for _, other in rates), 1),
        "ratio": round(sum(own for own, _ in rates) / sum(other for _, other in rates), 3),
        "first_token_ms": round((quarter(own) - quarter(other)) * 1000, 2),
        "first_token_straight_ms": round(quarter(other) * 1000, 2),
    }


def run() -> dict[str, Any]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        scripted = runner.run(measure("scripted", TOKENS))
        llama = runner.run(measure("llama", LLAMA_TOKENS, pairs=10))
    return {
        "name": "remote",
        "scripted": scripted,
        "llama": llama,
        "goal": f"ratio >= {RATIO}, both; first_token_ms <= {FIRST_TOKEN_MS:g}, scripted",
        "met": min(scripted["ratio"], llama["ratio"]) >= RATIO
        and scripted["first_token_ms"] <= FIRST_TOKEN_MS,
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["scripted"]:
        asyncio.run(serve_scripted())
    else:
        serve_llama()
