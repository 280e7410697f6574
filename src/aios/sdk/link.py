"""The line to the kernel: calls out as JSON over HTTP, replies, deltas and events back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import httpx2
import msgspec
from msgspec import Struct

from aios.abi import wire
from aios.abi.calls import (
    Call,
    ExitAgent,
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
    ListSnapshots,
    Reply,
    StoDiff,
    StoHistory,
    StoList,
    StoRead,
    StoSearch,
    ToolList,
    ToolNext,
    ToolRegister,
    ToolReturn,
)
from aios.abi.events import Event
from aios.abi.messages import Delta
from aios.errors import AiosError, ConnectionLost, NotRunning, Stopping, from_code
from aios.sdk import place
from aios.sdk.address import Address, not_running

R = TypeVar("R", bound=Reply)

CONNECT_S = 5.0  # a local socket answers in microseconds or not at all
KEEP_S = 2.0  # idle connections; less than the server keeps them, so none is found closed
RECONNECT_S = 30.0  # a kernel that restarts is back within this, or the program ends
PAUSE_S, PAUSES_S = 0.05, 1.0  # between attempts: the first one, and the longest

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
        ListSnapshots,
        StoDiff,
        StoHistory,
        StoList,
        StoRead,
        StoSearch,
        ToolList,
    }
)
# of a program that lives on while its kernel is started again: these may be said twice, too
SAID_AGAIN = frozenset({ExitAgent, ToolNext, ToolRegister, ToolReturn})


class _Error(Struct):
    code: str
    message: str


class _Refusal(Struct):
    error: _Error


class Link:
    """One pool of connections to one kernel; any number of calls at once, each with its key.

    A kernel that went away is waited for. A call that it had is made again if it only looks, or if
    its caller is replayed: then the next kernel knows the call by its path, and answers it from the
    record, goes on with it, or makes it for the first time.
    """

    def __init__(self, address: Address, session: str | None = None) -> None:
        self.address = address
        self._headers = {"X-Session-ID": session} if session else {}
        self._reached = False
        self._boot = ""  # which start of the kernel has answered last; asked when it matters
        socket = address.socket
        self._http = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(
                uds=socket,
                verify=address.url.startswith("https://"),  # else 20 ms go for reading certificates
                limits=httpx2.Limits(max_keepalive_connections=64, keepalive_expiry=KEEP_S),
            ),
            base_url="http://aios" if socket else address.url,
            # a call may wait for hours, so reading has no limit: timeout_s of the call bounds it
            timeout=httpx2.Timeout(None, connect=CONNECT_S),
            trust_env=False,
        )

    def __repr__(self) -> str:
        return f"<Link {self.address.url}>"

    async def trap(self, call: Call, kind: type[R], key: str, *, is_replayed: bool = False) -> R:
        """Have the kernel carry out *call*; what it refuses is raised as it names it."""
        response = await self._request(
            "POST",
            "/api/trap",
            key,
            content=wire.encode(call),
            again=type(call) in READS,
            boot=await self._boot_for(call, is_replayed),
        )
        return wire.decode(response.content, kind)

    async def stream(
        self, call: Call, key: str, *, is_replayed: bool = False
    ) -> AsyncGenerator[Delta | Generation, None]:
        """The deltas of a generation, then the generation."""
        boot = await self._boot_for(call, is_replayed)
        content = wire.encode(call)
        shown = 0  # characters of the answer; a kernel that goes on tells it from its beginning
        while True:
            told = 0
            try:
                parts = self._events("POST", "/api/stream", key, content=content)
                async with aclosing(parts):
                    async for name, data in parts:
                        if name == "reply":
                            yield wire.decode(data, Generation)
                            return
                        if name != "delta":
                            continue
                        delta = wire.decode(data, Delta)
                        told, known = told + len(delta.text), max(0, shown - told)
                        if told > shown or told == shown and not delta.text:
                            shown = told
                            yield _rest(delta, known)
                failure: AiosError = ConnectionLost(
                    "the kernel ended a stream before its last event: ask again."
                )
            except (ConnectionLost, NotRunning) as error:  # Stopping is one of these
                failure = error
            if self._reached and type(failure) is NotRunning:  # it was not sent
                await self._ask_boot()
            elif not (boot and await self._is_another(boot)):
                raise failure
            boot = boot and self._boot

    async def events(
        self, key: str, *, after: int = 0, aid: int | None = None, follow: bool = True
    ) -> AsyncGenerator[Event, None]:
        """What happened after event number *after*, and with follow what happens from now on.

        Following goes on where it was when the kernel is started again.
        """
        boot = await self._ask_boot() if follow else ""
        while True:
            query = {"after": str(after), "follow": str(follow).lower()}
            if aid is not None:
                query["aid"] = str(aid)
            try:
                parts = self._events("GET", "/api/events", key, params=query)
                async with aclosing(parts):
                    async for name, data in parts:
                        if name != "end":
                            event = wire.decode_event(data)
                            after = event.seq
                            yield event
                return
            except (ConnectionLost, NotRunning):  # Stopping is one of these
                if not (boot and await self._is_another(boot)):
                    raise
                boot = self._boot

    async def get(self, path: str, key: str) -> Any:
        """A page of the native API as plain data: ``/api/status``, ``/api/doctor``."""
        return msgspec.json.decode((await self._request("GET", path, key, again=True)).content)

    async def post(self, path: str, key: str) -> Any:
        return msgspec.json.decode((await self._request("POST", path, key)).content)

    async def close(self) -> None:
        await self._http.aclose()

    async def _request(
        self,
        method: str,
        path: str,
        key: str,
        *,
        content: bytes | None = None,
        again: bool = False,
        boot: str = "",
    ) -> httpx2.Response:
        """*again*: it may be sent again when its answer was lost; *boot*: if the kernel that it was
        sent to, which is this start of it, is gone."""
        clock = asyncio.get_running_loop()
        until = 0.0  # counted from when the kernel was first missed
        pause_s = PAUSE_S
        while True:
            try:
                with place.at(None):  # tasks that the HTTP library makes are not the program's
                    response = await self._http.request(
                        method, path, content=content, headers=self._with(key)
                    )
                self._reached = True
                if not response.is_error:
                    return response
                failure = _refusal(response)
                if not isinstance(failure, Stopping):
                    raise failure
            except httpx2.TransportError as error:
                failure = self._explain(error)
            until = until or clock.time() + RECONNECT_S
            if not self._reached or clock.time() + pause_s > until:
                raise failure
            if again or type(failure) is NotRunning:  # it was not sent
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSES_S)
            elif boot and await self._is_another(boot):
                boot, until, pause_s = self._boot, 0.0, PAUSE_S
            else:
                raise failure

    async def _boot_for(self, call: Call, is_replayed: bool) -> str:
        """The start of the kernel that a call goes to, if it may be made again in another."""
        if not (is_replayed and (call.place is not None or type(call) in SAID_AGAIN)):
            return ""
        return self._boot or await self._ask_boot()

    async def _ask_boot(self) -> str:
        answer = await self._request("GET", "/healthz", "", again=True)
        self._boot = str(msgspec.json.decode(answer.content)["boot"])
        return self._boot

    async def _is_another(self, boot: str) -> bool:
        """Whether the kernel that answers, now or within RECONNECT_S, was started after that."""
        return await self._ask_boot() != boot

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
        headers = {**self._headers, "Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def _explain(self, error: httpx2.TransportError) -> AiosError:
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return not_running(self.address.where)
        return ConnectionLost(
            f"the connection to the kernel at {self.address.url} was lost in the middle of a call "
            f"({type(error).__name__}): see `aios status`, then ask again if that is safe."
        )


def _rest(delta: Delta, known: int) -> Delta:
    """A delta without its first *known* characters; then what its tokens were is not told again."""
    if not known:
        return delta
    return msgspec.structs.replace(delta, text=delta.text[known:], logprobs=())


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
