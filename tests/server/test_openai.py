"""OpenAI's API as its official client uses it, unmodified."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import Site, serving
from openai import AsyncOpenAI
from pydantic import BaseModel

from aios.abi import events as ev
from aios.abi import wire
from aios.abi.calls import Generate, Limits, SpawnAgent
from aios.abi.messages import Message, Sampling
from aios.ports import CallFilter
from aios.testing import ScriptedCore

HELLO: Any = [{"role": "user", "content": "hello you"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def client_of(site: Site, key: str | None = None) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{site.url}/v1", api_key=key or site.key, timeout=10)


@pytest.fixture
async def client(site: Site) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(site) as made:
        yield made


async def test_a_chat(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="scripted", messages=HELLO)
    assert answer.object == "chat.completion"
    assert answer.model == "scripted"
    assert answer.choices[0].message.content == "You said: hello you"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 4


async def test_every_documented_field_is_there(client: AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="scripted", messages=HELLO)
    body = json.loads(raw.text if isinstance(raw.text, str) else raw.text())
    assert set(body) == {
        "id", "object", "created", "model", "choices", "usage", "system_fingerprint",
        "service_tier",
    }  # fmt: skip
    (choice,) = body["choices"]
    assert set(choice) == {"index", "message", "finish_reason", "logprobs"}
    assert set(choice["message"]) == {"role", "content", "refusal", "annotations"}
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


async def test_a_stream(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="scripted", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "You said: hello you"
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 4
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_the_client_accumulates_a_stream(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model="scripted", messages=HELLO, tools=[WEATHER], tool_choice="required"
    ) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls
    assert calls[0].function.name == "get_weather"
    assert final.choices[0].finish_reason == "tool_calls"


async def test_a_tool_round_trip(client: AsyncOpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    answer = await client.chat.completions.create(
        model="scripted", messages=HELLO, tools=[WEATHER], tool_choice=named
    )
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.tool_calls
    (call,) = message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "text"}
    history = [*HELLO, message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    again = await client.chat.completions.create(
        model="scripted", messages=history, tools=[WEATHER]
    )
    assert again.choices[0].message.content == "You said: rain"


class City(BaseModel):
    name: str
    people: int


async def test_structured_output(client: AsyncOpenAI) -> None:
    parsed = await client.chat.completions.parse(
        model="scripted", messages=HELLO, response_format=City
    )
    assert parsed.choices[0].message.parsed == City(name="text", people=1)
    free = await client.chat.completions.create(
        model="scripted", messages=HELLO, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(free.choices[0].message.content or ""), dict)


async def test_logprobs(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="scripted", messages=HELLO, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs
    tokens = answer.choices[0].logprobs.content or []
    assert "".join(token.token for token in tokens) == "You said: hello you"
    assert bytes(tokens[0].bytes or []) == b"You"


async def test_beams_are_our_extension(site: Site, client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="scripted", messages=HELLO, extra_body={"beams": 4, "length_penalty": 0.5}
    )
    assert answer.choices[0].message.content == "You said: hello you"
    with pytest.raises(openai.BadRequestError, match="temperature must be 0, not 0.7"):
        await client.chat.completions.create(
            model="scripted", messages=HELLO, temperature=0.7, extra_body={"beams": 4}
        )


async def test_several_choices(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="scripted", messages=HELLO, n=3, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage
    assert answer.usage.completion_tokens == 12
    stream = await client.chat.completions.create(
        model="scripted", messages=HELLO, n=2, stream=True
    )
    texts = {0: "", 1: ""}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert set(texts.values()) == {"You said: hello you"}


async def test_seeds_of_choices_differ(site: Site, client: AsyncOpenAI) -> None:
    await client.chat.completions.create(model="scripted", messages=HELLO, n=3, seed=7)
    login = site.kernel.identify(site.key)
    histories = await site.kernel.journal.calls(login)
    seeds = [json.loads(history.start.request)["sampling"]["seed"] for history in histories]
    assert sorted(seeds) == [7, 8, 9]


def text(content: str) -> Any:
    return {"type": "text", "text": content}


async def test_what_reaches_the_kernel(site: Site, client: AsyncOpenAI) -> None:
    await client.chat.completions.create(
        model="scripted",
        messages=[
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [text("a"), text("b")]},
        ],
        max_completion_tokens=9,
        max_tokens=5,
        stop="END",
        top_p=0,
        user="me",
        metadata={"a": "b"},
        store=True,
        extra_body={"something": {"new": [1]}},
    )
    login = site.kernel.identify(site.key)
    (history,) = await site.kernel.journal.calls(login, CallFilter(limit=1))
    made = wire.decode_call(history.start.request)
    assert isinstance(made, Generate)
    assert made.sampling.seed is not None  # drawn at the door, so that it is in the journal
    assert made == Generate(
        context=None,
        model="scripted",
        messages=(Message("system", "be kind"), Message("user", "a\nb")),
        sampling=Sampling(
            temperature=1.0,
            top_k=1,
            max_tokens=9,
            stop=("END",),
            seed=made.sampling.seed,
            drawn=True,
        ),
    )
    assert site.kernel.processes.find(login).contexts == {}


async def test_models(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["scripted"]
    assert (await client.models.retrieve("scripted")).object == "model"
    with pytest.raises(openai.NotFoundError, match="nobody"):
        await client.models.retrieve("nobody")


BAD: list[tuple[dict[str, Any], str | None]] = [
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "alien", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
    ),
    ({"model": ""}, "model"),
    ({"model": None}, "model"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": -5}, "max_completion_tokens"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "logprobs"),
    ({"seed": 2**70}, "seed"),
    ({"beams": 0}, "beams"),
    ({"beams": 17}, "beams"),
    ({"length_penalty": 9}, "length_penalty"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, None),
    ({"tools": [{"type": "custom", "custom": {}}]}, None),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
    (
        {
            "tools": [WEATHER],
            "tool_choice": {"type": "function", "function": {"name": "other"}},
        },
        "tool_choice",
    ),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"presence_penalty": 3}, "presence_penalty"),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_bad_requests_are_told_in_a_sentence(site: Site, stream: bool) -> None:
    async with site.http() as http:
        for bad, param in BAD:
            body = {"model": "scripted", "messages": HELLO, "stream": stream, **bad}
            answer = await http.post("/v1/chat/completions", json=body)
            error = answer.json()["error"]
            assert answer.status_code == 400, bad
            assert error["type"] == "invalid_request_error"
            assert error["message"].endswith(".")
            assert len(error["message"]) < 300
            if param is not None:
                assert error["param"] == param
    assert site.open_calls() == []


@pytest.mark.parametrize("stream", [False, True])
async def test_errors_are_the_clients_own_exceptions(site: Site, stream: bool) -> None:
    async with client_of(site) as client, client_of(site, "wrong") as stranger:

        async def ask(who: AsyncOpenAI = client, **fields: Any) -> None:
            await who.chat.completions.create(
                **{"model": "scripted", "messages": HELLO, "stream": stream, **fields}
            )

        with pytest.raises(openai.AuthenticationError) as caught:
            await ask(stranger)
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.NotFoundError) as missing:
            await ask(model="gpt-9")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as overflow:
            await ask(messages=[{"role": "user", "content": "x " * 9000}])
        assert overflow.value.code == "context_length_exceeded"
        assert overflow.value.param == "messages"


async def test_an_empty_budget_is_told_once(site: Site) -> None:
    login = site.kernel.identify(site.key)
    spawn = SpawnAgent(program="poor", budget=Limits(tokens=1), on_exhausted="fail")
    poor: Any = await site.kernel.trap(login, spawn)
    async with client_of(site, poor.key) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="scripted", messages=HELLO)
    assert caught.value.code == "insufficient_quota"
    tried = [
        event
        async for event in site.kernel.events(login, of=poor.aid)
        if isinstance(event, ev.CallStarted)
    ]
    assert len(tried) == 1  # no retry by the client: it could not help


async def test_a_failure_in_mid_stream_reaches_the_client(tmp_path: Path) -> None:
    core = ScriptedCore(["word " * 100], gated=True)
    async with serving(tmp_path, core) as site, client_of(site) as client:
        core.step()
        stream = await client.chat.completions.create(model="scripted", messages=HELLO, stream=True)
        chunks = aiter(stream)
        assert (await anext(chunks)).choices[0].delta.role == "assistant"
        assert (await anext(chunks)).choices[0].delta.content
        login = site.kernel.processes.find(site.kernel.identify(site.key))
        await site.kernel.processes.kill(login, "enough")
        with pytest.raises(openai.APIError, match="enough"):
            await anext(chunks)


async def test_a_client_that_leaves_its_stream_frees_the_core(tmp_path: Path) -> None:
    core = ScriptedCore(["word " * 100], gated=True)
    async with serving(tmp_path, core) as site, client_of(site) as client:
        core.step()
        stream = await client.chat.completions.create(
            model="scripted", messages=HELLO, stream=True, n=2
        )
        async for _ in stream:
            break
        await stream.close()
        await site.until(lambda: site.open_calls() == [])
        await site.until_core_is_free()


def test_the_synchronous_client(tmp_path: Path) -> None:
    """The plain client blocks its thread, so the server runs in the test's own loop beside it."""

    def ask(site: Site) -> str | None:
        with openai.OpenAI(base_url=f"{site.url}/v1", api_key=site.key, timeout=10) as client:
            answer = client.chat.completions.create(model="scripted", messages=HELLO)
            return answer.choices[0].message.content

    async def main() -> str | None:
        async with serving(tmp_path) as site:
            return await asyncio.to_thread(ask, site)

    assert asyncio.run(main()) == "You said: hello you"
