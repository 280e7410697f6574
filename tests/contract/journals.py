"""Records, and places where a journal is, for the tests of journals."""

from __future__ import annotations

import struct
from pathlib import Path

from aios.abi.events import CallStarted
from aios.drivers.journal.memory import MemoryJournal
from aios.drivers.journal.sqlite import SqliteJournal
from aios.ports import CallEnd, CallRow, ProcessRow, TokensRow


def process(pid: int, **fields: object) -> ProcessRow:
    row = {
        "user": "ann",
        "parent": None,
        "program": "math",
        "state": "live",
        "reasons": (),
        "priority": 0,
        "os_pid": None,
        "os_started": None,
        "created_at": 1.5,
        "ended_at": None,
        "exit_status": None,
        "detail": b"{}",
    }
    return ProcessRow(pid=pid, **(row | fields))  # type: ignore[arg-type]


def call(number: int, pid: int = 1, request: bytes = b"{}") -> CallRow:
    return CallRow(f"c{number}", pid, "generate", float(number), request)


def end(number: int, state: str = "done") -> CallEnd:
    return CallEnd(f"c{number}", state, number + 0.5, b'"hello"')  # type: ignore[arg-type]


def tokens(number: int, ordinal: int, *ids: int) -> TokensRow:
    return TokensRow(f"c{number}", ordinal, struct.pack(f"<{len(ids)}i", *ids))


def started(seq: int, pid: int = 1) -> CallStarted:
    return CallStarted(seq=seq, at=float(seq), pid=pid, call=f"c{seq}", name="generate")


class Disk:
    """A place where a journal is, and is found again after it was closed."""

    def __init__(self, kind: str, path: Path) -> None:
        self.path = path / "data" / "journal.db"
        self._memory = MemoryJournal() if kind == "memory" else None
        self._opened: list[SqliteJournal | MemoryJournal] = []

    async def open(self) -> SqliteJournal | MemoryJournal:
        await self.close()
        self._opened.append(self._memory or SqliteJournal(self.path))
        return self._opened[-1]

    async def close(self) -> None:
        while self._opened:
            await self._opened.pop().close()
