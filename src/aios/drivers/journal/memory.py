"""The journal in memory: the same promises, but for the disk. A kernel that may be forgotten."""

from __future__ import annotations

import asyncio
import struct
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from aios.abi.events import EVENTS, Event
from aios.drivers.journal.rows import number_of
from aios.errors import StoreFailed
from aios.ports import (
    CallEnd,
    CallHistory,
    CallRow,
    ContextRow,
    Forget,
    GrantRow,
    Image,
    KeyRow,
    ProcessRow,
    Record,
    SnapshotRow,
    TokensRow,
)


class MemoryJournal:
    """A ports.Journal without a disk; it outlives ``close``: a kernel can start again on it.

    ``trouble`` set to a sentence makes every append fail with it, as on a full disk.
    """

    def __init__(self) -> None:
        self.trouble: str | None = None
        self._events: list[Event] = []
        self._processes: dict[int, ProcessRow] = {}
        self._calls: dict[int, CallRow] = {}
        self._ends: dict[int, CallEnd] = {}
        self._open: set[int] = set()
        self._tokens: defaultdict[int, dict[int, bytes]] = defaultdict(dict)
        self._contexts: dict[tuple[int, str, int], ContextRow] = {}
        self._keys: dict[str, KeyRow] = {}
        self._grants: dict[tuple[str, str, str], GrantRow] = {}
        self._snapshots: dict[str, SnapshotRow] = {}
        self._last_pid = 0  # ever
        self._last_call = 0

    def __repr__(self) -> str:
        return f"<MemoryJournal {len(self._events)} events, {len(self._processes)} processes>"

    def append(self, records: Sequence[Record]) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        trouble = self.trouble or self._disorder(records)
        if trouble is None:
            for record in records:
                TAKE[type(record)](self, record)
        loop.call_soon(
            _answer, future, trouble
        )  # not at once: who waits for a disk lets others run
        return future

    def load(self) -> Image:
        return Image(
            last_seq=self._events[-1].seq if self._events else 0,
            last_pid=self._last_pid,
            last_call=self._last_call,
            processes=tuple(row for _, row in sorted(self._processes.items())),
            keys=tuple(row for _, row in sorted(self._keys.items())),
            grants=tuple(row for _, row in sorted(self._grants.items())),
            snapshots=tuple(row for _, row in sorted(self._snapshots.items())),
            open_calls=tuple(self._calls[number] for number in sorted(self._open)),
        )

    async def events(self, after: int, limit: int, pid: int | None = None) -> list[Event]:
        start = bisect_right(self._events, after, key=lambda event: event.seq)
        found = (event for event in self._events[start:] if pid is None or event.pid == pid)
        return [event for event, _ in zip(found, range(limit), strict=False)]

    async def first_seq(self) -> int:
        return self._events[0].seq if self._events else 0

    async def calls(self, pid: int, limit: int) -> list[CallHistory]:
        numbers = sorted(number for number, row in self._calls.items() if row.pid == pid)
        return [self._history(number) for number in numbers[max(0, len(numbers) - limit) :]]

    async def close(self) -> None:
        pass  # there is nothing to let go of

    def _disorder(self, records: Sequence[Record]) -> str | None:
        last = self._events[-1].seq if self._events else 0
        for record in records:
            if isinstance(record, Event):
                if record.seq <= last:
                    return f"the journal did not take event {record.seq}: it comes after {last}."
                last = record.seq
        return None

    def _history(self, number: int) -> CallHistory:
        packed = b"".join(tokens for _, tokens in sorted(self._tokens[number].items()))
        tokens = struct.unpack(f"<{len(packed) // 4}i", packed)
        return CallHistory(self._calls[number], self._ends.get(number), tokens)

    def _event(self, event: Event) -> None:
        self._events.append(event)

    def _process(self, row: ProcessRow) -> None:
        self._processes[row.pid] = row
        self._last_pid = max(self._last_pid, row.pid)

    def _call(self, row: CallRow) -> None:
        number = number_of(row.id)
        self._calls[number] = row
        self._open.add(number)
        self._last_call = max(self._last_call, number)

    def _end(self, end: CallEnd) -> None:
        number = number_of(end.id)
        self._ends[number] = end
        self._open.discard(number)

    def _slice(self, row: TokensRow) -> None:
        self._tokens[number_of(row.call)][row.ordinal] = row.tokens

    def _message(self, row: ContextRow) -> None:
        self._contexts[row.pid, row.context, row.ordinal] = row

    def _key(self, row: KeyRow) -> None:
        self._keys[row.info.id] = row

    def _grant(self, row: GrantRow) -> None:
        self._grants[row.holder, row.action, row.resource] = row

    def _snapshot(self, row: SnapshotRow) -> None:
        self._snapshots[row.id] = row

    def _forget(self, forget: Forget) -> None:
        self._processes.pop(forget.pid, None)
        self._last_pid = max(self._last_pid, forget.pid)
        for number in [number for number, row in self._calls.items() if row.pid == forget.pid]:
            del self._calls[number]
            self._ends.pop(number, None)
            self._tokens.pop(number, None)
            self._open.discard(number)
        for place in [place for place in self._contexts if place[0] == forget.pid]:
            del self._contexts[place]


TAKE: dict[type[Any], Callable[[MemoryJournal, Any], None]] = {
    **dict.fromkeys(EVENTS, MemoryJournal._event),
    ProcessRow: MemoryJournal._process,
    CallRow: MemoryJournal._call,
    CallEnd: MemoryJournal._end,
    TokensRow: MemoryJournal._slice,
    ContextRow: MemoryJournal._message,
    KeyRow: MemoryJournal._key,
    GrantRow: MemoryJournal._grant,
    SnapshotRow: MemoryJournal._snapshot,
    Forget: MemoryJournal._forget,
}


def _answer(future: asyncio.Future[None], trouble: str | None) -> None:
    if future.done():
        return  # its caller was cancelled
    if trouble is None:
        future.set_result(None)
    else:
        future.set_exception(StoreFailed(trouble))
        future.exception()  # seen: nobody needs to await it
