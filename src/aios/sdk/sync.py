"""The same objects for plain Python: each call waits for the event loop that does the work."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from types import TracebackType
from typing import Any

from aios.sdk import place
from aios.sdk.answer import Stream
from aios.sdk.connection import Connection, connect
from aios.sdk.contexts import Context
from aios.sdk.files import Files
from aios.sdk.memory import Memory
from aios.sdk.process import Process


class Sync:
    """An object of the SDK whose methods wait: ``me.generate("Hello").text``."""

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def __repr__(self) -> str:
        return repr(self._target)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if isinstance(value, Memory | Files):
            return Sync(value, self._loop)
        if not inspect.ismethod(value):
            return value

        @functools.wraps(value)
        def waiting(*args: Any, **kwargs: Any) -> Any:
            args = tuple(arg._target if isinstance(arg, Sync) else arg for arg in args)
            return self._plain(value(*args, **kwargs))

        return waiting

    def __iter__(self) -> Iterator[Any]:
        return self._iterate(self._target)

    def _plain(self, result: Any) -> Any:
        if inspect.iscoroutine(result):
            result = wait_for(result, self._loop)
        if isinstance(result, Process | Stream | Context | Files):
            return Sync(result, self._loop)
        return self._iterate(result) if inspect.isasyncgen(result) else result

    def _iterate(self, parts: Any) -> Iterator[Any]:
        iterator = aiter(parts)
        try:
            while True:
                yield wait_for(_next(iterator), self._loop)
        except StopAsyncIteration:
            return
        finally:
            wait_for(parts.aclose(), self._loop)


class SyncConnection:
    """``with aios.connect_sync() as me``: the event loop runs in a thread of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="aios", daemon=True)

    def __enter__(self) -> Sync:
        place.begin()
        self._thread.start()
        try:
            me = wait_for(self._connection.__aenter__(), self._loop)
        except BaseException:
            self._stop()
            raise
        return Sync(me, self._loop)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            wait_for(self._connection.__aexit__(kind, error, trace), self._loop)
        finally:
            self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def connect_sync(*args: Any, **options: Any) -> SyncConnection:
    """``aios.connect`` for plain Python; takes the same arguments."""
    return SyncConnection(connect(*args, **options))


def wait_for(coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Any:
    """Its result; Ctrl-C while waiting cancels it first, so the kernel ends the call too."""
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def _next(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator)
