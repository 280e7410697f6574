"""A crowd of agents over three cores at once; one core is drained on the way, another is killed.

The cores are the embedded one, the same model run by transformers, and llama.cpp's own server in a
process of its own; all have the class ``crowd``, which is what the agents ask for. After a third of
the answers the transformers core is drained, after half of them the server gets SIGKILL.
``finished`` of ``started`` agents are to have all of their answers; each move of a call from one
core to another is one event in the trace, with its reason: ``untold`` counts calls that ran on more
cores than their events say.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

from aios import boot
from aios.abi import events as ev
from aios.abi.calls import CoreDrain, CoreSpec, Generate, Generation, SpawnAgent, Spawned
from aios.abi.messages import Message, Sampling
from aios.config import Config, Core, Paths
from aios.errors import AiosError
from aios.kernel.kernel import Kernel
from aios.models import ModelStore

MODEL = "smollm2-135m"
AGENTS, TURNS, TOKENS = 12, 3, 12
SLOTS = 2  # of each core: so that there are lines
CLASS = "crowd"
SERVER = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], 0
params.n_ctx, params.n_parallel, params.n_gpu_layers = 4096, int(sys.argv[2]), 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def llama_server(model: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """llama.cpp's own server in a process of its own: its address, and the process."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(model), str(SLOTS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        address = process.stdout.readline().decode().strip()
        yield f"{address}/v1", process
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


class Crowd:
    """Agents that each speak a few times, and what became of them."""

    def __init__(self, kernel: Kernel, login: int) -> None:
        self._kernel, self._login = kernel, login
        self.answers: Counter[str] = Counter()  # by core
        self.finished = 0
        self.errors: list[str] = []
        self.answered = asyncio.Condition()

    async def agent(self, number: int) -> None:
        spawned = await self._kernel.trap(self._login, SpawnAgent(program=f"agent{number}"))
        assert isinstance(spawned, Spawned)
        try:
            for turn in range(TURNS):
                said = Message("user", f"Agent {number}, turn {turn}: tell me about the sea.")
                call = Generate(
                    messages=(said,),
                    model=CLASS,
                    context=None,
                    sampling=Sampling(max_tokens=TOKENS, ignore_end=True),
                )
                made = await self._kernel.trap(spawned.aid, call)
                assert isinstance(made, Generation)
                self.answers[made.model] += 1
                async with self.answered:
                    self.answered.notify_all()
            self.finished += 1
        except AiosError as error:
            self.errors.append(error.message)
            async with self.answered:
                self.answered.notify_all()

    async def until(self, answers: int) -> None:
        async with self.answered:
            await self.answered.wait_for(lambda: self.answers.total() + len(self.errors) >= answers)


async def untold(kernel: Kernel, pid: int) -> tuple[list[ev.CallMoved], int]:
    """The moves, and how many calls ran on more cores than those say."""
    cores: dict[str, list[str]] = {}
    moves: list[ev.CallMoved] = []
    async for event in kernel.events(pid):
        if isinstance(event, ev.TicketQueued):
            on = cores.setdefault(event.call, [])
            if not on or on[-1] != event.core:
                on.append(event.core)
        elif isinstance(event, ev.CallMoved):
            moves.append(event)
    told = Counter(move.call for move in moves)
    # one that moved before it was admitted anywhere has an event, and ran on one core only
    return moves, sum(max(0, len(on) - 1 - told[call]) for call, on in cores.items())


async def measure(place: Path) -> dict[str, Any]:
    home = Paths.find()
    paths = Paths(place / "c", place / "d", place / "x", place / "r", home.models)
    file = ModelStore(home.models).ensure(MODEL).path
    with llama_server(file) as (url, server):
        described = {
            "embedded": CoreSpec(kind="embedded", model=MODEL, slots=SLOTS, classes=(CLASS,)),
            "transformers": CoreSpec(
                kind="transformers",
                model=str(file.parent),
                gguf_file=file.name,
                device="cpu",
                slots=SLOTS,
                classes=(CLASS,),
            ),
            "server": CoreSpec(model=MODEL, url=url, slots=SLOTS, classes=(CLASS,)),
        }
        config = Config(core=Core(model=MODEL, threads=1), cores=described)
        async with boot.machine(config, paths) as kernel:
            login = kernel.identify(kernel.ensure_user_key(kernel.user, renew=True) or "")
            for name in described:  # loaded beforehand: the crowd is what is measured
                await kernel.scheduler(name)
            began = time.perf_counter()
            crowd = Crowd(kernel, login)
            agents = [asyncio.ensure_future(crowd.agent(number)) for number in range(AGENTS)]
            await crowd.until(AGENTS * TURNS // 3)
            await kernel.trap(login, CoreDrain(name="transformers"))
            await crowd.until(AGENTS * TURNS // 2)
            os.kill(server.pid, signal.SIGKILL)
            await asyncio.gather(*agents)
            seconds = time.perf_counter() - began
            moves, missing = await untold(kernel, login)
            wrong = await kernel.check()
    return {
        "started": AGENTS,
        "finished": crowd.finished,
        "answers_by_core": dict(crowd.answers),
        "moves": dict(Counter(f"{move.before} -> {move.core}" for move in moves)),
        "reasons": sorted({move.reason for move in moves}),
        "untold": missing,
        "wrong": wrong,
        "errors": sorted(set(crowd.errors)),
        "seconds": round(seconds, 1),
    }


def run() -> dict[str, Any]:
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with tempfile.TemporaryDirectory(prefix="aios-") as place, runner:
        figures = runner.run(measure(Path(place)))
    return {
        "name": "crowd",
        **figures,
        "goal": "finished = started, on three cores; untold 0",
        "met": figures["finished"] == figures["started"]
        and len(figures["answers_by_core"]) == 3
        and not figures["untold"]
        and not figures["wrong"],
    }
