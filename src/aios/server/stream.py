"""Server-sent events to one client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from aios.errors import AiosError
from aios.server.exchange import Exchange

_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold the stream back
)
_COMMENT = b":\n\n"


def event(name: str, data: bytes, number: int | None = None) -> bytes:
    """One event; *data* is JSON, so it has no line breaks."""
    head = b"" if number is None else b"id: %d\n" % number
    return b"%sevent: %s\ndata: %s\n\n" % (head, name.encode(), data)


class EventStream:
    """A stream that its first word opens.

    An error before the first word leaves the block and becomes a plain HTTP answer; after it, it
    goes out as an event of its own, made by *failed*. ``put`` never waits: what is put while the
    client is slow goes out together. A comment goes out after heartbeat_s of silence; the first
    one, which opens the stream, after open_s.
    """

    def __init__(
        self,
        exchange: Exchange,
        failed: Callable[[AiosError], bytes],
        heartbeat_s: float,
        open_s: float | None = None,
    ) -> None:
        self._exchange, self._failed = exchange, failed
        self._heartbeat_s = heartbeat_s
        self._open_s = heartbeat_s if open_s is None else open_s
        self._pending: list[bytes] = []
        self._news = asyncio.Event()
        self._drained = asyncio.Event()
        self._ended = False

    async def __aenter__(self) -> EventStream:
        self._exchange.watch()
        self._writer = asyncio.create_task(self._write())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        try:
            told = self._exchange.verdict if isinstance(error, asyncio.CancelledError) else error
            if error is not None:
                is_open = self._exchange.started or self._pending
                if not is_open or not isinstance(told, AiosError):
                    return False
                if isinstance(error, asyncio.CancelledError) and self._exchange.task is not None:
                    self._exchange.task.uncancel()
                self.put(self._failed(told))
            self._ended = True
            self._news.set()
            await self._writer
            return True
        finally:
            self._writer.cancel()

    def put(self, chunk: bytes) -> None:
        """Send *chunk* as soon as the client takes it."""
        self._pending.append(chunk)
        self._drained.clear()
        self._news.set()

    async def drain(self) -> None:
        """Wait until the client has taken what was put, but for the last chunk."""
        while self._pending:
            await self._drained.wait()

    async def _write(self) -> None:
        patience_s = self._open_s
        while True:
            try:
                async with asyncio.timeout(patience_s):
                    await self._news.wait()
            except TimeoutError:
                self._pending.append(_COMMENT)
            self._news.clear()
            patience_s = self._heartbeat_s
            chunk = b"".join(self._pending)
            self._pending.clear()
            if not self._exchange.started:
                await self._exchange.open(200, _HEADERS)
            if chunk:
                await self._exchange.write(chunk, more=True)
            if not self._pending:
                self._drained.set()
                if self._ended:
                    break
        await self._exchange.write(b"", more=False)
