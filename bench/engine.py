"""Baselines beside the whole system: the same engine in a bare loop, and llama.cpp's own server.

    direct(n, sampling)   our Engine, no kernel, no worker process, no HTTP
    server(n, sampling)   the llama.cpp server of the same wheel over HTTP on the loopback

Both answer *n* prompts at once and return completion tokens a second of wall time, prefill
included; each runs in a process of its own. The workload is the same: chats of about 150 tokens that
differ from the first chunk on, 64 new tokens, end of text ignored, no prompt cache. ``python -m
bench engine`` prints both beside each other.
"""

from __future__ import annotations

import http.client
import json
import os
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
from aios.drivers.cores.llama.core import ENVIRONMENT
from aios.models import ModelStore
from aios.ports import Prompt, Slice, SliceResult

NEW_TOKENS = 64
SLOTS = 8
THREADS = 2
CELLS = 8 * 512
ROUNDS = 3  # their median counts
CONCURRENT = (1, 4, 8)
GREEDY = Sampling(max_tokens=NEW_TOKENS, seed=1, ignore_end=True)
TOP_P = Sampling(temperature=0.8, top_p=0.95, max_tokens=NEW_TOKENS, seed=1, ignore_end=True)
GOAL = 1.1  # direct against server: room for the kernel's own share

WORDS = [
    "quick",
    "brown",
    "agent",
    "plans",
    "acts",
    "observes",
    "writes",
    "short",
    "note",
    "harbour",
    "lights",
    "river",
    "stones",
    "green",
    "hills",
    "winter",
    "market",
    "bridge",
    "garden",
    "letter",
    "morning",
    "clock",
    "copper",
    "window",
    "orchard",
    "signal",
]


class Job(Struct):
    model: str
    n: int
    sampling: Sampling


def model() -> Path:
    """The default model, pulled if it is not here."""
    return ModelStore(Paths.find().models).ensure(Core().model).path


def question(number: int) -> tuple[Message, ...]:
    """A chat of about 150 tokens; two of them share no chunk of 64."""
    words = " ".join(WORDS[(number * 7 + i * (number % 5 + 3)) % len(WORDS)] for i in range(110))
    return (
        Message("system", f"You are writer {number}."),
        Message("user", f"Go on with this text: {words}."),
    )


def direct(n: int, sampling: Sampling) -> float:
    """Tokens a second of *n* concurrent prompts through the engine alone."""
    return _in_a_process("direct", n, sampling)


def server(n: int, sampling: Sampling) -> float:
    """Tokens a second of *n* concurrent prompts through llama.cpp's server."""
    return _in_a_process("server", n, sampling)


def _in_a_process(what: str, n: int, sampling: Sampling) -> float:
    job = msgspec.json.encode(Job(str(model()), n, sampling))
    command = [sys.executable, "-m", "bench.engine", what]
    environment = {**ENVIRONMENT, **os.environ}
    done = subprocess.run(command, input=job, capture_output=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{what} failed: {done.stderr.decode()[-2000:]}")
    return float(done.stdout.split()[-1])


def _rates(job: Job, answer: Any) -> float:
    """The median rate of some rounds; *answer* brings the chats with these numbers to their end."""
    answer([99])  # first use of everything
    rates = []
    for turn in range(ROUNDS):
        started = time.perf_counter()
        answer([turn * job.n + i for i in range(job.n)])
        rates.append(job.n * NEW_TOKENS / (time.perf_counter() - started))
    return statistics.median(rates)


def _direct(job: Job) -> float:
    from aios.drivers.cores.llama.engine import Engine  # its imports belong to this process alone

    engine = Engine(
        Path(job.model),
        "bench",
        slots=SLOTS,
        threads=THREADS,
        cells=CELLS,
        ram_bytes=0,
        share=False,
    )

    def answer(numbers: list[int]) -> None:
        for number in numbers:
            engine.admit(number, Prompt(question(number), job.sampling))
            engine.run(number, Slice(NEW_TOKENS))
        left = set(numbers)
        while left:
            for number, result in engine.turn():
                assert isinstance(result, SliceResult), result
                if result.finish_reason:
                    left.discard(number)
                    engine.release(number)
                else:
                    engine.run(number, Slice(NEW_TOKENS))

    return _rates(job, answer)


def _server(job: Job) -> float:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job.model
    params.n_ctx, params.n_parallel = CELLS, SLOTS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.n_gpu_layers = 0
    params.cache_ram_mib = 0
    params.port = 0
    running = xllamacpp.Server(params)
    place = running.listening_address.removeprefix("http://")

    def ask(number: int) -> None:
        sampling = job.sampling
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
        connection = http.client.HTTPConnection(place)
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(body),
            {"Content-Type": "application/json"},
        )
        reply = json.loads(connection.getresponse().read())
        connection.close()
        assert reply["usage"]["completion_tokens"] == NEW_TOKENS, reply

    with ThreadPoolExecutor(SLOTS) as pool:
        return _rates(job, lambda numbers: list(pool.map(ask, numbers)))


def run() -> dict[str, Any]:
    """Both, at 1, 4 and 8 prompts, greedy and top-p."""
    figures: dict[str, Any] = {"name": "engine"}
    ratios = []
    for kind, sampling in (("greedy", GREEDY), ("top_p", TOP_P)):
        for n in CONCURRENT:
            ours, theirs = direct(n, sampling), server(n, sampling)
            ratios.append(ours / theirs)
            figures[f"{kind}_{n}"] = {
                "direct": round(ours, 1),
                "server": round(theirs, 1),
                "ratio": round(ours / theirs, 2),
            }
    return {
        **figures,
        "goal": f"direct at least {GOAL} of server, each",
        "met": min(ratios) >= GOAL,
    }


if __name__ == "__main__":
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    print({"direct": _direct, "server": _server}[sys.argv[1]](job))
