"""Our own API: one door for every system call, streams, and a few plain pages to read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Annotated
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta, Struct

from aios.abi import wire
from aios.abi.calls import Generate, GenRestore, GetStatus, GetTranscript, ListAgents
from aios.abi.events import Event
from aios.abi.messages import Delta
from aios.config import Server
from aios.errors import AiosError, InvalidCall, PermissionDenied
from aios.kernel.kernel import VERSION, Kernel
from aios.server import edge, openapi
from aios.server.exchange import Exchange
from aios.server.failures import failure
from aios.server.stream import EventStream, event

EVENTS_OPEN_S = 0.1  # a follower wants to know that it is in, even if nothing happens


Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class EventsQuery(Struct, frozen=True):
    """What ``GET /api/events`` shows: events numbered above *after*, of one process or of all that
    the key may see, at most *limit*; *follow* stays for those to come."""

    after: Number = 0
    aid: Number | None = None
    follow: bool = False
    limit: Annotated[int, Meta(ge=1)] | None = None


class Native:
    """The handlers under /api."""

    def __init__(self, kernel: Kernel, config: Server, stop: Callable[[], None]) -> None:
        self._kernel, self._config, self._stop = kernel, config, stop
        self._openapi: bytes = b""  # made when somebody asks
        self.routes: dict[str, dict[str, Callable[[Exchange], Awaitable[None]]]] = {
            "/api/trap": {"POST": self.trap},
            "/api/stream": {"POST": self.stream},
            "/api/events": {"GET": self.events},
            "/api/processes": {"GET": self.processes},
            "/api/status": {"GET": self.status},
            "/api/doctor": {"GET": self.doctor},
            "/api/down": {"POST": self.down},
            "/api/openapi.json": {"GET": self.openapi},
        }
        self.folders = {"/api/processes/": self.process}

    async def trap(self, exchange: Exchange) -> None:
        """One system call, one reply."""
        call = wire.decode_call(await exchange.body())
        reply = await exchange.attended(self._kernel.trap(exchange.pid, call))
        await exchange.answer(wire.encode(reply))

    async def stream(self, exchange: Exchange) -> None:
        """A generation as it is made: delta events, then one reply or error."""
        call = wire.decode_call(await exchange.body())
        if not isinstance(call, Generate | GenRestore):
            raise InvalidCall("only generate and gen_restore can be streamed: use /api/trap.")
        async with EventStream(exchange, _failed, self._config.heartbeat_s) as stream:

            def put(delta: Delta) -> None:
                stream.put(event("delta", wire.encode(delta)))

            reply = await self._kernel.trap(exchange.pid, call, put)
            stream.put(event("reply", wire.encode(reply)))

    async def events(self, exchange: Exchange) -> None:
        """What happened, and with follow what happens; resumable by Last-Event-ID."""
        query = _events_query(exchange)
        happened = self._kernel.events(exchange.pid, query.after, query.follow, query.aid)
        left = query.limit
        stream = EventStream(exchange, _failed, self._config.heartbeat_s, EVENTS_OPEN_S)
        async with stream, aclosing(happened):
            async for one in happened:
                stream.put(_event(one))
                await stream.drain()
                if left is not None and (left := left - 1) <= 0:
                    break

    async def processes(self, exchange: Exchange) -> None:
        """All processes that the key may see; ``?all=true`` with those that have ended."""
        given = dict(parse_qsl(exchange.query.decode("latin-1")))
        call = ListAgents(all=given.get("all") == "true")
        await exchange.answer(wire.encode(await self._kernel.trap(exchange.pid, call)))

    async def process(self, exchange: Exchange) -> None:
        """/api/processes/7 or /api/processes/7/calls."""
        number, _, part = exchange.path.removeprefix("/api/processes/").partition("/")
        if not (number.isascii() and number.isdigit() and len(number) < 19) or part not in {
            "",
            "calls",
        }:
            raise edge.UnknownRoute(
                f"there is nothing at {exchange.path[:200]!r}: "
                "ask for /api/processes/PID or /api/processes/PID/calls."
            )
        aid = int(number)
        call = GetTranscript(aid=aid) if part else GetStatus(aid=aid)
        await exchange.answer(wire.encode(await self._kernel.trap(exchange.pid, call)))

    async def status(self, exchange: Exchange) -> None:
        await exchange.answer(wire.encode(await self._kernel.report()))

    async def doctor(self, exchange: Exchange) -> None:
        """The invariants that do not hold; an empty list is good health."""
        self._check_user(exchange)
        await exchange.answer(wire.encode({"problems": await self._kernel.check()}))

    async def down(self, exchange: Exchange) -> None:
        """Stop the daemon; the answer comes first."""
        await exchange.body()  # its content type keeps web pages out
        self._check_user(exchange)
        await exchange.answer(b'{"stopping":true}')
        self._stop()

    async def openapi(self, exchange: Exchange) -> None:
        self._openapi = self._openapi or openapi.document(VERSION)
        await exchange.answer(self._openapi)

    def _check_user(self, exchange: Exchange) -> None:
        if (
            self._kernel.processes.find(exchange.pid).parent is not None
        ):  # only a user's login has none
            raise PermissionDenied(
                f"{exchange.path} needs a user's key, and this is the key of process "
                f"{exchange.pid}: use the key that `aios up` made."
            )


def _event(one: Event) -> bytes:
    return event(str(one.__struct_config__.tag), wire.encode(one), one.seq)


def _failed(error: AiosError) -> bytes:
    return event("error", failure(error, openai=False).body)


def _events_query(exchange: Exchange) -> EventsQuery:
    given = dict(parse_qsl(exchange.query.decode("latin-1"), keep_blank_values=True))
    if last := exchange.headers.get(b"last-event-id"):
        given["after"] = last.decode("latin-1")
    try:
        return msgspec.convert(given, EventsQuery, strict=False)  # all of a query is text
    except msgspec.ValidationError as error:
        raise InvalidCall(f"the query {given!r} does not fit: {error}.") from error
