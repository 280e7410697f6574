"""From OpenAI's words to ours: the bytes of a chat request become a Generate."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from aios.abi import wire
from aios.abi.calls import Generate
from aios.abi.messages import Message, Sampling, ToolSpec, ToolUse
from aios.errors import InvalidCall
from aios.server import chat
from aios.server.chat import ChatRequest
from aios.server.failures import BadField

T = TypeVar("T")

_requests = msgspec.json.Decoder(ChatRequest)
_PLACE = re.compile(r"(?P<what>.*) - at `\$\.?(?P<where>.*)`", re.DOTALL)
_STEPS = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


def read(body: bytes) -> ChatRequest:
    return fit(body, _requests)


def fit(body: bytes, requests: msgspec.json.Decoder[T]) -> T:
    """The request in *body*; BadField names the field that does not fit, and its value."""
    wire.check_depth(body)
    try:
        return requests.decode(body)
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
    beams = request.beams or 1
    greedy = request.top_p == 0  # nothing but the likeliest token
    return Generate(
        context=None,
        model=request.model,
        messages=tuple(_message(i, message) for i, message in enumerate(request.messages)),
        tools=tools,
        tool_choice=_tool_choice(request, tools),
        schema=_schema(request.response_format),
        sampling=Sampling(
            temperature=_or(request.temperature, 0.0 if beams > 1 else 1.0),
            top_k=1 if greedy else max(0, request.top_k or 0),  # -1 is what vLLM calls off
            top_p=1.0 if greedy else _or(request.top_p, 1.0),
            min_p=_or(request.min_p, 0.0),
            seed=request.seed,
            max_tokens=request.max_completion_tokens or request.max_tokens,
            stop=stop,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            ignore_end=bool(request.ignore_eos),
            beams=beams,
            length_penalty=_or(request.length_penalty, 1.0),
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
