"""A journal's file, only read: whether it is sound, and all that is in it.

Also while a kernel writes to it, or when none can be started any more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import apsw
from blake3 import blake3

from aios.abi import wire
from aios.abi.events import Event
from aios.drivers.journal.content import unpack
from aios.drivers.journal.migrations import APPLICATION, newest_version
from aios.drivers.journal.questions import histories
from aios.drivers.journal.troubles import UNREADABLE, sentence
from aios.errors import SetupError, StoreFailed
from aios.ports import CallHistory

BUSY_MS = 5_000  # how long to wait for a writer that is just making the file

# What must be empty, and what it says of a row (its first column names it).
DANGLING = {
    "call c{} has not begun, but has tokens": (
        "SELECT DISTINCT call FROM tokens WHERE call NOT IN (SELECT number FROM calls)"
    ),
    "call c{} has an end, but has not begun": (
        "SELECT number FROM ends WHERE number NOT IN (SELECT number FROM calls)"
    ),
    "call c{} is open, but has not begun": (
        "SELECT number FROM open_calls WHERE number NOT IN (SELECT number FROM calls)"
    ),
    "call c{} has begun, and is neither open nor ended": (
        "SELECT number FROM calls WHERE number NOT IN open_calls"
        " AND number NOT IN (SELECT number FROM ends)"
    ),
    "call c{} says what is missing: turn {}": (
        "SELECT number, said FROM calls"
        " WHERE said IS NOT NULL AND said NOT IN (SELECT id FROM turns)"
    ),
    "turn {} comes after one that is missing: turn {}": (
        "SELECT id, parent FROM turns"
        " WHERE parent AND (parent >= id OR parent NOT IN (SELECT id FROM turns))"
    ),
    "turn {} has lost its message: blob {}": (
        "SELECT id, message FROM turns WHERE message NOT IN (SELECT id FROM blobs)"
    ),
    "a message in a context of process {} is missing: blob {}": (
        "SELECT pid, message FROM messages WHERE message NOT IN (SELECT id FROM blobs)"
    ),
    "the request of call c{} is missing: blob {}": (
        "SELECT number, content FROM calls"
        " WHERE content IS NOT NULL AND content NOT IN (SELECT id FROM blobs)"
    ),
    "the tools of call c{} are missing: blob {}": (
        "SELECT number, tools FROM calls"
        " WHERE tools IS NOT NULL AND tools NOT IN (SELECT id FROM blobs)"
    ),
    "the reply to call c{} is missing: blob {}": (
        "SELECT number, content FROM ends"
        " WHERE content IS NOT NULL AND content NOT IN (SELECT id FROM blobs)"
    ),
    "a file at {} has lost its content: {}": (
        "SELECT path, content FROM entries"
        " WHERE content > 0 AND content NOT IN (SELECT id FROM contents)"
    ),
    "content {} of files has lost a part: chunk {}": (
        "SELECT content, chunk FROM content_chunks WHERE chunk NOT IN (SELECT id FROM chunks)"
    ),
    "events of process {} are missing: those from {} on": (
        "SELECT pid, first FROM events_of"
        " WHERE first NOT IN (SELECT first FROM events WHERE packed)"
    ),
}

HASHED = {
    "blob": "SELECT id, hash, packed, body FROM blobs",
    "chunk": "SELECT id, hash, packed, body FROM chunks",
}


class JournalFile:
    """The file at *path* as of one moment; SetupError if there is none, or not one of ours."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            raise SetupError(f"there is no journal at {path}: `aios up` starts one.")
        # without the right to write beside it, it is read as it lies there
        alone = "" if os.access(path.parent, os.W_OK) else "&immutable=1"
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        try:
            self._connection = apsw.Connection(f"{path.as_uri()}?mode=ro{alone}", flags=flags)
            self._connection.set_busy_timeout(BUSY_MS)
            version = self._connection.pragma("user_version")
            owner = self._connection.pragma("application_id")
        except apsw.Error as error:
            raise SetupError(sentence(path, error)) from error
        if owner != APPLICATION or version != newest_version():
            self._connection.close()
            raise SetupError(
                f"{path} is a journal of version {version} and this aios reads version "
                f"{newest_version()}: start its kernel once with `aios up`, or upgrade aios."
                if owner == APPLICATION
                else f"{path} is no journal of aios: set AIOS_HOME to where one is."
            )

    def __enter__(self) -> JournalFile:
        self._connection.execute("BEGIN")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._connection.close()
        if isinstance(error, UNREADABLE):
            raise StoreFailed(sentence(self._path, error)) from error

    def events(self, pid: int | None = None) -> Iterator[Event]:
        """All of them, in order; of one process."""
        for packed, body in self._connection.execute(
            "SELECT packed, body FROM events ORDER BY first"
        ):
            for event in wire.decode_events(unpack(packed, body)):
                if pid is None or event.pid == pid:
                    yield event

    def calls(self, pid: int | None = None) -> Iterator[CallHistory]:
        """All calls, in order; of one process."""
        return histories(self._connection, pid)

    def open_now(self) -> Iterator[tuple[str, Any]]:
        """What may still be without its end, as (kind, id)."""
        for (number,) in self._connection.execute("SELECT number FROM open_calls"):
            yield "call", f"c{number}"
            yield "slice", f"c{number}"
        query = "SELECT pid FROM processes WHERE state != 'zombie'"
        for (pid,) in self._connection.execute(query):
            yield "process", pid

    def problems(self) -> Iterator[str]:
        """What is wrong with it, in a clause each; nothing if it is sound."""
        return problems(self._connection)


def problems(connection: Any) -> Iterator[str]:
    """What is wrong with a journal's database."""
    damages = [m for (m,) in connection.execute("PRAGMA integrity_check") if m != "ok"]
    if damages:  # then the rest cannot be relied on
        yield from (message.replace("\n", ", ") for message in damages)
        return
    for said, query in DANGLING.items():
        for row in connection.execute(query):
            yield said.format(*row)
    for kind, query in HASHED.items():
        for number, digest, packed, body in connection.execute(query):
            try:
                if blake3(unpack(packed, body)).digest(len(digest)) == digest:
                    continue
            except UNREADABLE:
                pass
            yield f"{kind} {number} is not what was written"
    yield from _disorder(connection)


def _disorder(connection: Any) -> Iterator[str]:
    before = 0
    query = "SELECT first, last, packed, body FROM events ORDER BY first"
    for first, last, packed, body in connection.execute(query):
        try:
            numbers = [event.seq for event in wire.decode_events(unpack(packed, body))]
        except UNREADABLE as error:
            yield f"events {first} to {last} cannot be read ({error})"
            continue
        if [before, *numbers] != sorted({before, *numbers}) or (
            (first, last) != (numbers[0], numbers[-1])
        ):
            yield f"events {first} to {last} are not in order"
        before = last
