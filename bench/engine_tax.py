"""What the whole system costs over the bare engine, and against llama.cpp's own server.

``vs_engine`` is the system's tokens a second (agents over HTTP, kernel, journal, worker) divided
by those of the same engine driven directly in a loop; ``vs_server`` by those of llama.cpp's server
from the same wheel, with the same model file, threads and slots; bench/engine.py has the workload.
The three take turns, round by round, and a ratio is of neighbours: both share the machine's mood.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from typing import Any

import aios
from aios.abi.calls import Generate, Generation
from aios.abi.messages import Sampling
from aios.sdk.process import Me
from bench import engine
from bench.daemon import Daemon, daemon

ENGINE_GOAL, SERVER_GOAL = 0.9, 1.0


class System:
    """The whole system: every agent a process with a connection of its own."""

    def __init__(self, running: Daemon) -> None:
        self._daemon = running
        self._numbers = itertools.count(10_000)  # no prompt is asked twice: nothing to reuse

    def rate(self, agents: int, sampling: Sampling) -> float:
        """Tokens a second of one round."""
        return asyncio.run(self._round(agents, sampling))

    async def _round(self, agents: int, sampling: Sampling) -> float:
        connections = [
            aios.connect(self._daemon.socket, self._daemon.key, program="writer")
            for _ in range(agents)
        ]
        writers = [await connection.__aenter__() for connection in connections]
        started = time.perf_counter()
        made = await asyncio.gather(*(self._write(writer, sampling) for writer in writers))
        taken = time.perf_counter() - started
        for connection in connections:
            await connection.__aexit__(None, None, None)
        return sum(made) / taken

    async def _write(self, me: Me, sampling: Sampling) -> int:
        messages = engine.question(next(self._numbers))
        call = Generate(messages=messages, context=None, sampling=sampling)
        reply = await me.call(call, Generation)
        assert reply.usage.completion_tokens == engine.NEW_TOKENS, reply
        assert reply.usage.cached_tokens == 0, reply
        return reply.usage.completion_tokens


def run() -> dict[str, Any]:
    figures: dict[str, Any] = {"name": "engine_tax", "vs_engine": {}, "vs_server": {}}
    settings = {
        "core_slots": engine.SLOTS,
        "core_threads": engine.THREADS,
        "core_cells": engine.CELLS,
        "core_ram_mb": 0,
    }
    with (
        daemon(**settings) as running,
        engine.Side("direct") as direct,
        engine.Side("server") as server,
    ):
        system = System(running)
        sides = (system, direct, server)
        for side in sides:
            side.rate(1, engine.GREEDY)  # first use of everything
        for kind, sampling in (("greedy", engine.GREEDY), ("top_p", engine.TOP_P)):
            for agents in engine.CONCURRENT:
                rounds = [
                    [side.rate(agents, sampling) for side in sides] for _ in range(engine.ROUNDS)
                ]
                rates = [statistics.median(column) for column in zip(*rounds, strict=True)]
                vs_engine = statistics.median(ours / bare for ours, bare, _ in rounds)
                vs_server = statistics.median(ours / theirs for ours, _, theirs in rounds)
                print(
                    f"  {kind} {agents}: system {rates[0]:.1f}, engine {rates[1]:.1f}, "
                    f"server {rates[2]:.1f} tokens/s; vs_engine {vs_engine:.2f}, "
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
