"""Work that is done in the background, batch by batch, when there is news."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aios.errors import AiosError


class Chore:
    """Does *batch* until it says that there is no more, then waits for news.

    trouble says why it does not go on (a full disk, a broken embedder): it tries again at the next
    news.
    """

    def __init__(self, batch: Callable[[], Awaitable[bool]]) -> None:
        self._batch = batch
        self._task: asyncio.Task[None] | None = None
        self._news: asyncio.Event | None = None
        self.trouble = ""

    def __repr__(self) -> str:
        return f"<chore{': ' + self.trouble if self.trouble else ''}>"

    @property
    def has_news(self) -> bool:
        """Whether something has happened that it has not seen to yet."""
        return self._news is not None and self._news.is_set()

    def start(self) -> None:
        if self._task is None:
            self._news = asyncio.Event()
            self._news.set()
            self._task = asyncio.create_task(self._run(self._news))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def wake(self) -> None:
        """There is news."""
        if self._news is not None:
            self._news.set()

    async def _run(self, news: asyncio.Event) -> None:
        while True:
            await news.wait()
            news.clear()
            try:
                while await self._batch():
                    pass
                self.trouble = ""
            except AiosError as error:
                self.trouble = error.message
