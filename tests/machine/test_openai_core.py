"""The core behind chat completions, against a server that fails as it is told.

What holds in all of it: a failure is one sentence, with what was wrong and what to do; what came
before it is delivered; nothing is asked for twice; no key is in anything that is shown.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from aios.abi.calls import Generate, Generation
from aios.abi.messages import Delta, Message, Sampling, ToolSpec, ToolUse
from aios.drivers.clock import SystemClock
from aios.drivers.cores.gate import Gate
from aios.drivers.cores.openai import wire
from aios.drivers.cores.openai.core import OpenAICore
from aios.drivers.cores.openai.discovery import discover
from aios.drivers.cores.remote.sequence import HELD
from aios.errors import (
    AiosError,
    ContextOverflow,
    CoreFailed,
    CoreRefused,
    CoreTimeout,
    InvalidCall,
)
from aios.ports import Prompt, Slice, SliceResult, Spent
from aios.testing import (
    FakeClock,
    Fault,
    FaultyServer,
    ScriptedCores,
    machine,
    settle,
    user,
)
from bench.remote import TOKEN_S, measure

TEXT = "one two three four five six seven eight nine ten"
KEY = "sk-a-key-that-nobody-must-see"
WHOLE = Slice(64)


@pytest.fixture
async def server() -> AsyncIterator[FaultyServer]:
    async with FaultyServer([TEXT]) as server:
        yield server


@pytest.fixture
async def plain() -> AsyncIterator[FaultyServer]:
    """A server that cannot go on from a text."""
    async with FaultyServer([TEXT], kind="unknown") as server:
        yield server


class Made:
    """A core, and how its answers end."""

    def __init__(self, server: FaultyServer, **options: Any) -> None:
        self.clock = FakeClock()
        self.gate = options.pop("gate", None) or Gate("test", self.clock, seed=1)
        self.core = OpenAICore(server.url, "scripted", "remote", gate=self.gate, **options)

    async def __aenter__(self) -> Made:
        await self.core.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.core.close()

    async def admit(self, prompt: Prompt) -> int:
        return (await self.core.admit(prompt)).sequence

    async def rest(self, sequence: int, grant: Slice = WHOLE) -> tuple[str, SliceResult]:
        """Its text to the end, and the last slice."""
        text = ""
        while True:
            result = await self.core.run(sequence, grant)
            text += result.text
            if result.finish_reason:
                return text, result

    async def failure(self, sequence: int) -> tuple[str, AiosError]:
        """What came before it failed, and how it did."""
        text = ""
        for _ in range(100):
            try:
                text += (await self.core.run(sequence, WHOLE)).text
            except AiosError as error:
                return text, error
        raise AssertionError("it did not fail")


def prompt(text: str = "Count.", **fields: Any) -> Prompt:
    sampling = fields.pop("sampling", Sampling(seed=7, max_tokens=16))
    return Prompt((Message("user", text),), sampling, **fields)


async def until(is_so: Callable[[], object]) -> None:
    while not is_so():  # noqa: ASYNC110 (what is on its way over a socket sets no event here)
        await asyncio.sleep(0)


# --- what goes wrong in a stream ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("die", "broke the connection .*see whether it still runs"),
        ("end", "ended a stream before the answer's end"),
        ("garbage", "something else than a chat completion's stream: .*this is no JSON"),
        ("html", "something else than a chat completion's stream: .*<!doctype html>"),
        ("error", "broke an answer off: out of memory"),
        ("model", "changed its model in the middle of an answer, from 'scripted' to 'another'"),
    ],
)
@pytest.mark.parametrize("after", [0, 3])
async def test_a_stream_that_breaks_is_one_sentence_after_what_it_brought(
    plain: FaultyServer, how: str, says: str, after: int
) -> None:
    async with Made(plain) as made:
        plain.faults.append(Fault(then=how, after=after))
        text, error = await made.failure(await made.admit(prompt()))
        assert isinstance(error, CoreFailed)
        assert text.split() == TEXT.split()[:after]
        with pytest.raises(CoreFailed, match=says):
            raise error
        assert error.message.startswith(plain.url)
        assert error.message.count("\n") == 0
        assert plain.requests == 1  # what broke was spent; nobody asked again
        # the next one is answered
        assert (await made.rest(await made.admit(prompt())))[0] == TEXT


async def test_a_server_that_says_nothing_any_more_is_given_up(plain: FaultyServer) -> None:
    async with Made(plain, stall_s=0.2) as made:
        plain.faults.append(Fault(then="stall", after=2))
        text, error = await made.failure(await made.admit(prompt()))
        assert (text, type(error)) == ("one two", CoreTimeout)
        assert error.message == f"{plain.url} said nothing for 0.2 s; see whether it is stuck."
        await plain.quiet()  # the connection is closed


async def test_the_end_is_not_lost_when_what_follows_it_is(server: FaultyServer) -> None:
    async with Made(server) as made:
        server.faults.append(Fault(usage={"prompt_tokens": None}))
        text, last = await made.rest(await made.admit(prompt()))
        assert (text, last.finish_reason, last.spent) == (TEXT, "stop", None)
        server.faults.append(Fault(then="open"))
        text, last = await made.rest(await made.admit(prompt()))
        assert (text, last.finish_reason, last.spent) == (TEXT, "stop", None)
        await server.quiet()


async def test_a_server_that_never_ends_is_stopped(server: FaultyServer) -> None:
    async with Made(server) as made:
        server.faults.append(Fault(then="runaway"))
        asked = prompt(sampling=Sampling(seed=1, max_tokens=4))
        sequence = await made.admit(asked)
        tokens = 0
        while True:
            result = await made.core.run(sequence, WHOLE)
            tokens += len(result.tokens)
            if result.finish_reason:
                break
        assert result.finish_reason == "length"
        assert tokens < 100
        await server.quiet()


@pytest.mark.parametrize(
    "lie",
    [
        {"completion_tokens": -1},
        {"completion_tokens": 0},  # ten words are no zero tokens
        {"completion_tokens": 10**9},
        {"prompt_tokens": -5},
        {"prompt_tokens": 0},
        {"prompt_tokens": 10**9},
        {"prompt_tokens": "many"},
        {"completion_tokens": 2.5},
    ],
)
async def test_usage_that_cannot_be_is_not_believed(
    server: FaultyServer, lie: dict[str, Any]
) -> None:
    async with Made(server) as made:
        server.faults.append(Fault(usage=lie))
        sequence = await made.admit(prompt())
        _, last = await made.rest(sequence)
        assert last.spent is None
        # the same without the lie
        _, last = await made.rest(await made.admit(prompt()))
        assert last.spent == Spent(2, 10)


async def test_a_cache_larger_than_its_prompt_counts_as_none(server: FaultyServer) -> None:
    async with Made(server) as made:
        for told, believed in ((10**6, 0), (-1, 0), (1, 1)):
            server.faults.append(Fault(usage={"prompt_tokens_details": {"cached_tokens": told}}))
            _, last = await made.rest(await made.admit(prompt()))
            assert last.spent == Spent(2, 10, believed)


# --- what is refused ------------------------------------------------------------------------------


async def test_a_wrong_key_is_told_without_showing_it(server: FaultyServer) -> None:
    server.key = "another"
    with pytest.raises(CoreFailed, match=r"refused the key \(401\).*set the right key") as caught:
        async with Made(server, key=lambda: KEY):
            pass
    assert "[key]" in caught.value.message  # the server said it back
    server.key = KEY
    async with Made(server, key=lambda: KEY) as made:
        server.key = "changed in the meantime"
        _, error = await made.failure(await made.admit(prompt()))
        shown = f"{error.message} {error!r} {made.core!r} {made.core.server!r} {made.gate!r}"
        assert KEY not in shown
    server.key = "another"
    with pytest.raises(CoreFailed, match="needs a key, and none is set"):
        async with Made(server):
            pass


@pytest.mark.parametrize("key", ["", "with space", "new\nline", "schlüssel"])
async def test_a_key_that_no_header_carries_is_not_shown(server: FaultyServer, key: str) -> None:
    with pytest.raises(CoreFailed, match="has characters that no header carries") as caught:
        async with Made(server, key=lambda: key):
            pass
    assert not key or key not in caught.value.message
    assert caught.value.__cause__ is None


async def test_a_login_in_an_address_is_not_shown(server: FaultyServer) -> None:
    url = server.url.replace("//", f"//me:{KEY}@")
    core = OpenAICore(url, "scripted", "remote", gate=Gate("test", FakeClock()))
    await core.start()
    server.faults.append(Fault(then="die"))
    sequence = (await core.admit(prompt())).sequence
    with pytest.raises(CoreFailed) as caught:
        await core.run(sequence, WHOLE)
    assert KEY not in f"{caught.value.message} {core!r}"
    await core.close()


async def test_a_model_that_has_gone_is_told_with_what_is_there(server: FaultyServer) -> None:
    gate = Gate("test", FakeClock())
    core = OpenAICore(server.url, "larger", "remote", gate=gate)
    with pytest.raises(CoreFailed, match="has no model 'larger'; it has scripted: choose"):
        await core.start()
    await core.close()
    async with Made(server) as made:
        server.model = "newer"
        _, error = await made.failure(await made.admit(prompt()))
        assert error.message.endswith("has no model 'scripted'; it has newer: choose one of these.")


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        (400, '{"error": {"message": "bad \\"seed\\""}}', InvalidCall, r'\(400\): bad "seed"'),
        (400, '{"error": {"code": "context_length_exceeded"}}', ContextOverflow, "too long"),
        (400, '{"error": {"type": "exceed_context_size_error"}}', ContextOverflow, "too long"),
        (400, '{"detail": "maximum context length is 4"}', ContextOverflow, "length is 4"),
        (422, "not even JSON", InvalidCall, "not even JSON"),
        (500, "<html><title>Oh no</title>", CoreFailed, r"HTML page \(Oh no\); try again"),
        (502, " ", CoreFailed, r"failed \(502\); try again"),
        (402, "pay", CoreRefused, "wants to be paid"),
        (307, "", CoreRefused, "sends elsewhere"),
        (429, '{"error": {"code": "insufficient_quota"}}', CoreRefused, "wants to be paid"),
        (500, "x" * 5000, CoreFailed, "x…"),
        (400, '{"error": {"message": "a\\nb\\u0000c"}}', InvalidCall, "a b c"),
    ],
)
async def test_a_refusal_is_put_into_our_words(
    server: FaultyServer, status: int, body: str, kind: type[AiosError], says: str
) -> None:
    async with Made(server) as made:
        server.faults.append(Fault(status=status, body=body))
        _, error = await made.failure(await made.admit(prompt()))
        assert type(error) is kind
        with pytest.raises(kind, match=says):
            raise error
        assert len(error.message) < 500
        assert server.requests == 1


async def test_nobody_there_is_told_and_opens_the_breaker() -> None:
    async with FaultyServer() as gone:
        made = Made(gone)
        made.gate = Gate("acme", made.clock, trip=2)
        made.core = OpenAICore(gone.url, "scripted", "remote", gate=made.gate)
        await made.core.start()
        waiting = [await made.admit(prompt()) for _ in range(3)]
    errors = [(await made.failure(sequence))[1] for sequence in waiting]
    assert "start the server" in errors[0].message
    assert "acme failed 2 times in a row" in errors[2].message
    await made.core.close()


async def test_an_address_that_is_none_is_refused_at_once() -> None:
    for url in ("localhost:8080", "ftp://host/v1", "http://", "http://host:99999/v1"):
        with pytest.raises(InvalidCall, match="address must be like"):
            OpenAICore(url, "m", "m", gate=Gate("test", FakeClock()))


async def test_something_else_at_an_address_is_told() -> None:
    async with FaultyServer(pages={"/v1/models": "<html>a router's page"}) as server:
        with pytest.raises(CoreFailed, match="is no list of models.*up to and with /v1"):
            await discover(server.url)
        with pytest.raises(CoreFailed, match=r"failed \(404\)"):
            await discover(server.url.removesuffix("/v1") + "/v2")


# --- the gate -------------------------------------------------------------------------------------


async def test_a_call_that_is_parked_is_answered_later_and_others_wait_with_it(
    server: FaultyServer,
) -> None:
    async with Made(server) as made:
        server.faults.append(Fault(status=429, headers={"retry-after": "20"}))
        first = asyncio.create_task(made.rest(await made.admit(prompt())))
        await until(lambda: made.gate.report().waiting)
        second = asyncio.create_task(made.rest(await made.admit(prompt())))
        await settle()
        assert made.gate.report().parked_until == pytest.approx(made.clock.now() + 20, abs=0.2)
        assert server.requests == 1
        while not (first.done() and second.done()):
            await made.clock.advance(21)
            await asyncio.sleep(0.01)
        assert [(await first)[0], (await second)[0]] == [TEXT, TEXT]
        assert server.requests == 3


async def test_a_call_that_is_refused_again_and_again_hears_of_it(server: FaultyServer) -> None:
    async with Made(server) as made:
        server.faults += [Fault(status=429)] * 100
        task = asyncio.create_task(made.failure(await made.admit(prompt())))
        while not task.done():
            await made.clock.advance(61)
            await asyncio.sleep(0.005)
        assert "allows no more for now (429)" in (await task)[1].message
        assert server.requests == 6


async def test_what_headers_tell_is_learnt(server: FaultyServer) -> None:
    server.extra = {"X-RateLimit-Limit-Requests": "100", "X-RateLimit-Remaining-Requests": "60"}
    async with Made(server) as made:
        await made.rest(await made.admit(prompt()))
        assert made.gate.report().budgets["requests"].left == 60


async def test_a_parked_call_can_be_cancelled(server: FaultyServer) -> None:
    async with Made(server) as made:
        server.faults.append(Fault(status=503))
        sequence = await made.admit(prompt())
        running = asyncio.create_task(made.core.run(sequence, WHOLE))
        await until(lambda: made.gate.report().waiting)
        await made.core.cancel(sequence)
        assert (await running).finish_reason == "cancelled"
        assert made.gate.report().waiting == 0


# --- streams that are closed, and gone on with ----------------------------------------------------


async def test_paging_out_closes_the_stream_and_nothing_that_came_is_asked_for_again(
    server: FaultyServer,
) -> None:
    async with Made(server) as made:
        server.token_s = 0.01
        sequence = await made.admit(prompt())
        text = (await made.core.run(sequence, WHOLE)).text
        await made.core.page_out(sequence)
        await server.quiet()
        server.token_s = 0.0
        rest, last = await made.rest(sequence)
        assert text + rest == TEXT
        assert server.requests == 2
        begun = server.asked[1]["messages"][-1]
        assert begun["role"] == "assistant"
        assert TEXT.startswith(begun["content"])
        assert begun["content"].startswith(text)
        assert server.asked[1]["max_tokens"] == 16 - len(begun["content"].split())
        assert server.tokens <= 11  # one may have been under way when the stream was closed
        assert last.spent is not None
        assert last.spent.completion_tokens == 10


async def test_an_answer_that_has_arrived_is_never_sent_again(
    server: FaultyServer, tmp_path: Path
) -> None:
    async with Made(server) as made:
        sequence = await made.admit(prompt())
        text = (await made.core.run(sequence, Slice(2))).text
        await server.quiet()
        file = tmp_path / "whole"
        while not file.exists() or '"end":null' in file.read_text():  # what was sent arrives
            await made.core.freeze(sequence, str(file))
        await made.core.page_out(sequence)
        fork = await made.core.fork(sequence)
        thawed = (await made.core.thaw(str(file))).sequence
        for one in (sequence, fork, thawed):
            rest, last = await made.rest(one, Slice(3))
            assert (text + rest, last.finish_reason) == (TEXT, "stop")
        assert (server.requests, server.tokens) == (1, 10)


async def test_an_answer_that_is_as_long_as_it_may_be_is_not_gone_on_with(
    server: FaultyServer,
) -> None:
    asked = prompt(sampling=Sampling(seed=1, max_tokens=3))
    async with Made(server) as made:
        server.faults.append(Fault(then="stall", after=3))
        sequence = await made.admit(asked)
        text, tokens = "", 0
        while tokens < 3:
            result = await made.core.run(sequence, WHOLE)
            text, tokens = text + result.text, tokens + len(result.tokens)
        await made.core.page_out(sequence)
        assert (await made.core.run(sequence, WHOLE)).finish_reason == "length"
        again = await made.core.admit(asked, [-1] * 3, text)
        assert (text, again.max_tokens) == ("one two three", 0)
        assert (await made.core.run(again.sequence, WHOLE)).finish_reason == "length"
        assert server.requests == 1


async def test_a_stream_that_nobody_can_go_on_with_stays_open(plain: FaultyServer) -> None:
    plain.token_s = 0.005
    async with Made(plain) as made:
        assert not made.core.abilities.preemptible
        sequence = await made.admit(prompt())
        text = (await made.core.run(sequence, WHOLE)).text
        await made.core.page_out(sequence)
        rest, _ = await made.rest(sequence)
        assert text + rest == TEXT
        assert plain.requests == 1


async def test_an_answer_held_to_a_schema_is_not_interrupted(server: FaultyServer) -> None:
    server.token_s = 0.005
    schema = {"type": "object", "properties": {"n": {"const": 1}, "m": {"const": 2}}}
    async with Made(server) as made:
        sequence = await made.admit(prompt(schema=schema))
        text = (await made.core.run(sequence, WHOLE)).text
        await made.core.page_out(sequence)
        rest, _ = await made.rest(sequence)
        assert json.loads(text + rest) == {"n": 1, "m": 2}
        assert server.requests == 1
        with pytest.raises(CoreFailed, match="cannot go on"):
            await made.core.admit(prompt(schema=schema), [-1], '{"n"')


async def test_releasing_and_cancelling_close_the_stream_at_once(server: FaultyServer) -> None:
    server.token_s = 0.02
    async with Made(server) as made:
        for end in (made.core.release, made.core.cancel):
            sequence = await made.admit(prompt())
            await made.core.run(sequence, WHOLE)
            await end(sequence)
            await server.quiet()
        sequence = await made.admit(prompt())
        running = asyncio.create_task(made.core.run(sequence, WHOLE))
        await until(lambda: server.streams)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await server.quiet()
        assert server.tokens < 10


async def test_a_sequence_that_is_released_while_it_runs_ends(server: FaultyServer) -> None:
    async with Made(server) as made:
        server.faults.append(Fault(then="stall"))
        sequence = await made.admit(prompt())
        running = asyncio.create_task(made.core.run(sequence, WHOLE))
        await until(lambda: server.streams)
        await made.core.release(sequence)
        assert (await running).finish_reason == "cancelled"


async def test_a_slow_reader_slows_the_server() -> None:
    """What nobody takes stays with the server, beyond what the buffers of TCP hold."""
    count = 300
    async with (
        FaultyServer([" ".join(["word" * 10_000] * count)], context_tokens=10**6) as long,
        Made(long) as made,
    ):
        sequence = await made.admit(prompt(sampling=Sampling(seed=1)))
        await made.core.run(sequence, Slice(1))
        seen, still = -1, 0
        while still < 5:  # until it has stood still for half a second
            await asyncio.sleep(0.1)
            still = still + 1 if seen == long.tokens else 0
            seen = long.tokens
        assert seen < count
        taken = 1
        while taken < count:
            taken += len((await made.core.run(sequence, Slice(HELD))).tokens)
        assert (long.tokens, taken) == (count, count)


# --- what is asked --------------------------------------------------------------------------------


async def test_all_of_a_prompt_is_sent(server: FaultyServer) -> None:
    tool = ToolSpec("look", "Look.", {"type": "object", "properties": {"at": {"const": "x"}}})
    said = (
        Message("system", "Be brief."),
        Message("user", "Look.", name="ann"),
        Message("assistant", "", tool_calls=(ToolUse("c1", "look", '{"at": "x"}'),)),
        Message("tool", "Nothing.", tool_call_id="c1"),
        Message("user", "Again."),
    )
    sampling = Sampling(
        temperature=0.5,
        top_k=9,
        top_p=0.8,
        min_p=0.1,
        seed=2**62 + 5,
        max_tokens=9,
        stop=("END",),
        logprobs=2,
        ignore_end=True,
    )
    asked = Prompt(said, sampling, (tool,), "look", session="s-1", priority=-3)
    async with Made(server) as made:
        _, last = await made.rest(await made.admit(asked))
        assert last.finish_reason == "tool_calls"
        assert last.tool_calls == (ToolUse("call_1", "look", '{"at": "x"}'),)
    sent = server.asked[0]
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Look.", "name": "ann"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "look", "arguments": '{"at": "x"}'},
                }
            ],
        },
        {"role": "tool", "content": "Nothing.", "tool_call_id": "c1"},
        {"role": "user", "content": "Again."},
    ]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    assert sent["tools"][0]["function"]["parameters"] == tool.parameters
    wanted = {
        "model": "scripted",
        "temperature": 0.5,
        "top_k": 9,
        "top_p": 0.8,
        "min_p": 0.1,
        "seed": (2**62 + 5) % 2**31,
        "max_tokens": 9,
        "stop": ["END"],
        "logprobs": True,
        "top_logprobs": 2,
        "ignore_eos": True,
        "session_id": "s-1",
        "priority": -3,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    assert {name: sent[name] for name in wanted} == wanted
    assert server.headers[0]["x-session-id"] == "s-1"


async def test_log_probabilities_and_the_ids_beside_them_come_back() -> None:
    answer = wire.Answer(counts=False)
    one = {
        "id": 436,
        "token": " was",
        "logprob": -0.5,
        "top_logprobs": [{"token": " is", "logprob": -1.0}],
    }
    chunk = {"choices": [{"delta": {"content": " was"}, "logprobs": {"content": [one]}}]}
    piece = answer.add(wire.chunk(json.dumps(chunk).encode()))
    assert piece is not None
    assert piece.ids == (436,)
    assert piece.logprobs[0].top == ((" is", -1.0),)


@pytest.mark.parametrize(
    ("kind", "owner", "priority", "sent"),
    [("vllm", "vllm", 5, 5), ("sglang", "sglang", 5, -5), ("unknown", "me", 5, None)],
)
async def test_a_priority_has_the_sign_that_the_server_takes(
    kind: str, owner: str, priority: int, sent: int | None
) -> None:
    pages = {
        "/v1/models": {"data": [{"id": "scripted", "owned_by": owner}]},
        "/get_server_info": {"tp_size": 1, "context_length": 512, "max_running_requests": 3},
    }
    if kind != "sglang":
        del pages["/get_server_info"]
    base = "vllm" if kind == "vllm" else "unknown"
    async with FaultyServer([TEXT], kind=base, pages=pages) as server, Made(server) as made:
        await made.rest(await made.admit(prompt(priority=priority)))
        assert server.asked[0].get("priority") == sent
        if kind == "sglang":
            assert (made.core.abilities.slots, made.core.abilities.context_tokens) == (3, 512)
            assert made.core.abilities.preemptible


@pytest.mark.parametrize(
    ("body", "gone", "there"),
    [
        (
            '{"error": {"code": "unsupported_value", "param": "temperature", "message": "1 only"}}',
            "temperature",
            "max_tokens",
        ),
        (
            '{"error": {"code": "unsupported_parameter", "param": "max_tokens", "message": "no"}}',
            "max_tokens",
            "max_completion_tokens",
        ),
        (
            '{"error": {"message": "Got priority 3 but Priority scheduling is not enabled."}}',
            "priority",
            "max_tokens",
        ),
    ],
)
async def test_a_field_that_a_server_does_not_take_is_left_out_from_then_on(
    server: FaultyServer, body: str, gone: str, there: str
) -> None:
    async with Made(server) as made:
        server.faults.append(Fault(status=400, body=body))
        for _ in range(2):
            text, _ = await made.rest(await made.admit(prompt(priority=3)))
            assert text == TEXT
        first, *later = server.asked
        assert gone in first
        assert len(later) == 2
        assert all(gone not in sent and there in sent for sent in later)


async def test_a_field_whose_absence_would_change_the_answer_is_not_left_out(
    server: FaultyServer,
) -> None:
    async with Made(server) as made:
        body = '{"error": {"code": "unsupported_parameter", "param": "stop", "message": "no"}}'
        server.faults.append(Fault(status=400, body=body))
        asked = prompt(sampling=Sampling(seed=1, stop=("x",), max_tokens=5))
        _, error = await made.failure(await made.admit(asked))
        assert isinstance(error, InvalidCall)
        assert server.requests == 1


def test_openai_is_asked_in_its_own_words() -> None:
    from aios.drivers.cores.openai.dialects import DIALECTS
    from aios.drivers.cores.remote.upstream import Asked

    open_object = {"type": "object", "properties": {"a": {"type": "string"}}}
    closed = {**open_object, "required": ["a"], "additionalProperties": False}
    for schema, strict in ((open_object, False), (closed, True), ({"anyOf": [open_object]}, False)):
        sampling = Sampling(seed=9, drawn=True, max_tokens=5, top_k=0)
        asked = Asked(prompt(schema=schema, session="s" * 65, sampling=sampling), 2, 5)
        sent = wire.body("gpt", asked, DIALECTS["openai"], frozenset())
        assert sent["response_format"]["json_schema"]["strict"] is strict
        assert sent["max_completion_tokens"] == 5
        assert len(sent["prompt_cache_key"]) == 64
        absent = {"max_tokens", "seed", "top_k", "min_p", "priority", "session_id"}
        assert not absent & sent.keys()


# --- chunks ---------------------------------------------------------------------------------------


def test_events_are_read_however_they_are_cut() -> None:
    stream = (
        b': hello\r\n\r\ndata: {"a":\ndata: 1}\n\nevent: x\nid: 3\ndata: two\r\n\r\ndata:[DONE]'
    )
    expected = [b'{"a":\n1}', b"two", b"[DONE]"]
    for size in range(1, len(stream) + 1):
        events = wire.Events()
        found = []
        for at in range(0, len(stream), size):
            found += events.feed(stream[at : at + size])
        found += events.rest()
        assert found == expected, size


def test_an_event_without_an_end_is_not_waited_for() -> None:
    events = wire.Events()
    assert not list(events.feed(b"data: " + b"x" * (wire.LONGEST_EVENT - 100)))
    with pytest.raises(ValueError, match="bytes"):
        list(events.feed(b"x" * 101))


def test_an_answer_that_a_server_aborts_is_not_taken_for_a_whole_one() -> None:
    answer = wire.Answer(counts=False)
    answer.add(wire.chunk(b'{"choices": [{"delta": {}, "finish_reason": "abort"}]}'))
    assert (answer.reason, answer.broken) == (None, "abort")


def test_thoughts_count_and_are_not_shown() -> None:
    answer = wire.Answer(counts=False)
    piece = answer.add(wire.chunk(b'{"choices": [{"delta": {"reasoning_content": "hm"}}]}'))
    assert piece is not None
    assert (piece.text, piece.ids, piece.is_open) == ("", (-1,), True)


def test_running_counts_are_taken_if_they_can_be() -> None:
    answer = wire.Answer(counts=True)
    counts = []
    for told, text in ((3, "one two"), (4, " three"), (4000, " four"), (2, " five"), (None, " x")):
        usage = {"prompt_tokens": 1, "completion_tokens": told}
        chunk = {"choices": [{"delta": {"content": text}}], "usage": usage}
        piece = answer.add(wire.chunk(json.dumps(chunk).encode()))
        assert piece is not None
        counts.append(len(piece.ids))
    assert counts == [3, 1, 1, 1, 1]


def test_tool_calls_are_put_together() -> None:
    answer = wire.Answer(counts=False)
    parts = [
        {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"x"'}},
        {"index": 1, "id": "b", "function": {"name": "g"}},
        {"index": 0, "function": {"arguments": ": 1}"}},
    ]
    for part in parts:
        chunk = {"choices": [{"delta": {"tool_calls": [part]}}]}
        assert answer.add(wire.chunk(json.dumps(chunk).encode())) is not None
    assert answer.tool_calls() == (ToolUse("a", "f", '{"x": 1}'), ToolUse("b", "g", "{}"))


# --- discovery ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pages", "kind", "window", "slots"),
    [
        (
            {
                "/v1/models": {"data": [{"id": "m", "owned_by": "llamacpp"}]},
                "/props": {"total_slots": 3, "default_generation_settings": {"n_ctx": 1024}},
                "/health": {"status": "ok"},
            },
            "llama.cpp",
            1024,
            3,
        ),
        (
            {
                "/v1/models": {"data": [{"id": "m", "owned_by": "library"}]},
                "/api/version": {"version": "0.9"},
                "/api/ps": {"models": [{"name": "m", "context_length": 4096}]},
            },
            "ollama",
            4096,
            0,
        ),
        (
            {
                "/v1/models": {"data": [{"id": "m", "owned_by": "a proxy"}]},
                "/api/v0/models": {"data": [{"id": "m", "loaded_context_length": 2048}]},
            },
            "lmstudio",
            2048,
            0,
        ),
        ({"/v1/models": {"data": [{"id": "m", "context_length": 9000}]}}, "unknown", 9000, 0),
        ({"/v1/models": {"data": [{"id": "m", "max_model_len": True}]}}, "unknown", 0, 0),
        ({"/v1/models": {"data": [{"id": "m"}]}, "/props": [1, 2]}, "unknown", 0, 0),
    ],
)
async def test_a_server_is_known_by_what_it_answers(
    pages: dict[str, Any], kind: str, window: int, slots: int
) -> None:
    async with FaultyServer(kind="unknown", pages=pages) as server:
        facts = await discover(server.url)
    assert (facts.kind, facts.slots, facts.is_healthy) == (kind, slots, True)
    assert [(model.name, model.context_tokens) for model in facts.models] == [("m", window)]


async def test_a_server_that_does_not_count_any_more_is_estimated(server: FaultyServer) -> None:
    async with Made(server) as made:
        asked = prompt("word " * 100)
        assert await made.core.measure(asked) == 101
        server.kind = "unknown"
        before = server.connections
        assert await made.core.measure(asked) == 101  # known by now
        assert server.connections == before
        longer = prompt("word " * 101)
        assert await made.core.measure(longer) == wire.estimate(longer) == 134


async def test_what_is_told_counts_before_what_is_found(server: FaultyServer) -> None:
    async with Made(server, slots=2, context_tokens=50, continues=False) as made:
        abilities = made.core.abilities
        assert (abilities.slots, abilities.context_tokens) == (2, 50)
        assert not abilities.preemptible
        assert not abilities.shared_fate
        with pytest.raises(ContextOverflow, match="window of remote is 50"):
            await made.core.admit(prompt("word " * 60))
        assert (await made.core.health()).kind == "vllm"


def test_importing_the_driver_brings_nothing_heavy() -> None:
    heavy = "httpx2 jinja2 llguidance pydantic_ai numpy"
    code = (
        "import sys, aios.drivers.cores.openai.core, aios.drivers.cores.provider; "
        f"print([name for name in {heavy!r}.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_a_real_clock_is_all_that_a_gate_needs(server: FaultyServer) -> None:
    async with Made(server, gate=Gate("test", SystemClock())) as made:
        server.faults.append(Fault(status=503, headers={"retry-after-ms": "50"}))
        assert (await made.rest(await made.admit(prompt())))[0] == TEXT
        assert server.requests == 2


# --- under the kernel -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vllm", "unknown"])
async def test_the_kernel_asks_for_each_answer_once(kind: str) -> None:
    gate = Gate("test", SystemClock())
    async with FaultyServer([TEXT], kind=kind, token_s=0.001) as server:
        core = OpenAICore(server.url, "scripted", "remote", gate=gate, slots=4)
        await core.start()
        async with machine(cores=ScriptedCores(core)) as kernel:
            pid = kernel.identify(kernel.user_key)
            shown: dict[int, str] = dict.fromkeys(range(12), "")

            async def ask(number: int) -> Generation:
                def hear(delta: Delta) -> None:
                    shown[number] += delta.text

                sampling = Sampling(max_tokens=16)
                call = Generate(messages=user("Count."), context=None, sampling=sampling)
                reply = await kernel.trap(pid, call, hear)
                assert isinstance(reply, Generation)
                return reply

            made = await asyncio.gather(*map(ask, shown))
            assert {one.message.content for one in made} == set(shown.values()) == {TEXT}
            assert {one.usage.completion_tokens for one in made} == {10}
            assert (server.requests, server.tokens) == (12, 120)
            assert (await core.residency()).sequences == 0
        await core.close()


async def test_the_bench_measures_what_it_says() -> None:
    figures = await measure("scripted", tokens=20, rounds=1, pairs=2)
    assert 0.3 < figures["ratio"] < 3
    assert figures["straight"] < 4 / TOKEN_S
    assert figures["first_token_straight_ms"] > TOKEN_S * 1000
