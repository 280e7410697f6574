"""One HTTP request and its answer, over bare ASGI.

The task that serves the request is cancelled by ``end`` with a verdict: the client has gone, or the
daemon stops. The app turns the verdict into the answer, if there is still somebody to answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

from aios.errors import AiosError
from aios.server import edge

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PATIENCE_S = 0.05  # a call that is over by then is not worth a task that watches the client

_JSON = (b"content-type", b"application/json")


class Gone(Exception):
    """The client went away; nobody is left to answer."""


class Exchange:
    """A request: ``method``, ``path``, ``headers``, and ``pid``, whose key it came with."""

    __slots__ = (
        "_receive",
        "_send",
        "task",
        "_watcher",
        "answered",
        "headers",
        "limit",
        "method",
        "path",
        "pid",
        "query",
        "started",
        "verdict",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        self._receive, self._send = receive, send
        self.task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.limit = limit
        self.pid = 0
        self.started = False  # the status line is out
        self.answered = False  # the last byte is out
        self.verdict: AiosError | Gone | None = None

    def __repr__(self) -> str:
        return f"<exchange {self.method} {self.path} of process {self.pid}>"

    async def body(self) -> bytes:
        """The whole body, of at most ``limit`` bytes."""
        edge.check_json(self.headers)
        self._check_size(int(self.headers.get(b"content-length", b"0")))
        message = await self._receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            parts, size = [body], len(body)
            while message.get("more_body"):
                message = await self._receive()
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                self._check_size(size)
            body = b"".join(parts)
        if message["type"] == "http.disconnect":
            raise Gone
        return body

    def _check_size(self, size: int) -> None:
        if size > self.limit:
            raise edge.TooLarge(
                f"the body has {size} bytes or more: send at most {self.limit} "
                "(the setting server.body_bytes)."
            )

    async def attended(self, work: Awaitable[T]) -> T:
        """The result of *work*, which is cancelled if the client goes away before it is there."""
        timer = asyncio.get_running_loop().call_later(PATIENCE_S, self.watch)
        try:
            return await work
        finally:
            timer.cancel()

    def watch(self) -> None:
        """End the request when its client goes away."""
        if self._watcher is None and not self.answered:
            self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass  # bytes after the body are nobody's
        self.end(Gone())

    def end(self, verdict: AiosError | Gone) -> None:
        """Cancel what is under way; *verdict* is why."""
        if self.verdict is None and not self.answered and self.task is not None:
            self.verdict = verdict
            self.task.cancel()

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    async def answer(
        self, body: bytes, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        """The whole answer, as JSON."""
        await self.open(status, (_JSON, (b"content-length", b"%d" % len(body)), *headers))
        await self.write(body, more=False)

    async def open(self, status: int, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes, *, more: bool) -> None:
        """A part of the answer; waits while the client is slow."""
        self.answered = not more
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
