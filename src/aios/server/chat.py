"""OpenAI's chat completions as data: what comes in, what goes out.

Fields of a request that are not named here are ignored (user, metadata, store, penalties…): they
change nothing that this system does. Fields of an answer are there even when they say nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

ToolName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]

# --- the request ----------------------------------------------------------------------------------


class Part(Struct, frozen=True):
    """A piece of a message; only text and refusal can be read here."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Function(Struct, frozen=True):
    name: str
    arguments: str


class ToolCallIn(Struct, frozen=True):
    id: str
    function: Function
    type: Literal["function"] = "function"


class ChatMessage(Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCallIn] | None = None
    tool_call_id: str | None = None


class FunctionSpec(Struct, frozen=True):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct, frozen=True):
    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(Struct, frozen=True):
    name: str


class NamedTool(Struct, frozen=True):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Struct, frozen=True):
    name: str
    schema: dict[str, Any] | None = None


class ResponseFormat(Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None


class ChatRequest(Struct, frozen=True):
    """``POST /v1/chat/completions``; top_k, min_p, ignore_eos and length_penalty are other servers'
    extensions, beams is ours (with it the temperature is 0 where none is given)."""

    model: Annotated[str, Meta(min_length=1, max_length=500)]
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    response_format: ResponseFormat | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    ignore_eos: bool | None = None
    beams: Annotated[int, Meta(ge=1, le=16)] | None = None
    length_penalty: Annotated[float, Meta(ge=-8, le=8)] | None = None


# --- the answer -----------------------------------------------------------------------------------

FinishReason = Literal["stop", "length", "tool_calls"]


class TopLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class Logprobs(Struct, frozen=True):
    content: list[TokenLogprob]
    refusal: None = None


class ToolCallOut(Struct, frozen=True):
    id: str
    function: Function
    type: Literal["function"] = "function"
    index: int | UnsetType = UNSET  # in a stream only


class Answer(Struct, frozen=True):
    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    annotations: tuple[()] = ()
    tool_calls: list[ToolCallOut] | UnsetType = UNSET


class Choice(Struct, frozen=True):
    index: int
    message: Answer
    finish_reason: FinishReason
    logprobs: Logprobs | None = None


class PromptDetails(Struct, frozen=True):
    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionDetails(Struct, frozen=True):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class ChatUsage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails = PromptDetails()
    completion_tokens_details: CompletionDetails = CompletionDetails()


class Completion(Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage
    system_fingerprint: str
    object: Literal["chat.completion"] = "chat.completion"
    service_tier: Literal["default"] = "default"


class ChatDelta(Struct, frozen=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: None | UnsetType = UNSET
    tool_calls: list[ToolCallOut] | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True):
    index: int
    delta: ChatDelta
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


class Chunk(Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    usage: ChatUsage | None | UnsetType = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    service_tier: Literal["default"] = "default"


class Model(Struct, frozen=True):
    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "aios"


class Models(Struct, frozen=True):
    data: list[Model]
    object: Literal["list"] = "list"


class OpenAIError(Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Struct, frozen=True):
    error: OpenAIError
