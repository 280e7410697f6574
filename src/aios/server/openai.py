"""OpenAI's API over the one door: a chat completion is a Generate that carries its own context."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from aios.abi import messages as abi
from aios.abi import wire
from aios.abi.calls import Call, Generate, Generation, Reply
from aios.abi.messages import Delta, Message, Sampling, ToolSpec, ToolUse
from aios.config import Server
from aios.errors import AiosError, InvalidCall, NotFound
from aios.kernel.kernel import VERSION, Kernel
from aios.server import chat
from aios.server.chat import ChatRequest, Chunk, ChunkChoice
from aios.server.exchange import Exchange
from aios.server.failures import BadField, failure
from aios.server.stream import EventStream

FINGERPRINT = f"aios-{VERSION}"

_requests = msgspec.json.Decoder(ChatRequest)
_PLACE = re.compile(r"(?P<what>.*) - at `\$\.?(?P<where>.*)`", re.DOTALL)
_STEPS = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


class OpenAI:
    """The handlers under /v1."""

    def __init__(self, kernel: Kernel, config: Server) -> None:
        self._kernel, self._config = kernel, config
        self._created = int(time.time())
        self.routes: dict[str, dict[str, Callable[[Exchange], Awaitable[None]]]] = {
            "/v1/chat/completions": {"POST": self.chat},
            "/v1/models": {"GET": self.models},
        }
        self.folders = {"/v1/models/": self.model}

    async def models(self, exchange: Exchange) -> None:
        data = [chat.Model(name, self._created) for name in self._names()]
        await exchange.answer(wire.encode(chat.Models(data)))

    async def model(self, exchange: Exchange) -> None:
        name = exchange.path.removeprefix("/v1/models/")
        if name not in self._names():
            raise NotFound(f"there is no model {name[:200]!r}: GET /v1/models lists them.")
        await exchange.answer(wire.encode(chat.Model(name, self._created)))

    def _names(self) -> list[str]:
        names = self._kernel.models()
        return [*names, *(name for name in self._config.aliases if name not in names)]

    async def chat(self, exchange: Exchange) -> None:
        request = read(await exchange.body())
        call = generate(request)
        calls = [call] if (request.n or 1) == 1 else choices(call, request.n or 1)
        about = About(request.model)
        if request.stream:
            await self._stream(exchange, request, calls, about)
            return
        made = await exchange.attended(self._all(exchange.pid, calls, [None] * len(calls)))
        await exchange.answer(wire.encode(completion(made, about)))

    async def _stream(
        self, exchange: Exchange, request: ChatRequest, calls: Sequence[Generate], about: About
    ) -> None:
        options = request.stream_options
        telling = Telling(about, with_usage=options is not None and bool(options.include_usage))
        async with EventStream(exchange, _failed, self._config.heartbeat_s) as stream:

            def listener(index: int) -> Callable[[Delta], None]:
                def put(delta: Delta) -> None:
                    for chunk in telling.delta(index, delta):
                        stream.put(_data(chunk))

                return put

            listeners = [listener(index) for index in range(len(calls))]
            made = await self._all(exchange.pid, calls, listeners)
            for chunk in telling.ends(made):
                stream.put(_data(chunk))
            stream.put(b"data: [DONE]\n\n")

    async def _all(
        self,
        pid: int,
        calls: Sequence[Generate],
        listeners: Sequence[Callable[[Delta], None] | None],
    ) -> list[Generation]:
        """All choices, made at the same time; the first failure ends the others."""
        if len(calls) == 1:
            return [_generation(await self._kernel.trap(pid, calls[0], listeners[0]))]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(_trap(self._kernel, pid, call, listener))
                    for call, listener in zip(calls, listeners, strict=True)
                ]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [_generation(task.result()) for task in tasks]


async def _trap(
    kernel: Kernel, pid: int, call: Call, listener: Callable[[Delta], None] | None
) -> Reply:
    return await kernel.trap(pid, call, listener)


def _generation(reply: Reply) -> Generation:
    assert isinstance(reply, Generation)
    return reply


# --- from OpenAI's words to ours ------------------------------------------------------------------


def read(body: bytes) -> ChatRequest:
    """The request in *body*; BadField names the field that does not fit, and its value."""
    wire.check_depth(body)
    try:
        return _requests.decode(body)
    except msgspec.ValidationError as error:
        found = _PLACE.fullmatch(str(error))
        if found is None:
            raise InvalidCall(f"the body does not fit: {error}.") from error
        where, what = found["where"], found["what"]
        what = what[:1].lower() + what[1:]
        value = _value_at(body, where)
        raise BadField(f"{where or 'the body'} is {value}: {what}.", where) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidCall(f"the body is not JSON: {error}.") from error


def _value_at(body: bytes, where: str) -> str:
    """The value at a place such as ``messages[0].role``, shortened, as JSON."""
    value: Any = msgspec.json.decode(body)
    for index, name in _STEPS.findall(where):
        try:
            value = value[int(index)] if index else value[name]
        except (LookupError, TypeError):
            return "missing"
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else text[:77] + "..."


def generate(request: ChatRequest) -> Generate:
    """The system call that a chat request asks for."""
    if request.top_logprobs is not None and not request.logprobs:
        raise BadField("top_logprobs is set but logprobs is not: set logprobs to true.", "logprobs")
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if "" in stop:
        raise BadField("stop holds an empty string: give strings of one character or more.", "stop")
    tools = _tools(request)
    greedy = request.top_p == 0  # nothing but the likeliest token
    return Generate(
        context=None,
        model=request.model,
        messages=tuple(_message(i, message) for i, message in enumerate(request.messages)),
        tools=tools,
        tool_choice=_tool_choice(request, tools),
        schema=_schema(request.response_format),
        sampling=Sampling(
            temperature=_or(request.temperature, 1.0),
            top_k=1 if greedy else max(0, request.top_k or 0),  # -1 is what vLLM calls off
            top_p=1.0 if greedy else _or(request.top_p, 1.0),
            min_p=_or(request.min_p, 0.0),
            seed=request.seed,
            max_tokens=request.max_completion_tokens or request.max_tokens,
            stop=stop,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            ignore_end=bool(request.ignore_eos),
        ),
    )


def choices(call: Generate, n: int) -> list[Generate]:
    """The same call n times, with seeds of their own where the caller gave one."""
    seed = call.sampling.seed
    if seed is None:
        return [call] * n
    return [
        msgspec.structs.replace(
            call, sampling=msgspec.structs.replace(call.sampling, seed=seed + i)
        )
        for i in range(n)
    ]


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _message(index: int, message: chat.ChatMessage) -> Message:
    where = f"messages[{index}]"
    if message.role == "tool" and message.tool_call_id is None:
        raise BadField(
            f"{where} has the role tool but no tool_call_id: name the call it answers.",
            f"{where}.tool_call_id",
        )
    if message.content is None and not message.tool_calls:
        raise BadField(f"{where}.content is missing: give it a text.", f"{where}.content")
    return Message(
        role="system" if message.role == "developer" else message.role,
        content=_text(f"{where}.content", message.content),
        name=message.name,
        tool_calls=tuple(
            ToolUse(one.id, one.function.name, one.function.arguments)
            for one in message.tool_calls or ()
        ),
        tool_call_id=message.tool_call_id,
    )


def _text(where: str, content: str | list[chat.Part] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for index, part in enumerate(content):
        if part.type not in {"text", "refusal"} or (part.text is None and part.refusal is None):
            raise BadField(
                f"{where}[{index}] is of the type {part.type[:40]!r}: "
                "the models here read text only, so send text parts.",
                f"{where}[{index}].type",
            )
    return "\n".join(part.text or part.refusal or "" for part in content)


def _tools(request: ChatRequest) -> tuple[ToolSpec, ...]:
    specs: dict[str, ToolSpec] = {}
    for index, tool in enumerate(request.tools or ()):
        function = tool.function
        if function.name in specs:
            raise BadField(
                f"there are two tools named {function.name!r}: give each a name of its own.",
                f"tools[{index}].function.name",
            )
        spec = ToolSpec(name=function.name, description=function.description or "")
        if function.parameters is not None:
            spec = msgspec.structs.replace(spec, parameters=function.parameters)
        specs[function.name] = spec
    return tuple(specs.values())


def _tool_choice(request: ChatRequest, tools: tuple[ToolSpec, ...]) -> str:
    choice = request.tool_choice
    if choice is None:
        return "auto"
    name = choice if isinstance(choice, str) else choice.function.name
    if name == "required" and not tools:
        raise BadField(
            "tool_choice is required but there are no tools: send tools too.", "tool_choice"
        )
    if not isinstance(choice, str) and name not in {tool.name for tool in tools}:
        raise BadField(
            f"tool_choice names {name[:100]!r}, which is not among the tools: name one of them.",
            "tool_choice",
        )
    return name


def _schema(wanted: chat.ResponseFormat | None) -> dict[str, Any] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None:
        raise BadField(
            "response_format has the type json_schema but no json_schema: send one.",
            "response_format.json_schema",
        )
    return wanted.json_schema.schema or {}


# --- from our words to OpenAI's -------------------------------------------------------------------


class About:
    """What all parts of one answer say."""

    def __init__(self, model: str) -> None:
        self.id = f"chatcmpl-{random.getrandbits(96):024x}"  # a name, not a secret
        self.created = int(time.time())
        self.model = model


def completion(made: Sequence[Generation], about: About) -> chat.Completion:
    return chat.Completion(
        id=about.id,
        created=about.created,
        model=made[0].model,
        choices=[_choice(index, one) for index, one in enumerate(made)],
        usage=_usage(made),
        system_fingerprint=FINGERPRINT,
    )


def _choice(index: int, made: Generation) -> chat.Choice:
    said = made.message
    calls = [_tool_call(use) for use in said.tool_calls]
    return chat.Choice(
        index=index,
        message=chat.Answer(
            content=None if calls and not said.content else said.content,
            tool_calls=calls or UNSET,
        ),
        finish_reason=_finish(made.finish_reason),
        logprobs=_logprobs(made.logprobs),
    )


def _tool_call(use: ToolUse, index: int | None = None) -> chat.ToolCallOut:
    return chat.ToolCallOut(
        id=use.id,
        function=chat.Function(use.name, use.arguments),
        index=UNSET if index is None else index,
    )


def _finish(reason: abi.FinishReason) -> chat.FinishReason:
    return "length" if reason == "cancelled" else reason  # cut short is cut short


def _logprobs(tokens: Sequence[abi.TokenLogprob]) -> chat.Logprobs | None:
    if not tokens:
        return None
    return chat.Logprobs(
        [
            chat.TokenLogprob(
                one.text,
                one.logprob,
                list(one.text.encode()),
                [chat.TopLogprob(text, value, list(text.encode())) for text, value in one.top],
            )
            for one in tokens
        ]
    )


def _usage(made: Sequence[Generation]) -> chat.ChatUsage:
    prompt = made[0].usage.prompt_tokens  # read once for all choices
    completion_tokens = sum(one.usage.completion_tokens for one in made)
    return chat.ChatUsage(
        prompt_tokens=prompt,
        completion_tokens=completion_tokens,
        total_tokens=prompt + completion_tokens,
        prompt_tokens_details=chat.PromptDetails(made[0].usage.cached_tokens),
    )


class Telling:
    """An answer told in chunks: a role first for each choice, text, tool calls, an end, usage."""

    def __init__(self, about: About, *, with_usage: bool) -> None:
        self._about, self._with_usage = about, with_usage
        self._tool_calls: dict[int, int] = {}  # choice that has begun -> its tool calls so far

    def delta(self, index: int, delta: Delta) -> list[Chunk]:
        chunks = self._begin(index)
        logprobs = _logprobs(delta.logprobs)
        if delta.text or logprobs:
            chunks.append(self._chunk(index, chat.ChatDelta(content=delta.text), logprobs=logprobs))
        chunks += self._tools(index, delta.tool_calls)
        return chunks

    def ends(self, made: Sequence[Generation]) -> list[Chunk]:
        chunks: list[Chunk] = []
        for index, one in enumerate(made):
            chunks += self._begin(index)
            chunks += self._tools(index, one.message.tool_calls[self._tool_calls[index] :])
            chunks.append(self._chunk(index, chat.ChatDelta(), _finish(one.finish_reason)))
        if self._with_usage:
            chunks.append(self._new([], _usage(made)))
        return chunks

    def _begin(self, index: int) -> list[Chunk]:
        if index in self._tool_calls:
            return []
        self._tool_calls[index] = 0
        return [self._chunk(index, chat.ChatDelta(role="assistant", content="", refusal=None))]

    def _tools(self, index: int, uses: Sequence[ToolUse]) -> list[Chunk]:
        first = self._tool_calls[index]
        self._tool_calls[index] += len(uses)
        return [
            self._chunk(index, chat.ChatDelta(tool_calls=[_tool_call(use, first + i)]))
            for i, use in enumerate(uses)
        ]

    def _chunk(
        self,
        index: int,
        delta: chat.ChatDelta,
        finish_reason: chat.FinishReason | None = None,
        logprobs: chat.Logprobs | None = None,
    ) -> Chunk:
        choice = ChunkChoice(index, delta, finish_reason, logprobs)
        return self._new([choice], None if self._with_usage else UNSET)

    def _new(self, choices: list[ChunkChoice], usage: chat.ChatUsage | None | Any) -> Chunk:
        about = self._about
        return Chunk(about.id, about.created, about.model, choices, FINGERPRINT, usage=usage)


def _data(chunk: Chunk) -> bytes:
    return b"data: %s\n\n" % wire.encode(chunk)


def _failed(error: AiosError) -> bytes:
    return b"data: %s\n\n" % failure(error, openai=True).body
