"""OpenAICore: a model behind ``POST /chat/completions``. Nothing heavy is imported here.

One stream: through the gate, the request, the chunks as they come. Nothing is ever sent twice,
except what a server has refused before it made a token: for a while (429, 503) or for a field that
it does not take.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from aios.drivers.cores.gate import PARKING, Gate
from aios.drivers.cores.openai import wire
from aios.drivers.cores.openai.dialects import DIALECTS, Dialect
from aios.drivers.cores.openai.discovery import (
    Questions,
    ServerFacts,
    authorization,
    check_address,
    client,
    look,
    place,
    unreachable,
)
from aios.drivers.cores.openai.failures import (
    Told,
    is_out_of_money,
    quote,
    read,
    refusal,
    told,
    unsupported,
)
from aios.drivers.cores.remote.core import RemoteCore
from aios.drivers.cores.remote.upstream import Asked, End, Piece
from aios.errors import CoreFailed, CoreRefused, CoreTimeout
from aios.ports import Abilities, Prompt

if TYPE_CHECKING:
    import httpx2

UNKNOWN_WINDOW = 32_768  # tokens, where neither the server nor its configuration says
PASSES = 6  # times that one call is parked before its caller hears of it
MEASURED = 256  # prompts whose length is kept: a window is measured before its call is admitted
LARGEST_ERROR = 64 << 10  # bytes that are read of a refusal
USAGE_S = 0.5  # for what follows the last token: usage is told at once or never
CLOSE_S = 0.05  # for the end of the body after that: then the connection can be used again


class OpenAICore(RemoteCore):
    """A model of an OpenAI-compatible server.

    *url* goes up to and with ``/v1``; *model* is the server's name for it ("": the first one that
    it serves), *name* the kernel's. *key* is asked for at every request. What is None is found out
    at the start: slots, context_tokens, and whether it continues an answer from its text, which
    makes it preemptible. *priority* is the sign of its priorities if they differ from its kind's:
    1 where the lowest goes first, -1 where the highest does, 0 to send none. *stall_s* is how long
    a server may say nothing at all.

    Prompts are measured by llama-server and vLLM exactly; for others it is an estimate of four
    bytes a token, and what they tell at the end of an answer is what it took.
    """

    def __init__(
        self,
        url: str,
        model: str,
        name: str,
        *,
        gate: Gate,
        key: Callable[[], str | None] | None = None,
        slots: int | None = None,
        context_tokens: int | None = None,
        continues: bool | None = None,
        priority: int | None = None,
        connect_s: float = 5.0,
        stall_s: float = 60.0,
    ) -> None:
        self.server = Server(
            check_address(url),
            model,
            name,
            gate=gate,
            key=key or (lambda: None),
            slots=slots,
            context_tokens=context_tokens,
            continues=continues,
            priority=priority,
            connect_s=connect_s,
            stall_s=stall_s,
        )
        super().__init__(name, self.server)

    async def health(self) -> ServerFacts:
        """What the server says of itself now; an error if it says nothing."""
        return await self.server.look()


class Server:
    """The upstream of an OpenAICore; its parameters are described there."""

    def __init__(
        self,
        url: str,
        model: str,
        name: str,
        *,
        gate: Gate,
        key: Callable[[], str | None],
        slots: int | None,
        context_tokens: int | None,
        continues: bool | None,
        priority: int | None,
        connect_s: float,
        stall_s: float,
    ) -> None:
        self._url, self._model, self._name = url, model, name
        self._gate, self._key = gate, key
        self._slots, self._context_tokens, self._continues = slots, context_tokens, continues
        self._priority = priority
        self._connect_s, self._stall_s = connect_s, stall_s
        self.place = place(url)
        self.facts: ServerFacts | None = None
        self._dialect = Dialect()
        self._measured: dict[bytes, int] = {}
        self._refused: frozenset[str] = frozenset()  # fields that it does not take
        self._http: httpx2.AsyncClient | None = None
        self._abilities: Abilities | None = None

    def __repr__(self) -> str:
        kind = self.facts.kind if self.facts else "not started"
        return f"<server {self.place}: {self._model or 'its first model'}, {kind}>"

    async def start(self) -> Abilities:
        if self._abilities is None:
            try:
                self._abilities = await self._find_out()
            except BaseException:  # cancelled, too: nobody closes what has not started
                await self.close()
                raise
        return self._abilities

    async def _find_out(self) -> Abilities:
        facts = await self.look()
        names = [model.name for model in facts.models]
        if not self._model and names:
            self._model = names[0]
        if names and self._model not in names and facts.kind != "llama.cpp":  # that has but one
            raise self._no_model(names)
        self._dialect = DIALECTS[facts.kind]
        if self._priority is not None:
            self._dialect = msgspec.structs.replace(self._dialect, priority=self._priority)
        continues = facts.continues if self._continues is None else self._continues
        known = facts.model(self._model) or (facts.models[0] if facts.models else None)
        window = self._context_tokens or (known.context_tokens if known else 0)
        return Abilities(
            model=self._name,
            slots=self._slots or facts.slots or self._dialect.slots,
            context_tokens=window or UNKNOWN_WINDOW,
            preemptible=continues,
            exact_snapshots=False,
            shared_fate=False,
        )

    async def close(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    async def look(self) -> ServerFacts:
        self.facts = await look(self._questions())
        return self.facts

    def _client(self) -> httpx2.AsyncClient:
        if self._http is None:
            self._http = client(self._url, self._connect_s, self._stall_s)
        return self._http

    def _questions(self) -> Questions:
        return Questions(self._client(), self._url, self._key, self._stall_s)

    def _no_model(self, names: list[str]) -> CoreRefused:
        there = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if names[20:] else "")
        return CoreRefused(
            f"{self.place} has no model {self._model!r}; it has {there or 'none'}: "
            "choose one of these."
        )

    def _is_plain(self, prompt: Prompt) -> bool:
        """Whether its tools must be told as text."""
        return bool(prompt.tools) and self.facts is not None and not self.facts.knows_tools

    # --- measuring --------------------------------------------------------------------------------

    async def measure(self, prompt: Prompt) -> int:
        """Exact where the server counts and answers; else an estimate, four bytes a token.

        That nobody answers is for the stream to tell: the gate is in front of that.
        """
        said = (prompt.messages, prompt.tools, prompt.tool_choice)
        asked = hashlib.blake2b(msgspec.json.encode(said)).digest()
        if asked in self._measured:
            return self._measured[asked]
        tokens: Any = None
        if self._gate.breaker == "closed":
            try:
                tokens = await self._counted(prompt)
            except (CoreFailed, CoreTimeout):
                pass
        if not isinstance(tokens, int) or tokens < 1:
            return wire.estimate(prompt)
        while len(self._measured) >= MEASURED:
            del self._measured[next(iter(self._measured))]
        self._measured[asked] = tokens
        return tokens

    async def _counted(self, prompt: Prompt) -> Any:
        """What the server counts, if it has a way to ask for that."""
        said: dict[str, Any] = {"messages": [wire.message(one) for one in prompt.messages]}
        if self._is_plain(prompt):
            from aios.drivers.cores.openai import plain  # brings the grammars with it

            said["messages"] = plain.messages(prompt)
        elif prompt.tools:
            said["tools"] = wire.tools(prompt)
        questions, kind = self._questions(), self.facts.kind if self.facts else "unknown"
        if kind == "vllm":
            return (await questions.json("/tokenize", {"model": self._model, **said})).get("count")
        if kind != "llama.cpp":
            return None
        text = (await questions.json("/apply-template", said)).get("prompt")
        if not isinstance(text, str):
            return None
        asked = {"content": text, "add_special": True, "parse_special": True}
        tokens = (await questions.json("/tokenize", asked)).get("tokens")
        return len(tokens) if isinstance(tokens, list) else None

    # --- one stream -------------------------------------------------------------------------------

    async def stream(self, asked: Asked) -> AsyncGenerator[Piece | End, None]:
        served = asked.model
        calls_in_text = None
        if self._is_plain(asked.prompt):
            from aios.drivers.cores.openai import plain

            calls_in_text = plain.Calls(asked.prompt, secrets.token_hex(8))
        answer = wire.Answer(counts=self._dialect.running_usage)
        async with (
            self._answer(asked) as response,
            aclosing(self._chunks(response, answer)) as chunks,
        ):
            try:
                async for part in chunks:
                    if part.error is not None:
                        raise self._broken(told(part.error))
                    if part.model:
                        served = served or part.model
                        if part.model != served:
                            raise CoreFailed(
                                f"{self.place} changed its model in the middle of an answer, from "
                                f"{served!r} to {part.model!r}; ask again for the whole."
                            )
                    piece = answer.add(part)
                    if answer.broken is not None:
                        raise self._broken(Told(answer.broken))
                    if piece is not None:
                        yield calls_in_text.take(piece) if calls_in_text else piece
                if answer.reason is None:
                    raise CoreFailed(
                        f"{self.place} ended a stream before the answer's end; "
                        "see whether it still runs."
                    )
                calls = answer.tool_calls()
                if calls_in_text is not None:
                    rest, calls = calls_in_text.end()
                    yield rest
            except ValueError as error:
                said = quote(str(error), self._key())
                raise CoreFailed(
                    f"{self.place} answers with something else than a chat completion's stream: "
                    f"{said}; see what runs there."
                ) from None
        reason = "tool_calls" if calls and answer.reason == "stop" else answer.reason
        yield End(reason, calls, answer.spent)

    async def _chunks(
        self, response: httpx2.Response, answer: wire.Answer
    ) -> AsyncGenerator[wire.Chunk, None]:
        """Until the end; an answer that is whole is not lost when what follows it is not."""
        import httpx2

        events, received = wire.Events(), response.aiter_bytes()
        patience_s: float | None = None  # until the answer is whole, the pool's own
        while True:
            try:
                async with asyncio.timeout(patience_s):
                    part = await anext(received, None)
            except TimeoutError:
                return
            except (httpx2.HTTPError, httpx2.StreamError) as error:
                if answer.reason is None:
                    raise unreachable(error, self.place, self._stall_s) from None
                return
            for data in events.feed(part) if part is not None else events.rest():
                if data == b"[DONE]":
                    patience_s = CLOSE_S
                else:
                    yield wire.chunk(data)
            if part is None:
                return
            if patience_s is None and answer.reason is not None:
                patience_s = USAGE_S

    def _broken(self, error: Told) -> CoreFailed:
        said = quote(error.message, self._key())
        return CoreFailed(f"{self.place} broke an answer off: {said or 'it did not say why'}.")

    @asynccontextmanager
    async def _answer(self, asked: Asked) -> AsyncIterator[httpx2.Response]:
        """The response whose body is the stream; refusals are read, and waited for at the gate."""

        passes = 0
        while True:
            key = self._key()
            body = wire.body(self._model, asked, self._dialect, self._refused)
            if self._is_plain(asked.prompt):
                from aios.drivers.cores.openai import plain

                body = plain.body(body, asked.prompt)
            headers = authorization(key, self.place)
            headers |= {"Content-Type": "application/json", "Accept": "text/event-stream"}
            if asked.prompt.session and self._dialect.session_header:
                headers["X-Session-ID"] = _header(asked.prompt.session)
            request = self._client().build_request(
                "POST",
                f"{self._url}/chat/completions",
                content=msgspec.json.encode(body),
                headers=headers,
            )
            response, refused = await self._send(request, asked)
            if refused is None:
                try:
                    yield response
                finally:
                    await response.aclose()
                return
            status = response.status_code
            field = unsupported(status, refused)
            if field is not None and field in body:
                self._refused |= {field}
                continue
            if status in PARKING and not is_out_of_money(refused):
                passes += 1
                if passes < PASSES:
                    continue
            if status == 404:
                await self._explain()
            raise refusal(status, refused, self.place, self._model, key)

    async def _send(
        self, request: httpx2.Request, asked: Asked
    ) -> tuple[httpx2.Response, Told | None]:
        """Through the gate: an open response, or a closed one and what it says."""
        import httpx2

        with await self._gate.enter(asked.prompt_tokens, asked.max_tokens or 0) as passage:
            try:
                response = await self._client().send(request, stream=True)
            except (httpx2.HTTPError, httpx2.StreamError) as error:
                passage.failed()
                raise unreachable(error, self.place, self._stall_s) from None
            if response.status_code == 200:
                passage.answered(200, response.headers)
                return response, None
            try:
                refused = read(await self._refusal(response))
            finally:
                await response.aclose()
            is_paid_for = response.status_code != 429 or not is_out_of_money(refused)
            # nobody else's call need wait for a bill
            passage.answered(response.status_code if is_paid_for else 402, response.headers)
            return response, refused

    async def _refusal(self, response: httpx2.Response) -> bytes:
        import httpx2

        received = bytearray()
        try:
            async for part in response.aiter_bytes():
                received += part
                if len(received) > LARGEST_ERROR:
                    break
        except (httpx2.HTTPError, httpx2.StreamError):
            pass  # its status says enough
        return bytes(received)

    async def _explain(self) -> None:
        """A 404: the model that is gone, if it is that."""
        _, entries = await self._questions().models()
        names = [entry["id"] for entry in entries]
        if self._model not in names:
            raise self._no_model(names)


def _header(session: str) -> str:
    """A session's name as a header can carry it."""
    return "".join(c if c.isascii() and c.isprintable() else "_" for c in session)[:200]
