"""What a program read outside: kept once, and told to every later life."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aios.abi import calls as abi
from aios.drivers.journal.memory import MemoryJournal
from aios.testing import ScriptedPrograms, TestKernel, machine, settle


class World:
    """A program that looks for a step, does it if it must, keeps it, and waits; life after life."""

    def __init__(self) -> None:
        self.journal = MemoryJournal()
        self.done: list[int] = []  # the lives that did the step themselves
        self.seen: list[Any] = []  # what each life went on with
        self.kernel: TestKernel
        self.may_read = asyncio.Event()

    async def program(self, pid: int, env: dict[str, str]) -> int:
        life = int(env["AIOS_LIFE"])
        await self.may_read.wait()
        if life > 1:
            found = await self.ask(pid, kind="step", key="read", place="0", recall=True)
            if found.known:
                self.seen.append(found.value)
                return await self.wait(pid)
        self.done.append(life)
        kept = await self.ask(pid, kind="step", key="read", place="0", value=f"page {life}")
        self.seen.append(kept.value)
        return await self.wait(pid)

    async def ask(self, pid: int, **fields: Any) -> abi.Recorded:
        reply = await self.kernel.trap(pid, abi.Record(**fields))
        assert isinstance(reply, abi.Recorded)
        return reply

    async def wait(self, pid: int) -> int:
        await self.kernel.trap(pid, abi.RecvMessage(place="1"))
        return 0

    async def live(self, *, suspended: bool = False) -> None:
        """One kernel; with *suspended* it dies while the step's result waits to be kept."""
        programs = ScriptedPrograms({"reader": self.program})
        async with machine(journal=self.journal, programs=programs) as self.kernel:
            login = self.kernel.identify(self.kernel.user_key)
            if not any(p.program == "reader" for p in self.kernel.processes):
                spawn = abi.SpawnAgent(program="reader", argv=("reader",))
                pid = (await self.kernel.trap(login, spawn)).aid  # type: ignore[attr-defined]
                if suspended:
                    await self.kernel.trap(login, abi.SuspendAgent(aid=pid))
                self.may_read.set()
            else:
                [pid] = [p.pid for p in self.kernel.processes if p.program == "reader"]
                if self.kernel.processes.find(pid).is_suspended and not suspended:
                    await self.kernel.trap(login, abi.ResumeAgent(aid=pid))
            await settle(200)
            self.journal = self.journal.copy()  # the machine is killed


async def test_a_step_is_done_in_the_first_life_only() -> None:
    world = World()
    for _ in range(3):
        await world.live()
    assert world.done == [1]
    assert world.seen == ["page 1"] * 3


@pytest.mark.parametrize("lives", [1, 2])
async def test_nor_again_when_its_result_had_only_reached_the_kernel(lives: int) -> None:
    world = World()
    await world.live(suspended=True)
    assert (world.done, world.seen) == ([1], [])
    for _ in range(lives):
        await world.live()
    assert world.done == [1]
    assert world.seen == ["page 1"] * lives


async def test_a_look_that_finds_nothing_leaves_nothing() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        child = await kernel.trap(login, abi.SpawnAgent(program="reader"))
        look = abi.Record(kind="step", key="read", place="0", recall=True)
        assert await kernel.trap(child.aid, look) == abi.Recorded(None, known=False)  # type: ignore[attr-defined]
        keep = abi.Record(kind="step", key="read", place="0", value=[1])
        assert await kernel.trap(child.aid, keep) == abi.Recorded([1])  # type: ignore[attr-defined]
