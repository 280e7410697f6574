"""A provider's model through the library of providers, against a server that speaks its format."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aios.abi.messages import Message, Sampling, ToolSpec, ToolUse
from aios.drivers.cores.gate import Gate
from aios.drivers.cores.provider import ProviderCore
from aios.errors import AiosError, ContextOverflow, CoreFailed, CoreTimeout, InvalidCall
from aios.ports import Prompt, Slice, SliceResult, Spent
from aios.testing import FakeClock, Fault, FaultyServer

TEXT = "one two three four five"
KEY = "sk-ant-that-nobody-must-see"
MODEL = "claude-sonnet-5"
WHOLE = Slice(64)


@pytest.fixture
async def server() -> AsyncIterator[FaultyServer]:
    async with FaultyServer([TEXT], kind="unknown", model=MODEL, key=KEY) as server:
        yield server


class Made:
    def __init__(self, server: FaultyServer, **options: Any) -> None:
        self.clock = FakeClock()
        self.gate = Gate("anthropic", self.clock, seed=1)
        options = {"key": lambda: KEY, "stall_s": 5.0, **options}
        url = server.url.removesuffix("/v1")
        self.core = ProviderCore(f"anthropic:{MODEL}", "claude", gate=self.gate, url=url, **options)

    async def __aenter__(self) -> Made:
        await self.core.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.core.close()

    async def answer(self, prompt: Prompt) -> tuple[str, SliceResult]:
        sequence = (await self.core.admit(prompt)).sequence
        text = ""
        while True:
            result = await self.core.run(sequence, WHOLE)
            text += result.text
            if result.finish_reason:
                return text, result

    async def failure(self, prompt: Prompt) -> tuple[str, AiosError]:
        sequence = (await self.core.admit(prompt)).sequence
        text = ""
        for _ in range(100):
            try:
                text += (await self.core.run(sequence, WHOLE)).text
            except AiosError as error:
                return text, error
        raise AssertionError("it did not fail")


def prompt(text: str = "Count.", **fields: Any) -> Prompt:
    sampling = fields.pop("sampling", Sampling(seed=7, drawn=True, max_tokens=16))
    return Prompt((Message("user", text),), sampling, **fields)


async def test_an_answer_comes_as_a_stream_with_its_usage(server: FaultyServer) -> None:
    server.extra = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "20",
    }
    async with Made(server) as made:
        assert not made.core.abilities.preemptible
        assert made.core.abilities.context_tokens >= 200_000  # as the library knows
        text, last = await made.answer(prompt())
        assert (text, last.finish_reason) == (TEXT, "stop")
        assert last.spent == Spent(2, 5)
        assert made.gate.report().budgets["requests"].left == 20
    assert server.asked[0]["max_tokens"] == 16
    assert server.requests == 1


async def test_a_conversation_with_tools_is_put_into_its_words(server: FaultyServer) -> None:
    tool = ToolSpec("look", "Look.", {"type": "object", "properties": {"at": {"const": "x"}}})
    said = (
        Message("system", "Be brief."),
        Message("user", "Look."),
        Message("assistant", "Yes.", tool_calls=(ToolUse("toolu_0", "look", '{"at": "x"}'),)),
        Message("tool", "Nothing.", tool_call_id="toolu_0"),
        Message("user", "Again."),
    )
    asked = Prompt(said, Sampling(max_tokens=9, stop=("END",)), (tool,), "look")
    async with Made(server) as made:
        text, last = await made.answer(asked)
    assert (text, last.finish_reason) == ("", "tool_calls")
    assert [(call.id, call.name) for call in last.tool_calls] == [("toolu_1", "look")]
    assert json.loads(last.tool_calls[0].arguments) == {"at": "x"}
    sent = server.asked[0]
    assert "Be brief." in json.dumps(sent["system"])
    assert [one["role"] for one in sent["messages"]] == ["user", "assistant", "user"]
    assert sent["messages"][1]["content"][1]["input"] == {"at": "x"}
    assert sent["messages"][2]["content"][0]["tool_use_id"] == "toolu_0"
    assert sent["tool_choice"]["type"] in ("tool", "any")
    assert [one["name"] for one in sent["tools"]] == ["look"]
    assert sent["stop_sequences"] == ["END"]


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        (400, "prompt is too long: 300000 tokens > 200000 maximum", ContextOverflow, "too long"),
        (400, "max_tokens: must be positive", InvalidCall, "must be positive"),
        (404, "model: nothing", CoreFailed, r"failed \(404\).*nothing"),
        (500, "Internal", CoreFailed, r"failed \(500\).*Internal"),
    ],
)
async def test_a_refusal_is_put_into_our_words(
    server: FaultyServer, status: int, body: str, kind: type[AiosError], says: str
) -> None:
    async with Made(server) as made:
        error = {"type": "error", "error": {"type": "some_error", "message": body}}
        server.faults.append(Fault(status=status, body=json.dumps(error)))
        _, failed = await made.failure(prompt())
        assert type(failed) is kind
        with pytest.raises(kind, match=says):
            raise failed
        assert server.requests == 1  # the library tries nothing again


async def test_a_wrong_key_is_told_without_showing_it(server: FaultyServer) -> None:
    async with Made(server, key=lambda: "sk-wrong-key") as made:
        _, error = await made.failure(prompt())
        assert "refused the key (401)" in error.message
        assert "[key]" in error.message
        assert "sk-wrong" not in f"{error!r} {made.core!r}"
    with pytest.raises(CoreFailed, match="needs a key"):
        async with Made(server, key=lambda: None):
            pass


async def test_a_key_that_is_changed_is_used_from_then_on(server: FaultyServer) -> None:
    keys = ["sk-wrong-key"]
    async with Made(server, key=lambda: keys[0]) as made:
        await made.failure(prompt())
        keys[0] = KEY
        assert (await made.answer(prompt()))[0] == TEXT


@pytest.mark.parametrize("how", ["die", "end", "garbage"])
async def test_a_stream_that_breaks_fails_after_what_it_brought(
    server: FaultyServer, how: str
) -> None:
    async with Made(server) as made:
        server.faults.append(Fault(then=how, after=2))
        text, error = await made.failure(prompt())
        assert isinstance(error, CoreFailed)
        assert text == "one two"
        assert error.message.startswith("anthropic ")
        assert server.requests == 1


async def test_a_provider_that_says_nothing_any_more_is_given_up(server: FaultyServer) -> None:
    async with Made(server, stall_s=0.3) as made:
        server.faults.append(Fault(then="stall", after=2))
        text, error = await made.failure(prompt())
        assert (text, type(error)) == ("one two", CoreTimeout)
        await server.quiet()


async def test_a_refusal_parks_the_gate_and_the_call_is_answered_later(
    server: FaultyServer,
) -> None:
    async with Made(server) as made:
        server.faults.append(Fault(status=529, headers={"retry-after": "30"}))
        task = asyncio.create_task(made.answer(prompt()))
        while not made.gate.report().waiting:  # noqa: ASYNC110 (a socket sets no event here)
            await asyncio.sleep(0)
        assert made.gate.report().parked_until == pytest.approx(made.clock.now() + 30, abs=0.2)
        while not task.done():
            await made.clock.advance(31)
            await asyncio.sleep(0.01)
        assert (await task)[0] == TEXT
        assert server.requests == 2


async def test_a_release_closes_the_stream(server: FaultyServer) -> None:
    server.token_s = 0.05
    async with Made(server) as made:
        sequence = (await made.core.admit(prompt())).sequence
        await made.core.run(sequence, WHOLE)
        await made.core.release(sequence)
        await server.quiet()
        assert server.tokens < 5


async def test_nobody_there_is_a_failure_of_the_gate(server: FaultyServer) -> None:
    made = Made(server)
    made.core = ProviderCore(
        f"anthropic:{MODEL}", "claude", gate=made.gate, key=lambda: KEY, url="http://127.0.0.1:1"
    )
    async with made:
        _, error = await made.failure(prompt())
        assert isinstance(error, CoreFailed)
        assert made.gate.report().failures == 1


async def test_models_that_nobody_knows_are_refused() -> None:
    gate = Gate("test", FakeClock())
    with pytest.raises(InvalidCall, match="named like anthropic:claude"):
        ProviderCore("claude", "claude", gate=gate, key=lambda: KEY)
    with pytest.raises(CoreFailed, match="no provider 'acme'"):
        await ProviderCore("acme:x", "x", gate=gate, key=lambda: KEY).start()


async def test_a_schema_is_answered_as_text(server: FaultyServer) -> None:
    schema = {"type": "object", "properties": {"n": {"const": 1}}, "required": ["n"]}
    async with Made(server) as made:
        await made.answer(prompt(schema=schema))
    assert "n" in json.dumps(server.asked[0].get("output_config") or server.asked[0]["tools"])


async def test_googles_format_is_spoken_too() -> None:
    seen: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.split(":")[1])
            for line in head.lower().splitlines()
            if line.startswith("content-length")
        )
        seen.extend((head, (await reader.readexactly(length)).decode()))
        told = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}
        body = ""
        for text, end in (("one", {}), (" two", {"finishReason": "STOP"})):
            content = {"role": "model", "parts": [{"text": text}]}
            chunk = {"candidates": [{"content": content, **end}], "usageMetadata": told}
            body += f"data: {json.dumps(chunk)}\r\n\r\n"
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            + f"content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()
        )
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        core = ProviderCore(
            "google:gemini-2.5-flash",
            "gemini",
            gate=Gate("google", FakeClock()),
            key=lambda: KEY,
            url=f"http://127.0.0.1:{port}",
        )
        await core.start()
        assert core.abilities.context_tokens > 500_000
        sequence = (await core.admit(prompt())).sequence
        text = ""
        while not (result := await core.run(sequence, WHOLE)).finish_reason:
            text += result.text
        assert (text + result.text, result.finish_reason) == ("one two", "stop")
        assert result.spent == Spent(3, 2)
        await core.close()
    assert "/models/gemini-2.5-flash:streamGenerateContent" in seen[0]
    assert KEY in seen[0]
    assert "Count." in seen[1]
