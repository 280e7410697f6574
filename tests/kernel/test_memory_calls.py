"""Memory behind the door: whose records a process may see and change, and what a failure leaves."""

from __future__ import annotations

import math
from typing import Any

import pytest

from aios.abi import calls as abi
from aios.abi.calls import MemoryHits, MemoryRecords, Remembered
from aios.config import Config, Memory
from aios.drivers.journal.memory import MemoryJournal
from aios.errors import (
    InvalidCall,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    StoreFailed,
)
from aios.testing import FakeClock, ScriptedEmbedder, TestKernel, machine


async def child(kernel: TestKernel, program: str = "child", **fields: Any) -> int:
    login = kernel.identify(kernel.user_key)
    spawned = await kernel.trap(login, abi.SpawnAgent(program=program, **fields))
    assert isinstance(spawned, abi.Spawned)
    return spawned.aid


async def write(kernel: TestKernel, pid: int, text: str, **said: Any) -> str:
    reply = await kernel.trap(pid, abi.MemWrite(text=text, **said))
    assert isinstance(reply, Remembered)
    return reply.id


async def found(kernel: TestKernel, pid: int, query: str, **which: Any) -> list[str]:
    reply = await kernel.trap(pid, abi.MemSearch(query=query, **which))
    assert isinstance(reply, MemoryHits)
    return [hit.record.id for hit in reply.hits]


async def read(kernel: TestKernel, pid: int, **which: Any) -> list[str]:
    reply = await kernel.trap(pid, abi.MemRead(**which))
    assert isinstance(reply, MemoryRecords)
    return [record.text for record in reply.records]


async def test_scopes_are_the_processes_the_programs_and_the_users() -> None:
    async with machine() as kernel:
        travel, other_travel = await child(kernel, "travel"), await child(kernel, "travel")
        math_agent = await child(kernel, "math")
        own = await write(kernel, travel, "plan of the process")
        programs = await write(kernel, travel, "plan of the program", scope="program")
        users = await write(kernel, travel, "plan of the user", scope="user")
        assert set(await found(kernel, travel, "plan")) == {own, programs, users}
        assert set(await found(kernel, other_travel, "plan")) == {programs, users}
        assert await found(kernel, math_agent, "plan") == [users]
        assert await found(kernel, travel, "plan", scopes=("program",)) == [programs]
        assert await found(kernel, travel, "plan", scopes=()) == []
        assert await read(kernel, math_agent, scope="user") == ["plan of the user"]
        assert await read(kernel, math_agent, scope="program") == []
        with pytest.raises(NotFound, match=f"no record {own} that you may see"):
            await read(kernel, math_agent, id=own)
        with pytest.raises(NotFound):
            await kernel.trap(math_agent, abi.MemUpdate(id=programs, text="mine now"))
        with pytest.raises(NotFound):
            await kernel.trap(math_agent, abi.MemClear(id=own))
        with pytest.raises(NotFound, match=f"no process {travel} that you may see"):
            await read(kernel, math_agent, aid=travel)
        with pytest.raises(NotFound):
            await write(kernel, math_agent, "a gift", aid=travel)


async def test_a_parent_acts_on_its_childrens_records() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        agent = await child(kernel)
        await write(kernel, login, "for the child", aid=agent)
        assert await read(kernel, agent) == ["for the child"]
        assert await read(kernel, login, aid=agent) == ["for the child"]


async def test_a_process_without_the_right_is_denied() -> None:
    async with machine() as kernel:
        agent = await child(kernel, rights=("mem_read",))
        assert await read(kernel, agent) == []
        with pytest.raises(PermissionDenied, match="no right to mem_write"):
            await write(kernel, agent, "x")


async def test_what_is_shared_is_read_until_it_is_taken_back() -> None:
    clock = FakeClock()
    async with machine(clock=clock) as kernel:
        one, two = await child(kernel), await child(kernel)
        first = await write(kernel, one, "the first secret")
        second = await write(kernel, one, "the second secret")
        await kernel.trap(one, abi.MemShare(to=two, id=first))
        assert await found(kernel, two, "secret") == [first]
        assert await read(kernel, two, id=first) == ["the first secret"]
        with pytest.raises(NotFound):
            await read(kernel, two, id=second)
        with pytest.raises(NotFound):  # to read is not to change
            await kernel.trap(two, abi.MemUpdate(id=first, text="changed"))
        with pytest.raises(NotFound):
            await kernel.trap(two, abi.MemClear(id=first))
        await kernel.trap(one, abi.MemShare(to=two, until=clock.now() + 60))
        assert set(await found(kernel, two, "secret")) == {first, second}
        await clock.advance(61)
        assert await found(kernel, two, "secret") == [first]
        await kernel.trap(one, abi.MemShare(to=two, id=first, revoke=True))
        assert await found(kernel, two, "secret") == []
        with pytest.raises(NotFound, match="is not shared with process"):
            await kernel.trap(one, abi.MemShare(to=two, id=first, revoke=True))


async def test_a_share_outlives_the_kernel_and_ends_with_its_holder() -> None:
    journal = MemoryJournal()
    async with machine(journal=journal) as kernel:
        one, two = await child(kernel), await child(kernel)
        id = await write(kernel, one, "a secret")
        await kernel.trap(one, abi.MemShare(to=two))
        left = journal.copy()
    async with machine(journal=left) as kernel:
        assert await found(kernel, two, "secret") == [id]
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.KillAgent(aid=two))
        assert kernel.grants.resources(f"pid:{two}", "mem_read", 0.0) == []


async def test_a_program_may_be_named_like_a_record() -> None:
    async with machine() as kernel:
        one, two = await child(kernel, "m12@x/m12"), await child(kernel)
        id = await write(kernel, one, "of the program", scope="program")
        await kernel.trap(one, abi.MemShare(to=two, scope="program"))
        assert await found(kernel, two, "program") == [id]


async def test_nothing_is_shared_with_others_users_or_with_oneself() -> None:
    async with machine() as kernel:
        one = await child(kernel)
        id = await write(kernel, one, "x")
        for to in (99, 0):
            with pytest.raises(NotFound, match=f"no process {to} that you may see"):
                await kernel.trap(one, abi.MemShare(to=to, id=id))
        with pytest.raises(InvalidCall, match="has its own records already"):
            await kernel.trap(one, abi.MemShare(to=one))
        with pytest.raises(NotFound, match="no record m7"):
            await kernel.trap(one, abi.MemShare(to=await child(kernel), id="m7"))


async def test_short_term_records_end_with_the_process() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        agent = await child(kernel)
        await write(kernel, agent, "short term")
        await write(kernel, agent, "long term", scope="program")
        await kernel.trap(login, abi.KillAgent(aid=agent))
        assert await read(kernel, await child(kernel), scope="program") == ["long term"]
        kept = await kernel.journal.read(  # type: ignore[attr-defined]
            lambda c: c.execute("SELECT text FROM memories").fetchall()
        )
        assert kept == [("long term",)]


async def test_a_quota_is_hard_at_the_door_too() -> None:
    config = Config(memory=Memory(process_bytes=20))
    async with machine(config=config) as kernel:
        agent = await child(kernel)
        await write(kernel, agent, "0123456789")
        with pytest.raises(QuotaExceeded, match=f"pid:{agent} has 10 left of 20"):
            await write(kernel, agent, "0123456789A")
        reply = await kernel.trap(agent, abi.MemAlloc(size=100))
        assert reply == abi.Allotment(f"pid:{agent}", 100, 10)
        assert await write(kernel, agent, "0123456789A") == "m2"


async def test_what_the_journal_does_not_take_did_not_happen() -> None:
    journal = MemoryJournal()
    config = Config(memory=Memory(process_bytes=20))
    async with machine(journal=journal, config=config) as kernel:
        agent, other = await child(kernel), await child(kernel)
        id = await write(kernel, agent, "kept")
        journal.trouble = "the disk is full: free some space."
        for call in (
            abi.MemWrite(text="0123456789abcdef"),
            abi.MemUpdate(id=id, text="changed"),
            abi.MemClear(id=id),
            abi.MemClear(),
            abi.MemAlloc(size=10),
            abi.MemShare(to=other),
        ):
            with pytest.raises(StoreFailed, match="the disk is full"):
                await kernel.trap(agent, call)
        journal.trouble = None
        assert await read(kernel, agent) == ["kept"]
        assert await found(kernel, other, "kept") == []
        await write(kernel, agent, "0123456789abcdef")  # all 16 bytes that are left are there
        with pytest.raises(QuotaExceeded):
            await write(kernel, agent, "x")


async def test_records_outlive_the_kernel() -> None:
    journal = MemoryJournal()
    async with machine(journal=journal) as kernel:
        agent = await child(kernel)
        await write(kernel, agent, "of the user", scope="user")
    async with machine(journal=journal) as kernel:
        agent = await child(kernel)
        assert await read(kernel, agent, scope="user") == ["of the user"]
        assert await write(kernel, agent, "next", scope="user") == "m2"


async def test_times_that_are_none_are_refused() -> None:
    async with machine() as kernel:
        agent = await child(kernel)
        with pytest.raises(InvalidCall, match="time is nan"):
            await write(kernel, agent, "x", time=math.nan)
        with pytest.raises(InvalidCall, match="before is inf"):
            await read(kernel, agent, before=math.inf)


async def test_a_fork_has_its_own_copy_under_the_same_ids() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        agent = await child(kernel)
        id = await write(kernel, agent, "before the fork")
        forked = await kernel.trap(login, abi.ForkAgent(aid=agent))
        assert isinstance(forked, abi.Spawned)
        await kernel.trap(forked.aid, abi.MemUpdate(id=id, text="after the fork"))
        assert await read(kernel, agent, id=id) == ["before the fork"]
        assert await read(kernel, forked.aid, id=id) == ["after the fork"]


async def test_a_rollback_takes_records_back() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        agent = await child(kernel)
        await write(kernel, agent, "before")
        mark = await kernel.trap(login, abi.SnapshotAgent(aid=agent))
        assert isinstance(mark, abi.AgentSnapshot)
        await write(kernel, agent, "after")
        await write(kernel, agent, "after, for all", scope="user")
        await kernel.trap(login, abi.RollbackAgent(aid=agent, snapshot=mark.snapshot))
        assert await read(kernel, agent) == ["before"]
        assert await read(kernel, login, scope="user") == []


# --- embed ----------------------------------------------------------------------------------------


async def test_texts_become_vectors() -> None:
    embedder = ScriptedEmbedder("car automobile")
    async with machine(embedder=embedder) as kernel:
        agent = await child(kernel)
        reply = await kernel.trap(agent, abi.Embed(texts=("car", "automobile", "tree")))
        assert isinstance(reply, abi.Embedding)
        assert (reply.model, reply.tokens) == ("scripted", 3)
        assert reply.vectors[0] == reply.vectors[1] != reply.vectors[2]
        assert math.isclose(math.hypot(*reply.vectors[2]), 1.0, rel_tol=1e-6)
        for texts in ((), ("",), ("x", " ")):
            with pytest.raises(InvalidCall, match="there is nothing to embed"):
                await kernel.trap(agent, abi.Embed(texts=texts))
        with pytest.raises(NotFound, match="no embedder named 'gpt' here; there is scripted"):
            await kernel.trap(agent, abi.Embed(texts=("x",), model="gpt"))
        wrapped = await child(kernel, wrap_model=True)
        assert await kernel.trap(wrapped, abi.Embed(texts=("x",), model="text-embedding-3"))


async def test_without_an_embedder_it_says_so() -> None:
    async with machine() as kernel:
        agent = await child(kernel)
        with pytest.raises(NotFound, match="there is no embedder here"):
            await kernel.trap(agent, abi.Embed(texts=("x",)))
