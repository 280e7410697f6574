"""ProviderCore: a model of a cloud provider with a wire format of its own (Anthropic, Google, …).

The formats are those of pydantic-ai, the library of the extra ``[providers]``; it is imported when
the core starts. Everything else is as for other remote cores: one stream a sequence, through the
gate of this provider and key, and the library itself tries nothing again.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import warnings
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import msgspec

from aios.abi.messages import FinishReason, Message, ToolUse
from aios.drivers.cores.gate import PARKING, Gate
from aios.drivers.cores.openai.failures import Told, is_out_of_money, quote, refusal, told
from aios.drivers.cores.openai.wire import estimate
from aios.drivers.cores.remote.core import RemoteCore
from aios.drivers.cores.remote.upstream import Asked, End, Piece
from aios.errors import AiosError, CoreFailed, CoreRefused, CoreTimeout, InvalidCall
from aios.ports import UNKNOWN, Abilities, Prompt, Spent

if TYPE_CHECKING:
    import httpx2
    from pydantic_ai.messages import ModelMessage, ModelResponseStreamEvent
    from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
    from pydantic_ai.settings import ModelSettings

UNKNOWN_WINDOW = 128_000  # tokens, where neither the library nor the configuration knows
SLOTS = 16
PASSES = 6  # times that one call is parked before its caller hears of it
TOKEN = 4  # bytes, about: providers send several tokens at once and count at the end
ANSWER = "answer"  # the tool whose arguments are the answer, for models without JSON schemas
REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "stop",
    "tool_call": "tool_calls",
}


class ProviderCore(RemoteCore):
    """A model by the library's name for it: ``anthropic:claude-…``, ``google:gemini-…``.

    *url* is another address of the same API. *continues* says that this model goes on from an
    assistant's turn that is given last, which makes the core preemptible; most do not. What is None
    is looked up in the library. What a provider does not take is left out: some models have no
    temperature, some no seed. Prompts are measured by an estimate of four bytes a token, and so
    are answers until their end, when the provider tells what it took.
    """

    def __init__(
        self,
        model: str,
        name: str,
        *,
        gate: Gate,
        key: Callable[[], str | None],
        url: str | None = None,
        slots: int | None = None,
        context_tokens: int | None = None,
        continues: bool = False,
        connect_s: float = 5.0,
        stall_s: float = 60.0,
    ) -> None:
        if ":" not in model:
            raise InvalidCall(
                f"a provider's model is named like anthropic:claude-sonnet-5, not {model!r}."
            )
        abilities = Abilities(
            model=name,
            slots=slots or SLOTS,
            context_tokens=context_tokens or 0,
            preemptible=continues,
            exact_snapshots=False,
            shared_fate=False,
        )
        super().__init__(
            name, Provider(model, abilities, gate, key, url, connect_s=connect_s, stall_s=stall_s)
        )


class Provider:
    """The upstream of a ProviderCore."""

    def __init__(
        self,
        model: str,
        abilities: Abilities,
        gate: Gate,
        key: Callable[[], str | None],
        url: str | None,
        *,
        connect_s: float,
        stall_s: float,
    ) -> None:
        self.place, _, self._model_name = model.partition(":")
        self._abilities, self._gate, self._key, self._url = abilities, gate, key, url
        self._connect_s, self._stall_s = connect_s, stall_s
        self._http: httpx2.AsyncClient | None = None
        self._headers: dict[str, str] = {}  # of the last answer
        self._model: Model[Any] | None = None
        self._key_in_use: str | None = None

    def __repr__(self) -> str:
        return f"<provider {self.place}: {self._model_name}>"

    async def start(self) -> Abilities:
        if self._model is not None:
            return self._abilities
        try:
            await asyncio.to_thread(_import, self.place)  # a second or two
        except ImportError as error:
            raise CoreRefused(
                f"{self.place} needs a library that is not here ({error.name}); install aios with "
                "its extra [providers]."
            ) from None
        model = self._with_key()
        if not self._abilities.context_tokens:
            window = model.profile.get("context_window") or UNKNOWN_WINDOW
            self._abilities = msgspec.structs.replace(self._abilities, context_tokens=window)
        return self._abilities

    async def close(self) -> None:
        http, self._http, self._model = self._http, None, None
        if http is not None:
            await http.aclose()

    async def measure(self, prompt: Prompt) -> int:
        """An estimate, four bytes a token."""
        return estimate(prompt)

    def _with_key(self) -> Model[Any]:
        """The library's model, built anew when the key is another one."""
        from pydantic_ai.exceptions import UserError
        from pydantic_ai.models import infer_model
        from pydantic_ai.providers import infer_provider_class

        key = self._key()
        if not key:
            raise CoreRefused(f"{self.place} needs a key, and none is set; set one for it.")
        if self._model is not None and key == self._key_in_use:
            return self._model

        def provider(name: str) -> Any:
            kind = infer_provider_class(name)
            offered: dict[str, Any] = {"api_key": key, "base_url": self._url}
            takes = inspect.signature(kind).parameters
            if "http_client" in takes and takes["http_client"].annotation in _httpx2_names():
                offered["http_client"] = self._client()
            return kind(**{n: v for n, v in offered.items() if n in takes and v is not None})

        try:
            model: Model[Any] = infer_model(f"{self.place}:{self._model_name}", provider)
        except (UserError, ValueError) as error:
            raise CoreRefused(
                f"{self.place}:{self._model_name} is no model that the library of providers knows: "
                f"{quote(str(error), key)}."
            ) from None
        self._model, self._key_in_use = model, key
        return model

    def _client(self) -> httpx2.AsyncClient:
        """One whose answers are heard: their headers tell the gate what is left."""
        import httpx2

        if self._http is None:

            async def hear(response: httpx2.Response) -> None:
                self._headers = dict(response.headers)

            self._http = httpx2.AsyncClient(
                timeout=httpx2.Timeout(self._stall_s, connect=self._connect_s),
                event_hooks={"response": [hear]},
            )
        return self._http

    # --- one stream -------------------------------------------------------------------------------

    async def stream(self, asked: Asked) -> AsyncGenerator[Piece | End, None]:
        async with AsyncExitStack() as stack:
            opened = await self._open(asked, stack)
            pieces = Pieces(is_schema=asked.prompt.schema is not None)
            events = aiter(opened)
            while True:
                try:
                    async with asyncio.timeout(self._stall_s):
                        event = await anext(events, None)
                except TimeoutError:
                    raise CoreTimeout(
                        f"{self.place} said nothing for {self._stall_s:g} s; try again later."
                    ) from None
                except Exception as error:  # noqa: BLE001 (see _failure)
                    raise self._failure(error) from None
                if event is None:
                    break
                if (piece := pieces.add(event)) is not None:
                    yield piece
            yield self._end(opened, pieces)

    async def _open(self, asked: Asked, stack: AsyncExitStack) -> StreamedResponse:
        """Through the gate, as often as it takes."""
        from pydantic_ai.direct import model_request_stream

        passes = 0
        while True:
            model = self._with_key()
            said, settings, parameters = _request(asked, model)
            settings["timeout"] = self._stall_s
            with await self._gate.enter(asked.prompt_tokens, asked.max_tokens or 0) as passage:
                try:
                    opened = await stack.enter_async_context(
                        model_request_stream(
                            model,
                            said,
                            model_settings=settings,
                            model_request_parameters=parameters,
                        )
                    )
                except Exception as error:  # noqa: BLE001 (see _failure)
                    status, refused = _status(error), _told(error)
                    if status is None:
                        passage.failed()
                        raise self._failure(error) from None
                    is_paid_for = not is_out_of_money(refused)
                    headers = getattr(error, "headers", None) or {}
                    passage.answered(status if is_paid_for else 402, headers)
                    passes += 1
                    if status not in PARKING or not is_paid_for or passes >= PASSES:
                        raise self._failure(error) from None
                    continue
                passage.answered(200, self._headers)
                return opened

    def _end(self, opened: StreamedResponse, pieces: Pieces) -> End:
        from pydantic_ai.messages import ToolCallPart

        response = opened.get()
        reason = REASONS.get(response.finish_reason or "")
        if reason is None or response.state != "complete":
            raise CoreFailed(f"{self.place} ended a stream before the answer's end; try again.")
        calls = tuple(
            ToolUse(part.tool_call_id, part.tool_name, part.args_as_json_str())
            for part in response.parts
            if isinstance(part, ToolCallPart)
        )
        if pieces.is_schema and any(call.name == ANSWER for call in calls):
            reason = "stop" if reason == "tool_calls" else reason
            calls = tuple(call for call in calls if call.name != ANSWER)
        usage = opened.usage
        spent = Spent(usage.input_tokens, usage.output_tokens, usage.cache_read_tokens)
        return End(reason, calls, spent if usage.output_tokens or usage.input_tokens else None)

    def _failure(self, error: Exception) -> AiosError:
        """Whatever a library of many providers raises is one of three things here: a refusal, a
        request that it cannot put into their words, or a provider that does not answer."""
        from pydantic_ai.exceptions import ModelTimeoutError, UserError

        if isinstance(error, AiosError):
            return error
        status = _status(error)
        if status is not None:
            return refusal(status, _told(error), self.place, self._model_name, self._key_in_use)
        said = quote(str(error), self._key_in_use)
        if isinstance(error, UserError):
            return InvalidCall(f"{self.place}:{self._model_name} cannot be asked this: {said}.")
        if isinstance(error, ModelTimeoutError):
            return CoreTimeout(
                f"{self.place} said nothing for {self._stall_s:g} s; try again later."
            )
        return CoreFailed(f"{self.place} broke off ({type(error).__name__}): {said}; try again.")


class Pieces:
    """The library's events as pieces; with *is_schema* a tool's arguments may be the answer."""

    def __init__(self, *, is_schema: bool) -> None:
        self.is_schema = is_schema
        self._answers: set[int] = set()  # which parts are

    def add(self, event: ModelResponseStreamEvent) -> Piece | None:
        from pydantic_ai import messages as m

        if isinstance(event, m.PartStartEvent):
            part = event.part
            if isinstance(part, m.TextPart):
                return _piece(part.content)
            if isinstance(part, m.ThinkingPart):
                return _piece(part.content, is_open=True)
            if isinstance(part, m.ToolCallPart):
                if self.is_schema and part.tool_name == ANSWER:
                    self._answers.add(event.index)
                return self._arguments(event.index, part.args)
        if isinstance(event, m.PartDeltaEvent):
            delta = event.delta
            if isinstance(delta, m.TextPartDelta):
                return _piece(delta.content_delta)
            if isinstance(delta, m.ThinkingPartDelta):
                return _piece(delta.content_delta or "", is_open=True)
            if isinstance(delta, m.ToolCallPartDelta):
                return self._arguments(event.index, delta.args_delta)
        return None

    def _arguments(self, index: int, arguments: Any) -> Piece | None:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or None)
        if text in ("", "null"):
            return None
        return _piece(text, is_open=index not in self._answers)


def _piece(text: str, *, is_open: bool = False) -> Piece | None:
    if not text:
        return None
    ids = (UNKNOWN,) * -(-len(text.encode()) // TOKEN)
    return Piece("" if is_open else text, ids, is_open=is_open)


# --- our words in the library's -------------------------------------------------------------------


def _import(provider: str) -> None:
    """All that a start needs, in a thread: it takes a second."""
    from pydantic_ai import UnsupportedSettingWarning
    from pydantic_ai.direct import model_request_stream  # noqa: F401 (it brings all the rest)
    from pydantic_ai.providers import infer_provider_class

    # what a provider does not take is in ProviderCore's description; nobody reads warnings here
    warnings.filterwarnings("ignore", category=UnsupportedSettingWarning)
    warnings.filterwarnings("ignore", message="Sampling parameters", category=UserWarning)
    try:
        infer_provider_class(provider)
    except ValueError:
        raise CoreRefused(
            f"there is no provider {provider!r} in the library of providers; "
            "name one like anthropic or google."
        ) from None


def _httpx2_names() -> tuple[str, ...]:
    """How the library's providers say that they take a client of httpx2."""
    return ("httpx2.AsyncClient | None", "AsyncHTTPClient | None")


def _request(
    asked: Asked, model: Model[Any]
) -> tuple[list[ModelMessage], ModelSettings, ModelRequestParameters]:
    from pydantic_ai.messages import ModelResponse, TextPart
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.output import OutputObjectDefinition
    from pydantic_ai.settings import ModelSettings
    from pydantic_ai.tools import ToolDefinition

    prompt, sampling = asked.prompt, asked.prompt.sampling
    said = _messages(prompt.messages)
    if asked.text:
        said.append(ModelResponse(parts=[TextPart(asked.text)]))
    settings = ModelSettings(
        temperature=sampling.temperature, max_retries=0, framing_announcement="never"
    )
    if asked.max_tokens is not None:
        settings["max_tokens"] = asked.max_tokens
    if sampling.top_p != 1:
        settings["top_p"] = sampling.top_p
    if sampling.top_k:
        settings["top_k"] = sampling.top_k
    if sampling.seed is not None and not sampling.drawn:
        settings["seed"] = sampling.seed % 2**31
    if sampling.stop:
        settings["stop_sequences"] = list(sampling.stop)
    if sampling.logit_bias:  # their tokens are their own affair
        raise InvalidCall(
            f"{model.model_name} takes no logit_bias: leave it out, or choose another core."
        )
    parameters = ModelRequestParameters(
        function_tools=[
            ToolDefinition(
                name=tool.name,
                parameters_json_schema=tool.parameters,
                description=tool.description,
            )
            for tool in prompt.tools
        ]
    )
    if prompt.tools and prompt.tool_choice == "required":
        settings["tool_choice"] = "required"
    elif prompt.tools and prompt.tool_choice == "none":
        settings["tool_choice"] = "none"
    elif prompt.tools and prompt.tool_choice != "auto":
        settings["tool_choice"] = [prompt.tool_choice]
    if prompt.schema is not None:
        if model.profile.get("supports_json_schema_output"):
            parameters.output_mode = "native"
            parameters.output_object = OutputObjectDefinition(prompt.schema, name=ANSWER)
        else:
            parameters.function_tools.append(
                ToolDefinition(
                    name=ANSWER,
                    parameters_json_schema=prompt.schema,
                    description="Give the answer with this.",
                )
            )
            settings["tool_choice"] = [ANSWER]
    return said, settings, parameters


def _messages(said: Sequence[Message]) -> list[ModelMessage]:
    from pydantic_ai import messages as m

    found: list[ModelMessage] = []
    names: dict[str, str] = {}  # of tools, by the id of their call
    for one in said:
        if one.role == "assistant":
            parts: list[m.ModelResponsePart] = [m.TextPart(one.content)] if one.content else []
            for call in one.tool_calls:
                names[call.id] = call.name
                parts.append(m.ToolCallPart(call.name, call.arguments, tool_call_id=call.id))
            found.append(m.ModelResponse(parts=parts))
            continue
        part: m.ModelRequestPart
        if one.role == "system":
            part = m.SystemPromptPart(one.content)
        elif one.role == "tool":
            identity = one.tool_call_id or ""
            name = names.get(identity, one.name or "tool")
            part = m.ToolReturnPart(name, one.content, tool_call_id=identity)
        else:
            part = m.UserPromptPart(one.content)
        if found and isinstance(found[-1], m.ModelRequest):
            found[-1] = m.ModelRequest(parts=[*found[-1].parts, part])
        else:
            found.append(m.ModelRequest(parts=[part]))
    return found


def _status(error: Exception) -> int | None:
    """The HTTP status of a refusal, if it is one."""
    from pydantic_ai.exceptions import ModelHTTPError

    return error.status_code if isinstance(error, ModelHTTPError) else None


def _told(error: Exception) -> Told:
    body = getattr(error, "body", None)
    return told(body) if isinstance(body, dict) else Told(str(body or error))
