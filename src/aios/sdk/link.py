"""The line to the kernel: calls out as JSON over HTTP, replies, deltas and events back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, TypeVar

import httpx2
import msgspec
from msgspec import Struct

from aios.abi import wire
from aios.abi.calls import (
    Call,
    Generation,
    GetAid,
    GetContext,
    GetLog,
    GetPriority,
    GetScheduler,
    GetStatus,
    GetTranscript,
    GetUsage,
    KeyList,
    ListAgents,
    Reply,
    ToolList,
)
from aios.abi.events import Event
from aios.abi.messages import Delta
from aios.errors import AiosError, ConnectionLost, NotRunning, from_code
from aios.sdk import place
from aios.sdk.address import Address, not_running

R = TypeVar("R", bound=Reply)

CONNECT_S = 5.0  # a local socket answers in microseconds or not at all
KEEP_S = 2.0  # idle connections; less than the server keeps them, so none is found closed
RECONNECT_S = 30.0  # a kernel that restarts is back within this, or the program ends

# asking again changes nothing, so a lost answer is asked for again
READS = frozenset(
    {
        GetAid,
        GetContext,
        GetLog,
        GetPriority,
        GetScheduler,
        GetStatus,
        GetTranscript,
        GetUsage,
        KeyList,
        ListAgents,
        ToolList,
    }
)


class _Error(Struct):
    code: str
    message: str


class _Refusal(Struct):
    error: _Error


class Link:
    """One pool of connections to one kernel; any number of calls at once, each with its key."""

    def __init__(self, address: Address, session: str | None = None) -> None:
        self.address = address
        self._headers = {"X-Session-ID": session} if session else {}
        self._reached = False
        socket = address.socket
        self._http = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(
                uds=socket,
                limits=httpx2.Limits(max_keepalive_connections=64, keepalive_expiry=KEEP_S),
            ),
            base_url="http://aios" if socket else address.url,
            # a call may wait for hours, so reading has no limit: timeout_s of the call bounds it
            timeout=httpx2.Timeout(None, connect=CONNECT_S),
            trust_env=False,
        )

    def __repr__(self) -> str:
        return f"<Link {self.address.url}>"

    async def trap(self, call: Call, kind: type[R], key: str) -> R:
        """Have the kernel carry out *call*; what it refuses is raised as it names it."""
        content = wire.encode(call)
        again = type(call) in READS
        response = await self._request("POST", "/api/trap", key, content=content, again=again)
        return wire.decode(response.content, kind)

    async def stream(self, call: Call, key: str) -> AsyncGenerator[Delta | Generation, None]:
        """The deltas of a generation, then the generation."""
        async for name, data in self._events("POST", "/api/stream", key, content=wire.encode(call)):
            if name == "delta":
                yield wire.decode(data, Delta)
            elif name == "reply":
                yield wire.decode(data, Generation)
                return
        raise ConnectionLost("the kernel ended a stream before its last event: ask again.")

    async def events(
        self, key: str, *, after: int = 0, aid: int | None = None, follow: bool = True
    ) -> AsyncGenerator[Event, None]:
        """What happened after event number *after*, and with follow what happens from now on."""
        query = {"after": str(after), "follow": str(follow).lower()}
        if aid is not None:
            query["aid"] = str(aid)
        async for name, data in self._events("GET", "/api/events", key, params=query):
            if name != "end":
                yield wire.decode_event(data)

    async def get(self, path: str, key: str) -> Any:
        """A page of the native API as plain data: ``/api/status``, ``/api/doctor``."""
        return msgspec.json.decode((await self._request("GET", path, key, again=True)).content)

    async def post(self, path: str, key: str) -> Any:
        return msgspec.json.decode((await self._request("POST", path, key)).content)

    async def close(self) -> None:
        await self._http.aclose()

    async def _request(
        self, method: str, path: str, key: str, *, content: bytes | None = None, again: bool = False
    ) -> httpx2.Response:
        clock = asyncio.get_running_loop()
        until = clock.time() + RECONNECT_S
        pause_s = 0.05
        while True:
            try:
                with place.at(None):  # tasks that the HTTP library makes are not the program's
                    response = await self._http.request(
                        method, path, content=content, headers=self._with(key)
                    )
            except httpx2.TransportError as error:
                failure = self._explain(error)
                unsent = isinstance(failure, NotRunning)
                if not self._reached or not (unsent or again) or clock.time() + pause_s > until:
                    raise failure from error
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 1.0)
                continue
            self._reached = True
            if response.is_error:
                raise _refusal(response)
            return response

    async def _events(
        self, method: str, path: str, key: str, **request: Any
    ) -> AsyncGenerator[tuple[str, str], None]:
        try:
            with place.at(None):
                opened = self._http.stream(method, path, headers=self._with(key), **request)
                response = await opened.__aenter__()
            try:
                if response.is_error:
                    await response.aread()
                    raise _refusal(response)
                self._reached = True
                async for event in httpx2.EventSource(response, max_event_size=None):
                    if event.event == "error":
                        raise _error(event.data)
                    yield event.event, event.data
            finally:
                await opened.__aexit__(None, None, None)
        except httpx2.TransportError as error:
            raise self._explain(error) from error

    def _with(self, key: str) -> Mapping[str, str]:
        return {
            **self._headers,
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/json",
        }

    def _explain(self, error: httpx2.TransportError) -> AiosError:
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return not_running(self.address.where)
        return ConnectionLost(
            f"the connection to the kernel at {self.address.url} was lost in the middle of a call "
            f"({type(error).__name__}): see `aios status`, then ask again if that is safe."
        )


def _error(data: str | bytes) -> AiosError:
    error = msgspec.json.decode(data, type=_Refusal).error
    return from_code(error.code, error.message)


def _refusal(response: httpx2.Response) -> AiosError:
    try:
        return _error(response.content)
    except msgspec.DecodeError:
        return AiosError(
            f"{response.url} answered {response.status_code} without saying why: "
            "is this address a kernel's?"
        )
