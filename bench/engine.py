"""Baselines beside the whole system: the same engine in a bare loop, and llama.cpp's own server.

``direct`` is our Engine without kernel, worker process and HTTP; ``server`` the llama.cpp server of
the same wheel over HTTP on the loopback. Both answer some prompts at once; the rate is completion
tokens a second of wall time, prefill included. The workload is the same: chats of about 150 tokens
that differ from the first chunk on, 64 new tokens, end of text ignored, no prompt cache.

    direct(n, sampling)          server(n, sampling)       the median rate of some rounds
    with Side("direct") as side: side.rate(n, sampling)    one round, to take turns with another
"""

from __future__ import annotations

import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from aios.abi.messages import Message, Sampling
from aios.config import Core, Paths
from aios.drivers.cores.worker.core import ENVIRONMENT
from aios.models import ModelStore
from aios.ports import Prompt, Slice, SliceResult

NEW_TOKENS = 64
SLOTS = 8
THREADS = 2
CELLS = 8 * 512
ROUNDS = 5  # their median counts
CONCURRENT = (1, 4, 8)
GREEDY = Sampling(max_tokens=NEW_TOKENS, seed=1, ignore_end=True)
TOP_P = Sampling(temperature=0.8, top_p=0.95, max_tokens=NEW_TOKENS, seed=1, ignore_end=True)
GOAL = 1.1  # direct against server: room for the kernel's own share

SENTENCES = """The harbour wakes before the town, and the gulls are always first.
A clerk counts the crates twice because the ledger never agrees with him.
Rain came in the night and left the cobbles shining like the backs of fish.
Two brothers argue about a rope that neither of them owns.
The bakery window fogs over while the first loaves cool on the sill.
An old engine coughs, stops, and is persuaded to start again with a spanner.
Nobody remembers who painted the blue door, but everyone knows which it is.
The ferry timetable has been wrong since spring and people simply allow for it.
Somewhere above the chandler's shop a child practises the same four notes.
At noon the lighthouse keeper walks to the market to buy lemons and string.
Letters for the islands wait in a basket with a stone on top.
The tide leaves a chair on the beach, and by evening someone is sitting in it.""".splitlines()


class Round(Struct):
    """*n* prompts at once; *number* tells rounds apart."""

    number: int
    n: int
    sampling: Sampling


def environment() -> dict[str, str]:
    """That of a process which runs the engine."""
    return {**ENVIRONMENT, **os.environ}


def model() -> Path:
    """The default model, pulled if it is not here."""
    return ModelStore(Paths.find().models).ensure(Core().model).path


def question(number: int) -> tuple[Message, ...]:
    """A chat of about 150 tokens; two of them share no chunk of 64."""
    sentences = random.Random(number).sample(SENTENCES, 8)
    return (
        Message("system", f"You are writer {number}."),
        Message("user", f"Go on with this story. {' '.join(sentences)}"),
    )


class Side:
    """One of the two in a process of its own, which loads the model once; a context manager."""

    def __init__(self, what: str) -> None:
        self._rounds = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.engine", what, str(model())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )

    def rate(self, n: int, sampling: Sampling) -> float:
        """Tokens a second of one round; the first round warms up and is run twice."""
        if not self._rounds:
            self._round(1, sampling)
        return self._round(n, sampling)

    def _round(self, n: int, sampling: Sampling) -> float:
        self._rounds += 1
        pipe = self._process
        assert pipe.stdin
        assert pipe.stdout
        pipe.stdin.write(msgspec.json.encode(Round(self._rounds, n, sampling)) + b"\n")
        pipe.stdin.flush()
        return float(pipe.stdout.readline())

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def direct(n: int, sampling: Sampling) -> float:
    """Tokens a second of *n* concurrent prompts through the engine alone."""
    with Side("direct") as side:
        return statistics.median(side.rate(n, sampling) for _ in range(ROUNDS))


def server(n: int, sampling: Sampling) -> float:
    """Tokens a second of *n* concurrent prompts through llama.cpp's server."""
    with Side("server") as side:
        return statistics.median(side.rate(n, sampling) for _ in range(ROUNDS))


class Direct:
    def __init__(self, path: str) -> None:
        from aios.drivers.cores.llama.engine import Engine  # this process alone needs its imports

        self._engine = Engine(
            Path(path),
            "bench",
            slots=SLOTS,
            threads=THREADS,
            cells=CELLS,
            ram_bytes=0,
            share=False,
        )

    def answer(self, numbers: list[int], sampling: Sampling) -> None:
        engine, left = self._engine, set(numbers)
        for number in numbers:
            engine.admit(number, Prompt(question(number), sampling))
            engine.run(number, Slice(NEW_TOKENS))
        while left:
            for number, result in engine.turn():
                assert isinstance(result, SliceResult), result
                if result.finish_reason:
                    left.discard(number)
                    engine.release(number)
                else:
                    engine.run(number, Slice(NEW_TOKENS))


class Server:
    def __init__(self, path: str, threads: int = THREADS) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_ctx, params.n_parallel = CELLS, SLOTS
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.n_gpu_layers = 0
        params.cache_ram_mib = 0
        params.port = 0
        self._server = xllamacpp.Server(params)
        self.place = self._server.listening_address.removeprefix("http://")
        self._pool = ThreadPoolExecutor(SLOTS)

    def answer(self, numbers: list[int], sampling: Sampling) -> None:
        for _ in self._pool.map(lambda number: self._ask(number, sampling), numbers):
            pass

    def _ask(self, number: int, sampling: Sampling) -> None:
        body = {
            "messages": [{"role": m.role, "content": m.content} for m in question(number)],
            "max_tokens": NEW_TOKENS,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "samplers": ["top_p", "temperature"],
            "seed": sampling.seed,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        kind = {"Content-Type": "application/json"}
        connection = http.client.HTTPConnection(self.place)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), kind)
        reply = json.loads(connection.getresponse().read())
        connection.close()
        assert reply["usage"]["completion_tokens"] == NEW_TOKENS, reply


def run() -> dict[str, Any]:
    """Both, by turns, at 1, 4 and 8 prompts, greedy and top-p."""
    figures: dict[str, Any] = {"name": "engine"}
    ratios = []
    with Side("direct") as ours, Side("server") as theirs:
        for kind, sampling in (("greedy", GREEDY), ("top_p", TOP_P)):
            for n in CONCURRENT:
                pairs = [(ours.rate(n, sampling), theirs.rate(n, sampling)) for _ in range(ROUNDS)]
                ratio = statistics.median(own / other for own, other in pairs)
                ratios.append(ratio)
                figures[f"{kind}_{n}"] = {
                    "direct": round(statistics.median(own for own, _ in pairs), 1),
                    "server": round(statistics.median(other for _, other in pairs), 1),
                    "ratio": round(ratio, 2),
                }
    return {
        **figures,
        "goal": f"direct at least {GOAL} of server, each",
        "met": min(ratios) >= GOAL,
    }


def main() -> None:
    """Serve rounds, one a line of the standard input."""
    sides: dict[str, type[Direct | Server]] = {"direct": Direct, "server": Server}
    side = sides[sys.argv[1]](sys.argv[2])
    for line in sys.stdin.buffer:
        asked = msgspec.json.decode(line, type=Round)
        numbers = [asked.number * SLOTS + i for i in range(asked.n)]
        started = time.perf_counter()
        side.answer(numbers, asked.sampling)
        print(asked.n * NEW_TOKENS / (time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    main()
