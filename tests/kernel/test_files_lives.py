"""Files across the lives of a process: what it read is read again, what it wrote stays written."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from test_recovery import Program, World, healthy, spawn

from aios.abi import calls as abi
from aios.errors import AiosError, Conflict
from aios.testing import TestKernel, settle


def person(kernel: TestKernel, call: abi.Call) -> Any:
    return kernel.trap(kernel.identify(kernel.user_key), call)


async def text(kernel: TestKernel, path: str, **options: Any) -> str:
    found = await person(kernel, abi.StoRead(path=path, binary=True, **options))
    return str(found.content.decode())


async def step(world: World, slices: int = 1) -> None:
    world.core.step(slices)
    await settle(100)


async def test_a_second_life_reads_what_the_first_one_read() -> None:
    told: list[list[str]] = []

    async def live(program: Program) -> None:
        heard = [(await program.ask(abi.StoRead(path="/plan", volume="user"))).text]
        told.append(heard)
        await program.say("thinking")
        try:
            await program.ask(abi.StoWrite(path="/plan", text="mine", volume="user"))
            heard.append("written")
        except Conflict as error:
            heard.append(error.message)
        heard.append((await program.ask(abi.StoRead(path="/plan", volume="user"))).text)

    world = World(live)
    async with world.kernel() as kernel:
        await person(kernel, abi.StoWrite(path="/plan", text="first", volume="user"))
        await spawn(kernel)
        await person(kernel, abi.StoWrite(path="/plan", text="second", volume="user"))
    async with world.kernel() as kernel:
        await settle(200)
        await step(world)
        assert [heard[0] for heard in told] == ["first", "first"]
        assert "is at version 2, by user:ann, and process 2 last saw version 1" in told[1][1]
        assert told[1][2] == "second"
        await healthy(kernel)


async def test_what_was_written_is_not_written_again() -> None:
    async def live(program: Program) -> None:
        for _ in range(3):
            await program.ask(abi.StoWrite(path="/log", text="line;", append=True))
        await program.ask(abi.StoWrite(path="/many/a", text="x", stage=True))
        await program.say("thinking")
        await program.ask(abi.StoCommit())
        await program.ask(abi.StoWrite(path="/log", text="end;", append=True))
        await asyncio.Event().wait()

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
    async with world.kernel() as kernel:
        await settle(200)
        await step(world)
        assert await text(kernel, "/log", aid=pid) == "line;line;line;end;"
        assert await text(kernel, "/many/a", aid=pid) == "x"
        versions = (await person(kernel, abi.StoHistory(aid=pid))).versions
        assert [one.version for one in versions] == [5, 4, 3, 2, 1]


async def test_a_second_life_that_writes_something_else_diverges() -> None:
    async def live(program: Program) -> None:
        try:
            await program.ask(abi.StoWrite(path="/a", text=f"life {program.life}"))
        finally:
            await asyncio.Event().wait()

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
    async with world.kernel() as kernel:
        await settle(200)
        status = await person(kernel, abi.GetStatus(aid=pid))
        assert status.reasons == ("diverged",)
        assert await text(kernel, "/a", aid=pid) == "life 1"


async def test_what_is_mounted_is_read_again_as_it_was(tmp_path: Path) -> None:
    """It has no versions: what was read is in the journal."""
    (tmp_path / "note").write_text("first")
    told: list[str] = []

    async def live(program: Program) -> None:
        told.append((await program.ask(abi.StoRead(path="/m/note", volume="user"))).text)
        await program.ask(abi.StoWrite(path="/m/note", text="by me", volume="user"))
        await program.say("thinking")
        try:
            await program.ask(abi.StoWrite(path="/m/note", text="again", volume="user"))
        except AiosError as error:
            told.append(error.code)

    world = World(live)
    async with world.kernel() as kernel:
        mount = abi.StoMount(path="/m", host=str(tmp_path), volume="user", mode="rw")
        await person(kernel, mount)
        await spawn(kernel)
        await until(lambda: (tmp_path / "note").read_text() == "by me")
        await kernel.trace.durable()
        await settle(200)
        (tmp_path / "note").write_text("somebody else's")
    async with world.kernel() as kernel:
        await settle(200)
        await until(lambda: len(world.lives) == 2 and len(told) == 2)
        await settle(200)
        await step(world)
        await until(lambda: len(told) == 3)
        assert told == ["first", "first", "conflict"]
        assert (tmp_path / "note").read_text() == "somebody else's"
        await healthy(kernel)


async def until(holds: Any) -> None:
    """What is done in threads takes its time."""
    async with asyncio.timeout(10):
        while not holds():
            await settle(1)


async def test_a_rollback_takes_the_files_back() -> None:
    async def live(program: Program) -> None:
        await program.ask(abi.StoWrite(path="/a", text="1"))
        await program.ask(abi.StoWrite(path="/ours", text="1", volume="user"))
        await program.ask(abi.SnapshotAgent())
        await program.say("thinking")
        await program.ask(abi.StoWrite(path="/a", text=f"2 in life {program.life}"))
        await program.ask(abi.StoWrite(path="/b", text="2"))
        await program.ask(abi.StoWrite(path="/ours", text="2", volume="user"))
        await asyncio.Event().wait()

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        await step(world)
        assert await text(kernel, "/ours", volume="user") == "2"
        mark = (await person(kernel, abi.ListSnapshots(aid=pid))).snapshots[0].snapshot
        await person(kernel, abi.RollbackAgent(aid=pid, snapshot=mark))
        await settle(200)
        assert await text(kernel, "/a", aid=pid) == "1"
        assert await text(kernel, "/ours", volume="user") == "1"
        files = (await person(kernel, abi.StoList(aid=pid))).files
        assert [file.path for file in files] == ["/a"]
        await step(world)
        assert await text(kernel, "/a", aid=pid) == "2 in life 2"
        assert await text(kernel, "/ours", volume="user") == "2"
        await healthy(kernel)


async def test_a_fork_at_a_call_has_the_files_of_then() -> None:
    async def live(program: Program) -> None:
        await program.ask(abi.StoWrite(path="/a", text="1"))
        first = await program.ask(abi.StoRead(path="/a"))
        await program.say("thinking")
        await program.ask(abi.StoWrite(path="/a", text=f"{first.text}, then 2 by {program.pid}"))
        await asyncio.Event().wait()

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        await step(world)
        calls = (await person(kernel, abi.GetTranscript(aid=pid, names=("sto_read",)))).calls
        fork = (await person(kernel, abi.ForkAgent(aid=pid, at=calls[0].id))).aid
        await settle(200)
        assert await text(kernel, "/a", aid=fork) == "1"
        await step(world)
        assert await text(kernel, "/a", aid=fork) == f"1, then 2 by {fork}"
        assert await text(kernel, "/a", aid=pid) == f"1, then 2 by {pid}"
        await healthy(kernel)
