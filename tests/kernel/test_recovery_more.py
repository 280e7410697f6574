"""Recovery where something is wrong: a disk, a past, a survivor, an end that was cut in two."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from test_recovery import Program, World, healthy, idle, said, spawn

from aios.abi import calls as abi
from aios.drivers.journal.memory import MemoryJournal
from aios.errors import Conflict, Killed, StoreFailed
from aios.ports import CallHistory, Started
from aios.testing import FakeClock, ScriptedPrograms, settle, user


async def for_ever(program: Program) -> None:
    await asyncio.Event().wait()


async def while_full(world: World, call: abi.Call, *, room: int = 0) -> None:
    """Make a call of the user's on a disk that is full after so many appends."""
    journal, append = world.journal, world.journal.append

    def filling(records: Any) -> asyncio.Future[None]:
        nonlocal room
        journal.trouble, room = (None, room - 1) if room else ("the disk is full", 0)
        return append(records)

    journal.append = filling  # type: ignore[method-assign]
    kernel = world.running
    with pytest.raises(StoreFailed):
        await kernel.trap(kernel.identify(kernel.user_key), call)
    del journal.append
    journal.trouble = None


async def test_mail_that_could_not_be_kept_was_not_sent() -> None:
    world = World(for_ever)
    mail = abi.SendMessage(to="p", body="begin", id="m")
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        await while_full(world, mail, room=1)  # for its start
        login = kernel.identify(kernel.user_key)
        assert not kernel.processes.find(pid).mailbox
        await kernel.trap(login, mail)
    async with world.kernel() as kernel:
        assert len(kernel.processes.find(pid).mailbox) == 1


async def test_mail_that_could_not_be_told_is_received_by_the_next_who_asks() -> None:
    world = World(for_ever)
    async with world.kernel() as kernel:
        login = kernel.identify(kernel.user_key)
        for body in ("one", "two"):
            await kernel.trap(login, abi.SendMessage(to=login, body=body))
        await while_full(world, abi.RecvMessage(timeout_s=9))
        for body in ("one", "two"):
            mail = await kernel.trap(login, abi.RecvMessage())
            assert isinstance(mail, abi.Mail)
            assert mail.body == body


async def test_what_a_process_had_begun_ends_with_it_however_its_kernel_died() -> None:
    world = World(idle)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        login = kernel.identify(kernel.user_key)
        cuts, append = [], world.journal.append

        def cut(records: Any) -> asyncio.Future[None]:
            appended = append(records)
            cuts.append(world.journal.copy())
            return appended

        world.journal.append = cut  # type: ignore[method-assign]
        await kernel.trap(login, abi.KillAgent(aid=pid))
    assert len(cuts) > 1
    for journal in cuts:
        world.journal = journal
        async with world.kernel() as kernel:
            assert kernel.processes.find(pid).state == "zombie"
            assert [call for call in journal.load().open_calls if call.pid == pid] == []
            await healthy(kernel)


class Damaged(MemoryJournal):
    """A journal that cannot read back the calls of one process."""

    unreadable = 0

    async def calls(self, pid: int, *which: Any) -> list[CallHistory]:
        if pid == self.unreadable:
            raise StoreFailed("a page is damaged")
        return await super().calls(pid, *which)


async def test_a_past_that_cannot_be_read_holds_up_nobody_else() -> None:
    world = World(idle)
    async with world.kernel() as kernel:
        pids = [await spawn(kernel) for _ in range(6)]
    world.journal.__class__ = Damaged
    assert isinstance(world.journal, Damaged)
    world.journal.unreadable = pids[0]
    async with world.kernel() as kernel:
        assert isinstance(kernel.clock, FakeClock)
        await kernel.clock.advance(60)
        damaged, *others = (kernel.processes.find(pid) for pid in pids)
        assert {other.lives for other in others} == {2}
        assert damaged.reasons == {"user"}
        assert "a page is damaged" in damaged.note
        world.journal.unreadable = 0  # a copy was put back
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.ResumeAgent(aid=pids[0]))
        await settle(100)
        assert (damaged.lives, damaged.note) == (2, "")
        await healthy(kernel)


async def test_a_rollback_on_a_full_disk_changes_nothing() -> None:
    async def live(program: Program) -> None:
        await program.say("before")
        await program.ask(abi.SnapshotAgent(label="here"))
        await program.say("after")
        await asyncio.Event().wait()

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        for _ in range(2):
            world.core.step()
            await settle()
        login = kernel.identify(kernel.user_key)
        (mark,) = (await kernel.trap(login, abi.ListSnapshots(aid=pid))).snapshots  # type: ignore[attr-defined]
        back = abi.RollbackAgent(aid=pid, snapshot=mark.snapshot)
        await while_full(world, back)
        process = kernel.processes.find(pid)
        assert process.is_suspended  # there was no room for another life of it
        await kernel.trap(login, abi.ResumeAgent(aid=pid))
        await settle(100)
        assert world.lives == [1, 2]
        assert len(await said(kernel, pid)) == 4
        await kernel.trap(login, back)
        assert len(await said(kernel, pid)) == 2
        await healthy(kernel)


async def test_a_survivor_of_a_dead_kernel_is_not_served() -> None:
    world = World(idle)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        key = kernel.keys.renew(kernel.processes.find(pid))
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SuspendAgent(aid=pid))
    async with world.kernel() as kernel:
        survivor = kernel.identify(key)
        with pytest.raises(Killed, match="life"):
            await kernel.trap(survivor, abi.Generate(messages=user("wait here"), place="0"))


class Watched(ScriptedPrograms):
    """Says when it ended a survivor and when it started a program."""

    def __init__(self, programs: Any, done: list[str]) -> None:
        super().__init__(programs)
        self._done = done

    async def start(self, pid: int, *how: Any) -> Started:
        self._done.append(f"start {pid}")
        return await super().start(pid, *how)

    async def end_survivor(self, started: Started) -> None:
        self._done.append(f"end {started.os_pid - 100_000}")


async def test_two_lives_never_overlap() -> None:
    done: list[str] = []
    world = World(for_ever)
    world.programs = lambda programs: Watched(programs, done)
    async with world.kernel() as kernel:
        pids = [await spawn(kernel) for _ in range(2 * kernel.config.kernel.restart_concurrency)]
        last = pids[-1]
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SuspendAgent(aid=last))
    async with world.kernel() as kernel:  # which dies before it comes to the last one
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SetStatus(aid=last, note="it has been seen"))
    done.clear()
    async with world.kernel() as kernel:
        login = kernel.identify(kernel.user_key)
        assert f"end {last}" not in done  # it stands far behind in the line
        await kernel.trap(login, abi.ResumeAgent(aid=last))
        await settle(100)
        assert done.index(f"end {last}") < done.index(f"start {last}")


async def test_a_program_is_started_once_by_whoever_is_first() -> None:
    world = World(for_ever)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SuspendAgent(aid=pid))
    world.lives.clear()
    async with world.kernel() as kernel:
        process = kernel.processes.find(pid)
        await settle(100)
        kernel.processes.resume(process, "user")
        await kernel.lives.relaunch(process)
        await settle(100)
        assert world.lives == [2]
        assert process.state == "live"


async def test_what_a_program_ran_in_its_python_is_kept_as_long_as_the_program() -> None:
    inside: list[str] = []

    async def live(program: Program) -> None:
        kernel = program.kernel
        spawned = await program.ask(abi.SpawnAgent(program="child", os_pid=70_000 + program.life))
        child = kernel.identify(spawned.key)
        answer = await kernel.trap(child, abi.Generate(messages=user("inside"), place="0"))
        inside.append(answer.message.content)  # type: ignore[attr-defined]
        await kernel.trap(child, abi.ExitAgent(result="done"))
        await program.ask(abi.WaitAgent(aid=spawned.aid))
        await program.say("and then")

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        world.core.step()
        await settle(100)
        assert isinstance(kernel.clock, FakeClock)
        await kernel.clock.advance(2 * kernel.config.kernel.zombie_s)
    async with world.kernel() as kernel:
        await settle(200)
        assert inside == ["You said: inside"] * 2  # without a step of the core
        world.core.step()
        await settle(200)
        assert kernel.processes.find(pid).exit_status == 0
        assert isinstance(kernel.clock, FakeClock)
        await kernel.clock.advance(2 * kernel.config.kernel.zombie_s)
        assert [process.program for process in kernel.processes] == ["login"]
        await healthy(kernel)


async def test_an_orphan_stays_under_the_cap_of_its_dead_parent() -> None:
    async def live(program: Program) -> None:
        if program.kernel.processes.find(program.pid).program == "p":
            await program.ask(abi.SpawnAgent(program="child", argv=("program",)))
        else:
            await program.say("one two three")
            await asyncio.Event().wait()

    world = World(live, gated=False)
    async with world.kernel() as kernel:
        pid = await spawn(kernel, budget=abi.Limits(tokens=30, calls=9))
        assert kernel.processes.find(pid).state == "zombie"
    for _ in range(2):
        async with world.kernel() as kernel:
            await settle(100)
            (child,) = [process for process in kernel.processes if process.program == "child"]
            free = child.budget.tokens_free()
            assert free == 30 - child.usage.tokens
            assert kernel.processes.find(pid).left() == abi.Limits(tokens=free, calls=9 - 2)
            assert isinstance(kernel.clock, FakeClock)
            await kernel.clock.advance(2 * kernel.config.kernel.zombie_s)
    async with world.kernel() as kernel:
        await settle(100)
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.KillAgent(aid=child.pid))
        assert isinstance(kernel.clock, FakeClock)
        await kernel.clock.advance(2 * kernel.config.kernel.zombie_s)
        assert [process.program for process in kernel.processes] == ["login"]
        await healthy(kernel)


async def test_a_call_of_a_child_is_paid_by_its_parent_for_good() -> None:
    async def live(program: Program) -> None:
        if program.kernel.processes.find(program.pid).program == "p":
            child = await program.ask(abi.SpawnAgent(program="child", argv=("program",)))
            await program.ask(abi.WaitAgent(aid=child.aid))
        else:
            await program.ask(abi.SendMessage(to=program.pid, body="to myself"))
            await asyncio.Event().wait()

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel, budget=abi.Limits(calls=9))
        assert kernel.processes.find(pid).left().calls == 7
    async with world.kernel() as kernel:
        assert kernel.processes.find(pid).left().calls == 7


async def test_a_number_under_which_something_is_kept_does_not_change() -> None:
    world = World(idle)
    async with world.kernel() as kernel:
        login = kernel.identify(kernel.user_key)
        aids = [(await kernel.trap(login, abi.SpawnAgent(program=name))).aid for name in "abc"]  # type: ignore[attr-defined]
        await kernel.trap(login, abi.SendMessage(to=aids[0], body="hello"))
        await kernel.trap(login, abi.MemWrite(aid=aids[1], text="hello"))
        for aid in aids[:2]:
            with pytest.raises(Conflict):
                await kernel.trap(login, abi.SetAid(of=aid, aid=99))
        await kernel.trap(login, abi.SetAid(of=aids[2], aid=99))
    async with world.kernel() as kernel:
        assert len(kernel.processes.find(aids[0]).mailbox) == 1
        assert kernel.processes.find(99).program == "c"


async def parent_and_child(program: Program) -> None:
    kernel, pid = program.kernel, program.pid
    if kernel.processes.find(pid).program == "p":
        spawning = abi.SpawnAgent(program="child", argv=("program",), budget=abi.Limits(tokens=50))
        child = (await program.ask(spawning)).aid
        await program.ask(abi.SendMessage(to=child, body="begin"))
        said = await program.say("hello there")
        heard = (await program.ask(abi.RecvMessage(sender=child))).body
        await program.ask(abi.MemWrite(text=heard))
        await program.ask(abi.SnapshotAgent())
        end = await program.ask(abi.WaitAgent(aid=child))
        await kernel.trap(pid, abi.ExitAgent(result=f"{said}, {heard}, {end.result}"))
    else:
        mail = await program.ask(abi.RecvMessage())
        await program.ask(abi.SendMessage(to=mail.sender, body=await program.say("I hear")))
        await kernel.trap(pid, abi.ExitAgent(result="done"))


async def test_cut_after_any_append_it_comes_to_the_same_end() -> None:
    world = World(parent_and_child, gated=False, quantum=2)
    cuts: list[MemoryJournal] = []

    async def ends() -> list[tuple[Any, ...]]:
        await settle(600)
        await healthy(world.running)
        assert list(world.journal.load().open_calls) == []
        agents = [p for p in world.running.processes if p.program in ("p", "child")]
        return [(p.pid, p.state, p.result, p.usage.tokens, p.left()) for p in agents]

    async with world.kernel() as kernel:
        append = world.journal.append

        def cut(records: Any) -> asyncio.Future[None]:
            appended = append(records)
            cuts.append(world.journal.copy())
            return appended

        world.journal.append = cut  # type: ignore[method-assign]
        pid = await spawn(kernel, budget=abi.Limits(tokens=100, calls=20))
        right = await ends()
        assert {state for _, state, *_ in right} == {"zombie"}
        world.journal.append = append  # type: ignore[method-assign]
    begun = [cut for cut in cuts if any(row.pid == pid for row in cut.load().processes)]
    assert len(begun) > 20
    for world.journal in begun:
        async with world.kernel():
            assert await ends() == right
