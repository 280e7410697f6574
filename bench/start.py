"""What aios costs before it does anything: import, start, an idle daemon, a process that waits.

``import_cpu_s`` is CPU of ``import aios`` in a fresh interpreter (``sdk_cpu_s``: and of the first
use of its connection); ``ready_cpu_s`` what the daemon spends until it has answered a request, no
model loaded; ``idle_rss_mb`` its resident memory then. ``process_kb``: 5,000 agents that wait for a
message, each in an open call, journal on: what the kernel's process grew by, per agent;
``served_process_kb`` the same of the daemon with 500 agents, each on a connection of its own.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import aios
from aios import config
from aios.abi.calls import RecvMessage, SpawnAgent, Spawned
from aios.abi.events import CallStarted
from aios.drivers.journal.sqlite import SqliteJournal
from aios.testing import machine
from bench.daemon import Daemon, daemon

IMPORT_CPU_S = 0.15
READY_CPU_S = 1.0
IDLE_RSS_MB = 100.0
PROCESS_KB = 25.0
PROCESSES = 5_000
SERVED = 500
TRIES = 5  # of an import; the least counts, the machine may be busy

TICKS_A_S = os.sysconf("SC_CLK_TCK")


def cpu_s_of(work: str) -> float:
    """CPU seconds of *work* in a fresh interpreter that has the time module and nothing else."""
    code = f"import time\nbegan = time.process_time()\n{work}\nprint(time.process_time() - began)"
    return min(
        float(subprocess.check_output([sys.executable, "-c", code], text=True))
        for _ in range(TRIES)
    )


def spent_s(pid: int) -> float:
    """CPU seconds of a process, all its threads, from its first instruction on (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_S


def resident_kb(pid: int) -> int:
    """Resident memory of a process (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


async def answered(running: Daemon) -> None:
    async with aios.connect(running.socket, key=running.key) as me:
        await me.usage()


async def served_kb(running: Daemon, count: int) -> float:
    """KB that the daemon grows by for each agent that waits on its own connection."""
    async with aios.connect(running.socket, key=running.key) as me:
        events = me.watch()
        before = resident_kb(running.pid)
        agents = [await me.register("bench") for _ in range(count)]
        waiting = [asyncio.create_task(agent.receive()) for agent in agents]
        open_calls = 0
        async for event in events:
            open_calls += isinstance(event, CallStarted) and event.name == "recv_message"
            if open_calls == count:
                break
        grown = (resident_kb(running.pid) - before) / count
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        return grown


def started() -> dict[str, float]:
    with daemon(kernel_children=SERVED) as running:
        asyncio.run(answered(running))
        figures = {
            "ready_cpu_s": spent_s(running.pid),
            "idle_rss_mb": round(resident_kb(running.pid) / 1024, 1),
        }
        return figures | {"served_process_kb": round(asyncio.run(served_kb(running, SERVED)), 1)}


async def process_kb(folder: Path, count: int) -> float:
    """KB that this process grows by for each agent that waits."""
    limits = config.Kernel(children=count, processes=count + 1)
    journal = SqliteJournal(folder / "journal.db")
    async with machine(journal=journal, config=config.Config(kernel=limits)) as kernel:
        user = kernel.identify(kernel.user_key)

        async def wait_as_an_agent() -> None:
            spawned = await kernel.trap(user, SpawnAgent(program="bench"))
            assert isinstance(spawned, Spawned)
            waiting.append(asyncio.create_task(trap(spawned.aid)))

        async def trap(pid: int) -> None:
            await kernel.trap(pid, RecvMessage())

        waiting: list[asyncio.Task[None]] = []
        for _ in range(100):  # what is made once for all is not an agent's
            await wait_as_an_agent()
        gc.collect()
        before = resident_kb(os.getpid())
        for _ in range(count - 100):
            await wait_as_an_agent()
        await journal.append(())
        gc.collect()
        grown = (resident_kb(os.getpid()) - before) / (count - 100)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        return grown


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        grown = asyncio.run(process_kb(Path(folder), PROCESSES))
    figures = {
        "import_cpu_s": round(cpu_s_of("import aios"), 4),
        "sdk_cpu_s": round(cpu_s_of("import aios\naios.connect"), 4),
        **started(),
        "process_kb": round(grown, 1),
    }
    return {
        "name": "start",
        **figures,
        "goal": f"import_cpu_s < {IMPORT_CPU_S}, ready_cpu_s < {READY_CPU_S}, "
        f"idle_rss_mb < {IDLE_RSS_MB:g}, process_kb < {PROCESS_KB:g}",
        "met": figures["import_cpu_s"] < IMPORT_CPU_S
        and figures["ready_cpu_s"] < READY_CPU_S
        and figures["idle_rss_mb"] < IDLE_RSS_MB
        and grown < PROCESS_KB,
    }
