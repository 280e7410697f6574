"""From what an author says to ``generate`` to the system call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import msgspec

from aios.abi.calls import Generate, Retrieval
from aios.abi.messages import Message, Sampling, ToolSpec
from aios.errors import InvalidCall
from aios.sdk import schema
from aios.sdk.tools import Tool

Prompt = str | Message | Mapping[str, Any] | Sequence[Message | Mapping[str, Any]]
Tools = Sequence[Tool[..., Any] | ToolSpec]


class Options(TypedDict, total=False):
    """What ``generate`` and ``stream`` take by name.

    system is said once, at the head of the context. context names the conversation (``main``), None
    keeps nothing. schema is a JSON Schema, or a Struct, dataclass, pydantic model or plain type: it
    makes ``answer.data``. tool_choice is auto, none, required or a tool's name. retrieve has memory
    (and files) looked up for it: True, or a Retrieval that says where. The rest is sampling, as in
    ``aios.abi.messages.Sampling``.
    """

    system: str
    context: str | None
    schema: Any
    tool_choice: str
    retrieve: Retrieval | bool | None
    model: str | None
    timeout_s: float | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    max_tokens: int | None
    stop: str | Sequence[str]
    logprobs: int | None
    ignore_end: bool
    beams: int
    length_penalty: float


class Request(NamedTuple):
    """The call, and how to read the answer's text if a schema was given."""

    call: Generate
    convert: schema.Convert | None


def build(prompt: Prompt, tools: Tools, options: Options) -> Request:
    """InvalidCall names an option that is unknown or does not fit."""
    given = dict(options)
    for name in given:
        if name not in Options.__annotations__:
            known = ", ".join(Options.__annotations__)
            raise InvalidCall(f"generate has no option {name!r}; it takes {known}.")
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    messages = _messages(prompt)
    if system := given.pop("system", None):
        messages = (*_messages({"role": "system", "content": system}), *messages)
    convert = None
    if (wanted := given.pop("schema", None)) is not None:
        given["schema"], convert = schema.target(wanted)
    if isinstance(wish := given.get("retrieve"), bool):
        given["retrieve"] = retrieval(wish)
    sampling = {name: given.pop(name) for name in Sampling.__struct_fields__ if name in given}
    call = {
        "messages": messages,
        "tools": tuple(tool.spec if isinstance(tool, Tool) else tool for tool in tools),
        "sampling": _fit(sampling, Sampling),
        **given,
    }
    return Request(_fit(call, Generate), convert)


def retrieval(wanted: bool) -> Retrieval:
    """What True and False stand for: all of memory, or nothing."""
    return Retrieval() if wanted else Retrieval(memory=())


def _fit(value: dict[str, Any], kind: Any) -> Any:
    try:
        return msgspec.convert({"call": "generate", **value}, kind)
    except msgspec.ValidationError as error:
        raise InvalidCall(f"generate was given what does not fit: {error}") from error


def _messages(prompt: Prompt) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        return (Message(role="user", content=prompt),)
    several = [prompt] if isinstance(prompt, Message | Mapping) else prompt
    try:
        return tuple(msgspec.convert(message, Message) for message in several)
    except msgspec.ValidationError as error:
        raise InvalidCall(f"a message does not fit: {error}") from error
