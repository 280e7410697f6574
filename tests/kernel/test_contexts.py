"""Contexts: what is in them, and how each is kept within its window."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.abi.messages import Message, Sampling, ToolSpec
from aios.drivers.journal.memory import MemoryJournal
from aios.errors import ContextOverflow, InvalidCall, NotFound, PermissionDenied, StoreFailed
from aios.kernel.compaction import POINTER, SUMMARISE, SUMMARY
from aios.ports import Prompt
from aios.testing import ScriptedCore, TestKernel, machine, settle, user
from bench import window as bench

WINDOW = 600
SHORT = Sampling(max_tokens=10)
SYSTEM = Message("system", "You are a test.")
PIN = Message("user", "keep this in mind", pinned=True)


def script(prompt: Prompt) -> str:
    """An answer that tells one prompt from any other."""
    said = repr([(m.role, m.content, m.tool_calls) for m in prompt.messages])
    digest = hashlib.blake2b(said.encode(), digest_size=6).hexdigest()
    if prompt.messages[-1].content == SUMMARISE:
        return f"They talked, and {digest} came of it. " * 5
    return f"To that I say {digest} and no more."


async def child(kernel: TestKernel, **fields: Any) -> int:
    login = kernel.identify(kernel.user_key)
    spawned = await kernel.trap(login, abi.SpawnAgent(program="child", **fields))
    assert isinstance(spawned, abi.Spawned)
    return spawned.aid


async def say(kernel: TestKernel, pid: int, *messages: Message | str, **fields: Any) -> str:
    said = tuple(Message("user", m) if isinstance(m, str) else m for m in messages)
    fields = {"sampling": SHORT, **fields}
    reply = await kernel.trap(pid, abi.Generate(messages=said, **fields))
    assert isinstance(reply, abi.Generation)
    return reply.message.content


async def report(kernel: TestKernel, pid: int, name: str = "main") -> abi.ContextReport:
    reply = await kernel.trap(pid, abi.GetContext(context=name, messages=True))
    assert isinstance(reply, abi.ContextReport)
    return reply


async def ask(kernel: TestKernel, pid: int, call: abi.Call) -> abi.ContextReport:
    reply = await kernel.trap(pid, call)
    assert isinstance(reply, abi.ContextReport)
    return reply


async def fill(kernel: TestKernel, pid: int, turns: int, first: int = 0) -> None:
    for turn in range(first, first + turns):
        await say(kernel, pid, f"turn {turn} of a long talk about nothing much at all")


# --- two hundred turns ----------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["drop", "summarise", "page"])
async def test_two_hundred_turns_in_a_small_window(strategy: abi.Strategy) -> None:
    found = await bench.converse(ScriptedCore(script), strategy, bench.TURNS, WINDOW)
    assert found.turns == bench.TURNS
    assert WINDOW * 0.9 < found.largest_prompt <= WINDOW
    assert found.pins
    assert found.parted == 0
    assert found.breaks == found.cuts > 5  # in between every prompt goes on where the last ended
    assert found.dropped > 300


async def test_fail_says_so_at_the_window_and_not_before() -> None:
    found = await bench.converse(ScriptedCore(script), "fail", bench.TURNS, WINDOW)
    assert 10 < found.turns < 50
    assert "strategy is fail" in found.error
    assert found.largest_prompt <= WINDOW
    assert found.breaks == found.cuts == 0


# --- what each strategy leaves --------------------------------------------------------------------


async def test_drop_comes_out_of_the_middle() -> None:
    async with machine(core=ScriptedCore(script)) as kernel:
        pid = await child(kernel, window=WINDOW)
        await say(kernel, pid, SYSTEM, "the task")
        await say(kernel, pid, PIN, "and more")
        await fill(kernel, pid, 40)
        now = await report(kernel, pid)
        contents = [message.content for message in now.messages]
        assert contents[:3] == [SYSTEM.content, "the task", PIN.content]
        assert contents[3].startswith("turn ")
        assert contents[-2].startswith("turn 39")
        assert now.pinned == 2
        assert now.compactions > 0
        assert now.dropped == 2 * 42 + 2 - len(now.messages)
        assert now.used <= now.window == WINDOW


async def test_a_summary_takes_the_place_of_the_one_before() -> None:
    async with machine(core=ScriptedCore(script)) as kernel:
        pid = await child(kernel, window=WINDOW, strategy="summarise")
        await say(kernel, pid, SYSTEM, "the task")
        summaries = set()
        for turn in range(100):
            await fill(kernel, pid, 1, turn)
            messages = (await report(kernel, pid)).messages
            found = [m.content for m in messages if m.content.startswith(SUMMARY)]
            assert len(found) <= 1
            if found:
                assert messages[1].content == found[0]  # right after the system prompt
                assert len(found[0].split()) < 100
            summaries |= set(found)
        assert len(summaries) == (await report(kernel, pid)).compactions > 2
        calls = await kernel.trap(pid, abi.GetTranscript())
        assert isinstance(calls, abi.Transcript)
        asked = [
            c for c in calls.calls if c.name == "generate" and c.request.get("context", 1) is None
        ]
        assert len(asked) == len(summaries)
        # the model saw the conversation as it stood, with the summary before
        assert all(c.request["messages"][0]["content"] == SYSTEM.content for c in asked)
        assert asked[1].request["messages"][1]["content"].startswith(SUMMARY)


async def test_a_model_that_says_nothing_makes_no_summary() -> None:
    def silent(prompt: Prompt) -> str:
        return "" if prompt.messages[-1].content == SUMMARISE else script(prompt)

    async with machine(core=ScriptedCore(silent)) as kernel:
        pid = await child(kernel, window=WINDOW, strategy="summarise")
        await fill(kernel, pid, 40)
        now = await report(kernel, pid)
        assert now.compactions > 0
        assert not any(message.content.startswith(SUMMARY) for message in now.messages)


async def test_what_was_paged_out_can_be_read_back() -> None:
    async with machine(core=ScriptedCore(script)) as kernel:
        pid = await child(kernel, window=WINDOW, strategy="page")
        await say(kernel, pid, SYSTEM, "the task")
        await fill(kernel, pid, 60)
        now = await report(kernel, pid)
        pointers = [p for m in now.messages if (p := POINTER.match(m.content))]
        assert len(pointers) == 1
        read: list[dict[str, Any]] = []
        record: str | None = pointers[0][2]
        while record is not None:
            found = await kernel.trap(pid, abi.MemRead(id=record))
            assert isinstance(found, abi.MemoryRecords)
            (one,) = found.records
            assert one.tags == ("paged",)
            read = [*one.data["messages"], *read]
            record = one.data["before"]
        assert int(pointers[0][1]) == len(read) == now.dropped
        whole = [m["content"] for m in read] + [m.content for m in now.messages[2:]]
        assert whole[0] == "the task"
        assert [text.split()[1] for text in whole[2::2]] == [str(turn) for turn in range(60)]


async def test_a_call_is_never_parted_from_its_result() -> None:
    tool = ToolSpec("look", parameters={"type": "object", "properties": {}}, effect="none")
    async with machine(core=ScriptedCore(script)) as kernel:
        pid = await child(kernel, window=120)
        await say(kernel, pid, "begin " + "word " * 40)
        await say(kernel, pid, "look", tools=(tool,), tool_choice="look")
        # the result does not fit beside what came before, but its call has to stay for it
        await say(kernel, pid, Message("tool", "long " * 95, tool_call_id="call_1"))
        roles = [message.role for message in (await report(kernel, pid)).messages]
        assert roles == ["assistant", "tool", "assistant"]


# --- where nothing helps --------------------------------------------------------------------------


async def test_pins_and_what_is_new_must_fit() -> None:
    async with machine(core=ScriptedCore(script)) as kernel:
        pid = await child(kernel, window=100)
        await say(kernel, pid, Message("user", "pinned " * 60, pinned=True))
        await fill(kernel, pid, 10)
        with pytest.raises(ContextOverflow, match="window is 100"):
            await say(kernel, pid, "new " * 45)
        assert (await report(kernel, pid)).used <= 100
        await say(kernel, pid, "short")  # and it goes on
        fresh = await child(kernel, window=100)
        with pytest.raises(ContextOverflow, match="window is 100"):
            await say(kernel, fresh, "word " * 100)


async def test_an_answer_gets_what_the_window_leaves() -> None:
    async with machine(core=ScriptedCore(["long " * 500])) as kernel:
        pid = await child(kernel, window=100)
        for _ in range(5):
            reply = await kernel.trap(pid, abi.Generate(messages=user("word " * 30)))
            assert isinstance(reply, abi.Generation)
            assert reply.finish_reason == "length"
            assert reply.usage.tokens <= 100


async def test_a_large_request_takes_no_more_than_half_the_window() -> None:
    async with machine(core=ScriptedCore(script)) as kernel:
        pid = await child(kernel, window=400)
        await fill(kernel, pid, 8)
        before = (await report(kernel, pid)).used
        assert before < 200
        await say(kernel, pid, "short", sampling=Sampling(max_tokens=10**6))
        assert (await report(kernel, pid)).compactions == 0


# --- by hand --------------------------------------------------------------------------------------


async def test_a_context_is_shown_cleared_set_widened_and_compacted() -> None:
    async with machine(core=ScriptedCore(script, context_tokens=1000)) as kernel:
        login = kernel.identify(kernel.user_key)
        pid = await child(kernel, window=WINDOW)
        await say(kernel, pid, SYSTEM, PIN, "hello")
        await fill(kernel, pid, 10)
        full = await report(kernel, pid)
        assert (full.window, full.pinned, full.strategy) == (WINDOW, 2, "drop")
        cut = await ask(kernel, login, abi.CompactContext(aid=pid, tokens=100))
        assert cut.used <= 100
        assert cut.compactions == 1
        assert cut == await ask(kernel, login, abi.CompactContext(aid=pid, tokens=100))
        wide = await ask(kernel, pid, abi.ExpContext())
        assert wide.window == 1000
        with pytest.raises(InvalidCall, match="16 to 1000 tokens, not 1001"):
            await kernel.trap(pid, abi.ExpContext(window=1001))
        with pytest.raises(InvalidCall, match="not 3"):
            await child(kernel, window=3)
        assert (await ask(kernel, pid, abi.ExpContext(window=50))).window == 50
        cleared = await ask(kernel, pid, abi.ClrContext())
        assert (await report(kernel, pid)).messages == (PIN,)
        assert cleared.used > 0
        assert (await ask(kernel, pid, abi.ClrContext(pins=True))).used == 0
        await say(kernel, pid, "a new beginning")
        said = (Message("user", "one"), Message("assistant", "two"))
        await ask(kernel, pid, abi.SetContext(messages=said, strategy="fail"))
        now = await report(kernel, pid)
        assert (now.messages, now.strategy) == (said, "fail")
        with pytest.raises(ContextOverflow, match="its strategy is fail"):
            await kernel.trap(pid, abi.CompactContext(tokens=0))
        with pytest.raises(NotFound, match="no context named 'other'; it has main"):
            await kernel.trap(pid, abi.ClrContext(context="other"))
        with pytest.raises(InvalidCall, match="-1 tokens"):
            await kernel.trap(pid, abi.CompactContext(tokens=-1))


async def test_nothing_may_go_of_what_stays() -> None:
    async with machine(core=ScriptedCore(script)) as kernel:
        pid = await child(kernel)
        await ask(kernel, pid, abi.SetContext(messages=(SYSTEM, PIN)))
        with pytest.raises(ContextOverflow, match="all that is in it stays"):
            await kernel.trap(pid, abi.CompactContext(tokens=1))


async def test_a_right_to_generate_is_one_to_make_room() -> None:
    async with machine(core=ScriptedCore(script)) as kernel:
        pid = await child(kernel, window=WINDOW, rights=("generate", "get_context"))
        await fill(kernel, pid, 40)
        assert (await report(kernel, pid)).compactions > 0
        with pytest.raises(PermissionDenied, match="clr_context"):
            await kernel.trap(pid, abi.ClrContext())


# --- what is durable ------------------------------------------------------------------------------


async def test_a_compaction_is_there_after_a_restart_and_told() -> None:
    journal = MemoryJournal()
    async with machine(core=ScriptedCore(script), journal=journal) as kernel:
        pid = await child(kernel, window=WINDOW, strategy="summarise", os_pid=1)
        await fill(kernel, pid, 30)
        before = await report(kernel, pid)
        login = kernel.identify(kernel.user_key)
        events = [event async for event in kernel.events(login, of=pid)]
        told = [event for event in events if isinstance(event, ev.ContextCompacted)]
        assert len(told) == before.compactions > 0
        assert all(e.after < e.before and e.strategy == "summarise" for e in told)
        journal = journal.copy()
    async with machine(core=ScriptedCore(script), journal=journal) as kernel:
        assert await report(kernel, pid) == before


async def test_a_full_disk_changes_nothing() -> None:
    journal = MemoryJournal()
    async with machine(core=ScriptedCore(script), journal=journal) as kernel:
        pid = await child(kernel, window=WINDOW)
        await say(kernel, pid, SYSTEM, PIN, "hello")
        await fill(kernel, pid, 5)
        before = await report(kernel, pid)
        journal.trouble = "the disk is full."
        for call in (
            abi.Generate(messages=user("lost"), sampling=SHORT),
            abi.CompactContext(tokens=60),
            abi.ClrContext(),
            abi.SetContext(messages=(), strategy="page"),
            abi.ExpContext(window=300),
        ):
            with pytest.raises(StoreFailed):
                await kernel.trap(pid, call)
        journal.trouble = None
        assert await report(kernel, pid) == before
        await fill(kernel, pid, 1)


async def test_two_that_speak_at_once_both_fit() -> None:
    async with machine(core=ScriptedCore(script)) as kernel:
        pid = await child(kernel, window=WINDOW)
        await fill(kernel, pid, 22)
        texts = [f"{n} " + "word " * 60 for n in range(8)]
        answers = await asyncio.gather(*(say(kernel, pid, text) for text in texts))
        assert len(set(answers)) == 8
        now = await report(kernel, pid)
        assert now.used <= WINDOW
        assert await kernel.check() == []


async def test_a_cancelled_compaction_leaves_the_context_as_it_was() -> None:
    core = ScriptedCore(script, gated=True)
    async with machine(core=core) as kernel:
        pid = await child(kernel, window=WINDOW, strategy="summarise")
        talk = (Message("user", "word " * 50), Message("assistant", "yes")) * 12
        before = await ask(kernel, pid, abi.SetContext(messages=talk))
        asking = asyncio.ensure_future(say(kernel, pid, "and now?"))
        await settle()
        status = await kernel.trap(pid, abi.GetStatus())
        assert isinstance(status, abi.Status)
        assert [call.split()[1] for call in status.open_calls] == [
            "generate", "compact_context", "generate",
        ]  # fmt: skip
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert (await report(kernel, pid)).messages == talk
        assert (await report(kernel, pid)).used == before.used
        assert kernel.processes.find(pid).calls == {}
