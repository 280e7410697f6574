"""What is no longer needed goes, in small steps between the writer's own transactions.

Events go by age, and beyond that by size, the oldest first. Of calls only those go that no replay
asks for: of logins (no program starts again there) and those that a rollback left behind. Slices go
when their call has ended; content when nothing refers to it. What is kept of events is packed.

What nothing refers to is looked for by a reader, as of one moment; what the writer has used since
that moment stays.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import Struct

from aios.abi.calls import Pruning
from aios.drivers.journal import files_rows
from aios.drivers.journal.content import Content, pack, unpack

T = TypeVar("T")

# Of one step, which holds the writer up for a few milliseconds:
EVENT_ROWS = 128
CALLS = 256
BLOBS = 256
PAGES = 128  # 512 KB that move from the file's end into its gaps

PACKED_EVENTS = 256  # in a row: a reader of one event unpacks them all, about 30 KB
PLAIN_EVENTS = 4_096  # the newest stay as they are: they are the ones that are followed
GAPS = 0.05  # of the file may stay free: it would grow by them again soon
PART = 1 / 16  # of the events at least, each time that the file is still too large

OLDEST = """
SELECT first, packed, body FROM events
WHERE first < (SELECT max(first) FROM events) ORDER BY first LIMIT :limit
"""
# What no replay asks for, and is over.
FREE_CALLS = """
SELECT number FROM calls
WHERE (void OR pid IN (SELECT pid FROM processes WHERE parent IS NULL)) AND started_at < :before
  AND number NOT IN open_calls AND number > :after
ORDER BY number LIMIT :limit
"""
DROP_CALLS = """
INSERT INTO forgotten SELECT 'call', max(value) FROM json_each(:numbers) WHERE true
    ON CONFLICT DO UPDATE SET number = max(number, excluded.number);
DELETE FROM tokens WHERE call IN (SELECT value FROM json_each(:numbers));
DELETE FROM ends WHERE number IN (SELECT value FROM json_each(:numbers));
DELETE FROM calls WHERE number IN (SELECT value FROM json_each(:numbers));
"""
# What contexts and mailboxes of logins held before these calls; none is rolled back to there.
DROP_PAST = """
DELETE FROM messages WHERE died <= (SELECT max(value) FROM json_each(:numbers))
    AND pid IN (SELECT pid FROM processes WHERE parent IS NULL EXCEPT SELECT pid FROM marks);
DELETE FROM mail WHERE taken <= (SELECT max(value) FROM json_each(:numbers))
    AND pid IN (SELECT pid FROM processes WHERE parent IS NULL EXCEPT SELECT pid FROM marks);
"""
ENDED_SLICES = """
SELECT DISTINCT call FROM tokens WHERE call NOT IN open_calls AND call > :after LIMIT :limit
"""
DROP_SLICES = "DELETE FROM tokens WHERE call IN (SELECT value FROM json_each(:numbers))"
LOST_SNAPSHOTS = "SELECT id, path FROM snapshots WHERE pid NOT IN (SELECT pid FROM processes)"
DEAD_TURNS = """
WITH RECURSIVE live (id) AS (
    SELECT said FROM calls WHERE said IS NOT NULL
    UNION SELECT parent FROM turns JOIN live USING (id)
)
SELECT id FROM turns WHERE id NOT IN live
"""
DEAD_BLOBS = """
SELECT id FROM blobs WHERE id NOT IN (
    SELECT message FROM turns UNION SELECT message FROM messages
    UNION SELECT content FROM calls WHERE content IS NOT NULL
    UNION SELECT tools FROM calls WHERE tools IS NOT NULL
    UNION SELECT content FROM ends WHERE content IS NOT NULL
)
"""
PLAIN = """
SELECT first, last, pids, body FROM events WHERE NOT packed AND first > :packed
  AND last <= (SELECT max(last) FROM events) - :kept
ORDER BY first LIMIT :limit
"""


class Steps(Protocol):
    """A journal, as far as it is needed here."""

    content: Content

    async def read(self, query: Callable[[Any], T]) -> T: ...

    async def step(self, work: Callable[[Any], T]) -> T:
        """Have the writer do this, in a transaction of its own."""


async def prune(journal: Steps, before: float, max_bytes: int | None) -> Pruning:
    """What a ports.Journal promises."""
    size = await journal.read(_file_bytes)
    events = await _drop_events(journal, before)
    calls = await _drop_calls(journal, before)
    await _drop_slices(journal)
    await _drop_snapshots(journal)
    blobs = await _sweep(journal) + await _repeat(journal, files_rows.sweep)
    while await journal.step(_pack_events):
        pass
    while max_bytes is not None:
        used = await journal.read(_used_bytes)
        if used <= max_bytes:
            break
        horizon = await journal.read(partial(_horizon, part=max(PART, 1 - max_bytes / used)))
        dropped = await _drop_events(journal, horizon)
        gone = await _drop_calls(journal, horizon)
        if not dropped + gone:
            break  # the rest is needed
        events, calls = events + dropped, calls + gone
        blobs += await _sweep(journal)
    slack = GAPS if max_bytes is None else 0.0
    while await journal.step(partial(_shrink, slack=slack)):
        pass
    return Pruning(events, calls, blobs, max(0, size - await journal.read(_file_bytes)))


# --- events ---------------------------------------------------------------------------------------


class _Dated(Struct):
    """What is looked at in an event."""

    at: float


_dated = msgspec.json.Decoder(_Dated)


async def _drop_events(journal: Steps, before: float) -> int:
    return await _repeat(journal, partial(_drop_some_events, before=before))


def _drop_some_events(connection: Any, before: float) -> int:
    """Those rows among the oldest whose last event is from before that time; never the newest."""
    dropped, upto = 0, None
    for first, packed, body in connection.execute(OLDEST, {"limit": EVENT_ROWS}):
        dates = _dated.decode_lines(unpack(packed, body))
        if dates[-1].at >= before:
            break
        dropped, upto = dropped + len(dates), first
    if upto is not None:
        connection.execute("DELETE FROM events_of WHERE first <= ?", (upto,))
        connection.execute("DELETE FROM events WHERE first <= ?", (upto,))
    return dropped


def _horizon(connection: Any, part: float) -> float:
    """Until when to forget, so that this part of the events goes; no end when all have gone."""
    rows = connection.execute("SELECT count(*) FROM events").get - 1
    if rows < 1:
        return math.inf
    query = "SELECT packed, body FROM events ORDER BY first LIMIT 1 OFFSET ?"
    row = next(connection.execute(query, (math.ceil(rows * part) - 1,)))
    return math.nextafter(_dated.decode_lines(unpack(*row))[-1].at, math.inf)


def _pack_events(connection: Any) -> bool:
    """Make one row of many; False when there is nothing to do."""
    packed = connection.execute("SELECT coalesce(max(first), 0) FROM events WHERE packed").get
    values = {"packed": packed, "kept": PLAIN_EVENTS, "limit": PACKED_EVENTS}
    rows: list[tuple[int, int, str, bytes]] = []
    count = 0
    for row in connection.execute(PLAIN, values):
        rows.append(row)
        count += row[3].count(b"\n")
        if count >= PACKED_EVENTS:
            break
    if count < PACKED_EVENTS:
        return False
    first, last = rows[0][0], rows[-1][1]
    pids = {int(pid) for row in rows for pid in row[2].split(",") if pid}
    body = pack(b"".join(row[3] for row in rows))
    connection.execute("DELETE FROM events WHERE first BETWEEN ? AND ?", (first, rows[-1][0]))
    insert = "INSERT INTO events (first, last, pids, packed, body) VALUES (?, ?, '', ?, ?)"
    connection.execute(insert, (first, last, *body))
    connection.executemany(
        "INSERT INTO events_of VALUES (?, ?)", [(pid, first) for pid in sorted(pids)]
    )
    return True


# --- calls, slices, snapshots ---------------------------------------------------------------------


async def _drop_calls(journal: Steps, before: float) -> int:
    def numbers(after: int, connection: Any) -> list[int]:
        values = {"before": before, "after": after, "limit": CALLS}
        return [number for (number,) in connection.execute(FREE_CALLS, values)]

    return await _drop(journal, numbers, DROP_CALLS + DROP_PAST)


async def _drop_slices(journal: Steps) -> int:
    def numbers(after: int, connection: Any) -> list[int]:
        values = {"after": after, "limit": CALLS}
        return [number for (number,) in connection.execute(ENDED_SLICES, values)]

    return await _drop(journal, numbers, DROP_SLICES)


async def _drop(journal: Steps, numbers: Callable[[int, Any], list[int]], statement: str) -> int:
    """Drop what *numbers* finds above a number, some at a time. What is over is never begun again,
    so a reader may look for it."""
    dropped, after = 0, -1
    while found := await journal.read(partial(numbers, after)):
        values = {"numbers": msgspec.json.encode(found).decode()}
        await journal.step(partial(_run, statement, values))
        dropped, after = dropped + len(found), found[-1]
    return dropped


def _run(statement: str, values: dict[str, Any], connection: Any) -> None:
    connection.execute(statement, values)


async def _drop_snapshots(journal: Steps) -> None:
    """Files first: a row without its file is found again, a file without its row is not."""

    def drop(connection: Any) -> None:
        for id, path in connection.execute(LOST_SNAPSHOTS).fetchall():
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass  # a crash came between the two
            except OSError:
                continue  # another time
            connection.execute("DELETE FROM snapshots WHERE id = ?", (id,))

    await journal.step(drop)


# --- content --------------------------------------------------------------------------------------


async def _sweep(journal: Steps) -> int:
    """Drop turns and then blobs that nothing refers to; how many blobs."""
    await _sweep_one(journal, DEAD_TURNS, "turns")
    return await _sweep_one(journal, DEAD_BLOBS, "blobs")


async def _sweep_one(journal: Steps, query: str, table: str) -> int:
    content = journal.content
    await journal.step(lambda _: content.watch())  # what is used from here on stays
    try:
        dead = await journal.read(
            lambda connection: [number for (number,) in connection.execute(query)]
        )
        dropped = 0
        for first in range(0, len(dead), BLOBS):
            some = dead[first : first + BLOBS]
            dropped += await journal.step(partial(_drop_content, content, table, some))
        return dropped
    finally:
        await journal.step(lambda _: content.unwatch())


def _drop_content(content: Content, table: str, numbers: Sequence[int], connection: Any) -> int:
    unused = content.unused(table, numbers)
    values = (msgspec.json.encode(unused).decode(),)
    statement = f"DELETE FROM {table} WHERE id IN (SELECT value FROM json_each(?))"
    connection.execute(statement, values)
    content.forget()
    return len(unused)


# --- the file -------------------------------------------------------------------------------------


def _file_bytes(connection: Any) -> int:
    return int(connection.pragma("page_count") * connection.pragma("page_size"))


def _used_bytes(connection: Any) -> int:
    free = connection.pragma("freelist_count") * connection.pragma("page_size")
    return _file_bytes(connection) - int(free)


def _shrink(connection: Any, slack: float) -> bool:
    """Give back some free pages; False when few enough are left."""
    free, pages = connection.pragma("freelist_count"), connection.pragma("page_count")
    if free <= slack * pages:
        return False
    connection.execute(f"PRAGMA incremental_vacuum({PAGES})").fetchall()
    return bool(connection.pragma("freelist_count") < free)


async def _repeat(journal: Steps, work: Callable[[Any], int]) -> int:
    """Step by step until a step finds nothing to do; the sum."""
    total = 0
    while count := await journal.step(work):
        total += count
    return total
