"""Budgets: hard under concurrency and across children, and they pause instead of kill."""

from __future__ import annotations

import asyncio

import pytest

from aios.abi import calls as abi
from aios.errors import BudgetExhausted, Conflict, PermissionDenied
from aios.testing import FakeClock, ScriptedCore, TestKernel, machine, settle, user

TEXT = "a b c d e f g h i j"  # ten tokens; the prompt below has two


async def child(kernel: TestKernel, **fields: object) -> int:
    login = kernel.identify(kernel.user_key)
    spawned = await kernel.trap(login, abi.SpawnAgent(program="child", **fields))  # type: ignore[arg-type]
    assert isinstance(spawned, abi.Spawned)
    return kernel.identify(str(spawned.key))


def generate(kernel: TestKernel, pid: int) -> asyncio.Task[abi.Reply]:
    return asyncio.ensure_future(kernel.trap(pid, abi.Generate(messages=user("go"), context=None)))


async def test_at_the_cap_a_process_is_suspended_and_a_new_budget_lets_it_go_on() -> None:
    async with machine(script=[TEXT]) as kernel:
        login = kernel.identify(kernel.user_key)
        pid = await child(kernel, budget=abi.Limits(tokens=6))
        task = generate(kernel, pid)
        await settle()
        status = await kernel.trap(login, abi.GetStatus(aid=pid))
        assert isinstance(status, abi.Status)
        assert (status.status, status.reasons) == ("suspended", ("budget",))
        assert status.usage.tokens == 6
        with pytest.raises(Conflict, match="budget set"):
            await kernel.trap(login, abi.ResumeAgent(aid=pid))
        await kernel.trap(login, abi.SetBudget(aid=pid, budget=abi.Limits(tokens=100)))
        reply = await asyncio.wait_for(task, 5)
        assert isinstance(reply, abi.Generation)
        assert reply.message.content == TEXT
        usage = await kernel.trap(login, abi.GetUsage(aid=pid))
        assert isinstance(usage, abi.UsageReport)
        assert usage.budget.tokens == 100 - 6
        assert usage.usage.calls == 1
        assert await kernel.check() == []


async def test_children_and_concurrent_calls_never_exceed_the_budget() -> None:
    async with machine(script=[TEXT]) as kernel:
        parent = await child(kernel, budget=abi.Limits(tokens=50))
        pids = [parent]
        for _ in range(4):
            spawned = await kernel.trap(parent, abi.SpawnAgent(program="worker"))
            assert isinstance(spawned, abi.Spawned)
            pids.append(kernel.identify(str(spawned.key)))
        tasks = [generate(kernel, pid) for pid in pids for _ in range(3)]
        await settle(500)
        spent = sum(kernel.processes.find(pid).usage.tokens for pid in pids)
        assert spent <= 50
        assert spent > 50 - 12  # what is left would not pay for one more
        assert not all(task.done() for task in tasks)
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SetBudget(aid=parent, budget=abi.Limits(tokens=1000)))
        replies = await asyncio.wait_for(asyncio.gather(*tasks), 5)
        assert {reply.message.content for reply in replies} == {TEXT}  # type: ignore[attr-defined]
        assert await kernel.check() == []


async def test_a_process_may_ask_to_fail_instead() -> None:
    async with machine(script=[TEXT]) as kernel:
        pid = await child(kernel, budget=abi.Limits(tokens=6), on_exhausted="fail")
        with pytest.raises(BudgetExhausted, match="no tokens left"):
            await generate(kernel, pid)


async def test_calls_are_counted() -> None:
    async with machine(script=[TEXT]) as kernel:
        pid = await child(kernel, budget=abi.Limits(calls=2), on_exhausted="fail")
        await generate(kernel, pid)
        await generate(kernel, pid)
        await kernel.trap(pid, abi.GetUsage())  # to look costs nothing
        with pytest.raises(BudgetExhausted, match="no calls left"):
            await generate(kernel, pid)


async def test_seconds_stop_a_process_that_never_ends() -> None:
    clock = FakeClock()
    async with machine(clock=clock) as kernel:
        login = kernel.identify(kernel.user_key)
        pid = await child(kernel, budget=abi.Limits(seconds=3))
        waiting = asyncio.ensure_future(kernel.trap(pid, abi.RecvMessage()))
        await clock.advance(2)
        assert kernel.processes.find(pid).state == "live"
        await clock.advance(2)
        assert kernel.processes.find(pid).reasons == {"budget"}
        await kernel.trap(login, abi.KillAgent(aid=pid))
        await asyncio.wait({waiting})


async def test_nobody_raises_his_own_budget() -> None:
    async with machine() as kernel:
        pid = await child(kernel, budget=abi.Limits(tokens=5))
        with pytest.raises(PermissionDenied, match="its own budget"):
            await kernel.trap(pid, abi.SetBudget(budget=abi.Limits(tokens=10**6)))


async def test_who_was_stopped_by_what_others_held_goes_on_when_it_is_given_back() -> None:
    core = ScriptedCore([TEXT], gated=True)
    async with machine(core=core) as kernel:
        parent = await child(kernel, budget=abi.Limits(tokens=36))
        pids = []
        for _ in range(2):
            spawned = await kernel.trap(parent, abi.SpawnAgent(program="worker"))
            assert isinstance(spawned, abi.Spawned)
            pids.append(spawned.aid)
        tasks = [generate(kernel, pid) for pid in pids]  # prompts 4, a slice of 32 holds the rest
        await settle()
        assert kernel.processes.find(pids[1]).reasons == {"budget"}
        for _ in range(3):
            core.step()
            await settle()
        assert [task.done() for task in tasks] == [True, True]
        assert kernel.processes.find(parent).budget.tokens == 36 - 24


async def test_an_orphan_under_its_dead_parent_s_cap_can_be_given_more() -> None:
    async with machine(script=[TEXT]) as kernel:
        login = kernel.identify(kernel.user_key)
        parent = await child(kernel, budget=abi.Limits(tokens=5))
        spawned = await kernel.trap(parent, abi.SpawnAgent(program="worker"))
        assert isinstance(spawned, abi.Spawned)
        task = generate(kernel, spawned.aid)
        await settle()
        await kernel.trap(parent, abi.ExitAgent())
        assert kernel.processes.find(spawned.aid).reasons == {"budget"}
        budget = abi.Limits(tokens=30)
        await kernel.trap(login, abi.SetBudget(aid=spawned.aid, budget=budget))
        reply = await asyncio.wait_for(task, 5)
        assert isinstance(reply, abi.Generation)
        assert reply.message.content == TEXT


async def test_to_end_itself_a_process_needs_no_right() -> None:
    async with machine() as kernel:
        pid = await child(kernel, rights=())
        with pytest.raises(PermissionDenied, match="it may do nothing"):
            await kernel.trap(pid, abi.GetAid())
        await kernel.trap(pid, abi.ExitAgent())
