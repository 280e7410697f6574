"""A process's contexts as objects: how full one is, what is in it, and how it is kept short."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from aios.abi.calls import (
    ClrContext,
    CompactContext,
    ContextReport,
    ExpContext,
    GetContext,
    MemoryRecord,
    MemoryRecords,
    MemRead,
    SetContext,
    Strategy,
)
from aios.abi.messages import Message

if TYPE_CHECKING:
    from aios.sdk.process import Process


class Context:
    """One context of a process; awaited, it is its report with its messages.

    ``print((await me.context()).used)``, ``await me.context("notes").clear()``.
    """

    def __init__(self, process: Process, name: str, said: set[tuple[str, str]]) -> None:
        self.name = name
        self._process = process
        self._said = said  # (context, system prompt), so that one is said once

    def __repr__(self) -> str:
        return f"<context {self.name} of {self._process!r}>"

    def __await__(self) -> Generator[Any, None, ContextReport]:
        return self.report().__await__()

    async def report(self, *, messages: bool = True) -> ContextReport:
        """How full it is (tokens), how it is kept within its window, and what is in it."""
        return await self._ask(GetContext(**self._of(), messages=messages))

    async def expand(self, window: int | None = None) -> ContextReport:
        """Give it a window of so many tokens; None: as many as the model has."""
        return await self._ask(ExpContext(**self._of(), window=window))

    async def clear(self, *, pins: bool = False) -> ContextReport:
        """Empty it, but for what is pinned; with *pins* of that too."""
        report = await self._ask(ClrContext(**self._of(), pins=pins))
        self._forget_system()
        return report

    async def set(
        self,
        messages: Iterable[Message | Mapping[str, Any]] | None = None,
        *,
        strategy: Strategy | None = None,
    ) -> ContextReport:
        """Put these messages in the place of all others, and choose how it is kept short."""
        given = None if messages is None else tuple(msgspec.convert(m, Message) for m in messages)
        report = await self._ask(SetContext(**self._of(), messages=given, strategy=strategy))
        if messages is not None:
            self._forget_system()
        return report

    async def compact(
        self, tokens: int | None = None, *, strategy: Strategy | None = None
    ) -> ContextReport:
        """Make it shorter now, to at most so many tokens; None: half its window."""
        return await self._ask(CompactContext(**self._of(), tokens=tokens, strategy=strategy))

    async def paged(self) -> tuple[Message, ...]:
        """What the strategy ``page`` moved to memory, oldest first."""
        found: list[Message] = []
        for page in await pages(self._process):
            if page.data["context"] != self.name:
                continue
            found = [*msgspec.convert(page.data["messages"], list[Message]), *found]
            if page.data["before"] is None:  # what is older is of before it was cleared
                break
        return tuple(found)

    def _of(self) -> dict[str, Any]:
        return {"aid": self._process.aid, "context": self.name}

    async def _ask(self, call: Any) -> ContextReport:
        return await self._process.call(call, ContextReport)

    def _forget_system(self) -> None:
        """It has to be said again."""
        self._said.difference_update([pair for pair in self._said if pair[0] == self.name])


async def pages(process: Process) -> tuple[MemoryRecord, ...]:
    """What its contexts moved to memory, the newest first."""
    call = MemRead(aid=process.aid, tags=("paged",), limit=1_000)
    return (await process.call(call, MemoryRecords)).records


def page_of(records: Sequence[MemoryRecord], id: str) -> MemoryRecord | None:
    """The page that an id names. A fork's records have other ids than those its pages name."""
    for place, record in enumerate(records):
        if record.id == id:
            return record
        if record.data["before"] == id and place + 1 < len(records):
            return records[place + 1]
    return records[0] if records else None
