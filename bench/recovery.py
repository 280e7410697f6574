"""After kill -9: seconds until the kernel answers again, and whether its agents lost anything.

    python -m bench recovery                          with 10, 100 and 1,000 processes in the table
    python -m bench recovery --kill all [--kills N] [--seed N]

``ready_s`` is from the start of a daemon to its first answer on the socket, with so many processes
that each have a context, and ten real programs that start again meanwhile; ``vs_empty`` divides the
longest by the same with an empty journal.

With ``--kill all`` ten agents with a tool of effect once (a line in a file) answer on the embedded
model, and kernel, engine and agents are killed together at random instants, then ``aios up``. What
cannot be known is settled by ``aios settle``, as the file says.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Literal

from aios.abi.calls import ContextReport, SetContext, SpawnAgent, Spawned
from aios.abi.messages import Message
from aios.config import Paths
from bench.mortal import KEPT, Machine

PROCESSES = (10, 100, 1_000)
PROGRAMS = 10  # of them that are real and start again
STARTS = 5  # of each; the median counts
READY_S = 2.0
AGENTS, TURNS = 10, 3
KILLS = 8
EFFECT_S = 0.3  # before and after an effect: a kill falls between it and its being told
LATEST_S = 8.0  # of the instant of a kill, after the kernel has answered
ROLES: tuple[Literal["user"], Literal["assistant"]] = ("user", "assistant")
WAITING = """
import asyncio, aios

async def main():
    async with aios.connect() as me:
        await me.receive()

asyncio.run(main())
"""


@contextmanager
def a_machine() -> Iterator[Machine]:
    """A home that goes away, on the models of this user."""
    with tempfile.TemporaryDirectory(prefix="aios-bench-") as folder:
        machine = Machine(Path(folder), AIOS_MODELS=str(Paths.find().models))
        try:
            yield machine
        finally:
            machine.close()


# --- how soon it answers --------------------------------------------------------------------------


def ready_s(processes: int) -> float:
    """The median time to the first answer of a kernel that was killed with so many processes."""
    with a_machine() as machine:
        machine.up()
        if processes:
            fill(machine, processes)
        times = []
        for _ in range(STARTS):
            machine.kill()
            times.append(machine.up())
        return median(times)


def fill(machine: Machine, processes: int) -> None:
    """Processes with a context each; some are programs that wait for a message."""
    waiting = machine.home / "waiting.py"
    waiting.write_text(WAITING)
    env = {name: value for name, value in machine.environment.items() if name in KEPT}
    talk = tuple(Message(role, f"a few words in turn {n}") for n in range(4) for role in ROLES)
    for number in range(processes):
        argv = (sys.executable, str(waiting)) if number < PROGRAMS else ()
        call = SpawnAgent(program=f"p{number}", argv=argv, env=env if argv else {})
        aid = machine.ask(call, Spawned).aid
        machine.ask(SetContext(aid=aid, messages=talk), ContextReport)


def ready() -> dict[str, Any]:
    empty = ready_s(0)
    found = {count: round(ready_s(count), 3) for count in PROCESSES}
    longest = found[max(PROCESSES)]
    return {
        "name": "recovery",
        "ready_s": found,
        "empty_s": round(empty, 3),
        "vs_empty": round(longest / empty, 2),
        "goal": f"ready_s at {max(PROCESSES)} processes < {READY_S:g}",
        "met": longest < READY_S,
    }


# --- whether anything was lost --------------------------------------------------------------------


def said(machine: Machine) -> dict[str, list[Any]]:
    return {name: machine.said(status.aid) for name, status in machine.agents().items()}


def undisturbed(names: list[str]) -> dict[str, list[Any]]:
    """What the agents say when nothing happens to them."""
    with a_machine() as machine:
        machine.up()
        machine.begin(names, TURNS)
        machine.finish()
        return said(machine)


def killed(kills: int, seed: int) -> dict[str, Any]:
    """Ten agents, and a machine that is killed this often, or until they have ended."""
    names = [f"agent{number}" for number in range(AGENTS)]
    right, chance = undisturbed(names), random.Random(seed)
    unknown = done = 0
    began = time.perf_counter()
    with a_machine() as machine:
        machine.command("up", "--no-tcp")
        machine.begin(names, TURNS, EFFECT_S)
        while done < kills and not machine.have_ended(chance.random() * LATEST_S):
            machine.kill()
            done += 1
            machine.command("up", "--no-tcp")
            unknown += machine.settle(by_command=True)
        unknown += machine.finish(by_command=True)
        seconds = time.perf_counter() - began
        found, agents = said(machine), machine.agents()
        finished = [name for name, status in agents.items() if status.exit_status == 0]
        identical = [name for name in names if found.get(name) == right[name]]
        lost = machine.torn()
        twice = machine.twice()
        figures = {
            "name": "recovery",
            "agents": AGENTS,
            "kills": done,
            "seed": seed,
            "seconds": round(seconds, 1),
            "finished": len(finished),
            "identical": len(identical),
            "effects": len(machine.marks("effects")),
            "effects_twice": len(twice),
            "told_otherwise": len(lost),
            "unknown": unknown,
        }
    return {
        **figures,
        "goal": "finished = identical = agents; effects = agents * turns; effects_twice 0",
        "met": figures["finished"] == figures["identical"] == AGENTS
        and figures["effects"] == AGENTS * TURNS
        and not twice
        and not lost,
    }


def run(*options: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m bench recovery")
    parser.add_argument(
        "--kill", choices=["all"], help="kernel, engine and agents, again and again"
    )
    parser.add_argument("--kills", type=int, default=KILLS, help="at most so often")
    parser.add_argument("--seed", type=int, default=1, help="of the instants")
    given = parser.parse_args(options)
    return killed(given.kills, given.seed) if given.kill else ready()
