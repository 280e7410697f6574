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
from aios.drivers.journal import files_rows, memory_rows
from aios.drivers.journal.content import Content
from aios.ports import (
    CallEnd,
    CallRow,
    ContextCut,
    ContextRow,
    ContextSetting,
    EnvRow,
    Forget,
    GrantGone,
    GrantRow,
    KeyGone,
    KeyRow,
    MailRow,
    MailTaken,
    MarkRow,
    ProcessRow,
    Record,
    Rewind,
    SnapshotRow,
    SpentRow,
    TokensRow,
)

# Each step of a statement lets go of the interpreter and takes it back, which wakes the event loop
# for nothing: so few steps. By powers of two, so that all statements stay prepared.
ROWS_A_STATEMENT = 64
EVENTS_A_ROW = 256  # at most: a reader of one event decodes its whole row

INLINE = 1_000  # bytes of a request, a reply or a mail; more is kept as content

EVENTS = "INSERT INTO events (first, last, pids, body) VALUES"
PROCESS = "REPLACE INTO processes VALUES"
CALL = "REPLACE INTO calls (number, pid, name, started_at, request, content, said, tools) VALUES"
END = "REPLACE INTO ends (number, state, ended_at, reply, error, code, content) VALUES"
TOKENS = "REPLACE INTO tokens VALUES"
MESSAGE = "REPLACE INTO messages (pid, context, position, born, message) VALUES"
SETTING = "REPLACE INTO settings VALUES"
SPENT = "REPLACE INTO spent VALUES"
ENVIRONMENT = "REPLACE INTO environments VALUES"
MAIL = "REPLACE INTO mail (pid, number, mail) VALUES"
MARK = "REPLACE INTO marks VALUES"
KEY = "REPLACE INTO keys VALUES"
GRANT = "REPLACE INTO grants VALUES"
SNAPSHOT = "REPLACE INTO snapshots VALUES"
OPENED = "REPLACE INTO open_calls VALUES"
CLOSED = "DELETE FROM open_calls WHERE (number) IN (VALUES"

# These are executed at once, after what came before them.
CUT = """
UPDATE messages SET died = :call
WHERE pid = :pid AND context = :context AND position = :position
  AND born <= :call AND died IS NULL
"""
TAKEN = "UPDATE mail SET taken = :call WHERE pid = :pid AND number = :number"
GRANT_GONE = "DELETE FROM grants WHERE holder = ? AND action = ? AND resource = ?"
KEY_GONE = "DELETE FROM keys WHERE id = ?"
REWIND = """
UPDATE calls SET void = 1 WHERE pid = :pid AND number > :call;
INSERT INTO ends (number, state, ended_at, error, code)
    SELECT number, 'cancelled', :at, 'it was left behind by a rollback', 'cancelled'
    FROM open_calls JOIN calls USING (number) WHERE pid = :pid AND number > :call;
DELETE FROM open_calls
    WHERE number IN (SELECT number FROM calls WHERE pid = :pid AND number > :call);
DELETE FROM messages WHERE pid = :pid AND born > :call;
UPDATE messages SET died = NULL WHERE pid = :pid AND died > :call;
UPDATE mail SET taken = NULL WHERE pid = :pid AND taken > :call;
DELETE FROM marks WHERE pid = :pid AND call > :call;
"""
FORGET = """
INSERT INTO forgotten VALUES ('pid', :pid)
    ON CONFLICT DO UPDATE SET number = max(number, excluded.number);
INSERT INTO forgotten SELECT 'call', max(number) FROM calls WHERE pid = :pid HAVING count(*)
    ON CONFLICT DO UPDATE SET number = max(number, excluded.number);
DELETE FROM tokens WHERE call IN (SELECT number FROM calls WHERE pid = :pid);
DELETE FROM open_calls WHERE number IN (SELECT number FROM calls WHERE pid = :pid);
DELETE FROM ends WHERE number IN (SELECT number FROM calls WHERE pid = :pid);
DELETE FROM calls WHERE pid = :pid;
DELETE FROM messages WHERE pid = :pid;
DELETE FROM settings WHERE pid = :pid;
DELETE FROM spent WHERE pid = :pid;
DELETE FROM environments WHERE pid = :pid;
DELETE FROM mail WHERE pid = :pid;
DELETE FROM marks WHERE pid = :pid;
DELETE FROM grants WHERE holder = 'pid:' || :pid;
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

    def __init__(self, connection: Any, content: Content, last_seq: int) -> None:
        self.connection, self._content = connection, content
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
        for head, rows in chain(self._content.rows(), self._rows.items()):
            done = 0
            while done < len(rows):
                size = min(ROWS_A_STATEMENT, 1 << (len(rows) - done).bit_length() - 1)
                values = list(chain.from_iterable(rows[done : done + size]))
                self.connection.execute(statement(head, len(rows[0]), size), values)
                done += size
        self._events.clear()
        self._rows.clear()
        self._open.clear()

    def add(self, head: str, row: tuple[Any, ...]) -> None:
        """Gather a row for the statement that begins with *head*."""
        self._rows[head].append(row)

    def execute(self, sql: str, **values: Any) -> Any:
        """Execute a statement now, after all that was gathered before it; its cursor."""
        self.write()
        return self.connection.execute(sql, values)

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
        number, content = number_of(row.id), self._content
        inline, kept = self._place(row.request)
        self._rows[CALL].append(
            (
                number,
                row.pid,
                row.name,
                row.started_at,
                inline or b"",
                kept,
                content.turn(row.said) if row.said else None,
                content.blob(b"[" + b",".join(row.tools) + b"]") if row.tools else None,
            )
        )
        self._open[number] = True

    def _end(self, end: CallEnd) -> None:
        number = number_of(end.id)
        reply, kept = (None, None) if end.reply is None else self._place(end.reply)
        self._rows[END].append((number, end.state, end.ended_at, reply, end.error, end.code, kept))
        self._open[number] = False

    def _place(self, data: bytes) -> tuple[bytes | None, int | None]:
        """Small data as it is, or the number of a blob."""
        return (data, None) if len(data) <= INLINE else (None, self._content.blob(data))

    def _slice(self, row: TokensRow) -> None:
        self._rows[TOKENS].append((number_of(row.call), row.ordinal, row.tokens, row.detail))

    def _message(self, row: ContextRow) -> None:
        message = self._content.blob(row.message)
        born = number_of(row.call)
        self._rows[MESSAGE].append((row.pid, row.context, row.position, born, message))

    def _cut(self, cut: ContextCut) -> None:
        self.write()
        self.connection.executemany(
            CUT,
            [
                {
                    "pid": cut.pid,
                    "context": cut.context,
                    "position": position,
                    "call": number_of(cut.call),
                }
                for position in cut.positions
            ],
        )

    def _setting(self, row: ContextSetting) -> None:
        self._rows[SETTING].append((row.pid, row.context, row.detail))

    def _spent(self, row: SpentRow) -> None:
        self._rows[SPENT].append((row.pid, row.usage, row.left))

    def _environment(self, row: EnvRow) -> None:
        self._rows[ENVIRONMENT].append((row.pid, row.sealed))

    def _mail(self, row: MailRow) -> None:
        self._rows[MAIL].append((row.pid, row.number, row.mail))

    def _taken(self, taken: MailTaken) -> None:
        call = number_of(taken.call) if taken.call else 0
        self.execute(TAKEN, pid=taken.pid, number=taken.number, call=call)

    def _mark(self, row: MarkRow) -> None:
        self._rows[MARK].append((row.id, row.pid, row.call, row.at, row.detail))

    def _rewind(self, rewind: Rewind) -> None:
        self.execute(REWIND, pid=rewind.pid, call=rewind.call, at=rewind.at)

    def _key(self, row: KeyRow) -> None:
        self._rows[KEY].append((row.info.id, wire.encode(row.info), row.hash))

    def _grant(self, row: GrantRow) -> None:
        self._rows[GRANT].append((row.holder, row.action, row.resource, row.expires_at))

    def _snapshot(self, row: SnapshotRow) -> None:
        self._rows[SNAPSHOT].append((row.id, row.pid, row.path, row.created_at, row.detail))

    def _key_gone(self, gone: KeyGone) -> None:
        self.write()
        self.connection.execute(KEY_GONE, (gone.id,))

    def _grant_gone(self, gone: GrantGone) -> None:
        self.write()
        self.connection.execute(GRANT_GONE, (gone.holder, gone.action, gone.resource))

    def _forget(self, forget: Forget) -> None:
        self.execute(FORGET, pid=forget.pid)
        files_rows.forget(self, forget.pid)


TAKE: dict[type[Any], Callable[[Rows, Any], None]] = {
    **dict.fromkeys(ev.EVENTS, Rows._event),
    ProcessRow: Rows._process,
    CallRow: Rows._call,
    CallEnd: Rows._end,
    TokensRow: Rows._slice,
    ContextRow: Rows._message,
    ContextCut: Rows._cut,
    ContextSetting: Rows._setting,
    SpentRow: Rows._spent,
    EnvRow: Rows._environment,
    MailRow: Rows._mail,
    MailTaken: Rows._taken,
    MarkRow: Rows._mark,
    Rewind: Rows._rewind,
    KeyRow: Rows._key,
    KeyGone: Rows._key_gone,
    GrantRow: Rows._grant,
    GrantGone: Rows._grant_gone,
    SnapshotRow: Rows._snapshot,
    Forget: Rows._forget,
    **memory_rows.TAKE,
    **files_rows.TAKE,
}
