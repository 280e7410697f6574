"""Who runs next: policies, suspension, killing, snapshots, crashes; on a gated scripted core."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.errors import Conflict, CoreFailed, InvalidCall, Killed, NotFound
from aios.kernel.trace import check_ends
from aios.testing import FakeClock, ScriptedCore, TestKernel, machine, settle, user

TEXT = "a b c d e f g h i j"


async def child(kernel: TestKernel, **fields: object) -> int:
    login = kernel.identify(kernel.user_key)
    spawned = await kernel.trap(login, abi.SpawnAgent(program="child", **fields))  # type: ignore[arg-type]
    assert isinstance(spawned, abi.Spawned)
    return kernel.identify(str(spawned.key))


def generate(kernel: TestKernel, pid: int) -> asyncio.Task[abi.Reply]:
    return asyncio.ensure_future(kernel.trap(pid, abi.Generate(messages=user("go"))))


async def sound(kernel: TestKernel) -> None:
    """Every start has one end, and nothing is left over."""
    assert await kernel.check() == []
    login = kernel.identify(kernel.user_key)
    events = [event async for event in kernel.events(login)]
    living = [("process", process.pid) for process in kernel.processes if process.state != "zombie"]
    assert check_ends(events, living) == []


async def run_all(core: ScriptedCore, *tasks: asyncio.Task[abi.Reply]) -> None:
    await settle()
    for _ in range(100):
        if all(task.done() for task in tasks):
            return
        core.step()
        await settle()
    raise AssertionError("100 slices were not enough")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("fifo", [1, 1, 1, 1, 2, 2, 2, 2]),
        ("round_robin", [1, 2, 1, 2, 1, 2, 1, 2]),
        ("priority", [2, 2, 2, 2, 1, 1, 1, 1]),
    ],
)
async def test_policies_order_the_slices_of_one_slot(policy: str, expected: list[int]) -> None:
    core = ScriptedCore([TEXT], slots=1, gated=True)
    async with machine(core=core, clock=FakeClock()) as kernel:
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SetScheduler(policy=policy, quantum=3))
        first, second = await child(kernel, priority=5), await child(kernel)
        tasks = [generate(kernel, first), generate(kernel, second)]
        await settle()
        await run_all(core, *tasks)
        assert core.ran == expected
        for task in tasks:
            reply = await task
            assert isinstance(reply, abi.Generation)
            assert reply.message.content == TEXT
        await sound(kernel)


async def test_waiting_makes_old() -> None:
    """Under priority, a low-priority ticket overtakes once it has waited long enough."""
    core, clock = ScriptedCore([TEXT], slots=1, gated=True), FakeClock()
    async with machine(core=core, clock=clock) as kernel:
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SetScheduler(policy="priority", quantum=3))
        favoured, modest = await child(kernel, priority=0), await child(kernel, priority=2)
        one, two = generate(kernel, favoured), generate(kernel, modest)
        await settle()
        await clock.advance(25)  # two steps of nice are worth 20 s
        core.step()
        await settle()
        core.step()
        await settle()
        assert core.ran == [1, 2]
        await run_all(core, one, two)


async def test_at_most_slots_tickets_run_and_preemption_is_told() -> None:
    core = ScriptedCore([TEXT], slots=2, gated=True)
    async with machine(core=core) as kernel:
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SetScheduler(quantum=4))
        pids = [await child(kernel) for _ in range(3)]
        tasks = [generate(kernel, pid) for pid in pids]
        await settle()
        report = await kernel.trap(login, abi.GetScheduler())
        assert isinstance(report, abi.SchedulerReport)
        assert (report.running, report.queued) == (2, 1)
        await run_all(core, *tasks)
        events = [event async for event in kernel.events(login)]
        assert sum(isinstance(event, ev.TicketPreempted) for event in events) > 0
        await sound(kernel)


async def test_a_suspended_process_holds_no_slot_and_goes_on_on_the_same_token() -> None:
    core = ScriptedCore([TEXT], slots=1, gated=True)
    async with machine(core=core) as kernel:
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SetScheduler(quantum=3))
        pid, other = await child(kernel), await child(kernel)
        task = generate(kernel, pid)
        await settle()
        core.step()
        await settle()
        await kernel.trap(login, abi.SuspendAgent(aid=pid))
        core.step()  # the slice that it holds already ends
        await settle()
        status = await kernel.trap(login, abi.GetStatus(aid=pid))
        assert isinstance(status, abi.Status)
        assert status.status == "suspended"
        made = status.usage.completion_tokens
        assert made == 6
        second = generate(kernel, other)
        await run_all(core, second)
        status = await kernel.trap(login, abi.GetStatus(aid=pid))
        assert isinstance(status, abi.Status)
        assert status.usage.completion_tokens == made
        assert not task.done()
        await kernel.trap(login, abi.ResumeAgent(aid=pid))
        await run_all(core, task)
        reply = await task
        assert isinstance(reply, abi.Generation)
        assert reply.message.content == TEXT
        await sound(kernel)


async def test_new_calls_of_a_suspended_process_wait() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        pid = await child(kernel)
        await kernel.trap(pid, abi.GetAid())
        await kernel.trap(login, abi.SuspendAgent(aid=pid))
        task = generate(kernel, pid)
        await settle()
        assert not task.done()
        await kernel.trap(login, abi.ResumeAgent(aid=pid))
        await asyncio.wait_for(task, 5)
        await sound(kernel)


async def test_what_has_not_run_or_has_ended_cannot_be_suspended() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        spawned = await kernel.trap(login, abi.SpawnAgent(program="x"))
        assert isinstance(spawned, abi.Spawned)
        with pytest.raises(Conflict, match="while it is new"):
            await kernel.trap(login, abi.SuspendAgent(aid=spawned.aid))
        await kernel.trap(login, abi.KillAgent(aid=spawned.aid))
        with pytest.raises(Conflict, match="while it is zombie"):
            await kernel.trap(login, abi.SuspendAgent(aid=spawned.aid))


async def test_a_kill_frees_slot_call_and_children_within_a_slice() -> None:
    core = ScriptedCore([TEXT], slots=1, gated=True)
    async with machine(core=core) as kernel:
        login = kernel.identify(kernel.user_key)
        parent, other = await child(kernel), await child(kernel)
        spawned = await kernel.trap(parent, abi.SpawnAgent(program="grandchild"))
        assert isinstance(spawned, abi.Spawned)
        grandchild = kernel.identify(str(spawned.key))
        doomed, heir = generate(kernel, grandchild), generate(kernel, other)
        await settle()
        await kernel.trap(login, abi.KillAgent(aid=parent))
        with pytest.raises(Killed):
            await doomed
        await settle()
        await run_all(core, heir)
        listed = await kernel.trap(login, abi.ListAgents())
        assert isinstance(listed, abi.Processes)
        assert {p.aid for p in listed.processes} == {login, other}
        events = [event async for event in kernel.events(login)]
        died = next(e.seq for e in events if isinstance(e, ev.ProcessEnded))
        granted = [e for e in events if isinstance(e, ev.SliceGranted) and e.seq > died]
        assert granted[0].pid == other
        await sound(kernel)


async def test_a_crash_of_the_core_is_survived_with_the_same_text() -> None:
    core = ScriptedCore([TEXT], gated=True)
    async with machine(core=core) as kernel:
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SetScheduler(quantum=2))
        tasks = [generate(kernel, await child(kernel)) for _ in range(3)]
        await settle()
        core.step(4)
        await settle()
        core.crash()
        await run_all(core, *tasks)
        for task in tasks:
            reply = await task
            assert isinstance(reply, abi.Generation)
            assert reply.message.content == TEXT
        events = [event async for event in kernel.events(login)]
        told = [type(e) for e in events if isinstance(e, ev.CoreLost | ev.CoreRestarted)]
        assert told == [ev.CoreLost, ev.CoreRestarted]
        await sound(kernel)


async def test_a_core_that_only_crashes_fails_the_call() -> None:
    core = ScriptedCore([TEXT], gated=True)
    async with machine(core=core) as kernel:
        task = generate(kernel, await child(kernel))
        for _ in range(10):
            await settle()
            core.crash()
        with pytest.raises(CoreFailed):
            await task
        await sound(kernel)


async def test_a_snapshot_continues_on_the_same_token(tmp_path: Path) -> None:
    core = ScriptedCore([TEXT], gated=True)
    async with machine(core=core, snapshots=tmp_path) as kernel:
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SetScheduler(quantum=3))
        pid = await child(kernel)
        task = generate(kernel, pid)
        await settle()
        core.step()
        await settle()
        freezing = asyncio.ensure_future(kernel.trap(login, abi.GenSnapshot(aid=pid)))
        await settle()
        core.step()
        snapshot = await freezing
        assert isinstance(snapshot, abi.Snapshot)
        assert snapshot.bytes > 0
        restored = asyncio.ensure_future(
            kernel.trap(login, abi.GenRestore(snapshot=snapshot.snapshot))
        )
        await run_all(core, task, restored)
        texts = [(await t).message.content for t in (task, restored)]  # type: ignore[attr-defined]
        assert texts == [TEXT, TEXT]
        (tmp_path / f"{snapshot.snapshot}.snapshot").write_bytes(b"{")
        with pytest.raises(InvalidCall, match="cannot be read"):
            await kernel.trap(login, abi.GenRestore(snapshot=snapshot.snapshot))
        await sound(kernel)


async def test_a_snapshot_is_for_those_who_see_its_process(tmp_path: Path) -> None:
    core = ScriptedCore([TEXT], gated=True)
    async with machine(core=core, snapshots=tmp_path) as kernel:
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SetScheduler(quantum=3))
        pid, sibling = await child(kernel), await child(kernel)
        task = generate(kernel, pid)
        await settle()
        freezing = asyncio.ensure_future(kernel.trap(login, abi.GenSnapshot(aid=pid)))
        await settle()
        core.step()
        snapshot = await freezing
        assert isinstance(snapshot, abi.Snapshot)
        with pytest.raises(NotFound, match="that you may see"):
            await kernel.trap(sibling, abi.GenRestore(snapshot=snapshot.snapshot))
        await run_all(core, task)


async def test_what_is_parked_when_a_core_dies_holds_nothing_in_it(tmp_path: Path) -> None:
    core = ScriptedCore([TEXT], slots=1, gated=True)
    core.abilities = msgspec.structs.replace(core.abilities, cells=12)  # two do not fit
    async with machine(core=core) as kernel:
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SetScheduler(quantum=3))
        parked, other = await child(kernel), await child(kernel)
        first = generate(kernel, parked)
        await settle()
        await kernel.trap(login, abi.SuspendAgent(aid=parked))
        core.step()
        await settle()
        core.crash()
        second = generate(kernel, other)
        await settle()
        await run_all(core, second)
        await kernel.trap(login, abi.ResumeAgent(aid=parked))
        await run_all(core, first)
        for task in (first, second):
            reply = await task
            assert isinstance(reply, abi.Generation)
            assert reply.message.content == TEXT
        await sound(kernel)
