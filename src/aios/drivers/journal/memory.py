"""The journal in memory: the same database without a file. A kernel that may be forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import apsw

from aios.abi.calls import Pruning
from aios.drivers.journal.content import Content
from aios.drivers.journal.migrations import migrate
from aios.drivers.journal.pruning import prune
from aios.drivers.journal.questions import Questions, image
from aios.drivers.journal.rows import Rows
from aios.drivers.journal.troubles import UNREADABLE, sentence
from aios.errors import StoreFailed
from aios.ports import Image, Record

T = TypeVar("T")
PLACE = "the journal in memory"


class MemoryJournal(Questions):
    """A ports.Journal without a disk; it outlives ``close``: a kernel can start again on it.

    No threads, no waiting: what is appended is there when ``append`` returns, so that a run can be
    repeated exactly. ``trouble`` set to a sentence makes every append fail with it, as on a full
    disk.
    """

    def __init__(self) -> None:
        self.trouble: str | None = None
        self._connection = apsw.Connection(":memory:")
        migrate(self._connection, None)
        self.content = Content(self._connection)
        self._last_seq = 0
        self._pruning = asyncio.Lock()

    def copy(self) -> MemoryJournal:
        """Another, as this one is now: what a kernel that dies at this moment leaves behind."""
        other = MemoryJournal()
        other._connection.deserialize("main", self._connection.serialize("main"))
        other.content = Content(other._connection)
        other._last_seq = self._last_seq
        return other

    def __repr__(self) -> str:
        events, processes = (
            self._connection.execute(f"SELECT {what}").get
            for what in ("coalesce(max(last), 0) FROM events", "count(*) FROM processes")
        )
        return f"<MemoryJournal {events} events, {processes} processes>"

    def append(self, records: Sequence[Record]) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        trouble = self.trouble or self._commit(records)
        # not at once: who waits for a disk lets others run
        loop.call_soon(_answer, future, trouble)
        return future

    def _commit(self, records: Sequence[Record]) -> str | None:
        try:
            with self._connection:
                rows = Rows(self._connection, self.content, self._last_seq)
                rows.take(records)
                rows.write()
        except (ValueError, *UNREADABLE) as error:
            self.content.forget()
            return sentence(PLACE, error)
        self._last_seq = rows.last_seq
        return None

    def load(self) -> Image:
        return image(self._connection)

    async def read(self, query: Callable[[Any], T]) -> T:
        try:
            return query(self._connection)
        except UNREADABLE as error:
            raise StoreFailed(sentence(PLACE, error)) from error

    async def step(self, work: Callable[[Any], T]) -> T:
        try:
            with self._connection:
                result = work(self._connection)
        except UNREADABLE as error:
            self.content.forget()
            raise StoreFailed(sentence(PLACE, error)) from error
        return result

    async def prune(self, before: float, max_bytes: int | None) -> Pruning:
        async with self._pruning:
            return await prune(self, before, max_bytes)

    async def close(self) -> None:
        pass  # there is nothing to let go of


def _answer(future: asyncio.Future[None], trouble: str | None) -> None:
    if future.done():
        return  # its caller was cancelled
    if trouble is None:
        future.set_result(None)
    else:
        future.set_exception(StoreFailed(trouble))
        future.exception()  # seen: nobody needs to await it
