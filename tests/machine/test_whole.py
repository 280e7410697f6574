"""The whole machine on the embedded model: crashes, suspension, snapshots."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aios.abi import calls as abi
from aios.abi.messages import Delta, Sampling
from aios.config import Paths
from aios.drivers.cores.llama.core import LlamaCore
from aios.errors import InvalidCall
from aios.kernel.trace import check_ends
from aios.models import ModelStore
from aios.testing import TestKernel, machine, user

pytestmark = pytest.mark.model

TOPICS = ["rain", "bread", "ships", "clocks", "bees", "snow", "maps", "bridges"]


@pytest.fixture
async def core() -> AsyncIterator[LlamaCore]:
    file = ModelStore(Paths.find().models).ensure("smollm2-135m")
    core = LlamaCore(file.path, "smollm2-135m", slots=4, threads=2, cells=4096, ram_bytes=64 << 20)
    await core.start()
    yield core
    await core.close()


def about(topic: str, number: int, max_tokens: int = 24) -> abi.Generate:
    """Greedy for even numbers, seeded sampling for odd ones."""
    sampling = Sampling(temperature=0.8 * (number % 2), seed=number, max_tokens=max_tokens)
    return abi.Generate(messages=user(f"Write about {topic}."), context=None, sampling=sampling)


async def sound(kernel: TestKernel) -> None:
    assert await kernel.check() == []
    login = kernel.identify(kernel.user_key)
    events = [event async for event in kernel.events(login)]
    living = [("process", process.pid) for process in kernel.processes if process.state != "zombie"]
    assert check_ends(events, living) == []


class Shown:
    """Collects what a generation shows; ``some`` is set once that were *enough* slices."""

    def __init__(self, enough: int = 1) -> None:
        self.parts: list[str] = []
        self.some = asyncio.Event()
        self._enough = enough

    def __call__(self, delta: Delta) -> None:
        self.parts.append(delta.text)
        if len(self.parts) >= self._enough:
            self.some.set()


async def texts(kernel: TestKernel, kill: LlamaCore | None = None) -> list[str]:
    """All eight at once; the worker of *kill* is killed when each has had a slice or two."""
    login = kernel.identify(kernel.user_key)
    shown = Shown(12)
    tasks = [
        asyncio.ensure_future(kernel.trap(login, about(topic, number), shown))
        for number, topic in enumerate(TOPICS)
    ]
    if kill is not None:
        await shown.some.wait()
        assert kill.os_pid is not None
        os.kill(kill.os_pid, signal.SIGKILL)
    replies = await asyncio.gather(*tasks)
    return [reply.message.content for reply in replies]  # type: ignore[attr-defined]


async def test_a_worker_killed_under_eight_generations_costs_no_token(core: LlamaCore) -> None:
    async with machine(core=core) as kernel:
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SetScheduler(quantum=6))
        expected = await texts(kernel)
        assert len(set(expected)) == 8
        assert await texts(kernel, core) == expected
        assert core.restarts == 1
        await sound(kernel)


async def test_suspended_mid_sentence_and_continued_on_the_same_token(core: LlamaCore) -> None:
    async with machine(core=core) as kernel:
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SetScheduler(quantum=4))
        expected = await kernel.trap(login, about("rain", 1))
        spawned = await kernel.trap(login, abi.SpawnAgent(program="writer"))
        assert isinstance(spawned, abi.Spawned)
        pid = kernel.identify(str(spawned.key))
        shown = Shown()
        task = asyncio.ensure_future(kernel.trap(pid, about("rain", 1), shown))
        await shown.some.wait()
        await kernel.trap(login, abi.SuspendAgent(aid=pid))
        await texts(kernel)  # others use the core meanwhile
        made = kernel.processes.find(pid).usage.completion_tokens
        await kernel.trap(login, about("bread", 0))
        assert kernel.processes.find(pid).usage.completion_tokens == made
        assert 0 < made < 24
        await kernel.trap(login, abi.ResumeAgent(aid=pid))
        reply = await task
        assert isinstance(expected, abi.Generation)
        assert isinstance(reply, abi.Generation)
        assert reply.message == expected.message
        assert "".join(shown.parts) == reply.message.content
        await sound(kernel)


async def test_a_beam_search_is_suspended_killed_frozen_and_restored(
    core: LlamaCore, tmp_path: Path
) -> None:
    """The paper's figure 4, with the worker's death on top."""
    search = abi.Generate(
        messages=user("Write one line about the sea."),
        context=None,
        sampling=Sampling(max_tokens=24, beams=4),
    )
    async with machine(core=core, snapshots=tmp_path) as kernel:
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SetScheduler(quantum=7))  # not whole steps
        expected = await kernel.trap(login, search)
        assert isinstance(expected, abi.Generation)
        spawned = await kernel.trap(login, abi.SpawnAgent(program="writer"))
        assert isinstance(spawned, abi.Spawned)
        pid = kernel.identify(str(spawned.key))
        shown = Shown()
        task = asyncio.ensure_future(kernel.trap(pid, search, shown))
        await shown.some.wait()
        await kernel.trap(login, abi.SuspendAgent(aid=pid))
        snapshot = await kernel.trap(login, abi.GenSnapshot(aid=pid))
        assert isinstance(snapshot, abi.Snapshot)
        made = kernel.processes.find(pid).usage.completion_tokens
        assert 0 < made < expected.usage.completion_tokens
        await texts(kernel, core)  # others use the core meanwhile, and it dies under them
        await kernel.trap(login, abi.ResumeAgent(aid=pid))
        reply = await task
        assert isinstance(reply, abi.Generation)
        assert core.restarts == 1
        assert "".join(shown.parts) == reply.message.content
        restored = await kernel.trap(login, abi.GenRestore(snapshot=snapshot.snapshot))
        assert isinstance(restored, abi.Generation)
        for other in (reply, restored):
            assert (other.message, other.finish_reason) == (
                expected.message,
                expected.finish_reason,
            )
            assert other.usage.completion_tokens == expected.usage.completion_tokens
        assert expected.usage.completion_tokens > 24
        await sound(kernel)


async def test_a_snapshot_goes_on_elsewhere_and_a_damaged_one_is_refused(
    core: LlamaCore, tmp_path: Path
) -> None:
    async with machine(core=core, snapshots=tmp_path) as kernel:
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SetScheduler(quantum=4))
        shown = Shown()
        task = asyncio.ensure_future(kernel.trap(login, about("ships", 3, 32), shown))
        await shown.some.wait()
        snapshot = await kernel.trap(login, abi.GenSnapshot())
        assert isinstance(snapshot, abi.Snapshot)
        original = await task
        restored = await kernel.trap(login, abi.GenRestore(snapshot=snapshot.snapshot))
        assert isinstance(original, abi.Generation)
        assert isinstance(restored, abi.Generation)
        assert restored.message == original.message
        assert snapshot.tokens < restored.usage.tokens
        file = tmp_path / f"{snapshot.snapshot}.snapshot"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(InvalidCall, match="snapshot"):
            await kernel.trap(login, abi.GenRestore(snapshot=snapshot.snapshot))
        await sound(kernel)


async def test_more_contexts_than_cells_are_paged_and_end_alike(core: LlamaCore) -> None:
    """12 generations of about 400 tokens in a pool of 1,024 cells: paged out, the same words."""
    file = ModelStore(Paths.find().models).ensure("smollm2-135m")
    small = LlamaCore(file.path, "smollm2-135m", slots=2, threads=2, cells=1024, ram_bytes=64 << 20)
    await small.start()
    long = [
        abi.Generate(
            messages=user(f"{topic} and more {topic}, " * 70),
            context=None,
            sampling=Sampling(max_tokens=10),
        )
        for topic in TOPICS[:5]
    ]
    try:
        async with machine(core=core) as kernel:
            login = kernel.identify(kernel.user_key)
            roomy = [await kernel.trap(login, call) for call in long]
        async with machine(core=small) as kernel:
            login = kernel.identify(kernel.user_key)
            await kernel.trap(login, abi.SetScheduler(quantum=3))
            tight = await asyncio.gather(*(kernel.trap(login, call) for call in long))
            assert [r.message for r in tight] == [r.message for r in roomy]  # type: ignore[attr-defined]
            await sound(kernel)
    finally:
        await small.close()
