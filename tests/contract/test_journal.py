"""The journal's contract: one suite for the file and its twin in memory, then the file's own."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest
from journals import Disk, call, end, process, started, tokens

from aios.abi.calls import KeyInfo
from aios.abi.events import CallCompleted, Event, KernelStarted, SliceEnded
from aios.drivers.journal import rows
from aios.drivers.journal.file import JournalFile
from aios.drivers.journal.memory import MemoryJournal
from aios.drivers.journal.migrations import SCHEMA, migrate
from aios.drivers.journal.reserve import RESERVE_BYTES
from aios.drivers.journal.sqlite import SqliteJournal
from aios.errors import SetupError, StoreFailed
from aios.ports import (
    CallEnd,
    CallFilter,
    ContextRow,
    Forget,
    GrantRow,
    Image,
    Journal,
    KeyRow,
    Record,
    Rewind,
    SnapshotRow,
    SpentRow,
)

# --- both -----------------------------------------------------------------------------------------


async def test_a_new_journal_is_empty(disk: Disk) -> None:
    journal = await disk.open()
    assert journal.load() == Image(last_seq=0, last_pid=0, last_call=0)
    assert await journal.events(0, 10) == []
    assert await journal.calls(1, CallFilter(limit=10)) == []
    assert await journal.first_seq() == 0


async def test_what_was_awaited_is_there_when_it_is_opened_again(disk: Disk) -> None:
    records: list[Record] = [
        KernelStarted(seq=1, at=1.0, pid=0, version="0.1.0"),
        process(
            7, parent=3, reasons=("user", "budget"), state="suspended", os_pid=9, os_started=2.5
        ),
        process(8, state="zombie", ended_at=3.5, exit_status=-9, detail=b'{"note":"\xc3\xa9"}'),
        call(1, pid=7, request=b'{"call":"generate"}'),
        end(1),
        call(2, pid=7),
        tokens(2, 0, 5, -1, 70_000),
        ContextRow(7, "main", 0.0, "c1", b'{"role":"user"}'),
        KeyRow(KeyInfo(id="k1", user="ann", label="laptop", created_at=1.0), "ab" * 32),
        GrantRow("pid:7", "*", "pid:8", 9.5),
        SnapshotRow("s1", 7, "/snapshots/s1", 4.5, b'{"tokens":3}'),
    ]
    journal = await disk.open()
    await journal.append(records)
    journal = await disk.open()
    assert journal.load() == Image(
        last_seq=1,
        last_pid=8,
        last_call=2,
        processes=(records[1], records[2]),  # type: ignore[arg-type]
        open_calls=(call(2, pid=7),),
        keys=(records[8],),  # type: ignore[arg-type]
        grants=(records[9],),  # type: ignore[arg-type]
        snapshots=(records[10],),  # type: ignore[arg-type]
        contexts=(records[7],),  # type: ignore[arg-type]
    )
    assert await journal.events(0, 10) == [records[0]]
    first, second = await journal.calls(7, CallFilter(limit=10))
    assert (first.start, first.end, first.tokens) == (records[3], end(1), ())
    assert (second.start, second.end, second.tokens) == (call(2, pid=7), None, (5, -1, 70_000))


async def test_the_last_record_under_a_key_is_the_one_that_stays(disk: Disk) -> None:
    journal = await disk.open()
    key = KeyInfo(id="k1", user="ann")
    revoked = KeyInfo(id="k1", user="ann", revoked_at=5.0)
    await journal.append(
        [process(1), process(2), KeyRow(key, "00"), GrantRow("user:ann", "*", "r")]
    )
    await journal.append(
        [process(1, priority=4), process(1, priority=5), call(1), end(1, "unknown")]
    )
    await journal.append(
        [KeyRow(revoked, "00"), GrantRow("user:ann", "*", "r", 6.0), end(1, "done")]
    )
    await journal.append(
        [SnapshotRow("s", 1, "/a", 1.0, b"1"), SnapshotRow("s", 1, "/b", 1.0, b"2")]
    )
    image = (await disk.open()).load()
    assert image.processes == (process(1, priority=5), process(2))
    assert image.keys == (KeyRow(revoked, "00"),)
    assert image.grants == (GrantRow("user:ann", "*", "r", 6.0),)
    assert image.snapshots == (SnapshotRow("s", 1, "/b", 1.0, b"2"),)
    assert [past.end for past in await (await disk.open()).calls(1, CallFilter(limit=5))] == [
        end(1, "done")
    ]


async def test_a_call_is_open_from_its_row_to_its_end(disk: Disk) -> None:
    journal = await disk.open()
    await journal.append([call(1), call(2), end(2), call(3)])
    assert journal.load().open_calls == (call(1), call(3))
    await journal.append([end(1), end(3), call(4)])
    assert journal.load().open_calls == (call(4),)
    await journal.append([end(4), call(4)])  # begun again
    assert journal.load().open_calls == (call(4),)
    assert journal.load().last_call == 4


async def test_a_forgotten_process_leaves_its_events_and_its_number_is_not_given_again(
    disk: Disk,
) -> None:
    journal = await disk.open()
    await journal.append([process(1), process(2), started(1, 2), call(1), call(9, pid=2)])
    await journal.append(
        [tokens(9, 0, 3), ContextRow(2, "main", 0.0, "c9", b"{}"), end(9), call(8, pid=2)]
    )
    await journal.append([started(2, 2), Forget(2), started(3, 1)])
    image = (journal := await disk.open()).load()
    assert image == Image(3, 2, 9, processes=(process(1),), open_calls=(call(1),))
    assert await journal.calls(2, CallFilter(limit=10)) == []
    assert await journal.events(0, 10, pid=2) == [started(1, 2), started(2, 2)]


async def test_what_comes_after_forget_in_one_append_stays(disk: Disk) -> None:
    journal = await disk.open()
    await journal.append([process(5), call(1, pid=5), Forget(5), process(5, priority=3)])
    assert journal.load().processes == (process(5, priority=3),)
    assert journal.load().open_calls == ()


async def test_events_are_paged_in_order_and_by_process(disk: Disk) -> None:
    journal = await disk.open()
    everything = [started(seq, pid=seq % 3) for seq in range(1, 100)]
    for first in range(0, 99, 10):
        await journal.append(everything[first : first + 10])
    assert await journal.events(0, 1000) == everything
    assert await journal.events(90, 5) == everything[90:95]
    assert await journal.events(0, 4, pid=2) == [everything[i] for i in (1, 4, 7, 10)]
    assert await journal.events(50, 2, pid=0) == [everything[i] for i in (50, 53)]
    assert await journal.events(99, 5) == []
    assert await journal.first_seq() == 1

    more = [
        started(seq, pid=seq % 13) for seq in range(101, 1000)
    ]  # one append, and a gap before it
    await journal.append(more)
    assert await journal.events(99, 2) == more[:2]
    assert await journal.events(100, 900) == more
    assert await journal.events(700, 900) == more[600:]
    assert await journal.events(0, 900, pid=12) == [event for event in more if event.pid == 12]
    assert await journal.events(998, 900, pid=1) == []


async def test_calls_are_the_newest_oldest_first_with_their_tokens_in_order(disk: Disk) -> None:
    journal = await disk.open()
    await journal.append([call(n, pid=n % 2) for n in range(1, 21)])
    await journal.append([tokens(19, 1, 3, 4), tokens(19, 0, 1, 2), tokens(18, 0, 9)])
    past = await journal.calls(1, CallFilter(limit=3))
    assert [(history.start.id, history.tokens) for history in past] == [
        ("c15", ()),
        ("c17", ()),
        ("c19", (1, 2, 3, 4)),
    ]


async def test_appends_that_nobody_awaits_are_kept_in_order(disk: Disk) -> None:
    journal = await disk.open()
    for priority in range(50):
        journal.append([process(1, priority=priority), started(priority + 1)])
    await journal.append([])
    assert (await disk.open()).load().processes == (process(1, priority=49),)
    journal = await disk.open()
    journal.append([process(1, priority=50)])
    assert (await disk.open()).load().processes == (process(1, priority=50),)  # closing keeps it


async def test_many_callers_at_once(disk: Disk) -> None:
    journal = await disk.open()
    numbers = iter(range(1, 10_000))

    async def caller(pid: int) -> None:
        for _ in range(20):
            number = next(numbers)
            journal.append([call(number, pid), started(number, pid)])
            await asyncio.sleep(0)
            await journal.append([end(number)])

    await asyncio.gather(*(caller(pid) for pid in range(1, 51)))
    journal = await disk.open()
    assert [event.seq for event in await journal.events(0, 5000)] == list(range(1, 1001))
    assert journal.load().open_calls == ()
    for pid in range(1, 51):
        assert [
            past.end is not None for past in await journal.calls(pid, CallFilter(limit=100))
        ] == [True] * 20


async def test_a_reader_sees_what_was_awaited_before(disk: Disk) -> None:
    journal = await disk.open()
    for seq in range(1, 30):
        await journal.append([started(seq), call(seq)])
        assert (await journal.events(seq - 1, 1))[0].seq == seq
        assert (await journal.calls(1, CallFilter(limit=1)))[0].start.id == f"c{seq}"


async def test_an_append_fails_alone_and_leaves_no_trace(disk: Disk) -> None:
    journal = await disk.open()
    await journal.append([started(1)])
    good = journal.append([started(2), call(2)])
    bad = journal.append([call(3), started(2)])  # that number is over
    unawaited = journal.append([started(1)])
    also_good = journal.append([call(4), started(4)])
    await good
    with pytest.raises(StoreFailed, match="did not take"):
        await bad
    await also_good
    del unawaited
    gc.collect()  # an error that nobody awaits is no warning
    assert journal.load().open_calls == (call(2), call(4))
    assert [event.seq for event in await journal.events(0, 9)] == [1, 2, 4]


async def test_a_caller_that_is_cancelled_changes_nothing_for_others(disk: Disk) -> None:
    journal = await disk.open()

    async def caller() -> None:
        await journal.append([call(1)])

    task = asyncio.create_task(caller())
    await asyncio.sleep(0)
    other = journal.append([call(2)])
    task.cancel()
    await other
    assert task.cancelled()
    assert journal.load().open_calls == (call(1), call(2))


# --- only in memory -------------------------------------------------------------------------------


async def test_trouble_in_memory_is_like_a_full_disk() -> None:
    journal = MemoryJournal()
    journal.trouble = "the disk is full: free some space."
    with pytest.raises(StoreFailed, match="the disk is full"):
        await journal.append([started(1)])
    journal.trouble = None
    await journal.append([started(1)])
    assert await journal.events(0, 9) == [started(1)]


# --- only on disk ---------------------------------------------------------------------------------


async def test_the_file_is_for_its_owner_only_and_is_one_file_when_closed(file: Disk) -> None:
    await (await file.open()).append([started(1)])
    assert {path.stat().st_mode & 0o077 for path in file.path.parent.iterdir()} == {0}
    await file.close()
    assert {path.name for path in file.path.parent.iterdir()} == {
        "journal.db",
        "journal.lock",
        "journal.reserve",
    }


async def test_a_closed_journal_says_so(file: Disk) -> None:
    journal = await file.open()
    await journal.close()
    await journal.close()
    for question in (
        journal.append([started(1)]),
        journal.events(0, 1),
        journal.calls(1, CallFilter(limit=1)),
    ):
        with pytest.raises(StoreFailed, match="is closed"):
            await question
    assert repr(journal) == f"<SqliteJournal {file.path} closed>"


async def test_two_kernels_on_one_journal(file: Disk) -> None:
    await file.open()
    with pytest.raises(SetupError, match=f"in use by the process {os.getpid()}: .*aios down"):
        SqliteJournal(file.path)
    await (await file.open()).append([started(1)])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"not a database at all" * 100, "is not a database"),
        (b"SQLite format 3\0" + b"\7" * 5000, "is not a database"),
    ],
)
def test_a_file_that_is_no_database(file: Disk, content: bytes, sentence: str) -> None:
    file.path.parent.mkdir()
    file.path.write_bytes(content)
    for _ in range(2):  # the lock is let go of
        with pytest.raises(SetupError, match=sentence):
            SqliteJournal(file.path)
    assert file.path.read_bytes() == content


def test_another_programs_database(file: Disk) -> None:
    file.path.parent.mkdir()
    with apsw.Connection(str(file.path)) as other:
        other.execute("CREATE TABLE notes (text)")
    with pytest.raises(SetupError, match="another program's database"):
        SqliteJournal(file.path)


async def test_a_newer_version_is_refused(file: Disk) -> None:
    await file.open()
    await file.close()
    apsw.Connection(str(file.path)).pragma("user_version", 99)
    with pytest.raises(SetupError, match="version 99 and this aios knows up to [0-9]+: upgrade"):
        await file.open()


async def test_an_older_version_is_upgraded_after_a_copy(file: Disk, tmp_path: Path) -> None:
    await (await file.open()).append([process(1)])
    await file.close()
    shutil.copytree(SCHEMA, tmp_path / "schema")
    newest = max(int(script.name[:4]) for script in SCHEMA.glob("*.sql"))
    script = tmp_path / "schema" / f"{newest + 1:04}_next.sql"
    connection = apsw.Connection(str(file.path))

    script.write_text("ALTER TABLE processes ADD COLUMN mood TEXT; CREATE TABLE t (x); BROKEN;")
    with pytest.raises(apsw.SQLError):
        migrate(connection, file.path, tmp_path / "schema")
    assert connection.pragma("user_version") == newest
    assert (await file.open()).load().processes == (process(1),)  # nothing was half done
    await file.close()

    script.write_text("ALTER TABLE processes ADD COLUMN mood TEXT DEFAULT 'glad';")
    migrate(connection, file.path, tmp_path / "schema")
    assert connection.pragma("user_version") == newest + 1
    assert connection.execute("SELECT pid, mood FROM processes").fetchall() == [(1, "glad")]
    connection.close()
    copy = apsw.Connection(f"{file.path}.version-{newest}")
    assert copy.pragma("user_version") == newest
    assert copy.execute("SELECT pid FROM processes").fetchall() == [(1,)]


async def test_a_damaged_page(file: Disk) -> None:
    journal = await file.open()
    await journal.append([started(seq) for seq in range(1, 2500)])
    await file.close()
    with apsw.Connection(str(file.path)) as connection:
        query = "SELECT pageno FROM dbstat WHERE name = 'events' AND pagetype = 'overflow'"
        pages = [page for (page,) in connection.execute(query)]
        size = connection.pragma("page_size")
    connection.close()
    with file.path.open("r+b") as damaged:
        damaged.seek(size * (pages[len(pages) // 2] - 1))
        damaged.write(b"\xff" * size)
    journal = await file.open()
    with pytest.raises(StoreFailed, match="is damaged"):
        await journal.events(0, 5000)
    await journal.append([started(3000)])  # the rest goes on
    assert await journal.events(2999, 9) == [started(3000)]


async def test_a_damaged_event(file: Disk) -> None:
    await (await file.open()).append([started(1)])
    await file.close()
    with apsw.Connection(str(file.path)) as connection:
        connection.execute("UPDATE events SET body = substr(body, 5)")
    journal = await file.open()
    with pytest.raises(StoreFailed, match="is damaged"):
        await journal.events(0, 5000)


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be made"):
        SqliteJournal(tmp_path / "file" / "journal.db")


async def fill(journal: Journal, count: int, size: int) -> list[int]:
    """Append calls with large requests until that fails; the numbers of those that are kept."""
    await journal.append([process(1), started(1)])
    outcomes = []
    for n in range(2, 2 + count):
        row = call(n, request=os.urandom(size).hex().encode())
        outcomes.append(
            await asyncio.gather(journal.append([row, started(n)]), return_exceptions=True)
        )
    kept = [n for n, (outcome,) in enumerate(outcomes, 2) if outcome is None]
    assert {type(outcome) for (outcome,) in outcomes} == {type(None), StoreFailed}
    assert [event.seq for event in await journal.events(1, 2 + count)] == kept
    assert [row.id for row in journal.load().open_calls] == [f"c{n}" for n in kept]
    return kept


@pytest.fixture
def largest_file() -> Iterator[Callable[[int], None]]:
    """Sets how large a file this process may write, in bytes: beyond it writes fail with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_disk_that_fails_fails_the_append_and_reads_go_on(
    file: Disk, largest_file: Callable[[int], None]
) -> None:
    journal = await file.open()
    largest_file(2_000_000)
    await fill(journal, 60, 20_000)
    with pytest.raises(StoreFailed, match="cannot be read or written .*: check the disk"):
        await journal.append([call(100, request=os.urandom(2_000_000))])
    largest_file(resource.RLIM_INFINITY)
    await journal.append([call(101, request=os.urandom(2_000_000))])
    before = journal.load()
    assert before.last_call == 101
    assert (await file.open()).load() == before


def remount_read_only(place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


async def refused(journal: Journal, number: int) -> None:
    row = call(number, request=os.urandom(1_000_000))
    with pytest.raises(StoreFailed, match=r"the disk is full and .*journal\.db cannot grow: free"):
        await journal.append([row, started(number)])


async def test_on_a_full_disk_reads_ends_and_deletions_go_on(small_disk: Path) -> None:
    file = Disk("sqlite", small_disk)
    journal = await file.open()
    reserve = file.path.with_suffix(".reserve")
    assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES
    kept = await fill(journal, 70, 500_000)
    await refused(journal, 100)
    for number in kept:
        await journal.append([end(number)])
    assert journal.load().open_calls == ()
    for number in range(200, 2_000):
        if not reserve.exists():
            break
        await journal.append([started(number), process(2), SpentRow(1, b"{}", b"{}"), Forget(2)])
    assert not reserve.exists()  # it is in use
    await refused(journal, 2_000)  # not for what is new
    for number in range(2_001, 2_200):
        await journal.append([started(number), process(2), SpentRow(1, b"{}", b"{}"), Forget(2)])

    assert (await journal.calls(1))[-1].end == end(kept[-1])
    await file.close()


async def test_a_journal_is_opened_and_emptied_on_a_full_disk(small_disk: Path) -> None:
    file = Disk("sqlite", small_disk)
    journal = await file.open()
    await journal.append([process(1), call(1, request=os.urandom(5_000_000)), end(1)])
    before = journal.load()
    await file.close()
    other = small_disk / "other"
    left = os.statvfs(small_disk)
    other.write_bytes(bytes(left.f_bavail * left.f_bsize))
    journal = await file.open()
    assert journal.load() == before
    assert (await journal.calls(1))[0].end == end(1)
    await refused(journal, 2)
    await journal.append([Rewind(1, 0, 5.0)])
    pruning = await journal.prune(math.inf, None)
    assert pruning.blobs == 1
    assert pruning.bytes > 4_000_000
    other.unlink()
    await journal.append([call(3, request=os.urandom(1_000_000))])  # there is room again
    assert file.path.with_suffix(".reserve").exists()
    assert [history.start.id for history in await journal.calls(1)] == ["c3"]
    await file.close()


async def test_a_disk_that_can_only_be_read(small_disk: Path) -> None:
    file = Disk("sqlite", small_disk)
    await (await file.open()).append([process(1), started(1), call(1)])
    await file.close()
    remount_read_only(small_disk)
    with pytest.raises(SetupError, match="Read-only file system.: check the directory"):
        await file.open()
    with JournalFile(file.path) as journal:
        assert list(journal.problems()) == []
        assert list(journal.events()) == [started(1)]
        assert [history.start for history in journal.calls()] == [call(1)]


async def test_a_call_that_could_not_begin_leaves_no_trace(small_disk: Path) -> None:
    """Else there would be an end without a start, or an effect that a replay repeats."""
    file = Disk("sqlite", small_disk)
    journal = await file.open()
    kept = await fill(journal, 70, 500_000)
    for number in (100, 101):
        await refused(journal, number)
    await journal.append([CallEnd("c100", "failed", 1.0), started(100), started(kept[0] + 200)])
    with pytest.raises(StoreFailed, match="the start of call c101 could not be written"):
        await journal.append([end(101), process(7)])
    past = await journal.calls(1)
    assert {history.start.id for history in past} == {f"c{n}" for n in kept}
    assert [e.seq for e in await journal.events(kept[-1], 9)] == [kept[0] + 200]
    assert [row.pid for row in journal.load().processes] == [1]
    await file.close()


CRASH = """
import asyncio, sys
from pathlib import Path
from aios.abi.events import CallStarted
from aios.drivers.journal.sqlite import SqliteJournal
from aios.ports import CallEnd, CallRow

async def caller(journal, numbers):
    for n in numbers:
        started = journal.append([
            CallRow(f"c{n}", 1, "get_aid", 1.0, b"{}"),
            CallStarted(seq=n, pid=1, call=f"c{n}", name="get_aid"),
        ])
        if n % 2:
            await started
        await journal.append([CallEnd(f"c{n}", "done", 2.0)])
        print(n, flush=True)

async def main():
    journal = SqliteJournal(Path(sys.argv[1]))
    first = journal.load().last_seq + 1
    numbers = iter(range(first, first + 1_000_000))
    await asyncio.gather(*(caller(journal, numbers) for _ in range(16)))

asyncio.run(main())
"""


def live(path: Path, answers: int) -> list[int]:
    """Run CRASH until that many calls are acknowledged, kill it; all that were acknowledged."""
    child = subprocess.Popen(
        [sys.executable, "-c", CRASH, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child, child.stdout as lines:
        acknowledged = [int(line) for _, line in zip(range(answers), lines, strict=False)]
        child.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in lines if line.endswith("\n")]
    assert child.returncode == -signal.SIGKILL
    return acknowledged


async def test_kill_loses_nothing_that_was_acknowledged(file: Disk) -> None:
    acknowledged: list[int] = []
    for cycle in range(6):
        acknowledged += await asyncio.to_thread(live, file.path, 40 + 37 * cycle)
        journal = await file.open()  # the dead one's lock is gone with it
        kept = {event.seq for event in await journal.events(0, 1_000_000)}
        past = await journal.calls(1, CallFilter(limit=1_000_000))
        ended = {int(history.start.id[1:]) for history in past if history.end}
        assert set(acknowledged) <= ended <= kept
        assert {history.start.id for history in past} == {f"c{seq}" for seq in kept}
        assert kept == set(range(1, len(kept) + 1))  # in order: no hole
        await file.close()
    assert len(acknowledged) > 500


def test_events_of_every_kind_fit() -> None:
    assert set(Event.__subclasses__()) <= set(rows.TAKE)
    assert {CallCompleted, SliceEnded} <= set(rows.TAKE)
