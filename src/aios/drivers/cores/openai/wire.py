"""Chat completions from the asking side: what is sent, and what comes back, as data.

What comes back is read leniently: fields that are missing or new change nothing. What cannot be
read at all is a ValueError here, and the core's failure at its border.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from aios.abi.messages import FinishReason, Message, TokenLogprob, ToolUse
from aios.drivers.cores.openai.dialects import Dialect
from aios.drivers.cores.remote.upstream import Asked, Piece
from aios.ports import UNKNOWN, Prompt, Spent

LONGEST_EVENT = 4 << 20  # bytes of one event; a server that never ends one is not waited for
LONGEST_CACHE_KEY = 64  # characters, says OpenAI
SEEDS = 2**31  # what every server's seed can hold

# --- what is sent ---------------------------------------------------------------------------------


def message(said: Message) -> dict[str, Any]:
    body: dict[str, Any] = {"role": said.role, "content": said.content}
    if said.name is not None:
        body["name"] = said.name
    if said.tool_calls:
        body["content"] = said.content or None
        body["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in said.tool_calls
        ]
    if said.tool_call_id is not None:
        body["tool_call_id"] = said.tool_call_id
    return body


def tools(prompt: Prompt) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
            },
        }
        for tool in prompt.tools
    ]


def is_strict(schema: Any) -> bool:
    """Whether a schema is one of those that OpenAI can hold an answer to."""
    if isinstance(schema, list):
        return all(map(is_strict, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        wanted = set(schema.get("properties", {}))
        if schema.get("additionalProperties") is not False or wanted - set(
            schema.get("required", [])
        ):
            return False
    return all(map(is_strict, schema.values()))


def body(model: str, asked: Asked, dialect: Dialect, without: frozenset[str]) -> dict[str, Any]:
    """The request; *without* are fields that this server has refused before."""
    prompt, sampling = asked.prompt, asked.prompt.sampling
    made: dict[str, Any] = {
        "model": model,
        "messages": [message(said) for said in prompt.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
    }
    if dialect.running_usage:
        made["stream_options"]["continuous_usage_stats"] = True
    if asked.text:
        made["messages"].append({"role": "assistant", "content": asked.text})
        if dialect.flags:
            made["add_generation_prompt"], made["continue_final_message"] = False, True
    if asked.max_tokens is not None:
        limit = dialect.limit
        if limit in without:  # old and new name of the same thing
            limit = "max_tokens" if limit != "max_tokens" else "max_completion_tokens"
        made[limit] = asked.max_tokens
    made |= _sampling(prompt, dialect) | _tools(prompt) | _hints(prompt, dialect)
    if prompt.schema is not None:
        holds = dialect.takes_min_p or is_strict(prompt.schema)  # own servers hold any schema
        made["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": prompt.schema, "strict": holds},
        }
    return {name: value for name, value in made.items() if name not in without}


def _sampling(prompt: Prompt, dialect: Dialect) -> dict[str, Any]:
    sampling = prompt.sampling
    made: dict[str, Any] = {}
    if sampling.top_p != 1:
        made["top_p"] = sampling.top_p
    if sampling.top_k or dialect.off is not None:  # a server's own default may be another
        made["top_k"] = sampling.top_k or dialect.off
    if sampling.min_p or dialect.takes_min_p:
        made["min_p"] = sampling.min_p
    if dialect.off is not None:
        made["top_p"] = sampling.top_p
    if sampling.seed is not None and (dialect.takes_seed or not sampling.drawn):
        made["seed"] = sampling.seed % SEEDS
    if sampling.stop:
        made["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        made["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.logprobs is not None:
        made["logprobs"] = True
        made["top_logprobs"] = sampling.logprobs
    if sampling.ignore_end and dialect.takes_end:
        made["ignore_eos"] = True
    return made


def _tools(prompt: Prompt) -> dict[str, Any]:
    if not prompt.tools:
        return {}
    choice: Any = prompt.tool_choice
    if choice not in ("auto", "none", "required"):
        choice = {"type": "function", "function": {"name": choice}}
    return {"tools": tools(prompt), "tool_choice": choice}


def _hints(prompt: Prompt, dialect: Dialect) -> dict[str, Any]:
    """What helps a server to keep a beginning, and to order its own line."""
    made: dict[str, Any] = {}
    if dialect.cache_prompt:
        made["cache_prompt"] = True
    if prompt.session and dialect.session_field:
        made["session_id"] = prompt.session
    if prompt.session and dialect.cache_key:
        key = prompt.session
        if len(key) > LONGEST_CACHE_KEY:
            key = hashlib.sha256(key.encode()).hexdigest()
        made["prompt_cache_key"] = key
    if prompt.priority and dialect.priority:
        made["priority"] = prompt.priority * dialect.priority
    return made


def estimate(prompt: Prompt) -> int:
    """The tokens of a prompt if nobody can count them: four bytes each, and what surrounds them."""
    sizes = [
        len(said.content.encode()) + sum(len(c.name + c.arguments) for c in said.tool_calls)
        for said in prompt.messages
    ]
    about = sum(4 + -(-size // 4) for size in sizes) + 3
    if prompt.tools:
        about += -(-len(msgspec.json.encode(tools(prompt))) // 4)
    return about


# --- what comes back ------------------------------------------------------------------------------


class FunctionPart(Struct):
    name: str | None = None
    arguments: str | None = None


class CallPart(Struct):
    index: int | None = None
    id: str | None = None
    function: FunctionPart | None = None


class Delta(Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallPart] | None = None


class Top(Struct):
    token: str
    logprob: float


class Logprob(Struct):
    token: str
    logprob: float
    id: int | None = None
    top_logprobs: list[Top] | None = None


class Logprobs(Struct):
    content: list[Logprob] | None = None


class Choice(Struct):
    delta: Delta | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


def spent(usage: Any) -> Spent | None:
    """What a server says that it took, if it says it; whether that can be is judged elsewhere."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return None
    return Spent(prompt, completion, cached if isinstance(cached, int) else 0)


class Chunk(Struct):
    model: str | None = None
    choices: list[Choice] | None = None
    usage: Any = None
    error: Any = None


class Events:
    """Server-sent events, from bytes as they come: the data of each."""

    def __init__(self) -> None:
        self._line = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, received: bytes) -> Iterator[bytes]:
        """The events that are whole now; ValueError for what is no event stream."""
        lines = (self._line + received).split(b"\n")
        self._line = lines.pop()
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line:
                if self._data:
                    yield b"\n".join(self._data)
                self._data, self._size = [], 0
                continue
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
                self._size += len(value)
            elif field not in (b"", b"event", b"id", b"retry"):
                raise ValueError(f"{_clip(line)} is no line of an event stream")
        if self._size + len(self._line) > LONGEST_EVENT:
            raise ValueError(f"an event has more than {LONGEST_EVENT} bytes")

    def rest(self) -> Iterator[bytes]:
        """An event that no empty line came after any more."""
        yield from self.feed(b"\n\n")


_CHUNK = msgspec.json.Decoder(Chunk)


def chunk(data: bytes) -> Chunk:
    try:
        return _CHUNK.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"{_clip(data)} is no chunk of an answer ({error})") from None


def _clip(data: bytes) -> str:
    text = data.decode(errors="replace")
    return repr(text if len(text) <= 80 else text[:80] + "…")


REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "stop",
    "eos": "stop",
}
BROKEN = frozenset({"abort", "error", "cancelled"})  # the answer is not whole


class Answer:
    """An answer, put together from its chunks."""

    def __init__(self, *, counts: bool) -> None:
        self._counts = counts  # the server tells its counts in every chunk
        self._told = 0
        self._calls: dict[int, ToolUse] = {}
        self.reason: FinishReason | None = None
        self.broken: str | None = None  # how a server calls it that it did not end the answer
        self.spent: Spent | None = None

    def add(self, part: Chunk) -> Piece | None:
        """What a chunk adds to it, if anything."""
        choices = part.choices or []
        running = None
        if (told := spent(part.usage)) is not None:
            self.spent = told
            running = told.completion_tokens
        if not choices:
            return None
        choice = choices[0]
        delta = choice.delta or Delta()
        if choice.finish_reason in BROKEN:
            self.broken = choice.finish_reason
        elif choice.finish_reason:
            self.reason = REASONS.get(choice.finish_reason, "stop")
        text = (delta.content or "") + (delta.refusal or "")
        thought = delta.reasoning_content or delta.reasoning or ""
        for call in delta.tool_calls or []:
            self._add_call(call)
        said = (choice.logprobs.content if choice.logprobs else None) or []
        if not (text or thought or delta.tool_calls or said):
            return None
        if said:
            ids = tuple(UNKNOWN if one.id is None else one.id for one in said)
        else:
            ids = (UNKNOWN,) * self._tokens(running, len((text + thought).encode()))
        return Piece(
            text=text,
            ids=ids,
            logprobs=tuple(
                TokenLogprob(
                    one.token,
                    one.logprob,
                    tuple((top.token, top.logprob) for top in one.top_logprobs or []),
                )
                for one in said
            ),
            is_open=bool(thought or delta.tool_calls),
            model=part.model or "",
        )

    def _tokens(self, running: int | None, size: int) -> int:
        """How many tokens a chunk has: as the server counts, if that can be; else one."""
        if not self._counts or running is None:
            return 1
        new, self._told = running - self._told, max(self._told, running)
        return new if 1 <= new <= max(1, size) else 1

    def _add_call(self, part: CallPart) -> None:
        index = part.index if part.index is not None else max(self._calls, default=0)
        if part.id and index in self._calls and part.index is None:
            index += 1  # servers that give no index send each call whole
        known = self._calls.get(index, ToolUse("", "", ""))
        function = part.function or FunctionPart()
        self._calls[index] = ToolUse(
            known.id or part.id or "",
            known.name or function.name or "",
            known.arguments + (function.arguments or ""),
        )

    def tool_calls(self) -> tuple[ToolUse, ...]:
        """The calls that the model asks for; ValueError for one without a name."""
        found = []
        for index, call in sorted(self._calls.items()):
            if not call.name:
                raise ValueError("a tool call has no name")
            found.append(ToolUse(call.id or f"call_{index}", call.name, call.arguments or "{}"))
        return tuple(found)
