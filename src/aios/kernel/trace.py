"""The trace: the one numbered stream of events, and its invariant.

Every start has exactly one end. The trace numbers an event, hands it to the journal together with
the records that belong to it, and wakes those who follow. Who follows sees only what is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from aios.abi import events as ev
from aios.abi.events import Event
from aios.errors import Pruned, StoreFailed
from aios.ports import Clock, Journal, Record

_STARTS: dict[type[Event], tuple[str, str]] = {
    ev.CallStarted: ("call", "call"),
    ev.SliceGranted: ("slice", "call"),
    ev.ProcessCreated: ("process", "pid"),
}
_ENDS: dict[type[Event], tuple[str, str]] = {
    ev.CallCompleted: ("call", "call"),
    ev.CallFailed: ("call", "call"),
    ev.CallCancelled: ("call", "call"),
    ev.SliceEnded: ("slice", "call"),
    ev.ProcessEnded: ("process", "pid"),
}


class Trace:
    """Numbers, journals and shows what happens."""

    def __init__(self, journal: Journal, clock: Clock, last_seq: int) -> None:
        self._journal, self._clock = journal, clock
        self.seq = last_seq
        self._followers: set[asyncio.Event] = set()
        self._closed = False
        self._frozen = False
        self.lost = 0  # how many appends the journal did not take
        self._pending: list[Record] = []  # said in this turn of the event loop

    def emit(self, kind: type[Event], pid: int, *records: Record, **fields: Any) -> None:
        """Say that something happened; it and its records are journaled, in order, soon."""
        self.seq += 1
        self.record(kind(seq=self.seq, at=self._clock.now(), pid=pid, **fields), *records)
        for follower in self._followers:
            follower.set()

    def record(self, *records: Record) -> None:
        """Journal what is no event of its own, soon."""
        if self._frozen:
            return
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._pending += records

    def durable(self) -> asyncio.Future[None]:
        """Done when all that was said up to here is on disk."""
        if self._frozen:
            nothing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            nothing.set_exception(StoreFailed("the kernel stops; ask again when it is up."))
            nothing.exception()  # seen: it may be left unawaited
            return nothing
        pending, self._pending = self._pending, []
        appended = self._journal.append(pending)
        appended.add_done_callback(self._count_lost)
        return appended

    def _count_lost(self, appended: asyncio.Future[None]) -> None:
        if not appended.cancelled() and appended.exception():
            self.lost += 1

    def _hand_over(self) -> None:
        # one append for what many said in this turn of the loop: a future each would cost more
        if self._pending:
            self.durable()

    async def freeze(self) -> None:
        """Write what was said up to here, and nothing more: the next kernel goes on from here."""
        last = self.durable()
        self._frozen = True
        await last

    def close(self) -> None:
        """End all who follow."""
        self._closed = True
        for follower in self._followers:
            follower.set()

    async def follow(
        self, after: int, of: int | None, *, wait: bool, sees: Callable[[Event], bool]
    ) -> AsyncIterator[Event]:
        """Events with a number above *after*; with *wait*, those to come as well.

        Pruned when events after that number have been pruned; it names the first one kept.
        """
        first = await self._journal.first_seq()
        if after and after + 1 < first:
            raise Pruned(
                f"events after {after} are no longer kept; the first is {first}: ask from there."
            )
        news = asyncio.Event()
        self._followers.add(news)
        try:
            while True:
                news.clear()
                target = self.seq
                try:
                    await self.durable()
                except StoreFailed:
                    pass  # what could not be kept is not shown; what was, is
                while after < target:
                    page = await self._journal.events(after, 1000, of)
                    for event in page:
                        after = event.seq
                        if sees(event):
                            yield event
                    if len(page) < 1000:
                        after = max(after, target)
                if not wait or self._closed:
                    return
                await news.wait()
        finally:
            self._followers.discard(news)


def check_ends(events: Iterable[Event], open_now: Iterable[tuple[str, Any]] = ()) -> list[str]:
    """What breaks the rule that every start has exactly one end.

    *open_now* names what may still be without its end, as (kind, id).
    """
    started: dict[tuple[str, Any], int] = {}
    found = []
    for event in events:
        if start := _STARTS.get(type(event)):
            key = (start[0], getattr(event, start[1]))
            if started.get(key):
                found.append(f"{key[0]} {key[1]} started again at event {event.seq} before its end")
            started[key] = event.seq
        elif type(event) is ev.KernelStarted:  # the slices of a dead kernel ended with it
            started = {key: seq for key, seq in started.items() if key[0] != "slice"}
        elif end := _ENDS.get(type(event)):
            key = (end[0], getattr(event, end[1]))
            if not started.pop(key, None):
                found.append(f"{key[0]} {key[1]} ended at event {event.seq} without a start")
    allowed = set(open_now)
    found += [
        f"{kind} {name} started at event {seq} and never ended"
        for (kind, name), seq in started.items()
        if (kind, name) not in allowed
    ]
    return found
