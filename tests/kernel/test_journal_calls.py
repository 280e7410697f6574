"""The journal seen through the door: how much is in it, and less of it."""

from __future__ import annotations

import pytest

from aios.abi import calls as abi
from aios.drivers.journal.memory import MemoryJournal
from aios.errors import InvalidCall, PermissionDenied, StoreFailed
from aios.testing import FakeClock, TestKernel, machine, user

DAY_S = 86_400.0


async def agent(kernel: TestKernel, login: int, name: str = "p") -> int:
    spawned = await kernel.trap(login, abi.SpawnAgent(program=name))
    assert isinstance(spawned, abi.Spawned)
    return spawned.aid


async def report(kernel: TestKernel, login: int) -> abi.JournalReport:
    found = await kernel.trap(login, abi.GetJournal())
    assert isinstance(found, abi.JournalReport)
    return found


async def test_old_history_goes_and_what_is_needed_stays() -> None:
    clock = FakeClock(1_000_000.0)
    async with machine(["yes", "no"], clock=clock) as kernel:
        login = kernel.identify(kernel.user_key)
        pid = await agent(kernel, login)
        for who in (pid, login):
            await kernel.trap(who, abi.Generate(messages=user("old")))
        before = await report(kernel, login)
        assert before.rows["calls"] == 3
        assert before.first_event == 1

        gone = await kernel.trap(login, abi.PruneJournal())
        assert isinstance(gone, abi.Pruning)
        assert (gone.events, gone.calls) == (0, 0)  # as configured: 30 days
        await clock.advance(600.0)
        gone = await kernel.trap(login, abi.PruneJournal(days=300.0 / DAY_S))
        assert isinstance(gone, abi.Pruning)
        assert gone.events >= before.last_event - 1
        assert gone.calls == 3  # of the login; the agent may ask for its own again
        assert (await report(kernel, login)).first_event > before.last_event - 5
        for who, count in ((pid, 1), (login, 1)):
            past = await kernel.trap(login, abi.GetTranscript(aid=who))
            assert isinstance(past, abi.Transcript)
            assert len(past.calls) == count


async def test_who_may_prune_and_how_far() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        pid = await agent(kernel, login)
        for call in (abi.GetJournal(), abi.PruneJournal()):
            with pytest.raises(PermissionDenied):
                await kernel.trap(pid, call)
        with pytest.raises(InvalidCall, match="days is -1: give 0 or more"):
            await kernel.trap(login, abi.PruneJournal(days=-1))
        with pytest.raises(InvalidCall, match="max_bytes is -1: give 0 or more"):
            await kernel.trap(login, abi.PruneJournal(max_bytes=-1))


async def test_a_journal_that_cannot_be_written_can_be_looked_at() -> None:
    journal = MemoryJournal()
    async with machine(journal=journal) as kernel:
        login = kernel.identify(kernel.user_key)
        journal.trouble = "the disk is full: free some space."
        assert (await report(kernel, login)).version > 1
        with pytest.raises(StoreFailed, match="the disk is full"):
            await kernel.trap(login, abi.PruneJournal(days=0))
        journal.trouble = None
        await kernel.trap(login, abi.PruneJournal(days=0))


async def test_mail_received_since_a_snapshot_is_there_again_after_a_rollback() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        pid = await agent(kernel, login)
        for body in ("early", "late"):
            await kernel.trap(login, abi.SendMessage(to=pid, body=body))

        async def receive() -> object:
            mail = await kernel.trap(pid, abi.RecvMessage(timeout_s=1.0))
            assert isinstance(mail, abi.Mail)
            return mail.body

        assert await receive() == "early"
        snapshot = await kernel.trap(login, abi.SnapshotAgent(aid=pid))
        assert isinstance(snapshot, abi.AgentSnapshot)
        assert await receive() == "late"
        await kernel.trap(login, abi.RollbackAgent(aid=pid, snapshot=snapshot.snapshot))
        assert await receive() == "late"
