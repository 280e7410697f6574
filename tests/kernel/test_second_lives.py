"""What a second life is told, in the corners: found by the simulation (tests/simulation)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from test_recovery import Program, World, healthy, spawn

from aios.abi import calls as abi
from aios.abi.messages import ToolSpec
from aios.errors import AiosError, StoreFailed, TimedOut
from aios.testing import FakeClock, ScriptedPrograms, settle, user

COUNT = ToolSpec("count")


@pytest.mark.parametrize("call", [abi.RecvMessage(timeout_s=1.0), abi.KillAgent(aid=99)])
async def test_an_error_is_durable_before_it_is_told(call: abi.Call) -> None:
    kept: list[bool] = []

    async def live(program: Program) -> None:
        with pytest.raises(AiosError):
            await program.ask(call)
        (history,) = await program.kernel.journal.calls(program.pid)
        kept.append(history.end is not None)
        await program.say("and then")

    world = World(live)
    async with world.kernel() as kernel:
        await spawn(kernel)
        assert isinstance(kernel.clock, FakeClock)
        await kernel.clock.advance(2)
        assert kept == [True]


async def test_what_was_spent_without_an_answer_stays_spent() -> None:
    async def live(program: Program) -> None:
        with pytest.raises(TimedOut):
            await program.ask(abi.Generate(messages=user("one two three"), timeout_s=1.0))
        await asyncio.Event().wait()

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel, budget=abi.Limits(tokens=100))
        assert isinstance(kernel.clock, FakeClock)
        await kernel.clock.advance(2)
        left = kernel.processes.find(pid).left().tokens
        assert left == 96
    async with world.kernel() as kernel:
        assert kernel.processes.find(pid).left().tokens == left


def parent(inside: list[str], until: str) -> Any:
    """A program that runs a child in its own Python; ``until`` is how far its first life comes."""

    async def live(program: Program) -> None:
        # another OS process in each life
        call = abi.SpawnAgent(program="child", os_pid=70_000 + program.life)
        spawned = await program.ask(call)
        kernel, child = program.kernel, program.kernel.identify(spawned.key)
        inner = Program(kernel, child, {"AIOS_LIFE": str(program.life)})
        await inner.ask(abi.ToolRegister(tools=(COUNT,)))
        calling = asyncio.ensure_future(inner.ask(abi.ToolCall(name="count")))
        calling.add_done_callback(lambda call: call.cancelled() or call.exception())
        await settle()
        if not calling.done():
            taken = await kernel.trap(child, abi.ToolNext())
            inside.append("effect")
            if until == "taken" and program.life == 1:
                await asyncio.Event().wait()
            await kernel.trap(child, abi.ToolReturn(id=taken.id, content="done"))
        answer = await calling
        await kernel.trap(child, abi.ExitAgent(result=answer.content))
        await program.say(f"the child said {answer.content}")

    return live


async def test_a_child_that_had_ended_in_its_parents_python_is_not_lived_again() -> None:
    inside: list[str] = []
    world = World(parent(inside, "ended"))
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        assert inside == ["effect"]
    async with world.kernel() as kernel:
        await settle(200)
        world.core.step()
        await settle(200)
        assert kernel.processes.find(pid).exit_status == 0
        assert inside == ["effect"]
        await healthy(kernel)


async def test_an_effect_of_a_child_in_a_dead_programs_python_is_unknown() -> None:
    inside: list[str] = []
    world = World(parent(inside, "taken"))
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
    async with world.kernel() as kernel:
        await settle(200)
        (child,) = kernel.processes.find(pid).children.values()
        assert child.reasons == {"unknown_outcome"}
        (unknown,) = child.unknown
        login = kernel.identify(kernel.user_key)
        settling = abi.SettleCall(aid=child.pid, target=unknown, outcome="done", value="done")
        await kernel.trap(login, settling)
        await settle(200)
        world.core.step()
        await settle(200)
        assert kernel.processes.find(pid).exit_status == 0
        assert inside == ["effect"]
        await healthy(kernel)


@pytest.mark.parametrize("first", ["return", "next"])
async def test_a_tool_of_an_agent_that_lives_on_is_asked_for_once(first: str) -> None:
    world = World(asyncio.Event().wait)  # type: ignore[arg-type]
    async with world.kernel() as kernel:
        login = kernel.identify(kernel.user_key)
        spawned = await kernel.trap(login, abi.SpawnAgent(program="p", os_pid=1))
        assert isinstance(spawned, abi.Spawned)
        await kernel.trap(spawned.aid, abi.ToolRegister(tools=(COUNT,), place="0"))
        calling = asyncio.ensure_future(
            kernel.trap(spawned.aid, abi.ToolCall(name="count", place="1"))
        )
        calling.add_done_callback(lambda call: call.cancelled() or call.exception())
        taken = await kernel.trap(spawned.aid, abi.ToolNext())
        assert isinstance(taken, abi.ToolInvocation)
    async with world.kernel() as kernel:
        pid, busy = spawned.aid, (taken.id,) if first == "return" else ()
        calls: list[abi.Call] = [
            abi.ToolCall(name="count", place="1"),  # known again: it was offered before the crash
            abi.ToolReturn(id=taken.id, content="done")
            if first == "return"
            else abi.ToolNext(busy=busy),
        ]
        asked = [asyncio.ensure_future(kernel.trap(pid, call)) for call in calls]
        await settle(100)
        if first == "next":  # the dead kernel gave it, and nobody got it
            assert asked[1].result() == taken
            again = asyncio.ensure_future(kernel.trap(pid, abi.ToolNext(busy=(taken.id,))))
            await settle(100)
            assert not again.done()
            again.cancel()
            await kernel.trap(pid, abi.ToolReturn(id=taken.id, content="done"))
        assert (await asked[0]).content == "done"  # type: ignore[attr-defined]
        await healthy(kernel)


async def test_what_was_settled_stays_settled_when_its_parent_comes_back() -> None:
    inside: list[str] = []
    world = World(parent(inside, "taken"))
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        kernel.processes.suspend(kernel.processes.find(pid), "user")
    async with world.kernel() as kernel:
        (child,) = kernel.processes.find(pid).children.values()
        assert child.reasons == {"unknown_outcome"}
        (unknown,) = child.unknown
        login = kernel.identify(kernel.user_key)
        settling = abi.SettleCall(aid=child.pid, target=unknown, outcome="done", value="done")
        resuming = abi.ResumeAgent(aid=pid)
        await asyncio.gather(kernel.trap(login, settling), kernel.trap(login, resuming))
        await settle(200)
        assert not child.unknown
        world.core.step()
        await settle(200)
        assert kernel.processes.find(pid).exit_status == 0
        await healthy(kernel)


async def test_a_context_that_was_emptied_is_still_there() -> None:
    async def live(program: Program) -> None:
        await program.say("something")
        await program.ask(abi.ClrContext())
        await asyncio.Event().wait()

    world = World(live, gated=False)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
    async with world.kernel() as kernel:
        login = kernel.identify(kernel.user_key)
        report = await kernel.trap(login, abi.GetContext(aid=pid, messages=True))
        assert report.messages == ()  # type: ignore[attr-defined]


async def test_a_child_in_the_python_of_a_program_that_starts_again_is_not_lost() -> None:
    async def live(program: Program) -> None:
        kernel = program.kernel
        os = kernel.processes.find(program.pid).os
        assert os is not None
        spawned = await program.ask(abi.SpawnAgent(program="child", os_pid=os.os_pid))
        child = kernel.processes.find(kernel.identify(spawned.key))
        inner = Program(kernel, child.pid, {"AIOS_LIFE": str(program.life)})
        await inner.ask(abi.SetStatus(note="at work"))
        if program.life == 1:
            assert isinstance(kernel.programs, ScriptedPrograms)
            kernel.programs.dead.add(os.os_pid)
            while child.keeper is not None and child.state != "zombie":  # until that is seen  # noqa: ASYNC110 (the fake polls)
                await asyncio.sleep(0.001)
            raise RuntimeError("a bug")
        await kernel.trap(child.pid, abi.ExitAgent(result="done"))

    world = World(live)
    async with world.kernel() as kernel:
        process = kernel.processes.find(await spawn(kernel, restart="on-crash"))
        while process.state != "zombie":  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        (child,) = process.children.values()
        assert (process.exit_status, child.result) == (0, "done")
        await healthy(kernel)


async def test_a_fork_means_itself_where_its_original_did() -> None:
    async def live(program: Program) -> None:
        own = (await program.ask(abi.GetAid())).aid
        await program.ask(abi.MemWrite(aid=own, text="mine"))
        await program.say("here")
        found = await program.ask(abi.MemRead(aid=own))
        texts = " ".join(record.text for record in found.records)
        await program.kernel.trap(program.pid, abi.ExitAgent(result=f"{own}: {texts}"))

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        login = kernel.identify(kernel.user_key)
        calls = await kernel.trap(login, abi.GetTranscript(aid=pid, names=("mem_write",)))
        at = calls.calls[0].id  # type: ignore[attr-defined]
        forked = await kernel.trap(login, abi.ForkAgent(aid=pid, at=at))
        await settle(200)
        world.core.step(4)
        await settle(200)
        results = [kernel.processes.find(each).result for each in (pid, forked.aid)]  # type: ignore[attr-defined]
        assert results == [f"{pid}: mine", f"{forked.aid}: mine"]  # type: ignore[attr-defined]
        await healthy(kernel)


@pytest.mark.parametrize("steps", range(0, 24, 2))
async def test_a_fork_is_there_whole_or_not_at_all(steps: int) -> None:
    async def live(program: Program) -> None:
        await program.ask(abi.Record(kind="step", value=1))
        await program.say("here")

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        login = kernel.identify(kernel.user_key)
        (first, _) = await kernel.journal.calls(pid)
        forking = asyncio.ensure_future(
            kernel.trap(login, abi.ForkAgent(aid=pid, at=first.start.id))
        )
        forking.add_done_callback(lambda call: call.cancelled() or call.exception())
        for _ in range(steps):
            await asyncio.sleep(0)
    async with world.kernel() as kernel:
        await settle(100)
        for process in kernel.processes:
            if process.note.startswith("fork"):
                calls = await kernel.journal.calls(process.pid)
                assert [call.start.name for call in calls] == ["record", "generate"]
                assert calls[0].start.started_at <= process.created


async def test_a_rollback_ends_what_a_dead_kernel_had_begun() -> None:
    async def live(program: Program) -> None:
        await program.ask(abi.SnapshotAgent())
        await program.say("begun, and never ended")

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        kernel.processes.suspend(kernel.processes.find(pid), "user")
        await settle()
    async with world.kernel() as kernel:
        login = kernel.identify(kernel.user_key)
        (mark,) = kernel.marks
        resuming = kernel.trap(login, abi.ResumeAgent(aid=pid))  # its program starts meanwhile
        rolling = kernel.trap(login, abi.RollbackAgent(aid=pid, snapshot=mark))
        await asyncio.gather(resuming, rolling)
        await settle(200)
        assert kernel.processes.find(pid).state == "live"
        world.core.step()
        await settle(200)
        assert kernel.processes.find(pid).exit_status == 0
        await healthy(kernel)


async def test_an_answer_that_could_not_be_kept_is_not_told() -> None:
    world = World(asyncio.Event().wait)  # type: ignore[arg-type]
    async with world.kernel() as kernel:
        login = kernel.identify(kernel.user_key)
        spawned = await kernel.trap(login, abi.SpawnAgent(program="p", os_pid=1))
        assert isinstance(spawned, abi.Spawned)
        await kernel.trap(spawned.aid, abi.ToolRegister(tools=(COUNT,), place="0"))
        call = abi.ToolCall(name="count", place="1")
        calling = asyncio.ensure_future(kernel.trap(spawned.aid, call))
        calling.add_done_callback(lambda call: call.cancelled() or call.exception())
        taken = await kernel.trap(spawned.aid, abi.ToolNext())
        assert isinstance(taken, abi.ToolInvocation)
    async with world.kernel() as kernel:
        world.journal.trouble = "the disk is full"
        for asked in (abi.ToolReturn(id=taken.id, content="done"), call):
            with pytest.raises(StoreFailed):
                await kernel.trap(spawned.aid, asked)
        world.journal.trouble = None


async def test_a_call_whose_start_could_not_be_kept_has_one_when_it_is_told() -> None:
    said: list[str] = []

    async def live(program: Program) -> None:
        said.append(await program.say("one"))
        world.journal.trouble = "the disk is full"
        saying = asyncio.ensure_future(program.say("two"))
        saying.add_done_callback(lambda call: call.cancelled() or call.exception())
        await settle()
        world.journal.trouble = None
        world.core.step()
        said.append(await saying)
        await program.say("three")

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        world.core.step()
        await settle(200)
        assert len(said) == 2
        calls = await kernel.journal.calls(pid)
        assert [(call.start.name, call.end is not None) for call in calls[:2]] == [
            ("generate", True),
            ("generate", True),
        ]
        assert b"two" in calls[1].start.request
