"""A kernel that starts on the journal of one that died."""

from __future__ import annotations

import asyncio

import pytest

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.drivers.journal.memory import MemoryJournal
from aios.errors import Unauthenticated
from aios.kernel.trace import check_ends
from aios.testing import ScriptedCore, machine, settle, user


async def test_what_a_dead_kernel_left_is_ended_and_can_be_asked_about() -> None:
    journal = MemoryJournal()
    async with machine(core=ScriptedCore(gated=True), journal=journal) as first:
        login = first.identify(first.user_key)
        spawned = await first.trap(login, abi.SpawnAgent(program="p", task="t"))
        assert isinstance(spawned, abi.Spawned)
        pid = first.identify(str(spawned.key))
        task = asyncio.ensure_future(first.trap(pid, abi.Generate(messages=user("x"))))
        await settle()
        image = journal.load()  # as it is on disk at the moment of the crash
        assert [call.name for call in image.open_calls] == ["generate"]

        async with machine(journal=journal) as second:
            now = second.identify(second.user_key)
            assert now > pid
            with pytest.raises(Unauthenticated):
                second.identify(str(spawned.key))
            status = await second.trap(now, abi.GetStatus(aid=pid))
            assert isinstance(status, abi.Status)
            assert (status.state, status.exit_reason, status.task) == (
                "zombie",
                "the kernel stopped",
                "t",
            )
            events = [event async for event in second.events(now)]
            assert sum(isinstance(event, ev.KernelStarted) for event in events) == 2
            assert check_ends(events, [("process", now)]) == []
        task.cancel()
        await asyncio.wait({task})


async def test_a_zombie_outlives_two_kernels_and_logins_do_not() -> None:
    journal = MemoryJournal()
    async with machine(journal=journal) as first:
        login = first.identify(first.user_key)
        spawned = await first.trap(login, abi.SpawnAgent(program="p"))
        assert isinstance(spawned, abi.Spawned)
        image = journal.load()  # both are alive when the first kernel dies
    crashed = MemoryJournal()
    for row in image.processes:
        crashed.append((row,))
    for _ in range(2):
        async with machine(journal=crashed) as kernel:
            assert [process.pid for process in kernel.processes] == [spawned.aid]
            assert [row.pid for row in crashed.load().processes] == [spawned.aid]
