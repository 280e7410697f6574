"""Records to rows: one transaction's worth, gathered and then written statement by statement.

Executing each record by itself would be as right and cost twice as much.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from itertools import chain
from typing import Any

from aios.abi import events as ev
from aios.abi import wire
from aios.abi.events import Event
from aios.ports import (
    CallEnd,
    CallRow,
    ContextRow,
    Forget,
    GrantRow,
    KeyRow,
    ProcessRow,
    Record,
    SnapshotRow,
    TokensRow,
)

# Each step of a statement lets go of the interpreter and takes it back, which wakes the event loop
# for nothing: so few steps. By powers of two, so that all statements stay prepared.
ROWS_A_STATEMENT = 64
EVENTS_A_ROW = 256  # at most: a reader of one event decodes its whole row

EVENTS = "INSERT INTO events VALUES"
PROCESS = "REPLACE INTO processes VALUES"
CALL = "REPLACE INTO calls VALUES"
END = "REPLACE INTO ends VALUES"
TOKENS = "REPLACE INTO tokens VALUES"
MESSAGE = "REPLACE INTO contexts VALUES"
KEY = "REPLACE INTO keys VALUES"
GRANT = "REPLACE INTO grants VALUES"
SNAPSHOT = "REPLACE INTO snapshots VALUES"
OPENED = "REPLACE INTO open_calls VALUES"
CLOSED = "DELETE FROM open_calls WHERE (number) IN (VALUES"
FORGET = """
INSERT INTO forgotten VALUES ('pid', :pid)
    ON CONFLICT DO UPDATE SET number = max(number, excluded.number);
INSERT INTO forgotten SELECT 'call', max(number) FROM calls WHERE pid = :pid HAVING count(*)
    ON CONFLICT DO UPDATE SET number = max(number, excluded.number);
DELETE FROM tokens WHERE call IN (SELECT number FROM calls WHERE pid = :pid);
DELETE FROM open_calls WHERE number IN (SELECT number FROM calls WHERE pid = :pid);
DELETE FROM ends WHERE number IN (SELECT number FROM calls WHERE pid = :pid);
DELETE FROM calls WHERE pid = :pid;
DELETE FROM contexts WHERE pid = :pid;
DELETE FROM processes WHERE pid = :pid;
"""


@cache
def statement(head: str, width: int, rows: int) -> str:
    """One statement for so many rows of so many values."""
    row = f"({', '.join('?' * width)})"
    tail = ")" if head.count("(") > head.count(")") else ""
    return f"{head} {', '.join([row] * rows)}{tail}"


def number_of(call: str) -> int:
    """12 for c12."""
    return int(call[1:])


class Rows:
    """Takes records in order; what comes last under one key is what stays.

    last_seq is the number of the newest event; ValueError if the next does not follow it.
    """

    def __init__(self, connection: Any, last_seq: int) -> None:
        self._connection = connection
        self.last_seq = last_seq
        self._events: list[Event] = []
        self._rows: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
        self._open: dict[int, bool] = {}  # by the call's number, as the last record left it

    def take(self, records: Iterable[Record]) -> None:
        for record in records:
            TAKE[type(record)](self, record)

    def write(self) -> None:
        """Execute what was gathered, inside the caller's transaction."""
        for first in range(0, len(self._events), EVENTS_A_ROW):
            events = self._events[first : first + EVENTS_A_ROW]
            pids = f",{','.join({str(event.pid) for event in events})},"
            self._rows[EVENTS].append(
                (events[0].seq, events[-1].seq, pids, wire.encode_lines(events))
            )
        for call, is_open in self._open.items():
            self._rows[OPENED if is_open else CLOSED].append((call,))
        for head, rows in self._rows.items():
            done = 0
            while done < len(rows):
                size = min(ROWS_A_STATEMENT, 1 << (len(rows) - done).bit_length() - 1)
                values = list(chain.from_iterable(rows[done : done + size]))
                self._connection.execute(statement(head, len(rows[0]), size), values)
                done += size
        self._events.clear()
        self._rows.clear()
        self._open.clear()

    def _event(self, event: Event) -> None:
        if event.seq <= self.last_seq:
            raise ValueError(f"event {event.seq} comes after event {self.last_seq}")
        self.last_seq = event.seq
        self._events.append(event)

    def _process(self, row: ProcessRow) -> None:
        self._rows[PROCESS].append(
            (
                row.pid,
                row.user,
                row.parent,
                row.program,
                row.state,
                wire.encode(row.reasons),
                row.priority,
                row.os_pid,
                row.os_started,
                row.created_at,
                row.ended_at,
                row.exit_status,
                row.detail,
            )
        )

    def _call(self, row: CallRow) -> None:
        number = number_of(row.id)
        self._rows[CALL].append((number, row.pid, row.name, row.started_at, row.request))
        self._open[number] = True

    def _end(self, end: CallEnd) -> None:
        number = number_of(end.id)
        self._rows[END].append((number, end.state, end.ended_at, end.reply, end.error))
        self._open[number] = False

    def _slice(self, row: TokensRow) -> None:
        self._rows[TOKENS].append((number_of(row.call), row.ordinal, row.tokens))

    def _message(self, row: ContextRow) -> None:
        self._rows[MESSAGE].append((row.pid, row.context, row.ordinal, row.message))

    def _key(self, row: KeyRow) -> None:
        self._rows[KEY].append((row.info.id, wire.encode(row.info), row.hash))

    def _grant(self, row: GrantRow) -> None:
        self._rows[GRANT].append((row.holder, row.action, row.resource, row.expires_at))

    def _snapshot(self, row: SnapshotRow) -> None:
        self._rows[SNAPSHOT].append((row.id, row.pid, row.path, row.created_at, row.detail))

    def _forget(self, forget: Forget) -> None:
        self.write()  # what came before is forgotten, what comes after is not
        self._connection.execute(FORGET, {"pid": forget.pid})


TAKE: dict[type[Any], Callable[[Rows, Any], None]] = {
    **dict.fromkeys(ev.EVENTS, Rows._event),
    ProcessRow: Rows._process,
    CallRow: Rows._call,
    CallEnd: Rows._end,
    TokensRow: Rows._slice,
    ContextRow: Rows._message,
    KeyRow: Rows._key,
    GrantRow: Rows._grant,
    SnapshotRow: Rows._snapshot,
    Forget: Rows._forget,
}
