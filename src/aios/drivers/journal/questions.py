"""Rows to data: what a journal can be asked, the same of a file and of its twin in memory."""

from __future__ import annotations

import re
import struct
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from aios.abi import wire
from aios.abi.calls import JournalReport, KeyInfo
from aios.abi.events import Event
from aios.drivers.journal.content import unpack
from aios.ports import (
    CallEnd,
    CallFilter,
    CallHistory,
    CallRow,
    ContextRow,
    ContextSetting,
    GrantRow,
    Image,
    KeyRow,
    MailRow,
    MarkRow,
    ProcessRow,
    SnapshotRow,
    SpentRow,
)

T = TypeVar("T")

NEWEST = (1 << 63) - 1  # above every number
SAID_KEPT = 300  # conversations that are kept whole while a question is answered
TAKEN_KEPT = 1_000  # ids of received mail for each process: as many as its mailbox holds

LAST = """
SELECT coalesce((SELECT last FROM events ORDER BY first DESC LIMIT 1), 0),
       max(coalesce((SELECT max(pid) FROM processes), 0),
           coalesce((SELECT number FROM forgotten WHERE kind = 'pid'), 0)),
       max(coalesce((SELECT max(number) FROM calls), 0),
           coalesce((SELECT number FROM forgotten WHERE kind = 'call'), 0))
"""
CALL = """
SELECT number, pid, name, started_at, request, calls.content, said, tools, void,
       state, ended_at, reply, ends.content, error, code
FROM calls LEFT JOIN ends USING (number)
"""
OPEN_CALLS = f"{CALL} WHERE number IN open_calls ORDER BY number"
CALLS_OF = f"""{CALL}
WHERE pid = :pid AND number > :after AND number < :before AND number <= :upto
  AND (:names IS NULL OR name IN (SELECT value FROM json_each(:names)))
  AND (:since IS NULL OR started_at >= :since) AND (:until IS NULL OR started_at <= :until)
  AND (NOT :open_only OR number IN open_calls) AND (:void OR NOT void)
ORDER BY number DESC
"""
TOKENS_OF = "SELECT tokens, detail FROM tokens WHERE call = ? ORDER BY ordinal"
MAIL_OF = "SELECT pid, number, mail FROM mail WHERE pid = ? AND taken IS NULL ORDER BY number"
BLOB = "SELECT packed, body FROM blobs WHERE id = ?"
TURN = "SELECT parent, message FROM turns WHERE id = ?"
# Where to begin: at the row that may hold the event after that one.
FROM = "coalesce((SELECT max(first) FROM events WHERE first <= :after + 1), 0)"
EVENTS = f"SELECT packed, body FROM events WHERE first >= {FROM} ORDER BY first"
# Packed rows come before all others: those are found by their index, these are looked through.
EVENTS_OF = f"""
SELECT packed, body FROM events_of CROSS JOIN events USING (first)
WHERE pid = :pid AND events_of.first >= {FROM}
UNION ALL
SELECT packed, body FROM events
WHERE first >= max({FROM}, (SELECT coalesce(max(first), 0) + 1 FROM events WHERE packed))
  AND instr(pids, ',' || :pid || ',')
"""
EVERY_CALL = f"{CALL} WHERE :pid IS NULL OR pid = :pid ORDER BY number"
CONTEXTS = """
SELECT pid, context, position, born, packed, body FROM messages JOIN blobs ON id = message
WHERE died IS NULL ORDER BY pid, context, position
"""
CONTEXTS_AT = """
SELECT pid, context, position, born, packed, body FROM messages JOIN blobs ON id = message
WHERE pid = :pid AND born <= :call AND (died IS NULL OR died > :call) ORDER BY context, position
"""
TABLES = """
SELECT name FROM pragma_table_list
WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY name
"""


class Questions:
    """What a ports.Journal answers, from any way to read its database."""

    @abstractmethod
    async def read(self, query: Callable[[Any], T]) -> T:
        """What *query* makes of the database, seen as of one moment; StoreFailed if it cannot."""

    async def events(self, after: int, limit: int, pid: int | None = None) -> list[Event]:
        return await self.read(lambda connection: _events(connection, after, limit, pid))

    async def first_seq(self) -> int:
        return await self.read(
            lambda connection: connection.execute("SELECT min(first) FROM events").get or 0
        )

    async def calls(self, pid: int, which: CallFilter = CallFilter()) -> list[CallHistory]:  # noqa: B008 (frozen)
        return await self.read(lambda connection: _calls(connection, pid, which))

    async def environment(self, pid: int) -> bytes | None:
        query = "SELECT sealed FROM environments WHERE pid = ?"
        return await self.read(lambda connection: connection.execute(query, (pid,)).get)

    async def context_at(self, pid: int, call: int) -> list[ContextRow]:
        values = {"pid": pid, "call": call}
        return await self.read(
            lambda connection: list(map(_message, connection.execute(CONTEXTS_AT, values)))
        )

    async def mail(self, pid: int) -> list[MailRow]:
        return await self.read(
            lambda connection: [MailRow(*row) for row in connection.execute(MAIL_OF, (pid,))]
        )

    async def report(self) -> JournalReport:
        return await self.read(partial(report, wal_bytes=self.wal_bytes()))

    def wal_bytes(self) -> int:
        """What waits beside the file to be copied into it."""
        return 0


# --- contents -------------------------------------------------------------------------------------


class Contents:
    """Blobs and conversations, read back; each once for all who ask here."""

    def __init__(self, connection: Any) -> None:
        self._execute = connection.execute
        self._said: dict[int, bytes] = {0: b""}

    def blob(self, number: int) -> bytes:
        row = self._execute(BLOB, (number,)).get
        if row is None:
            raise msgspec.DecodeError(f"content {number} is missing")
        return unpack(*row)

    def either(self, inline: bytes | None, number: int | None) -> bytes | None:
        return inline if number is None else self.blob(number)

    def said(self, turn: int) -> bytes:
        """The messages up to a turn, with commas between them."""
        missing = []
        while turn not in self._said:
            row = self._execute(TURN, (turn,)).get
            if row is None or row[0] >= turn:
                raise msgspec.DecodeError(f"turn {turn} of a conversation is missing")
            missing.append((turn, row[1]))
            turn = row[0]
        said = self._said[turn]
        if len(self._said) > SAID_KEPT:
            self._said = {0: b""}
        for turn, message in reversed(missing):
            said = self._said[turn] = (
                said + b"," + self.blob(message) if said else self.blob(message)
            )
        return said

    def request(
        self, inline: bytes, number: int | None, said: int | None, tools: int | None
    ) -> bytes:
        """A request as it was, its messages and tools at its end."""
        request = inline if number is None else self.blob(number)
        parts = []
        if said is not None:
            parts.append(b'"messages":[' + self.said(said) + b"]")
        if tools is not None:
            parts.append(b'"tools":' + self.blob(tools))
        if not parts:
            return request
        head = request.rstrip()[:-1].rstrip()
        return b",".join([head, *parts] if head != b"{" else [head + parts[0], *parts[1:]]) + b"}"


# --- rows to data ---------------------------------------------------------------------------------


def image(connection: Any) -> Image:
    """Everything that a kernel needs to go on."""
    rows = connection.execute
    last_seq, last_pid, last_call = next(rows(LAST))
    contents = Contents(connection)
    return Image(
        last_seq=last_seq,
        last_pid=last_pid,
        last_call=last_call,
        processes=tuple(map(_process, rows("SELECT * FROM processes ORDER BY pid"))),
        keys=tuple(
            KeyRow(msgspec.json.decode(info, type=KeyInfo), hash)
            for info, hash in rows("SELECT info, hash FROM keys ORDER BY id")
        ),
        grants=tuple(GrantRow(*row) for row in rows("SELECT * FROM grants ORDER BY 1, 2, 3")),
        snapshots=tuple(SnapshotRow(*row) for row in rows("SELECT * FROM snapshots ORDER BY id")),
        open_calls=tuple(_call(contents, row) for row in rows(OPEN_CALLS)),
        contexts=tuple(map(_message, rows(CONTEXTS))),
        settings=tuple(
            ContextSetting(*row) for row in rows("SELECT * FROM settings ORDER BY 1, 2")
        ),
        spent=tuple(SpentRow(*row) for row in rows("SELECT * FROM spent ORDER BY pid")),
        mail=tuple(
            MailRow(*row)
            for row in rows("SELECT pid, number, mail FROM mail WHERE taken IS NULL ORDER BY 1, 2")
        ),
        taken=tuple(_taken(rows)),
        marks=tuple(MarkRow(*row) for row in rows("SELECT * FROM marks ORDER BY pid, call, id")),
    )


def _process(row: Sequence[Any]) -> ProcessRow:
    pid, user, parent, program, state, reasons, *rest = row
    why = tuple(msgspec.json.decode(reasons))
    return ProcessRow(pid, user, parent, program, state, why, *rest)


class _Named(Struct):
    """What is looked for in a mail."""

    id: str = ""


_named = msgspec.json.Decoder(_Named)
_given_by_its_sender = re.compile(r"(?!c[0-9]+$)").match  # else it is the number of the call


def _taken(rows: Callable[[str], Iterable[Any]]) -> Iterator[MailRow]:
    """Received mail whose sender may send it again, and the last one: numbers go on after it."""
    query = f"""
    SELECT pid, number, mail, age FROM
        (SELECT *, row_number() OVER (PARTITION BY pid ORDER BY number DESC) AS age FROM mail
         WHERE taken IS NOT NULL)
    WHERE age <= {TAKEN_KEPT} ORDER BY pid, number
    """
    for *row, age in rows(query):
        if age == 1 or _given_by_its_sender(_named.decode(row[2]).id):
            yield MailRow(*row)


def _message(row: Sequence[Any]) -> ContextRow:
    pid, context, position, born, packed, body = row
    return ContextRow(pid, context, position, f"c{born}", unpack(packed, body))


def _events(connection: Any, after: int, limit: int, pid: int | None) -> list[Event]:
    query = EVENTS if pid is None else EVENTS_OF
    rows = connection.execute(query, {"after": after, "pid": pid})
    found = (
        event
        for packed, body in rows
        for event in wire.decode_events(unpack(packed, body))
        if event.seq > after and (pid is None or event.pid == pid)
    )
    page = list(islice(found, limit))
    rows.close()
    return page


def _calls(connection: Any, pid: int, which: CallFilter) -> list[CallHistory]:
    values = {
        "pid": pid,
        "after": -1 if which.after is None else which.after,
        "before": NEWEST if which.before is None else which.before,
        "upto": NEWEST if which.upto is None else which.upto,
        "names": wire.encode(which.names).decode() if which.names else None,
        "since": which.since,
        "until": which.until,
        "open_only": which.open_only,
        "void": which.void,
    }
    contents = Contents(connection)
    rows = connection.execute(CALLS_OF, values)
    found: Iterable[CallHistory] = (_history(connection, contents, row) for row in rows)
    if which.text is not None:
        found = (history for history in found if _holds(history, which.text))
    newest = list(islice(found, which.limit))
    rows.close()
    return newest[::-1]


def histories(connection: Any, pid: int | None) -> Iterator[CallHistory]:
    """Every call, in order; of one process."""
    contents = Contents(connection)
    for row in connection.execute(EVERY_CALL, {"pid": pid}):
        yield _history(connection, contents, row)


def _call(contents: Contents, row: Sequence[Any]) -> CallRow:
    number, pid, name, started_at, *request = row[:8]
    return CallRow(f"c{number}", pid, name, started_at, contents.request(*request))


def _history(connection: Any, contents: Contents, row: Sequence[Any]) -> CallHistory:
    number, void = row[0], row[8]
    state, ended_at, reply, content, error, code = row[9:]
    end = None
    if state is not None:
        reply = contents.either(reply, content)
        end = CallEnd(f"c{number}", state, ended_at, reply, error, code)
    slices = connection.execute(TOKENS_OF, (number,)).fetchall()
    packed = b"".join(tokens for tokens, _ in slices)
    tokens = struct.unpack(f"<{len(packed) // 4}i", packed)
    details = tuple(detail for _, detail in slices if detail)
    return CallHistory(_call(contents, row), end, tokens, details, bool(void))


def _holds(history: CallHistory, text: str) -> bool:
    """Whether the text is in a call's request, reply or error, in whatever case."""
    wanted = msgspec.json.encode(text)[1:-1].decode().casefold()  # as JSON escapes it
    end = history.end
    told = (history.start.request, (end.reply if end else None) or b"")
    return any(wanted in part.decode().casefold() for part in told) or (
        end is not None and text.casefold() in (end.error or "").casefold()
    )


def report(connection: Any, wal_bytes: int = 0) -> JournalReport:
    """What the database holds."""
    page = connection.pragma("page_size")
    ends = connection.execute("SELECT coalesce(min(first), 0), coalesce(max(last), 0) FROM events")
    first, last = next(ends)
    tables = [name for (name,) in connection.execute(TABLES)]
    return JournalReport(
        version=connection.pragma("user_version"),
        bytes=connection.pragma("page_count") * page,
        wal_bytes=wal_bytes,
        free_bytes=connection.pragma("freelist_count") * page,
        first_event=first,
        last_event=last,
        rows={name: connection.execute(f'SELECT count(*) FROM "{name}"').get for name in tables},
    )
