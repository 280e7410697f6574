"""Storage through the kernel's door, on a journal in a file and on its twin in memory."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from journals import Disk

from aios.abi.calls import (
    Call,
    FileDraft,
    FileHits,
    ForkAgent,
    GetTranscript,
    KillAgent,
    SpawnAgent,
    StoAlloc,
    StoCommit,
    StoDelete,
    StoDiff,
    StoHistory,
    StoList,
    StoMove,
    StoRead,
    StoRollback,
    StoSearch,
    StoShare,
    StoWrite,
    WaitAgent,
)
from aios.config import Config, Storage
from aios.drivers.journal.memory import MemoryJournal
from aios.drivers.journal.sqlite import SqliteJournal
from aios.errors import (
    AiosError,
    Conflict,
    InvalidCall,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    StoreFailed,
)
from aios.testing import ScriptedEmbedder, TestKernel, machine

Trap = Callable[[Call], Any]


class Site:
    """A kernel that can be killed and started again, and processes to call as."""

    def __init__(self, disk: Disk, config: Config | None = None) -> None:
        self.disk, self.config = disk, config
        self.kernel: TestKernel
        self._stack = AsyncExitStack()
        self._lives = 0

    async def start(self, **parts: Any) -> None:
        await self._run(await self.disk.open(), **parts)

    async def kill(self) -> None:
        """The next kernel starts on what is on the disk now; what this one does is not told."""
        journal: Any = self.kernel.journal
        if isinstance(journal, MemoryJournal):
            copied: Any = journal.copy()
        else:
            self._lives += 1
            folder = self.disk.path.parent.with_name(f"life{self._lives}")
            shutil.copytree(journal._path.parent, folder)
            copied = SqliteJournal(folder / journal._path.name)
        old, self._stack = self._stack, AsyncExitStack()
        await self._run(copied)
        await old.aclose()

    async def _run(self, journal: Any, **parts: Any) -> None:
        self.kernel = await self._stack.enter_async_context(
            machine(journal=journal, config=self.config, **parts)
        )

    async def close(self) -> None:
        await self._stack.aclose()

    @property
    def login(self) -> int:
        return self.kernel.identify(self.kernel.user_key)

    def as_user(self, call: Call) -> Any:
        return self.kernel.trap(self.login, call)

    async def agent(self, program: str = "notes", **options: Any) -> int:
        return (await self.as_user(SpawnAgent(program=program, **options))).aid

    def door(self, pid: int) -> Trap:
        return lambda call: self.kernel.trap(pid, call)

    def rows(self, table: str) -> Any:
        query = f"SELECT count(*) FROM {table}"
        return self.kernel.files._read(lambda connection: connection.execute(query).get)  # type: ignore[attr-defined]


@asynccontextmanager
async def on(disk: Disk, **storage: int) -> AsyncIterator[Site]:
    site = Site(disk, Config(storage=Storage(**storage)))
    await site.start()
    try:
        yield site
    finally:
        await site.close()


@pytest.fixture
async def site(disk: Disk) -> AsyncIterator[Site]:
    async with on(disk) as site:
        yield site


@pytest.fixture
async def trap(site: Site) -> Trap:
    return site.door(await site.agent())


async def text(trap: Trap, path: str, **options: Any) -> str:
    return (await trap(StoRead(path=path, **options))).text


async def tree(trap: Trap, **options: Any) -> list[str]:
    listed = await trap(StoList(recursive=True, **options))
    return [file.path for file in listed.files]


# --- writing and reading --------------------------------------------------------------------------


async def test_a_file_keeps_every_version(trap: Trap) -> None:
    one = await trap(StoWrite(path="/plan.md", text="one"))
    two = await trap(StoWrite(path="plan.md", text="two"))
    assert (one.version, two.version, two.paths) == (1, 2, ("/plan.md",))
    assert await text(trap, "/plan.md") == "two"
    assert await text(trap, "/plan.md", version=1) == "one"
    found = await trap(StoRead(path="/plan.md"))
    assert (found.version, found.bytes) == (2, 3)


async def test_parts_of_a_file_are_read_by_offset(trap: Trap) -> None:
    data = random.Random(1).randbytes(200_000)
    await trap(StoWrite(path="/data", content=data))
    for offset, length in ((0, 10), (8_000, 9_000), (199_990, 50), (200_000, 5), (0, None)):
        part = await trap(StoRead(path="/data", offset=offset, length=length, binary=True))
        end = None if length is None else offset + length
        assert part.content == data[offset:end]
        assert part.bytes == 200_000


async def test_what_is_appended_is_the_same_as_written_whole(trap: Trap) -> None:
    chance, whole = random.Random(2), b""
    for _ in range(30):
        part = chance.randbytes(chance.choice((0, 1, 500, 3_000, 20_000)))
        whole += part
        await trap(StoWrite(path="/log", content=part, append=True))
    assert (await trap(StoRead(path="/log", binary=True))).content == whole


async def test_what_is_no_text_is_told_as_bytes(trap: Trap) -> None:
    await trap(StoWrite(path="/x", content=b"\xff\xfe"))
    found = await trap(StoRead(path="/x"))
    assert (found.text, found.content) == (None, b"\xff\xfe")


async def test_an_empty_file_is_a_file(trap: Trap) -> None:
    await trap(StoWrite(path="/empty", text=""))
    assert await text(trap, "/empty") == ""
    assert await tree(trap) == ["/empty"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "the path is empty"),
        ("/a/../../etc/passwd", "holds '..'"),
        ("/a\0b", "control character"),
        ("/a\nb", "control character"),
        ("/" + "é" * 2_000, "has 4001 bytes"),
        ("/" + "x" * 300, "part of more than 255"),
        ("/", "names a directory"),
        ("/notes/", "names a directory"),
    ],
)
async def test_a_path_that_is_none(trap: Trap, path: str, says: str) -> None:
    for call in (StoWrite(path=path, text="x"), StoRead(path=path), StoDelete(path=path)):
        with pytest.raises(InvalidCall, match=says):
            await trap(call)


async def test_a_file_is_no_directory_and_a_directory_no_file(trap: Trap) -> None:
    await trap(StoWrite(path="/a/b", text="x"))
    with pytest.raises(Conflict, match="/a in pid:2 is a directory"):
        await trap(StoWrite(path="/a", text="x"))
    with pytest.raises(Conflict, match="/a/b in pid:2 is a file"):
        await trap(StoWrite(path="/a/b/c", text="x"))
    with pytest.raises(InvalidCall, match="/a in pid:2 is a directory: list it"):
        await trap(StoRead(path="/a"))


async def test_text_or_content_must_be_given_once(trap: Trap) -> None:
    for call in (StoWrite(path="/a"), StoWrite(path="/a", text="x", content=b"x")):
        with pytest.raises(InvalidCall, match="either text or content"):
            await trap(call)


# --- conflicts ------------------------------------------------------------------------------------


async def test_what_somebody_else_wrote_is_not_overwritten(site: Site) -> None:
    one, two = site.door(await site.agent()), site.door(await site.agent())
    await one(StoWrite(path="/n", text="one", volume="user"))
    with pytest.raises(Conflict, match=r"at version 1, by pid:2, and process 3 has not read it"):
        await two(StoWrite(path="/n", text="two", volume="user"))
    await two(StoRead(path="/n", volume="user"))
    await one(StoWrite(path="/n", text="one, again", volume="user"))
    with pytest.raises(Conflict, match=r"at version 2, by pid:2, and process 3 last saw version 1"):
        await two(StoWrite(path="/n", text="two", volume="user"))
    with pytest.raises(Conflict):
        await two(StoDelete(path="/n", volume="user"))
    assert await text(two, "/n", volume="user") == "one, again"
    await two(StoWrite(path="/n", text="two", volume="user"))
    with pytest.raises(Conflict, match="by pid:3"):
        await one(StoWrite(path="/n", text="three", volume="user"))


async def test_two_at_once_do_not_both_write(site: Site) -> None:
    doors = [site.door(await site.agent()) for _ in range(8)]
    done = await asyncio.gather(
        *(door(StoWrite(path="/n", text="x", volume="user")) for door in doors),
        return_exceptions=True,
    )
    assert sum(isinstance(one, Conflict) for one in done) == 7
    assert (await site.as_user(StoHistory(volume="user"))).versions[0].version == 1


async def test_two_at_once_append_one_after_another(site: Site) -> None:
    doors = [site.door(await site.agent()) for _ in range(8)]
    await asyncio.gather(
        *(
            door(StoWrite(path="/log", text=f"{n};", volume="user", append=True, expect=-1))
            for n, door in enumerate(doors)
        )
    )
    lines = (await text(site.as_user, "/log", volume="user")).split(";")
    assert sorted(lines) == ["", *map(str, range(8))]


async def test_what_is_expected_is_checked(trap: Trap) -> None:
    await trap(StoWrite(path="/a", text="1", expect=0))
    with pytest.raises(Conflict, match="was made for version 0"):
        await trap(StoWrite(path="/a", text="2", expect=0))
    with pytest.raises(Conflict, match="was made for version 7"):
        await trap(StoWrite(path="/a", text="2", expect=7))
    await trap(StoWrite(path="/a", text="2", expect=1))
    await trap(StoDelete(path="/a", expect=2))
    await trap(StoWrite(path="/a", text="3", expect=0))


async def test_a_file_that_somebody_else_deleted_is_a_conflict(site: Site) -> None:
    one, two = site.door(await site.agent()), site.door(await site.agent())
    await one(StoWrite(path="/n", text="one", volume="user"))
    await two(StoRead(path="/n", volume="user"))
    await one(StoDelete(path="/n", volume="user"))
    with pytest.raises(Conflict, match="was deleted in version 2 by pid:2"):
        await two(StoWrite(path="/n", text="two", volume="user"))


async def test_a_person_may_write_what_she_wrote_before(site: Site) -> None:
    await site.as_user(StoWrite(path="/n", text="one", volume="user"))
    await site.kill()
    await site.as_user(StoWrite(path="/n", text="two", volume="user"))
    assert await text(site.as_user, "/n", volume="user") == "two"


# --- many files at once ---------------------------------------------------------------------------


async def test_many_files_are_one_version(trap: Trap) -> None:
    await trap(StoWrite(path="/old", text="x"))
    made = await trap(
        StoCommit(
            message="five",
            changes=(
                FileDraft("/a", text="1"),
                FileDraft("/b", content=b"\0"),
                FileDraft("/b", content=b"\1", append=True),
                FileDraft("/old"),
                FileDraft("/new/deep", text=""),
            ),
        )
    )
    assert made.version == 2
    assert await tree(trap) == ["/a", "/b", "/new/deep"]
    versions = (await trap(StoHistory())).versions
    assert {one.message for one in versions if one.version == 2} == {"five"}
    assert await tree(trap, version=1) == ["/old"]


async def test_a_commit_is_all_or_nothing(trap: Trap) -> None:
    await trap(StoWrite(path="/a", text="1"))
    changes = (FileDraft("/b", text="1"), FileDraft("/a", text="2", expect=0))
    with pytest.raises(Conflict):
        await trap(StoCommit(changes=changes))
    assert await tree(trap) == ["/a"]
    assert await text(trap, "/a") == "1"


async def test_what_is_staged_waits_for_its_commit(site: Site) -> None:
    pid = await site.agent()
    trap = site.door(pid)
    await trap(StoWrite(path="/a", text="1"))
    await trap(StoWrite(path="/a", text="2", stage=True))
    await trap(StoWrite(path="/a", text="3", append=True, stage=True))
    await trap(StoMove(path="/a", to="/b/a", stage=True))
    await trap(StoWrite(path="/c", text="c", stage=True))
    await trap(StoDelete(path="/c", stage=True))
    assert await text(trap, "/a") == "1"
    await site.kill()
    trap = site.door(pid)
    made = await trap(StoCommit(message="all"))
    assert made.version == 2
    assert await tree(trap) == ["/b/a"]
    assert await text(trap, "/b/a") == "23"
    with pytest.raises(NotFound, match="staged nothing"):
        await trap(StoCommit())


async def test_staged_paths_are_committed_and_given_up_by_themselves(trap: Trap) -> None:
    for path in ("/a/1", "/a/2", "/b"):
        await trap(StoWrite(path=path, text=path, stage=True))
    await trap(StoCommit(paths=("/a/1",)))
    assert await tree(trap) == ["/a/1"]
    gone = await trap(StoCommit(paths=("/a",), discard=True))
    assert gone.paths == ("/a/2",)
    await trap(StoCommit())
    assert await tree(trap) == ["/a/1", "/b"]


async def test_a_staged_write_sees_a_conflict_when_it_is_committed(site: Site) -> None:
    one, two = site.door(await site.agent()), site.door(await site.agent())
    await one(StoWrite(path="/n", text="one", volume="user"))
    await two(StoRead(path="/n", volume="user"))
    await two(StoWrite(path="/n", text="two", volume="user", stage=True))
    await one(StoWrite(path="/n", text="three", volume="user"))
    with pytest.raises(Conflict, match="was made for version 1"):
        await two(StoCommit(volume="user"))
    await two(StoCommit(volume="user", discard=True))
    assert await text(two, "/n", volume="user") == "three"


# --- moving, deleting, going back -----------------------------------------------------------------


async def test_moving_and_copying(trap: Trap) -> None:
    for path in ("/d/1", "/d/e/2", "/x"):
        await trap(StoWrite(path=path, text=path))
    await trap(StoMove(path="/d", to="/f"))
    await trap(StoMove(path="/x", to="/f/1"))
    await trap(StoMove(path="/f/e", to="/g", copy=True))
    assert await tree(trap) == ["/f/1", "/f/e/2", "/g/2"]
    assert await text(trap, "/f/1") == "/x"
    with pytest.raises(InvalidCall, match="in it or the same"):
        await trap(StoMove(path="/f", to="/f/h"))
    with pytest.raises(NotFound, match="there is no /nowhere"):
        await trap(StoMove(path="/nowhere", to="/h"))
    with pytest.raises(Conflict, match="/g in pid:2 is a directory"):
        await trap(StoMove(path="/f/1", to="/g"))


async def test_what_is_moved_over_somebody_elses_file_is_a_conflict(site: Site) -> None:
    one, two = site.door(await site.agent()), site.door(await site.agent())
    await one(StoWrite(path="/n", text="one", volume="user"))
    await two(StoWrite(path="/m", text="two", volume="user"))
    with pytest.raises(Conflict, match="has not read it"):
        await two(StoMove(path="/m", to="/n", volume="user"))
    await two(StoMove(path="/m", to="/n", volume="user", expect=-1))
    assert await text(one, "/n", volume="user") == "two"


async def test_a_deleted_file_can_be_read_and_comes_back(trap: Trap) -> None:
    await trap(StoWrite(path="/a", text="1"))
    await trap(StoDelete(path="/a"))
    with pytest.raises(NotFound, match="was deleted from pid:2 in version 2 by pid:2"):
        await trap(StoRead(path="/a"))
    assert await text(trap, "/a", version=1) == "1"
    await trap(StoRollback(path="/a", back=1))
    assert await text(trap, "/a") == "1"
    with pytest.raises(NotFound, match="there is no /b"):
        await trap(StoDelete(path="/b"))


async def test_a_purge_leaves_nothing(site: Site, trap: Trap) -> None:
    secret = random.Random(3).randbytes(100_000)
    await trap(StoWrite(path="/keep", content=secret[:50_000] + b"x"))
    before = (await trap(StoAlloc(size=200_000_000))).used
    await trap(StoWrite(path="/d/secret", content=secret))
    await trap(StoWrite(path="/d/secret", text="harmless ferry"))
    await trap(StoDelete(path="/d"))
    gone = await trap(StoDelete(path="/d", purge=True))
    assert gone.paths == ("/d/secret",)
    assert (await trap(StoAlloc(size=200_000_000))).used == before
    assert gone.left == 200_000_000 - before
    assert await site.kernel.files.size("pid:2") == before
    for table in ("loose_contents", "loose_chunks", "file_words"):
        assert await site.rows(table) == 0
    assert await site.rows("contents") == 1
    for version in (1, 2, 3):
        with pytest.raises(NotFound):
            await trap(StoRead(path="/d/secret", version=version))
    assert (await trap(StoRead(path="/keep", binary=True))).bytes == 50_001


async def test_rollback_by_version_by_count_and_by_time(site: Site, trap: Trap) -> None:
    await trap(StoWrite(path="/a", text="1"))
    await trap(StoWrite(path="/b", text="1"))
    await trap(StoWrite(path="/a", text="2"))
    await trap(StoMove(path="/b", to="/c"))
    assert (await trap(StoRollback(path="/a", back=1))).version == 5
    assert await text(trap, "/a") == "1"
    back = await trap(StoRollback(version=4))
    assert (back.version, back.paths) == (6, ("/a",))
    await trap(StoRollback(back=3))  # as it was at version 3
    assert (await tree(trap), await text(trap, "/a")) == (["/a", "/b"], "2")
    then = (await trap(StoHistory(path="/b"))).versions[-1].at
    await trap(StoRollback(time=then))
    assert (await tree(trap), await text(trap, "/a")) == (["/a", "/b"], "1")
    nothing = await trap(StoRollback(time=then))
    assert (nothing.version, nothing.paths) == (8, ())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (StoRollback(path="/a", back=2), "cannot go back 2 of its 2 versions: go back 1"),
        (StoRollback(back=99), "cannot go back 99"),
        (StoRollback(version=9), "it has versions 1 to 2"),
        (StoRollback(version=0), "it has versions 1 to 2"),
        (StoRollback(time=5.0), "has no version from then"),
        (StoRollback(path="/never", back=1), "there has never been a /never"),
    ],
)
async def test_a_rollback_past_the_first_version(trap: Trap, call: Call, says: str) -> None:
    await trap(StoWrite(path="/a", text="1"))
    await trap(StoWrite(path="/a", text="2"))
    with pytest.raises(NotFound, match=says):
        await trap(call)


async def test_a_rollback_says_how_far_once(trap: Trap) -> None:
    for call in (StoRollback(), StoRollback(back=1, version=1), StoRollback(back=0)):
        with pytest.raises(InvalidCall):
            await trap(call)


async def test_history_and_differences(trap: Trap) -> None:
    await trap(StoWrite(path="/a", text="one\ntwo\n", message="first"))
    await trap(StoWrite(path="/b", content=b"\0\1"))
    await trap(StoWrite(path="/a", text="one\n2\n"))
    await trap(StoDelete(path="/b"))
    history = (await trap(StoHistory())).versions
    told = [(one.version, one.path, one.deleted, one.message) for one in history]
    assert told == [
        (4, "/b", True, ""),
        (3, "/a", False, ""),
        (2, "/b", False, ""),
        (1, "/a", False, "first"),
    ]
    assert [one.version for one in (await trap(StoHistory(path="/a", limit=1))).versions] == [3]
    found = await trap(StoDiff(since=1))
    assert found.paths == ("/a",)  # /b came and went
    assert found.text.splitlines() == ["--- /a@1", "+++ /a@4", "@@ -1,2 +1,2 @@"] + [
        " one",
        "-two",
        "+2",
    ]
    assert (
        "/b differs: 0 bytes in version 1, 2 in 2" in (await trap(StoDiff(since=1, until=2))).text
    )
    with pytest.raises(InvalidCall, match="since 3 is after until 2"):
        await trap(StoDiff(since=3, until=2))
    with pytest.raises(NotFound, match="there has never been a /c"):
        await trap(StoHistory(path="/c"))


# --- room -----------------------------------------------------------------------------------------


async def test_a_full_volume_says_what_is_left(disk: Disk) -> None:
    async with on(disk, process_bytes=1_000) as site:
        trap = site.door(await site.agent())
        await trap(StoWrite(path="/a", text="x" * 900))
        says = "adds 200 bytes, and pid:2 has 100 left of 1,000"
        with pytest.raises(QuotaExceeded, match=says):
            await trap(StoWrite(path="/b", text="y" * 200))
        with pytest.raises(QuotaExceeded):
            await trap(StoWrite(path="/b", text="y" * 200, stage=True))
        assert (await trap(StoWrite(path="/c", text="x" * 900))).left == 100  # the same chunk
        assert await tree(trap) == ["/a", "/c"]
        assert await text(trap, "/a") == "x" * 900
        await trap(StoDelete(path="/a"))  # deleting works when writing does not
        with pytest.raises(InvalidCall):
            await trap(StoAlloc(size=0))
        await trap(StoAlloc(size=5_000))
        await trap(StoWrite(path="/b", text="y" * 200))
        with pytest.raises(Conflict, match="holds 1,100 bytes"):
            await trap(StoAlloc(size=1_000))


async def test_quotas_are_set_aside_of_what_there_is(disk: Disk) -> None:
    async with on(disk, reserve_bytes=10_000) as site:
        one, two = site.door(await site.agent()), site.door(await site.agent())
        await one(StoAlloc(size=6_000))
        with pytest.raises(QuotaExceeded, match="of 10,000 for the user ann 4,000 are left"):
            await two(StoAlloc(size=6_000))
        await one(StoAlloc(size=4_000))
        done = await asyncio.gather(
            two(StoAlloc(size=6_000)), one(StoAlloc(size=6_000)), return_exceptions=True
        )
        assert sum(isinstance(one, QuotaExceeded) for one in done) == 1


async def test_too_much_at_once_is_refused_in_a_sentence(trap: Trap) -> None:
    huge = bytes(1_000_000_000)
    with pytest.raises(InvalidCall, match="1,000,000,000 bytes are too many for one call"):
        await trap(StoWrite(path="/huge", content=huge))


async def test_a_file_that_is_too_large(disk: Disk) -> None:
    async with on(disk, file_bytes=1_000) as site:
        trap = site.door(await site.agent())
        await trap(StoWrite(path="/a", text="x" * 900))
        with pytest.raises(QuotaExceeded, match="/a would have 1,100 bytes"):
            await trap(StoWrite(path="/a", text="x" * 200, append=True))


async def test_versions_that_differ_little_take_little(site: Site, trap: Trap) -> None:
    chance = random.Random(4)
    words = [f"word{n}" for n in range(3_000)]
    data = bytearray(" ".join(chance.choices(words, k=26_000)).encode()[:200_000])
    for n in range(200):
        at = chance.randrange(len(data) - 40)
        data[at : at + 20] = f"changed the {n:>8}".encode()
        await trap(StoWrite(path="/doc", content=bytes(data)))
    body = "coalesce(sum(length(body)), 0) FROM chunks --"
    stored = await site.kernel.files._read(  # type: ignore[attr-defined]
        lambda connection: connection.execute(f"SELECT {body}").get
    )
    assert stored < 200 * 200_000 / 20
    assert (await trap(StoRead(path="/doc", binary=True))).content == bytes(data)


# --- searching ------------------------------------------------------------------------------------


async def found(trap: Trap, query: str, **options: Any) -> list[tuple[str, int]]:
    hits = await trap(StoSearch(query=query, **options))
    assert isinstance(hits, FileHits)
    return [(hit.path, hit.line) for hit in hits.hits]


async def test_passages_are_found_by_words(trap: Trap) -> None:
    filler = "\n".join(f"Nothing of note on day {n}." for n in range(70))
    await trap(StoWrite(path="/log.md", text=f"# Log\n{filler}\n\n# Harbour\nThe ferry left.\n"))
    await trap(StoWrite(path="/page.html", text="<p>A <b>lighthouse</b><script>ferry()</script>"))
    await trap(StoWrite(path="/code.py", text="def parseTimetable(rows):\n    return rows\n"))
    await trap(StoWrite(path="/t.csv", text="port,hour\nBergen,nine\n"))
    await trap(StoWrite(path="/picture", content=b"ferry\0ferry"))
    assert await found(trap, "the ferries") == [("/log.md", 73)]
    assert await found(trap, "lighthouse") == [("/page.html", 1)]
    assert await found(trap, "timetable") == [("/code.py", 1)]
    assert await found(trap, "Bergen port") == [("/t.csv", 1)]
    assert await found(trap, "submarine") == []
    hits = (await trap(StoSearch(query="ferry harbour"))).hits
    assert hits[0].why == "words: ferry, harbour"
    assert hits[0].text == "# Harbour\nThe ferry left."
    assert (hits[0].volume, hits[0].version, hits[0].score) == ("pid:2", 1, 1.0)


async def test_only_what_is_there_now_is_found(site: Site, trap: Trap) -> None:
    await trap(StoWrite(path="/a", text="ferry"))
    await trap(StoWrite(path="/d/b", text="ferry"))
    assert await found(trap, "ferry", path="/d") == [("/d/b", 1)]
    await trap(StoWrite(path="/a", text="train"))
    await trap(StoMove(path="/d", to="/e"))
    assert await found(trap, "ferry") == [("/e/b", 1)]
    await trap(StoDelete(path="/e"))
    assert await found(trap, "ferry") == []
    await trap(StoRollback(version=2))
    assert sorted(await found(trap, "ferry")) == [("/a", 1), ("/d/b", 1)]


async def test_a_search_where_there_is_nothing(trap: Trap) -> None:
    assert await found(trap, "ferry") == []
    assert "by words only" in (await trap(StoSearch(query="ferry"))).note
    for call in (StoSearch(query="  "), StoSearch(query="x", limit=0)):
        with pytest.raises(InvalidCall):
            await trap(call)
    assert await found(trap, "!?") == []


async def test_a_search_sees_only_its_own(site: Site) -> None:
    one, two = site.door(await site.agent()), site.door(await site.agent("other"))
    await one(StoWrite(path="/mine", text="ferry"))
    await one(StoWrite(path="/ours", text="ferry", volume="user"))
    await one(StoWrite(path="/programs", text="ferry", volume="program"))
    assert await found(two, "ferry") == [("/ours", 1)]
    assert len(await found(one, "ferry")) == 3
    with pytest.raises(NotFound):
        await two(StoSearch(query="ferry", volumes=("pid:2",)))


async def test_passages_are_found_by_meaning(disk: Disk) -> None:
    site = Site(disk)
    await site.start(embedder=ScriptedEmbedder())
    trap = site.door(await site.agent())
    try:
        await trap(StoWrite(path="/a.txt", text="the boat leaves the harbour"))
        await trap(StoWrite(path="/b.txt", text="a recipe for bread"))
        async with asyncio.timeout(5):
            while True:
                hits = await trap(StoSearch(query="boat harbour"))
                if hits.hits[0].meaning:
                    break
        assert hits.hits[0].path == "/a.txt"
        assert "meaning: " in hits.hits[0].why
        await trap(StoDelete(path="/a.txt"))
        assert "/a.txt" not in [hit.path for hit in (await trap(StoSearch(query="boat"))).hits]
    finally:
        await site.close()


# --- whose ----------------------------------------------------------------------------------------


async def test_volumes_of_others_are_not_there(site: Site) -> None:
    first, second = await site.agent("one"), await site.agent("two")
    one, two = site.door(first), site.door(second)
    await one(StoWrite(path="/a", text="1"))
    await one(StoWrite(path="/a", text="2", volume="program"))
    for volume in (f"pid:{first}", "program:ann/one", "user:bob", "pid:99", "nonsense", ""):
        for call in (StoRead(path="/a", volume=volume), StoList(volume=volume)):
            with pytest.raises(NotFound, match="no volume"):
                await two(call)
        with pytest.raises(NotFound):
            await two(StoWrite(path="/a", text="x", volume=volume))
    with pytest.raises(NotFound):
        await two(StoRead(aid=first, path="/a"))
    assert await text(site.as_user, "/a", aid=first) == "1"
    assert await text(site.as_user, "/a", volume=f"pid:{first}") == "1"
    assert await text(site.as_user, "/a", volume="program:ann/one") == "2"


async def test_what_is_shared_can_be_read_or_written(site: Site) -> None:
    first, second = await site.agent("one"), await site.agent("two")
    one, two, volume = site.door(first), site.door(second), f"pid:{first}"
    await one(StoWrite(path="/docs/a", text="1"))
    await one(StoWrite(path="/secret", text="2"))
    await one(StoShare(to=second, path="/docs"))
    assert await text(two, "/docs/a", volume=volume) == "1"
    assert await tree(two, path="/docs", volume=volume) == ["/docs/a"]
    assert await found(two, "1", path="/docs", volumes=(volume,)) == [("/docs/a", 1)]
    for call in (
        StoRead(path="/secret", volume=volume),
        StoRead(path="/docs/../secret", volume=volume),
        StoList(volume=volume),
        StoSearch(query="2", volumes=(volume,)),
        StoMove(path="/docs/a", to="/b", volume=volume, copy=True),
    ):
        with pytest.raises(NotFound):
            await two(call)
    with pytest.raises(PermissionDenied, match="to be read, not written"):
        await two(StoWrite(path="/docs/b", text="x", volume=volume))
    await one(StoShare(to=second, path="/docs", write=True))
    await two(StoWrite(path="/docs/b", text="x", volume=volume))
    with pytest.raises(NotFound):
        await two(StoDelete(path="/docs/b", purge=True, volume=volume))
    await site.kill()
    two = site.door(second)
    await two(StoWrite(path="/docs/b", text="y", volume=volume))
    await site.door(first)(StoShare(to=second, path="/docs", revoke=True))
    with pytest.raises(NotFound):
        await two(StoRead(path="/docs/a", volume=volume, binary=True))
    with pytest.raises(NotFound, match="is not shared"):
        await site.door(first)(StoShare(to=second, path="/docs", revoke=True))


# --- lives ----------------------------------------------------------------------------------------


async def test_all_is_there_in_the_next_kernel(site: Site) -> None:
    pid = await site.agent()
    trap = site.door(pid)
    await trap(StoWrite(path="/a", text="1"))
    await trap(StoWrite(path="/a", text="2"))
    await site.kill()
    trap = site.door(pid)
    assert await text(trap, "/a") == "2"
    assert await text(trap, "/a", version=1) == "1"
    assert (await trap(StoWrite(path="/a", text="3"))).version == 3


async def test_a_volume_outlives_its_process_until_it_is_reaped(site: Site) -> None:
    pid = await site.agent()
    await site.door(pid)(StoWrite(path="/result", text="42 ferries"))
    await site.door(pid)(StoWrite(path="/draft", text="x", stage=True))
    await site.as_user(KillAgent(aid=pid))
    assert await text(site.as_user, "/result", aid=pid) == "42 ferries"
    assert await site.rows("staged") == 0
    await site.as_user(WaitAgent(aid=pid))
    await site.kernel.trace.durable()
    for table in ("volumes", "entries", "heads", "contents", "chunks", "passages", "file_words"):
        assert await site.rows(table) == 0, table


async def test_a_transcript_does_not_hold_what_files_hold(site: Site) -> None:
    pid = await site.agent()
    trap = site.door(pid)
    await trap(StoWrite(path="/a", text="a secret plan"))
    await trap(StoCommit(changes=(FileDraft("/b", text="a secret plan"),)))
    await trap(StoRead(path="/a"))
    calls = (await site.as_user(GetTranscript(aid=pid))).calls
    assert "secret" not in str(calls)
    assert ", 13 bytes" in str(calls)


async def test_a_fork_has_a_copy(site: Site) -> None:
    pid = await site.agent()
    trap = site.door(pid)
    await trap(StoWrite(path="/a", text="ferry 1"))
    await trap(StoWrite(path="/a", text="ferry 2"))
    await trap(StoWrite(path="/s", text="s", stage=True))
    fork = (await site.as_user(ForkAgent(aid=pid))).aid
    other = site.door(fork)
    assert (await text(other, "/a"), await text(other, "/a", version=1)) == ("ferry 2", "ferry 1")
    assert await found(other, "ferry") == [("/a", 1)]
    await other(StoWrite(path="/a", text="ferry 3"))
    await other(StoCommit())
    assert await text(trap, "/a") == "ferry 2"
    assert await tree(other) == ["/a", "/s"]
    assert await tree(trap) == ["/a"]


async def records_kept(site: Site, records: Any) -> None:
    await site.kernel.journal.append(records)


async def test_a_copy_as_of_a_call(site: Site) -> None:
    pid = await site.agent()
    trap = site.door(pid)
    await trap(StoWrite(path="/a", text="1"))
    number = int((await trap(StoHistory())).versions[0].call[1:])
    await trap(StoWrite(path="/a", text="2"))
    await trap(StoWrite(path="/b", text="2"))
    to = await site.agent()
    await records_kept(site, await site.kernel.files.copy(pid, to, number))
    assert await tree(site.door(to)) == ["/a"]
    assert await text(site.door(to), "/a") == "1"


async def test_a_rewind_takes_back_what_the_process_wrote(site: Site) -> None:
    pid = await site.agent()
    trap, other = site.door(pid), site.door(await site.agent())
    await trap(StoWrite(path="/a", text="1"))
    await trap(StoWrite(path="/ours", text="1", volume="user"))
    await trap(StoWrite(path="/theirs", text="1", volume="user"))
    await trap(StoWrite(path="/later", text="x", stage=True))
    number = int((await trap(StoHistory(volume="user"))).versions[0].call[1:]) + 2
    await trap(StoWrite(path="/a", text="2"))
    await trap(StoWrite(path="/new/file", text="2", volume="user"))
    await trap(StoWrite(path="/ours", text="2", volume="user"))
    await trap(StoWrite(path="/theirs", text="2", volume="user"))
    await trap(StoCommit())
    await trap(StoWrite(path="/too late", text="x", stage=True))
    await other(StoWrite(path="/theirs", text="3", volume="user", expect=-1))
    await other(StoWrite(path="/others", text="3", volume="user"))
    held = await site.kernel.files.held(pid, number)
    assert held == ["user:ann:/theirs, which pid:3 changed since"]
    await records_kept(site, await site.kernel.files.rewind(pid, number))
    assert await text(trap, "/a") == "1"
    assert await tree(trap) == ["/a"]
    assert await tree(trap, volume="user") == ["/others", "/ours", "/theirs"]
    assert await text(trap, "/ours", volume="user") == "1"
    assert await text(trap, "/theirs", volume="user") == "3"
    await trap(StoWrite(path="/ours", text="again", volume="user"))
    await trap(StoCommit())  # what had been staged by then is staged again
    assert await tree(trap) == ["/a", "/later"]
    await records_kept(site, await site.kernel.files.rewind(pid, number))
    assert await text(trap, "/ours", volume="user") == "1"


async def test_heads_are_the_volumes_of_a_process(site: Site) -> None:
    pid = await site.agent()
    trap = site.door(pid)
    await trap(StoWrite(path="/a", text="1"))
    await trap(StoWrite(path="/a", text="2"))
    await trap(StoWrite(path="/a", text="1", volume="user"))
    assert await site.kernel.files.heads(pid) == {f"pid:{pid}": 2, "user:ann": 1}


# --- a journal that takes nothing -----------------------------------------------------------------


async def test_what_was_not_kept_has_not_happened(tmp_path: Path) -> None:
    async with on(Disk("memory", tmp_path)) as site:  # which can be told to fail
        await not_kept(site, site.door(await site.agent()))


async def not_kept(site: Site, trap: Trap) -> None:
    journal: Any = site.kernel.journal
    await trap(StoWrite(path="/a", text="1"))
    journal.trouble = "the disk is full."
    for call in (
        StoWrite(path="/a", text="2"),
        StoWrite(path="/s", text="2", stage=True),
        StoDelete(path="/a", purge=True),
        StoAlloc(size=5_000),
    ):
        with pytest.raises(StoreFailed):
            await trap(call)
    assert await text(trap, "/a") == "1"  # reading works
    journal.trouble = None
    made = await trap(StoWrite(path="/a", text="3"))
    assert made.version == 2
    with pytest.raises(NotFound):
        await trap(StoCommit())


async def test_a_change_on_one_that_was_not_kept_is_refused(site: Site) -> None:
    from aios.ports import Author, FileChange

    files, journal = site.kernel.files, site.kernel.journal
    author = Author(2, "pid:2", "ann", 1, 1.0)
    lost, first = await files.commit("user:ann", [FileChange("write", "/a", b"1")], author, {})
    assert first
    assert lost.version == 1
    with pytest.raises(StoreFailed, match="planned on one that was not kept"):
        await journal.append([*first, *first])
    planned = [
        await files.commit("user:ann", [FileChange("write", path, b"1")], author, {})
        for path in ("/b", "/c")
    ]
    assert [made.version for made, _ in planned] == [1, 1]  # neither was handed over
    await journal.append(planned[0][1])
    with pytest.raises(StoreFailed):
        await journal.append(planned[1][1])
    made, records = await files.commit("user:ann", [FileChange("write", "/c", b"1")], author, {})
    await journal.append(records)
    assert made.version == 2


async def test_errors_are_all_of_the_tree(trap: Trap) -> None:
    for call in (
        StoRead(path="/a", offset=-1),
        StoRead(path="/a", version=3),
        StoList(path="/nowhere"),
        StoHistory(limit=0),
        StoWrite(path="/a", text="x", expect=-5),
    ):
        with pytest.raises(AiosError):
            await trap(call)
