"""The door: calls, replies, refusals, and the trace that each leaves."""

from __future__ import annotations

import asyncio

import pytest

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.abi.messages import Sampling
from aios.errors import (
    ContextOverflow,
    InvalidCall,
    NotFound,
    PermissionDenied,
    TimedOut,
    Unauthenticated,
)
from aios.kernel.table import SYSTEM_CALLS
from aios.kernel.trace import check_ends
from aios.testing import FakeClock, ScriptedCore, ScriptedCores, TestKernel, machine, settle, user

BEAMS = {"plain": 1, "narrow": 3, "wide": 16}  # what each of three cores keeps


async def trace_of(kernel: TestKernel, pid: int) -> list[ev.Event]:
    return [event async for event in kernel.events(kernel.identify(kernel.user_key), of=pid)]


async def child(kernel: TestKernel, **fields: object) -> int:
    login = kernel.identify(kernel.user_key)
    spawned = await kernel.trap(login, abi.SpawnAgent(program="child", **fields))  # type: ignore[arg-type]
    assert isinstance(spawned, abi.Spawned)
    assert spawned.key
    return kernel.identify(spawned.key)


def test_every_call_of_the_abi_is_in_the_table() -> None:
    assert set(SYSTEM_CALLS) == set(abi.CALLS.values())


async def test_a_core_that_keeps_fewer_beams_says_who_keeps_enough() -> None:
    cores = [ScriptedCore(["yes"], model=name, beams=beams) for name, beams in BEAMS.items()]
    async with machine(cores=ScriptedCores(*cores)) as kernel:
        pid = await child(kernel)

        async def search(model: str, beams: int) -> str:
            call = abi.Generate(messages=user("x"), model=model, sampling=Sampling(beams=beams))
            reply = await kernel.trap(pid, call)
            assert isinstance(reply, abi.Generation)
            return reply.message.content

        with pytest.raises(InvalidCall) as refused:
            await search("plain", 2)
        assert refused.value.message == (
            "plain does no beam search; of the models that run here, none can."
        )
        assert await search("wide", 16) == "yes"
        assert await search("plain", 1) == "yes"
        with pytest.raises(InvalidCall, match="narrow keeps at most 3 beams, not 4; .* wide can"):
            await search("narrow", 4)


async def test_a_generation_leaves_this_trace() -> None:
    async with machine(script=["one two three"]) as kernel:
        pid = await child(kernel)
        reply = await kernel.trap(pid, abi.Generate(messages=user("count")))
        assert isinstance(reply, abi.Generation)
        assert reply.message.content == "one two three"
        assert reply.usage.completion_tokens == 3
        names = [type(event) for event in await trace_of(kernel, pid)]
        assert names == [
            ev.ProcessCreated,
            ev.KeyIssued,
            ev.CallStarted,
            ev.ProcessStarted,
            ev.TicketQueued,
            ev.SliceGranted,
            ev.SliceEnded,
            ev.CallCompleted,
        ]


async def test_what_is_shown_is_a_prefix_of_what_is_final() -> None:
    async with machine(core=ScriptedCore(["a b c d e f g h"])) as kernel:
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SetScheduler(quantum=3))
        shown: list[str] = []
        reply = await kernel.trap(
            login, abi.Generate(messages=user("spell")), lambda delta: shown.append(delta.text)
        )
        assert isinstance(reply, abi.Generation)
        assert shown == ["a b c", " d e f", " g h"]
        assert "".join(shown) == reply.message.content


async def test_a_context_grows_by_what_was_said_and_heard() -> None:
    async with machine(script=["hello", "again"]) as kernel:
        pid = await child(kernel)
        await kernel.trap(pid, abi.Generate(messages=user("hi")))
        await kernel.trap(pid, abi.Generate(messages=user("and?")))
        await kernel.trap(pid, abi.Generate(messages=user("aside"), context=None))
        report = await kernel.trap(pid, abi.GetContext(messages=True))
        assert isinstance(report, abi.ContextReport)
        said = [(message.role, message.content) for message in report.messages]
        assert said == [
            ("user", "hi"),
            ("assistant", "hello"),
            ("user", "and?"),
            ("assistant", "again"),
        ]


async def test_a_failed_generation_leaves_its_context_alone() -> None:
    async with machine(core=ScriptedCore(context_tokens=10)) as kernel:
        pid = await child(kernel)
        with pytest.raises(ContextOverflow, match="window is 10"):
            await kernel.trap(pid, abi.Generate(messages=user("word " * 20)))
        report = await kernel.trap(pid, abi.GetContext(messages=True))
        assert isinstance(report, abi.ContextReport)
        assert report.messages == ()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (abi.Generate(messages=()), InvalidCall, "messages is empty"),
        (
            abi.Generate(messages=user("x"), sampling=Sampling(max_tokens=0)),
            InvalidCall,
            "max_tokens must be at least 1, not 0",
        ),
        (
            abi.Generate(messages=user("x"), sampling=Sampling(temperature=-1)),
            InvalidCall,
            "temperature must be 0 to 2, not -1",
        ),
        (
            abi.Generate(messages=user("x"), sampling=Sampling(max_tokens=10**30)),
            InvalidCall,
            f"max_tokens is {10**30}",
        ),
        (
            abi.Generate(messages=user("x"), sampling=Sampling(seed=-(10**30))),
            InvalidCall,
            f"seed is -{10**30}",
        ),
        (
            abi.Generate(messages=user("x"), sampling=Sampling(beams=17)),
            InvalidCall,
            "beams must be 1 (off) to 16, not 17",
        ),
        (
            abi.Generate(messages=user("x"), sampling=Sampling(length_penalty=float("nan"))),
            InvalidCall,
            "length_penalty must be -8 to 8, not nan",
        ),
        (
            abi.Generate(messages=user("x"), sampling=Sampling(beams=4, temperature=0.5)),
            InvalidCall,
            "temperature must be 0, not 0.5",
        ),
        (
            abi.Generate(messages=user("x"), sampling=Sampling(beams=4, logprobs=0)),
            InvalidCall,
            "a beam search gives no logprobs",
        ),
        (abi.Generate(messages=user("x"), timeout_s=-1), InvalidCall, "timeout_s is -1"),
        (abi.Generate(messages=user("x"), model="gpt-9"), NotFound, "no model named 'gpt-9'"),
        (abi.Generate(messages=user("x"), tool_choice="f"), InvalidCall, "not among the tools"),
        (abi.GetStatus(aid=99), NotFound, "no process 99"),
        (abi.SetPriority(priority=40), InvalidCall, "not 40"),
        (abi.SetScheduler(policy="lottery"), InvalidCall, "'lottery'; choose one of fifo"),
        (abi.SetScheduler(quantum=0), InvalidCall, "not 0"),
        (abi.GenRestore(snapshot="s404"), NotFound, "no snapshot 's404'"),
        (abi.SpawnAgent(program="x", budget=abi.Limits(tokens=-1)), InvalidCall, "tokens=-1"),
        (abi.SpawnAgent(program=" "), InvalidCall, "name is empty"),
        (abi.ToolReturn(id="c9", content=""), NotFound, "no tool call 'c9'"),
        (abi.SendMessage(to="nobody", body=1), NotFound, "no living process 'nobody'"),
        (abi.KeyRevoke(id="nope"), NotFound, "no key 'nope'"),
    ],
)
async def test_bad_input_gets_one_sentence(
    call: abi.Call, error: type[Exception], words: str
) -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        with pytest.raises(error) as caught:
            await kernel.trap(login, call)
        assert words in str(caught.value)
        assert await kernel.check() == []
        events = await trace_of(kernel, login)
        assert check_ends(events, [("process", login)]) == []


async def test_a_caller_that_goes_away_cancels_its_call() -> None:
    core = ScriptedCore(["a b c"], gated=True)
    async with machine(core=core) as kernel:
        pid = await child(kernel)
        asking = asyncio.ensure_future(kernel.trap(pid, abi.Generate(messages=user("x"))))
        await settle()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await settle()
        assert (await core.residency()).sequences == 0
        assert await kernel.check() == []
        last = (await trace_of(kernel, pid))[-1]
        assert isinstance(last, ev.CallCancelled | ev.SliceEnded)
        assert check_ends(await trace_of(kernel, pid), [("process", pid)]) == []


async def test_a_time_limit_ends_a_call_and_does_not_count_suspended_time() -> None:
    clock = FakeClock()
    async with machine(core=ScriptedCore(gated=True), clock=clock) as kernel:
        login = kernel.identify(kernel.user_key)
        pid = await child(kernel)
        call = abi.Generate(messages=user("x"), timeout_s=10)
        asking = asyncio.ensure_future(kernel.trap(pid, call))
        await clock.advance(5)
        await kernel.trap(login, abi.SuspendAgent(aid=pid))
        await clock.advance(100)
        assert not asking.done()
        await kernel.trap(login, abi.ResumeAgent(aid=pid))
        await clock.advance(6)
        with pytest.raises(TimedOut, match="timeout_s of 10"):
            await asking


async def test_keys_are_identity() -> None:
    async with machine() as kernel:
        with pytest.raises(Unauthenticated):
            kernel.identify("aios_wrong")
        login = kernel.identify(kernel.user_key)
        assert kernel.identify(kernel.user_key) == login
        assert kernel.identify(kernel.user_key, "other session") != login
        new = await kernel.trap(login, abi.KeyNew(label="ci"))
        assert isinstance(new, abi.NewKey)
        assert kernel.identify(new.key) == login
        await kernel.trap(login, abi.KeyRevoke(id=new.id))
        with pytest.raises(Unauthenticated):
            kernel.identify(new.key)


async def test_no_key_is_ever_journaled() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        new = await kernel.trap(login, abi.KeyNew())
        spawned = await kernel.trap(login, abi.SpawnAgent(program="p", env={"TOKEN": "hush"}))
        assert isinstance(new, abi.NewKey)
        assert isinstance(spawned, abi.Spawned)
        calls = repr(await kernel.journal.calls(login))
        assert new.key not in calls
        assert str(spawned.key) not in calls
        assert "hush" not in calls


async def test_a_process_reaches_itself_and_its_descendants_only() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        parent, stranger = await child(kernel), await child(kernel)
        spawned = await kernel.trap(parent, abi.SpawnAgent(program="grandchild"))
        assert isinstance(spawned, abi.Spawned)
        await kernel.trap(parent, abi.GetStatus(aid=spawned.aid))
        for aid in (stranger, login):
            with pytest.raises(NotFound):
                await kernel.trap(parent, abi.GetStatus(aid=aid))
            with pytest.raises(NotFound):
                await kernel.trap(parent, abi.KillAgent(aid=aid))
        for call in (abi.KeyNew(), abi.SetScheduler(quantum=8)):
            with pytest.raises(PermissionDenied):
                await kernel.trap(parent, call)
        listed = await kernel.trap(parent, abi.ListAgents())
        assert isinstance(listed, abi.Processes)
        assert {process.aid for process in listed.processes} == {parent, spawned.aid}


async def test_a_child_holds_no_more_rights_than_its_parent() -> None:
    async with machine() as kernel:
        parent = await child(kernel, rights=("generate", "spawn_agent", "get_aid"))
        with pytest.raises(PermissionDenied, match="no right to get_usage"):
            await kernel.trap(parent, abi.GetUsage())
        spawned = await kernel.trap(
            parent, abi.SpawnAgent(program="c", rights=("get_usage", "get_aid"))
        )
        assert isinstance(spawned, abi.Spawned)
        pid = kernel.identify(str(spawned.key))
        await kernel.trap(pid, abi.GetAid())
        with pytest.raises(PermissionDenied):
            await kernel.trap(pid, abi.GetUsage())


async def test_a_program_that_hard_codes_a_model_gets_its_process_s_own() -> None:
    async with machine() as kernel:
        pid = await child(kernel, wrap_model=True)
        reply = await kernel.trap(pid, abi.Generate(messages=user("x"), model="gpt-4o-mini"))
        assert isinstance(reply, abi.Generation)
        assert reply.model == "scripted"
        substituted = [e for e in await trace_of(kernel, pid) if isinstance(e, ev.ModelSubstituted)]
        assert [(e.asked, e.used) for e in substituted] == [("gpt-4o-mini", "scripted")]
