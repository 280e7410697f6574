"""Durable records a second, and how many of them one sync of the disk makes durable.

A caller appends the start of a call, and then its end with its reply: four records, two waits until
they are on the disk. ``per_sync`` is records per fdatasync, counted in a round of its own (counting
costs time). ``vs_groups`` is the rate over that of the same records written to the same schema by
one thread in transactions of 100 appends, with no event loop and nobody waiting.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import apsw
import uvloop

from aios.abi.events import CallCompleted, CallStarted
from aios.drivers.journal.content import Content
from aios.drivers.journal.migrations import migrate
from aios.drivers.journal.rows import Rows
from aios.drivers.journal.sqlite import SqliteJournal
from aios.ports import CallEnd, CallRow, Record

CALLERS = (1, 8, 32, 128)
GOAL_CALLERS = 32
PER_SYNC = 8.0
VS_GROUPS = 0.3
GROUP = 100  # appends in a transaction, of the measure that it is held against
SECONDS = 2.0
ROUNDS = 3  # by turns; of each the best counts, for the machine may be busy
REQUEST = b'{"call":"generate","context":null,"sampling":{"max_tokens":16,"temperature":0.0}}'
MESSAGE = b'{"role":"user","content":"What is the capital of France? Answer in one word."}'
REPLY = b'{"message":{"role":"assistant","content":"Paris."},"usage":{"completion_tokens":3}}'


class Calls:
    """Starts and ends of calls as the kernel journals them, numbered as they are made."""

    def __init__(self) -> None:
        self._seq = self._call = 0

    def start(self) -> tuple[str, list[Record]]:
        self._seq, self._call = self._seq + 1, self._call + 1
        call, pid, now = f"c{self._call}", self._call % 64, time.time()
        row = CallRow(call, pid, "generate", now, REQUEST, (MESSAGE,))
        return call, [row, CallStarted(seq=self._seq, at=now, pid=pid, call=call, name="generate")]

    def end(self, call: str) -> list[Record]:
        self._seq += 1
        pid, now = int(call[1:]) % 64, time.time()
        done = CallCompleted(seq=self._seq, at=now, pid=pid, call=call, name="generate")
        return [CallEnd(call, "done", now, REPLY), done]


class Counting(apsw.VFS):
    """The disk, and how often it was synced."""

    def __init__(self) -> None:
        self.syncs = 0
        self.name = "counting"
        super().__init__(self.name, "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return _Counted(self, name, flags)


class _Counted(apsw.VFSFile):
    def __init__(self, disk: Counting, name: Any, flags: list[int]) -> None:
        self._disk = disk
        super().__init__("", name, flags)

    def xSync(self, flags: int) -> None:
        self._disk.syncs += 1
        super().xSync(flags)


async def callers_rate(
    folder: Path, callers: int, disk: Counting | None = None
) -> tuple[float, float]:
    """Records a second of so many callers at once, and (when counted) records a sync."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        vfs = disk.name if disk else None
        journal = SqliteJournal(Path(place) / "journal.db", reserve_bytes=0, vfs=vfs)
        calls, records = Calls(), 0
        before = disk.syncs if disk else 0
        began = time.perf_counter()

        async def caller() -> None:
            nonlocal records
            while time.perf_counter() < began + SECONDS:
                call, start = calls.start()
                await journal.append(start)
                end = calls.end(call)
                await journal.append(end)
                records += len(start) + len(end)

        await asyncio.gather(*(caller() for _ in range(callers)))
        seconds = time.perf_counter() - began
        syncs = disk.syncs - before if disk else 0
        await journal.close()
        return records / seconds, records / syncs if syncs else 0.0


def groups_rate(folder: Path) -> float:
    """Records a second of one writer in large transactions."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        connection = apsw.Connection(str(Path(place) / "journal.db"))
        connection.pragma("journal_mode", "WAL")
        connection.pragma("synchronous", "FULL")
        connection.pragma("wal_autocheckpoint", 4_000)
        migrate(connection, None)
        content, calls, records, last_seq = Content(connection), Calls(), 0, 0
        began = time.perf_counter()
        while time.perf_counter() < began + SECONDS:
            with connection:
                rows = Rows(connection, content, last_seq)
                for _ in range(GROUP // 2):
                    call, start = calls.start()
                    end = calls.end(call)
                    rows.take(start)
                    rows.take(end)
                    records += len(start) + len(end)
                rows.write()
            last_seq = rows.last_seq
        seconds = time.perf_counter() - began
        connection.close()
        return records / seconds


def run() -> dict[str, Any]:
    rates: dict[int, float] = dict.fromkeys(CALLERS, 0.0)
    groups = 0.0
    per_sync = {}
    disk = Counting()
    with (
        tempfile.TemporaryDirectory() as place,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        folder = Path(place)
        for _ in range(ROUNDS):
            groups = max(groups, groups_rate(folder))
            for callers in CALLERS:
                rate, _ = runner.run(callers_rate(folder, callers))
                rates[callers] = max(rates[callers], rate)
        for callers in CALLERS:
            per_sync[callers] = round(runner.run(callers_rate(folder, callers, disk))[1], 1)
    vs_groups = {callers: round(rate / groups, 2) for callers, rate in rates.items()}
    return {
        "name": "journal",
        "records_per_s": {callers: round(rate) for callers, rate in rates.items()},
        "groups_per_s": round(groups),
        "per_sync": per_sync,
        "vs_groups": vs_groups,
        "goal": f"at {GOAL_CALLERS} callers per_sync >= {PER_SYNC:g} and vs_groups >= {VS_GROUPS}",
        "met": per_sync[GOAL_CALLERS] >= PER_SYNC and vs_groups[GOAL_CALLERS] >= VS_GROUPS,
    }
