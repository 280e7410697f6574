"""OpenAI's API over the one door: a chat completion is a Generate that carries its own context."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from aios.abi import wire
from aios.abi.calls import Call, Embedding, Generate, Generation, Reply
from aios.abi.messages import Delta
from aios.config import Server
from aios.errors import AiosError, NotFound
from aios.kernel.kernel import Kernel
from aios.server import answers, chat, embeddings, questions
from aios.server.chat import ChatRequest, Chunk
from aios.server.exchange import Exchange
from aios.server.failures import failure
from aios.server.stream import EventStream


class OpenAI:
    """The handlers under /v1."""

    def __init__(self, kernel: Kernel, config: Server) -> None:
        self._kernel, self._config = kernel, config
        self._created = int(time.time())
        self.routes: dict[str, dict[str, Callable[[Exchange], Awaitable[None]]]] = {
            "/v1/chat/completions": {"POST": self.chat},
            "/v1/embeddings": {"POST": self.embeddings},
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
        request = questions.read(await exchange.body())
        call = questions.generate(request)
        calls = [call] if (request.n or 1) == 1 else questions.choices(call, request.n or 1)
        about = answers.About(request.model)
        if request.stream:
            await self._stream(exchange, request, calls, about)
            return
        made = await exchange.attended(self._all(exchange.pid, calls, [None] * len(calls)))
        await exchange.answer(wire.encode(answers.completion(made, about)))

    async def embeddings(self, exchange: Exchange) -> None:
        request = embeddings.read(await exchange.body())
        made = await exchange.attended(self._kernel.trap(exchange.pid, embeddings.embed(request)))
        assert isinstance(made, Embedding)
        await exchange.answer(wire.encode(embeddings.answer(request, made)))

    async def _stream(
        self,
        exchange: Exchange,
        request: ChatRequest,
        calls: Sequence[Generate],
        about: answers.About,
    ) -> None:
        options = request.stream_options
        telling = answers.Telling(
            about, with_usage=options is not None and bool(options.include_usage)
        )
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


def _data(chunk: Chunk) -> bytes:
    return b"data: %s\n\n" % wire.encode(chunk)


def _failed(error: AiosError) -> bytes:
    return b"data: %s\n\n" % failure(error, openai=True).body
