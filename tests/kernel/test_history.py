"""What a process did: its own events in the trace, and its calls by name, text and time."""

from __future__ import annotations

from typing import Any

import pytest

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.errors import InvalidCall, NotFound
from aios.testing import FakeClock, ScriptedCore, TestKernel, machine, settle, user


async def child(kernel: TestKernel) -> int:
    login = kernel.identify(kernel.user_key)
    return (await kernel.trap(login, abi.SpawnAgent(program="talker"))).aid  # type: ignore[attr-defined]


async def history(kernel: TestKernel, pid: int, **filters: Any) -> list[abi.CallRecord]:
    login = kernel.identify(kernel.user_key)
    found = await kernel.trap(login, abi.GetTranscript(aid=pid, **filters))
    assert isinstance(found, abi.Transcript)
    return list(found.calls)


# --- events of a program's own --------------------------------------------------------------------


async def test_an_event_has_its_name_and_size_and_the_transcript_its_data() -> None:
    async with machine() as kernel:
        pid = await child(kernel)
        await kernel.trap(pid, abi.LogEvent(name="page read", data={"url": "a", "words": [1, 2]}))
        await kernel.trap(pid, abi.LogEvent(name="done"))
        login = kernel.identify(kernel.user_key)
        events = [e async for e in kernel.events(login, of=pid)]
        logged = [e for e in events if isinstance(e, ev.EventLogged)]
        calls = await history(kernel, pid, names=("log_event",))
        assert [(e.name, e.bytes, e.call) for e in logged] == [
            ("page read", 25, calls[0].id),
            ("done", 0, calls[1].id),
        ]
        assert calls[0].request["data"] == {"url": "a", "words": [1, 2]}
        # within the call that says it
        order = [type(e) for e in events if getattr(e, "call", "") == calls[0].id]
        assert order == [ev.CallStarted, ev.EventLogged, ev.CallCompleted]


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "two\nlines", "\x1b[2J"])
async def test_a_name_that_is_none(name: str) -> None:
    async with machine() as kernel:
        pid = await child(kernel)
        with pytest.raises(InvalidCall, match="give 1 to 200 printable ones"):
            await kernel.trap(pid, abi.LogEvent(name=name))


# --- calls ----------------------------------------------------------------------------------------


async def test_calls_are_found_by_name_text_time_and_place() -> None:
    clock = FakeClock(1000.0)
    async with machine(clock=clock) as kernel:
        pid = await child(kernel)
        for text in ("rain in Oslo", "snow in Rome", "sun in Oslo"):
            await kernel.trap(pid, abi.Generate(messages=user(text)))
            await kernel.trap(pid, abi.LogEvent(name="said"))
            await clock.advance(10)
        everything = await history(kernel, pid)
        talks = await history(kernel, pid, names=("generate",))
        assert [c.name for c in everything] == ["generate", "log_event"] * 3
        assert talks == everything[::2]
        assert await history(kernel, pid, limit=2) == everything[-2:]
        assert await history(kernel, pid, before=everything[2].id) == everything[:2]
        assert await history(kernel, pid, before=talks[2].id, limit=1) == everything[3:4]
        assert await history(kernel, pid, names=("generate",), text="oslo") == [talks[0], talks[2]]
        assert await history(kernel, pid, text="You said: snow") == [talks[1]]  # what came back
        assert await history(kernel, pid, since=1010.0, until=1011.0) == everything[2:4]
        assert await history(kernel, pid, text="%") == []
        assert await history(kernel, pid, limit=2**63) == everything


async def test_a_call_under_way_says_where_it_is() -> None:
    core = ScriptedCore(gated=True)
    async with machine(core=core) as kernel:
        pid = await child(kernel)
        talking = kernel.spawn_task(kernel.trap(pid, abi.Generate(messages=user("hi"))))  # type: ignore[arg-type]
        await settle()
        [call] = await history(kernel, pid)
        assert (call.state, call.reply, call.ended_at) == ("active", None, None)
        core.step(5)
        await talking
        [call] = await history(kernel, pid)
        assert call.state == "done"


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"limit": 0}, "limit must be at least 1, not 0"),
        ({"before": "12"}, "'12' is no call's id"),
        ({"before": "c-1"}, "'c-1' is no call's id"),
        ({"before": "c" + "9" * 30}, "is no call's id"),
        ({"names": ("frobnicate",)}, "there is no call named 'frobnicate'"),
    ],
)
async def test_bad_filters_are_one_sentence(filters: dict[str, Any], said: str) -> None:
    async with machine() as kernel:
        pid = await child(kernel)
        with pytest.raises(InvalidCall, match=said):
            await history(kernel, pid, **filters)


async def test_nobody_elses_history_is_told() -> None:
    async with machine() as kernel:
        one, other = await child(kernel), await child(kernel)
        with pytest.raises(NotFound):
            await kernel.trap(one, abi.GetTranscript(aid=other))


# --- what it takes --------------------------------------------------------------------------------


async def test_usage_counts_records_files_and_the_program() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        pid = await child(kernel)
        before = await kernel.trap(login, abi.GetUsage(aid=pid))
        assert isinstance(before, abi.UsageReport)
        assert (before.memory_bytes, before.storage_bytes, before.rss_bytes) == (0, 0, 0)
        await kernel.trap(pid, abi.MemWrite(text="The train leaves at nine."))
        await kernel.trap(pid, abi.StoWrite(path="/train.txt", text="At nine."))
        after = await kernel.trap(login, abi.GetUsage(aid=pid))
        assert isinstance(after, abi.UsageReport)
        assert after.memory_bytes >= 25
        assert after.storage_bytes >= 8
