"""What is no longer needed goes; what is needed stays."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from journals import Disk, call, end, process, started, tokens

from aios.abi.calls import Pruning
from aios.drivers.journal.memory import MemoryJournal
from aios.drivers.journal.pruning import PACKED_EVENTS, PLAIN_EVENTS, prune
from aios.drivers.journal.sqlite import SqliteJournal
from aios.ports import (
    CallEnd,
    CallRow,
    ContextCut,
    ContextRow,
    Forget,
    MailRow,
    MailTaken,
    MarkRow,
    Record,
    Rewind,
    SnapshotRow,
)

T = TypeVar("T")
AnyJournal = SqliteJournal | MemoryJournal


def text(number: int, size: int) -> bytes:
    """JSON that no zstd makes smaller than half."""
    return json.dumps(
        {"n": number, "data": random.Random(number).randbytes(size // 2).hex()}
    ).encode()


async def log(journal: AnyJournal, first: int, last: int, group: int = 7) -> None:
    for start in range(first, last + 1, group):
        numbers = range(start, min(start + group, last + 1))
        await journal.append([started(seq, pid=seq % 5) for seq in numbers])


async def test_events_go_by_age_and_numbers_stay(disk: Disk) -> None:
    journal = await disk.open()
    await log(journal, 1, 1_000)
    pruning = await journal.prune(500.0, None)
    assert 490 <= pruning.events <= 499  # a row goes whole
    first = pruning.events + 1
    assert await journal.first_seq() == first
    assert [event.seq for event in await journal.events(0, 9_999)] == list(range(first, 1_001))
    assert [e.seq for e in await journal.events(0, 9_999, pid=3)] == [
        seq for seq in range(first, 1_001) if seq % 5 == 3
    ]
    await journal.prune(math.inf, None)
    journal = await disk.open()
    assert 993 <= await journal.first_seq() <= 1_000  # where the numbers go on stays known
    assert journal.load().last_seq == 1_000
    await journal.append([started(1_001)])


async def test_old_events_are_packed_and_read_as_before(disk: Disk) -> None:
    journal = await disk.open()
    count = PLAIN_EVENTS + 5 * PACKED_EVENTS
    await log(journal, 1, count)
    before = (await journal.report()).rows["events"]

    async def numbers(after: int, limit: int, pid: int | None = None) -> list[int]:
        return [event.seq for event in await journal.events(after, limit, pid)]

    for _ in range(2):  # the second time there is nothing to do
        await journal.prune(0.0, None)
        rows = (await journal.report()).rows
        assert rows["events"] < PLAIN_EVENTS / 7 + 50 < before - 100
        assert rows["events_of"] == 5 * 4  # rows of 257 or so, with five processes in each
        assert await numbers(0, count) == list(range(1, count + 1))
        assert await numbers(700, 3) == [701, 702, 703]
        assert await numbers(0, count, pid=2) == list(range(2, count + 1, 5))
        for after in (600, 1_000, 1_030, 1_200, 5_000):  # packed, about the border, not packed
            assert await numbers(after, 3, pid=2) == [after + 2, after + 7, after + 12]
    await journal.prune(600.0, None)
    first = await journal.first_seq()
    assert 1 < first <= 600
    assert await numbers(0, count) == list(range(first, count + 1))
    assert await numbers(0, count, pid=0) == [n for n in range(first, count + 1) if n % 5 == 0]


async def test_only_calls_that_no_replay_asks_for_go(disk: Disk) -> None:
    journal = await disk.open()
    await journal.append([process(1), process(2, parent=1)])  # a login, and an agent of it
    for number in range(1, 11):
        await journal.append([call(number, pid=2 - number % 2), tokens(number, 0, 7)])
        if number < 9:
            await journal.append([end(number)])
    assert (await journal.prune(6.0, None)).calls == 3  # 1, 3, 5 of the login

    async def kept(pid: int) -> list[tuple[str, tuple[int, ...]]]:
        return [(h.start.id, h.tokens) for h in await journal.calls(pid)]

    assert await kept(1) == [("c7", ()), ("c9", (7,))]  # what has ended needs no tokens
    assert await kept(2) == [("c2", ()), ("c4", ()), ("c6", ()), ("c8", ()), ("c10", (7,))]

    await journal.append([Rewind(2, 3, 20.0)])
    assert (await journal.prune(7.0, None)).calls == 2  # 4 and 6 were left behind
    assert [id for id, _ in await kept(2)] == ["c2", "c8", "c10"]
    await journal.append([end(9)])
    await journal.prune(math.inf, None)
    assert await kept(1) == []
    assert [id for id, _ in await kept(2)] == ["c2"]
    assert (await disk.open()).load().last_call == 10  # no number is given twice


async def test_the_past_of_a_login_goes_with_its_calls(disk: Disk) -> None:
    journal = await disk.open()
    await journal.append([process(1), process(2, parent=1), process(3)])
    for pid in (1, 2, 3):
        rows = [ContextRow(pid, "main", float(n), f"c{pid}", b'"%d"' % n) for n in range(3)]
        cut = ContextCut(pid, "main", (1.0,), f"c{pid}")
        letters = [MailRow(pid, n, b'{"id":"mine%d"}' % n) for n in (1, 2, 3)]
        taken = [MailTaken(pid, n, f"c{pid}") for n in (1, 2)]
        await journal.append([call(pid, pid=pid), *rows, cut, *letters, *taken, end(pid)])
    await journal.append([call(9, pid=1), end(9), MarkRow("k1", 3, 1, 1.0, b"{}")])
    before = journal.load()
    assert (await journal.prune(math.inf, None)).calls == 3
    after = journal.load()
    assert (after.contexts, after.mail) == (before.contexts, before.mail)
    rows_left = (await journal.report()).rows
    assert rows_left["messages"] == 3 * 3 - 1  # only that login's: the other may be rolled back
    assert rows_left["mail"] == 3 * 3 - 2
    assert [(row.pid, row.number) for row in after.taken] == [(2, 1), (2, 2), (3, 1), (3, 2)]


async def test_content_goes_when_nothing_refers_to_it(disk: Disk) -> None:
    journal = await disk.open()
    kept, shared, gone = (text(n, 600) for n in range(3))
    large, lost = text(3, 5_000), text(4, 5_000)

    def said(number: int, pid: int, *messages: bytes, tools: bytes = b"{}") -> CallRow:
        return CallRow(f"c{number}", pid, "generate", 1.0, b"{}", messages, (tools,))

    reply = CallEnd("c1", "done", 1.0, large)
    await journal.append([process(1), process(2)])
    await journal.append([said(1, 1, shared, kept, tools=kept), reply])
    await journal.append([ContextRow(1, "main", 0.0, "c1", text(5, 600))])
    rest = (await journal.report()).rows
    await journal.append([said(2, 2, shared, gone, kept), CallEnd("c2", "done", 1.0, lost)])
    await journal.append([said(3, 2, gone, tools=gone), ContextRow(2, "main", 0.0, "c3", lost)])
    await journal.append([Forget(2)])
    # gone as a message and among tools, no tools, lost
    assert await journal.prune(0.0, None) == Pruning(0, 0, 4, 0)
    rows = (await journal.report()).rows
    assert (rows["blobs"], rows["turns"]) == (rest["blobs"], rest["turns"])
    (history,) = await journal.calls(1)
    assert history.end == reply
    assert json.loads(history.start.request)["messages"] == [json.loads(shared), json.loads(kept)]

    await journal.append([said(4, 1, gone, shared), CallEnd("c4", "done", 1.0, lost)])  # again
    journal = await disk.open()
    await journal.prune(0.0, None)
    assert (await journal.calls(1))[1].end == CallEnd("c4", "done", 1.0, lost)


async def test_content_that_is_used_while_it_is_looked_for_stays(disk: Disk) -> None:
    """Agents say again and again what others, forgotten by now, have said."""
    journal = await disk.open()
    lines = [text(n, 300) for n in range(60)]
    numbers = iter(range(1, 100_000))

    async def say(pid: int, lines: list[bytes]) -> None:
        number = next(numbers)
        start = CallRow(f"c{number}", pid, "generate", 1.0, b"{}", tuple(lines))
        await journal.append([start])
        await journal.append([CallEnd(f"c{number}", "done", 2.0, text(number % 7, 2_000))])

    async def work(seed: int) -> None:
        chance = random.Random(seed)
        for turn in range(12):
            pid = 100 * seed + turn
            await journal.append([process(pid, parent=1)])
            said: list[bytes] = []
            for _ in range(6):
                said.append(chance.choice(lines))
                await say(pid, said)
            if turn % 3:
                await journal.append([Forget(pid)])

    async def prunings() -> None:
        while not done.is_set():
            await journal.prune(0.0, None)
            await asyncio.sleep(0)

    done = asyncio.Event()
    cleaning = asyncio.create_task(prunings())
    await asyncio.gather(*(work(seed) for seed in range(1, 5)))
    done.set()
    await cleaning
    for seed in range(1, 5):
        for turn in range(0, 12, 3):
            past = await journal.calls(100 * seed + turn)
            assert [len(json.loads(h.start.request)["messages"]) for h in past] == [
                1,
                2,
                3,
                4,
                5,
                6,
            ]
            assert all(h.end and h.end.reply for h in past)


class Meddler:
    """A journal that is appended to right after it was read for the n-th time."""

    def __init__(self, journal: MemoryJournal, records: list[Record], n: int) -> None:
        self.journal, self.content, self._records, self._left = journal, journal.content, records, n

    async def read(self, query: Callable[[Any], T]) -> T:
        found = await self.journal.read(query)
        if not self._left:
            await self.journal.append(self._records)
        self._left -= 1
        return found

    async def step(self, work: Callable[[Any], T]) -> T:
        return await self.journal.step(work)


@pytest.mark.parametrize("n", range(6))
async def test_content_that_is_used_right_after_it_was_found_unused_stays(n: int) -> None:
    journal = MemoryJournal()
    messages = (text(1, 300), text(2, 300))
    await journal.append([CallRow("c1", 2, "generate", 1.0, b"{}", messages), Forget(2)])
    again: list[Record] = [process(1), CallRow("c2", 1, "generate", 1.0, b"{}", messages)]
    meddler = Meddler(journal, again, n)
    await prune(meddler, 0.0, None)
    (history,) = await journal.calls(1)
    assert history.start.request.count(b"data") == 2


async def test_snapshots_of_forgotten_processes_go_with_their_files(
    disk: Disk, tmp_path: Path
) -> None:
    journal = await disk.open()
    files = [tmp_path / f"s{n}.snapshot" for n in range(3)]
    for file in files[:2]:
        file.write_text("state")
    rows = [SnapshotRow(f"s{n}", 1 + n % 2, str(files[n]), 1.0, b"{}") for n in range(2)]
    rows.append(SnapshotRow("s2", 9, str(files[2]), 1.0, b"{}"))  # its file has gone before
    records: list[Record] = [process(1), process(2), *rows]
    await journal.append([*records, Forget(2)])
    await journal.prune(0.0, None)
    assert journal.load().snapshots == (rows[0],)
    assert [file.exists() for file in files] == [True, False, False]


async def test_the_file_shrinks_to_its_limit_and_keeps_what_is_needed(disk: Disk) -> None:
    journal = await disk.open()
    await journal.append([process(1), process(2, parent=1)])
    needed = []
    for number in range(1, 301):
        pid = 2 if number % 10 == 0 else 1
        start = CallRow(f"c{number}", pid, "generate", 20.0 * number, text(number, 4_000))
        done = CallEnd(f"c{number}", "done", float(number), b"1")
        await journal.append([start, done, *(started(20 * number + n, pid) for n in range(20))])
        if pid == 2:
            needed.append(start)
    before = await journal.report()
    limit = before.bytes // 2
    pruning = await journal.prune(0.0, limit)
    after = await journal.report()
    assert after.bytes <= limit
    assert after.free_bytes == 0
    assert pruning.bytes == before.bytes - after.bytes
    assert 20 < pruning.calls < 270
    assert 500 < pruning.events < 6_000
    oldest = (await journal.calls(1))[0].start.started_at
    first = (await journal.events(0, 1))[0].at
    assert abs(oldest - first) < 100  # both up to about the same time
    assert [history.start for history in await journal.calls(2)] == needed

    pruning = await journal.prune(0.0, 1)  # as far as it goes
    assert [history.start for history in await journal.calls(2)] == needed
    assert await journal.calls(1) == []
    assert len(await journal.events(0, 99)) == 20
    assert (await journal.report()).rows["blobs"] == len(needed)


async def test_pruning_holds_nobody_up(file: Disk) -> None:
    """Appends go on between its steps."""
    journal = await file.open()
    await log(journal, 1, 2_000, group=1)
    pruning = asyncio.create_task(journal.prune(1_990.0, None))
    between = 0
    while not pruning.done():
        await journal.append([call(between + 1)])
        between += 1
    assert (await pruning).events > 1_980
    assert between > 10  # 16 steps of 128 rows
