"""What the whole system costs over the bare engine, and against llama.cpp's own server.

``vs_engine`` is the system's tokens a second (agents over HTTP, kernel, journal, worker) divided
by those of the same engine driven directly in a loop; ``vs_server`` by those of llama.cpp's server
from the same wheel, with the same model file, threads and slots; bench/engine.py has the workload.
The three take turns, several times, and each ratio is of neighbours: both share the machine's mood.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import aios
from aios.abi.calls import Generate, Generation
from aios.abi.messages import Sampling
from bench import engine
from bench.daemon import Daemon, daemon

TURNS = 3  # of system, engine, server; the medians of their ratios count
ENGINE_GOAL, SERVER_GOAL = 0.9, 1.0

_numbers: Iterator[int] = itertools.count(1000)  # no prompt is asked twice: nothing to reuse


async def _answer(running: Daemon, agents: int, sampling: Sampling) -> float:
    """Tokens a second of *agents* concurrent processes, one generation each."""

    async def one(number: int) -> int:
        async with aios.connect(running.socket, running.key, program=f"writer {number}") as me:
            call = Generate(messages=engine.question(number), context=None, sampling=sampling)
            reply = await me.call(call, Generation)
            assert reply.usage.completion_tokens == engine.NEW_TOKENS, reply
            assert reply.usage.cached_tokens == 0, reply
            return reply.usage.completion_tokens

    rates = []
    for _ in range(engine.ROUNDS):
        started = time.perf_counter()
        made = await asyncio.gather(*(one(next(_numbers)) for _ in range(agents)))
        rates.append(sum(made) / (time.perf_counter() - started))
    return statistics.median(rates)


def system(agents: int, sampling: Sampling) -> float:
    """Tokens a second of that many concurrent agents through a daemon of their own."""
    settings = {
        "core_slots": engine.SLOTS,
        "core_threads": engine.THREADS,
        "core_cells": engine.CELLS,
        "core_ram_mb": 0,
    }
    with daemon(**settings) as running:
        asyncio.run(_answer(running, 1, sampling))  # first use of everything
        return asyncio.run(_answer(running, agents, sampling))


def run() -> dict[str, Any]:
    figures: dict[str, Any] = {"name": "engine_tax", "vs_engine": {}, "vs_server": {}}
    for kind, sampling in (("greedy", engine.GREEDY), ("top_p", engine.TOP_P)):
        for agents in engine.CONCURRENT:
            turns = [
                (
                    system(agents, sampling),
                    engine.direct(agents, sampling),
                    engine.server(agents, sampling),
                )
                for _ in range(TURNS)
            ]
            columns = zip(*turns, strict=True)
            ours, direct, server = (statistics.median(column) for column in columns)
            vs_engine = statistics.median(turn[0] / turn[1] for turn in turns)
            vs_server = statistics.median(turn[0] / turn[2] for turn in turns)
            print(
                f"  {kind} {agents}: system {ours:.1f}, engine {direct:.1f}, "
                f"server {server:.1f} tokens/s; vs_engine {vs_engine:.2f}, "
                f"vs_server {vs_server:.2f}",
                flush=True,
            )
            figures["vs_engine"][f"{kind}_{agents}"] = round(vs_engine, 3)
            figures["vs_server"][f"{kind}_{agents}"] = round(vs_server, 3)
    return {
        **figures,
        "goal": f"vs_engine at least {ENGINE_GOAL} and vs_server at least {SERVER_GOAL}, each",
        "met": min(figures["vs_engine"].values()) >= ENGINE_GOAL
        and min(figures["vs_server"].values()) >= SERVER_GOAL,
    }
