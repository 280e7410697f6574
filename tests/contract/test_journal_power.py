"""The power is cut at any write, a write fails, or the disk lies: what was acknowledged is there.

The journal's own schema under the records of a whole life: calls, contexts, mail, rollbacks,
prunings, closing and opening again. After each transaction the twin in memory says what there is to
find; after a cut, one of those states must be there, whole, not older than what was acknowledged.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import re
import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import apsw
import pytest
from lives import Life
from powercut import WAYS, Disk, Op, Platter, lay

from aios.abi import wire
from aios.abi.events import CallStarted
from aios.drivers.journal.content import Content, unpack
from aios.drivers.journal.file import problems
from aios.drivers.journal.memory import MemoryJournal
from aios.drivers.journal.migrations import newest_version
from aios.drivers.journal.questions import TABLES
from aios.drivers.journal.sqlite import SqliteJournal
from aios.errors import SetupError, StoreFailed
from aios.ports import CallEnd, CallRow, Record, TokensRow

T = TypeVar("T")
AnyJournal = SqliteJournal | MemoryJournal

CHECKPOINT_PAGES = 60  # so that the log is copied into the file a few times
NAMES = (f"powercut{n}" for n in itertools.count())


def contents(connection: Any) -> int:
    """All that is in a journal, as one number; however its events lie in rows."""
    tables = [name for (name,) in connection.execute(TABLES)]
    parts: list[Any] = []
    for table in tables:
        match table:
            case "events":
                query = "SELECT packed, body FROM events ORDER BY first"
                for packed, body in connection.execute(query):
                    parts += [event.seq for event in wire.decode_events(unpack(packed, body))]
            case "events_of":
                pass
            case "blobs":  # the file's check looks into them
                parts += connection.execute("SELECT id, hash FROM blobs ORDER BY id")
            case _:
                parts += [table, *sorted(map(repr, connection.execute(f'SELECT * FROM "{table}"')))]
    return hash(repr(parts))


class Twin(MemoryJournal):
    """Notes what is in it after each transaction."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[int] = []
        self.note()

    def note(self) -> None:
        self.states.append(contents(self._connection))

    def reopened(self) -> None:
        self.content = Content(self._connection)

    def append(self, records: Sequence[Record]) -> asyncio.Future[None]:
        future = super().append(records)
        self.note()
        return future

    async def step(self, work: Callable[[Any], T]) -> T:
        result = await super().step(work)
        self.note()
        return result


def groups(life: Life, count: int, seed: int) -> Iterator[list[list[Record]]]:
    """Appends as they come: one, or a few at once."""
    chance = random.Random(seed)
    appends = life.appends(count)
    while group := list(itertools.islice(appends, chance.choice((1, 1, 1, 2, 4)))):
        yield group


class Recording:
    """A life on a disk that remembers."""

    def __init__(self, log: list[Op], states: list[int], known: list[tuple[int, int]]) -> None:
        self.log, self.states = log, states
        self._known = known  # acknowledged: after so many operations that state

    def least(self, operations: int) -> int:
        """The number of the state that was acknowledged after so many operations."""
        return max((state for done, state in self._known if done <= operations), default=0)


async def record(folder: Path, seed: int, appends: int, sessions: int = 2) -> Recording:
    """Live on a journal in *folder*."""
    disk, twin, path = Disk(next(NAMES)), Twin(), folder / "journal.db"
    life = Life(seed)
    acknowledged: list[tuple[int, int]] = []
    for session in range(sessions):
        journal = SqliteJournal(
            path, reserve_bytes=0, checkpoint_pages=CHECKPOINT_PAGES, vfs=disk.name
        )
        twin.reopened()
        for number, group in enumerate(groups(life, appends // sessions, seed + session)):
            await asyncio.gather(*(journal.append(records) for records in group))
            await twin.append([record for records in group for record in records])
            acknowledged.append((len(disk.log), len(twin.states) - 1))
            if number % 40 == 30:
                gone = [await each.prune(10.0 * number, None) for each in (journal, twin)]
                assert gone[0].events == gone[1].events > 0
                assert (gone[0].calls, gone[0].blobs) == (gone[1].calls, gone[1].blobs)
                acknowledged.append((len(disk.log), len(twin.states) - 1))
        await journal.close()
    return Recording(disk.log, twin.states, acknowledged)


# --- power cuts -----------------------------------------------------------------------------------


def look(path: Path) -> tuple[int, list[str]]:
    """What is in a journal that the power was cut under, and what is wrong with it."""
    connection = apsw.Connection(str(path)) if path.exists() else None
    if connection is None or connection.pragma("user_version") < newest_version():
        if connection:
            connection.close()
        opened = SqliteJournal(path, reserve_bytes=0)  # it was being made
        asyncio.run(opened.close())
        connection = apsw.Connection(str(path))
    try:
        wrong = list(problems(connection))
        return 0 if wrong else contents(connection), wrong
    finally:
        connection.close()


def violations(
    recording: Recording, folder: Path, seed: int, share: float, lying: Container[str] = ()
) -> tuple[int, list[str]]:
    """Cut the power at every operation and in every way, or a share of these; how many states were
    looked at, and what was wrong with which."""
    looked, found = 0, []
    path = folder / "journal.db"
    chance = random.Random(seed)
    platter = Platter(lying)
    for done, op in enumerate(recording.log, 1):
        platter.do(op)
        for way in WAYS:
            if chance.random() > share:
                continue
            looked += 1
            lay(platter.after_a_cut(way, chance), folder)
            where = f"after operation {done}, {way} of what was not synced"
            try:
                state, wrong = look(path)
            except (apsw.Error, StoreFailed, SetupError) as error:
                found.append(f"{where}: {error}")
                continue
            found += [f"{where}: {problem}" for problem in wrong]
            if not wrong and state not in recording.states[recording.least(done) :]:
                found.append(
                    f"{where}: what was acknowledged is missing, or something is half there"
                )
    return looked, found


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A folder in RAM, if there is one: thousands of files are laid down."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


async def test_power_cuts(tmp_path: Path, quick: Path) -> None:
    recording = await record(tmp_path, seed=1, appends=200)
    looked, found = await asyncio.to_thread(violations, recording, quick, 1, 0.15)
    assert found == []
    assert looked >= 2_000


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2, 6))
async def test_power_cuts_of_many_lives(tmp_path: Path, quick: Path, seed: int) -> None:
    recording = await record(tmp_path, seed, appends=400, sessions=1 + seed % 3)
    looked, found = await asyncio.to_thread(violations, recording, quick, seed, 0.6)
    assert found == []
    assert looked >= 2_500


@pytest.mark.parametrize(
    ("lying", "share"),
    [
        (("journal.db", "journal.db-wal", "journal.db-journal"), 0.01),  # as synchronous=OFF
        (("journal.db-wal",), 0.01),
        (("journal.db",), 0.02),
    ],
)
async def test_a_disk_that_lies_is_found_out(
    tmp_path: Path, quick: Path, lying: tuple[str, ...], share: float
) -> None:
    """So the test above would see it if one sync was missing."""
    recording = await record(tmp_path, seed=1, appends=240)
    looked, found = await asyncio.to_thread(violations, recording, quick, 1, share, lying)
    assert len(found) > looked / 20


# --- writes that fail -----------------------------------------------------------------------------


class Trouble:
    """Raises from the n-th time on that it is asked, so many times."""

    def __init__(self, error: type[apsw.Error], kinds: Container[str], n: int, times: int) -> None:
        self._error, self._kinds = error, kinds
        self._range = range(n, n + times)
        self._asked = 0
        self.raised = 0

    def __call__(self, kind: str) -> None:
        if kind in self._kinds:
            self._asked += 1
            if self._asked in self._range:
                self.raised += 1
                raise self._error("injected")

    @property
    def is_over(self) -> bool:
        return self._asked >= self._range.stop - 1


async def live_in_trouble(folder: Path, trouble: Trouble) -> list[str]:
    """Live while writes fail; then what was acknowledged must be there, and nothing else."""
    disk, twin, path = Disk(next(NAMES)), Twin(), folder / "journal.db"
    disk.fail = trouble
    unbegun: set[str] = set()
    sentences: list[str] = []

    def open_it() -> SqliteJournal:
        while True:
            try:
                return SqliteJournal(
                    path, reserve_bytes=0, checkpoint_pages=CHECKPOINT_PAGES, vfs=disk.name
                )
            except SetupError as error:
                sentences.append(error.message)

    journal = open_it()
    for records in Life(trouble.raised).appends(60):
        try:
            await journal.append(records)
        except StoreFailed as error:
            sentences.append(error.message)
            unbegun |= {row.id for row in records if isinstance(row, CallRow)}
        else:
            await twin.append([row for row in records if _call_of(row) not in unbegun])
            unbegun -= {row.id for row in records if isinstance(row, CallEnd)}
    await journal.close()
    assert trouble.raised
    known = (
        "check the disk|the disk is full|cannot be written .*: check its rights"
        "|the start of call c[0-9]+ could not be written"
    )
    assert all(re.search(known, sentence) for sentence in sentences), sentences
    state, wrong = look(path)
    return wrong if state == twin.states[-1] else [*wrong, "it is not what was acknowledged"]


def _call_of(record: Record) -> str | None:
    match record:
        case CallEnd():
            return record.id
        case TokensRow() | CallStarted():
            return record.call
    return None


@pytest.mark.parametrize("error", [apsw.IOError, apsw.FullError, apsw.ReadOnlyError])
@pytest.mark.parametrize("times", [1, 6])
@pytest.mark.parametrize("kinds", [("write",), ("sync",), ("write", "sync", "truncate", "delete")])
async def test_writes_that_fail(
    quick: Path, error: type[apsw.Error], times: int, kinds: tuple[str, ...]
) -> None:
    chance = random.Random(repr((error, times, kinds)))
    last = 55 if kinds == ("sync",) else 700
    for n in sorted(chance.sample(range(1, last), 4)):
        folder = quick / str(n)
        folder.mkdir()
        assert await live_in_trouble(folder, Trouble(error, kinds, n, times)) == [], n
