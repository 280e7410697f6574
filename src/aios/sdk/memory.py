"""What a process remembers, as an object: ``await me.memory.write("The train leaves at nine.")``.

Records belong to the process and end with it, or, with ``scope``, to its program or its user.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aios.abi.calls import (
    Allotment,
    Cleared,
    MemAlloc,
    MemClear,
    MemoryHits,
    MemoryRecord,
    MemoryRecords,
    MemRead,
    MemSearch,
    MemShare,
    MemUpdate,
    MemWrite,
    Remembered,
    Scope,
)
from aios.errors import InvalidCall

if TYPE_CHECKING:
    from aios.sdk.process import Process

ALL: tuple[Scope, ...] = ("process", "program", "user")


class Memory:
    """The records of a process, its program and its user; every method is one system call."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def __repr__(self) -> str:
        return f"<memory of {self._process!r}>"

    async def write(
        self,
        text: str,
        *,
        data: Any = None,
        tags: Iterable[str] = (),
        source: str = "",
        time: float | None = None,
        scope: Scope = "process",
    ) -> Remembered:
        """Remember a text, with JSON data; *time* is when it was so (seconds since the epoch)."""
        call = MemWrite(
            aid=self._process.aid,
            text=text,
            data=data,
            tags=tuple(tags),
            source=source,
            time=_time(time),
            scope=scope,
        )
        return await self._process.call(call, Remembered)

    async def read(self, id: str) -> MemoryRecord:
        """A record as it is now: if it was corrected, what corrected it."""
        call = MemRead(aid=self._process.aid, id=id)
        return (await self._process.call(call, MemoryRecords)).records[0]

    async def history(self, id: str) -> tuple[MemoryRecord, ...]:
        """A record and all that it corrected, the newest first."""
        call = MemRead(aid=self._process.aid, id=id, history=True)
        return (await self._process.call(call, MemoryRecords)).records

    async def newest(
        self,
        limit: int = 100,
        *,
        tags: Iterable[str] = (),
        after: float | None = None,
        before: float | None = None,
        scope: Scope = "process",
        history: bool = False,
    ) -> tuple[MemoryRecord, ...]:
        """The last that were written, the newest first; *history*: corrected ones as well."""
        call = MemRead(
            aid=self._process.aid,
            tags=tuple(tags),
            after=_time(after),
            before=_time(before),
            limit=limit,
            scope=scope,
            history=history,
        )
        return (await self._process.call(call, MemoryRecords)).records

    async def search(
        self,
        query: str,
        *,
        tags: Iterable[str] = (),
        source: str | None = None,
        after: float | None = None,
        before: float | None = None,
        scopes: Iterable[Scope] = ALL,
        limit: int = 10,
    ) -> MemoryHits:
        """The best by words and by meaning, in these scopes and in what is shared with it.

        Each of ``.hits`` has the record, its score and why it was found; ``.note`` says what could
        not be done.
        """
        call = MemSearch(
            aid=self._process.aid,
            query=query,
            scopes=tuple(scopes),
            tags=tuple(tags),
            source=source,
            after=_time(after),
            before=_time(before),
            limit=limit,
        )
        return await self._process.call(call, MemoryHits)

    async def update(
        self,
        id: str,
        text: str | None = None,
        *,
        data: Any = None,
        tags: Iterable[str] | None = None,
        source: str | None = None,
        time: float | None = None,
    ) -> Remembered:
        """Correct a record: what is given changes, under a new id; the old one stays as history."""
        call = MemUpdate(
            aid=self._process.aid,
            id=id,
            text=text,
            data=data,
            tags=None if tags is None else tuple(tags),
            source=source,
            time=_time(time),
        )
        return await self._process.call(call, Remembered)

    async def clear(self, id: str | None = None, *, scope: Scope = "process") -> Cleared:
        """Delete a record with all that it corrected, or (None) all of a scope, for good."""
        return await self._process.call(
            MemClear(aid=self._process.aid, id=id, scope=scope), Cleared
        )

    async def alloc(self, size: int, *, scope: Scope = "process") -> Allotment:
        """Set a scope's quota to so many bytes, and set them aside."""
        return await self._process.call(
            MemAlloc(aid=self._process.aid, size=size, scope=scope), Allotment
        )

    async def share(
        self,
        to: int | Process,
        id: str | None = None,
        *,
        scope: Scope = "process",
        until: float | None = None,
    ) -> None:
        """Let another process read a record, or (None) a whole scope, until a time."""
        await self._share(to, id, scope, _time(until), revoke=False)

    async def unshare(
        self, to: int | Process, id: str | None = None, *, scope: Scope = "process"
    ) -> None:
        """Take that back."""
        await self._share(to, id, scope, None, revoke=True)

    async def _share(
        self, to: int | Process, id: str | None, scope: Scope, until: float | None, revoke: bool
    ) -> None:
        aid = to if isinstance(to, int) else to.aid
        await self._process.call(
            MemShare(aid=self._process.aid, to=aid, id=id, scope=scope, until=until, revoke=revoke)
        )


def _time(seconds: float | None) -> float | None:
    """JSON has no word for what is not finite: it would arrive as no time at all."""
    if seconds is not None and not math.isfinite(seconds):
        raise InvalidCall(f"a time is {seconds}: give seconds since the epoch, or leave it out.")
    return seconds
