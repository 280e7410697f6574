"""The SDK on a process's lives, and the paper's calls: a real kernel, and real programs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from served import Served, serving

from aios.abi.messages import Message
from aios.errors import InvalidCall, NotFound
from aios.sdk import paper, syscalls
from aios.sdk.process import Process
from aios.sdk.syscalls import Record
from aios.testing import ScriptedCore

TALKER = """
import aios


def mark():
    with open("steps", "a") as steps:
        steps.write("x")
    return "marked"


@aios.agent
async def talker(me, task):
    said = [await aios.step(mark)]
    while (mail := await me.receive()).body != "end":
        said.append((await me.generate(mail.body)).text)
    return " ".join(said)
"""


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, core=ScriptedCore()) as found:
        yield found


async def heard(process: Process, count: int) -> list[str]:
    """What is in its context, once there are so many messages."""
    async with asyncio.timeout(20):
        while True:
            try:
                messages = (await process.context()).messages
            except NotFound:  # it has said nothing yet
                continue
            if len(messages) == count:
                return [message.content for message in messages]


async def test_a_process_is_rolled_back_and_goes_on(served: Served, tmp_path: Path) -> None:
    (tmp_path / "talker.py").write_text(TALKER)
    async with served.connect() as me:
        talker = await me.spawn(str(tmp_path / "talker.py"), cwd=str(tmp_path))
        await me.send(talker, "one")
        await heard(talker, 2)
        snapshot = await paper.create_agent_snapshot(talker, "after one")
        assert await talker.snapshots() == (snapshot,)
        assert (snapshot.aid, snapshot.label) == (talker.aid, "after one")
        await me.send(talker, "two")
        assert await heard(talker, 4) == ["one", "You said: one", "two", "You said: two"]
        back = await paper.rollback_agent_state(talker, snapshot)
        assert (back.aid, back.snapshot, back.effects) == (talker.aid, snapshot.snapshot, ())
        # what it has received since is in its mailbox again
        assert await heard(talker, 4) == ["one", "You said: one", "two", "You said: two"]
        assert (await talker.status()).lives == 2
        said = [
            (call.request["messages"][0]["content"], call.void)
            for call in await talker.transcript(names=["generate"])
        ]
        assert said == [("one", False), ("two", True), ("two", False)]
        await me.send(talker, "end")
        assert (await talker.wait()).result == "marked You said: one You said: two"
        assert (tmp_path / "steps").read_text() == "x"


async def test_a_fork_at_a_call_is_told_what_its_original_was_told(
    served: Served, tmp_path: Path
) -> None:
    (tmp_path / "talker.py").write_text(TALKER)
    async with served.connect() as me:
        talker = await me.spawn(str(tmp_path / "talker.py"), cwd=str(tmp_path))
        for count, text in enumerate(("one", "two"), 1):
            await me.send(talker, text)
            await heard(talker, 2 * count)
        [first, _] = await paper.query_agent_history(talker, names=["generate"])
        fork = await talker.fork(at=first.id)
        assert await heard(fork, 2) == ["one", "You said: one"]
        await me.send(fork, "other")
        assert (await heard(fork, 4))[2:] == ["other", "You said: other"]
        assert len((await talker.context()).messages) == 4
        await me.send(fork, "end")
        assert (await fork.wait()).result == "marked You said: one You said: other"
        assert (tmp_path / "steps").read_text() == "x"
        with pytest.raises(NotFound, match="has made no call c9999"):
            await talker.fork(at="c9999")


async def test_bad_snapshots_and_settlements_are_one_sentence(served: Served) -> None:
    async with served.connect() as me, served.connect(program="other") as other:
        process = me.process(other.aid)
        with pytest.raises(NotFound, match="has no snapshot 'a1'"):
            await process.rollback("a1")
        snapshot = await other.take_snapshot()
        with pytest.raises(InvalidCall, match="cannot roll itself back"):
            await other.rollback(snapshot)
        with pytest.raises(NotFound, match="has no call 'c1' of unknown outcome; it has none"):
            await process.settle("c1", "done", "x")


async def test_events_history_and_secrets(served: Served) -> None:
    async with served.connect(program="keeper") as me:
        await paper.log_event(me, "page read", {"words": 7})
        token = await paper.encrypt_data(me, "the launch code")
        assert await paper.decrypt_data(me, token) == b"the launch code"
        assert await me.decrypt(await me.encrypt(b"\xff\x00")) == b"\xff\x00"
        with pytest.raises(InvalidCall, match="give the token whole"):
            await paper.decrypt_data(me, token[:-5])
        [logged] = await paper.query_agent_history(me, names=["log_event"])
        assert logged.request["data"] == {"words": 7}
        sealed = await me.transcript(names=["encrypt_data", "decrypt_data"])
        assert "launch" not in repr(sealed)


async def test_a_running_program_takes_memory_and_time(served: Served, tmp_path: Path) -> None:
    (tmp_path / "talker.py").write_text(TALKER)
    async with served.connect() as me:
        talker = await me.spawn(str(tmp_path / "talker.py"), cwd=str(tmp_path))
        await me.send(talker, "one")
        await heard(talker, 2)
        used = await paper.monitor_resource_usage(talker)
        assert used.rss_bytes > 5_000_000
        assert used.cpu_s > 0
        await talker.kill()
        assert (await talker.usage()).rss_bytes == 0


# --- table 2 --------------------------------------------------------------------------------------


async def test_the_agent_calls_of_the_paper(served: Served) -> None:
    async with served.connect(program="caller") as me:
        aid = await syscalls.get_aid()
        assert aid == me.aid
        child = await me.register("callee")
        assert await syscalls.set_aid(500, of=child.aid) == 500
        assert (await syscalls.get_status(500)).program == "callee"
        assert (await syscalls.get_status()).aid == aid
        assert await syscalls.set_priority(500, 5) == 5
        assert await syscalls.get_priority(500) == 5
        other = await me.register("other")
        await other.processes()  # it has run now
        assert (await syscalls.suspend_agent(other.aid)).state == "suspended"
        assert (await syscalls.resume_agent(other.aid)).state == "live"
        assert (await syscalls.set_status(other.aid, "suspended")).state == "suspended"
        assert (await syscalls.set_status(other.aid, "running")).state == "live"


async def test_the_context_calls_of_the_paper(served: Served) -> None:
    async with served.connect(program="talker") as me:
        await me.generate("one")
        assert [m.content for m in (await syscalls.get_context()).messages] == [
            "one",
            "You said: one",
        ]
        await syscalls.set_context([Message("user", "other"), Message("assistant", "yes")])
        assert (await syscalls.get_context()).messages[0].content == "other"
        assert (await syscalls.exp_context()).window == 8192
        assert (await syscalls.exp_context(100)).window == 100
        assert (await syscalls.clr_context()).messages == ()
        assert (await syscalls.get_context()).used == 0


async def test_a_generation_is_frozen_and_restored_by_the_papers_calls(tmp_path: Path) -> None:
    core = ScriptedCore(gated=True)
    async with serving(tmp_path, core=core) as served, served.connect(program="teller") as me:
        text = " ".join(f"w{number}" for number in range(60))
        talking = asyncio.ensure_future(me.generate(text, context=None))
        async for event in me.events():
            if type(event).__name__ == "SliceGranted":
                break
        freezing = asyncio.ensure_future(syscalls.gen_snapshot())
        while len(served.kernel.processes.find(me.aid).calls) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        core.step(20)
        answer = await talking
        again = await syscalls.gen_restore(await freezing)
        assert again.text == answer.text == f"You said: {text}"


async def test_the_memory_calls_of_the_paper(served: Served) -> None:
    async with served.connect(program="keeper"):
        quota = await syscalls.mem_alloc(None, 10_000)
        assert quota.size == 10_000
        id = await syscalls.mem_write(None, "The train leaves at nine.")
        assert (await syscalls.mem_read(None, id)).text == "The train leaves at nine."
        other = await syscalls.mem_write(None, Record("Gate 4.", data=[4], tags=("gate",)))
        found = await syscalls.mem_read(None, Record(id=other))
        assert (found.text, found.data, found.tags) == ("Gate 4.", [4], ("gate",))
        corrected = await syscalls.mem_write(None, Record("At ten.", id=id))
        assert corrected != id
        assert (await syscalls.mem_read(None, corrected)).text == "At ten."
        assert await syscalls.mem_clear(None, other) == 1
        with pytest.raises(NotFound):
            await syscalls.mem_read(None, other)
        assert await syscalls.mem_clear(None) >= 1
        with pytest.raises(InvalidCall, match="memory keeps texts"):
            await syscalls.mem_write(None, Record("x", content=b"x"))
        with pytest.raises(InvalidCall, match="the record has no id"):
            await syscalls.mem_read(None, Record("x"))


async def test_the_storage_calls_of_the_paper(served: Served) -> None:
    async with served.connect(program="keeper") as me:
        quota = await syscalls.sto_alloc(None, 100_000)
        assert quota.size == 100_000
        path = await syscalls.sto_write(None, Record("At nine.", id="/notes/train.txt"))
        assert (await syscalls.sto_read(None, path)).text == "At nine."
        assert await syscalls.sto_write(None, Record("At ten.", id=path)) == path
        assert (await syscalls.sto_read(None, Record(id=path))).text == "At ten."
        raw = await syscalls.sto_write(None, Record(id="/raw", content=b"\xff\x00"))
        assert (await syscalls.sto_read(None, raw)).content == b"\xff\x00"
        assert (await me.usage()).storage_bytes > 0
        await syscalls.sto_delete(None, raw)
        with pytest.raises(NotFound):
            await syscalls.sto_read(None, raw)
        for wrong in (Record("x"), Record("x", id="/x", tags=("y",))):
            with pytest.raises(InvalidCall, match="give"):
                await syscalls.sto_write(None, wrong)


async def test_outside_of_any_process_they_say_so() -> None:
    calls: list[Any] = [syscalls.get_aid, syscalls.get_context]
    for call in calls:
        with pytest.raises(InvalidCall, match="this works inside an agent"):
            await call()
