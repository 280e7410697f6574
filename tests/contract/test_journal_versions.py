"""Journals of earlier versions, and of those to come."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import apsw
import pytest
from journals import Disk, process, started

from aios.abi import wire
from aios.drivers.journal.file import JournalFile
from aios.drivers.journal.migrations import SCHEMA
from aios.drivers.journal.sqlite import SqliteJournal
from aios.ports import CallEnd, CallRow, ContextRow, Image

VERSION_1: list[tuple[str, tuple[object, ...]]] = [
    ("processes", (3, "ann", None, "math", "live", b"[]", 0, None, None, 1.0, None, None, b"{}")),
    ("calls", (7, 3, "generate", 1.0, b'{"n":7}')),
    ("calls", (8, 3, "get_aid", 2.0, b'{"n":8}')),
    ("ends", (7, "done", 1.5, b'"yes"', None)),
    ("open_calls", (8,)),
    ("tokens", (7, 0, b"\5\0\0\0")),
    ("contexts", (3, "main", 0, b'"hello"')),
    ("contexts", (3, "main", 1, b'"again"')),
    ("contexts", (3, "other", 0, b'"hello"')),
    ("forgotten", ("pid", 12)),
    ("events", (4, 4, ",3,", wire.encode_lines([started(4, pid=3)]))),
]


def make_version_1(path: Path) -> None:
    """A journal as the first version left it."""
    (script,) = SCHEMA.glob("0001_*.sql")
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "WAL")
    with connection:
        connection.execute(script.read_text())
        connection.pragma("user_version", 1)
        for table, values in VERSION_1:
            holes = ", ".join("?" * len(values))
            connection.execute(f"INSERT INTO {table} VALUES ({holes})", values)
    connection.close()


async def check_version_1(path: Path) -> None:
    """All that was in it is there."""
    journal = SqliteJournal(path, reserve_bytes=0)
    assert journal.load() == Image(
        4,
        12,
        8,
        processes=(process(3, created_at=1.0),),
        open_calls=(CallRow("c8", 3, "get_aid", 2.0, b'{"n":8}'),),
        contexts=(
            ContextRow(3, "main", 0.0, "c0", b'"hello"'),
            ContextRow(3, "main", 1.0, "c0", b'"again"'),
            ContextRow(3, "other", 0.0, "c0", b'"hello"'),
        ),
    )
    first, second = await journal.calls(3)
    assert (first.start.request, first.tokens) == (b'{"n":7}', (5,))
    assert first.end == CallEnd("c7", "done", 1.5, b'"yes"')
    assert second.end is None
    assert await journal.events(0, 9, pid=3) == [started(4, pid=3)]
    await journal.close()
    with JournalFile(path) as sound:
        assert list(sound.problems()) == []


async def test_a_journal_of_the_first_version_keeps_all_it_has(file: Disk) -> None:
    file.path.parent.mkdir()
    make_version_1(file.path)
    for _ in range(2):
        await check_version_1(file.path)
    with apsw.Connection(str(file.path)) as connection:
        assert connection.pragma("auto_vacuum") == 2  # it can shrink
    copy = apsw.Connection(f"{file.path}.version-1")
    assert copy.pragma("user_version") == 1
    journal = await file.open()
    await journal.append([started(5, pid=3)])
    assert len(await journal.events(0, 9)) == 2


MIGRATION = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from powercut import Disk
from aios.drivers.journal.sqlite import SqliteJournal

def stop(kind):
    global left
    left -= 1
    if not left:
        print("here", flush=True)
        sys.stdin.read()

left = int(sys.argv[3])
disk = Disk("stopping")
disk.fail = stop
SqliteJournal(Path(sys.argv[2]), reserve_bytes=0, vfs=disk.name)
print("done", flush=True)
"""


@pytest.mark.parametrize("write", [1, 3, 8, 30, 60, 90, 120, 150, 180, 210, 240])
def test_a_migration_that_is_killed_is_made_again(tmp_path: Path, write: int) -> None:
    path = tmp_path / "journal.db"
    make_version_1(path)
    here = str(Path(__file__).parent)
    child = subprocess.Popen(
        [sys.executable, "-c", MIGRATION, here, str(path), str(write)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "here\n"
        child.send_signal(signal.SIGKILL)
    asyncio.run(check_version_1(path))
