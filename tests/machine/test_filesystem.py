"""fsspec over volumes: its own abstract tests, all of them, then pandas, and what is ours."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas
import pytest
from fsspec.tests import abstract
from served import Served, serving

import aios
from aios.abi.calls import FileVersion, GetTranscript
from aios.errors import Conflict
from aios.sdk import filesystem
from aios.sdk.filesystem import AiosFileSystem

COUNT = itertools.count()
PART = 1_000  # bytes: so that files of some kilobytes go in parts


class Thread:
    """A served kernel on a loop in a thread: a test that is synchronous can wait for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.site: Served

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with serving(self._folder) as self.site:
            self._ready.set()
            await self._over.wait()

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._ready.wait(10)
        return self.site

    def __exit__(self, *error: object) -> None:
        filesystem.lines.close()
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    fsspec.register_implementation("aios", AiosFileSystem, clobber=True)
    with Thread(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture
def fs(site: Served) -> AiosFileSystem:
    return AiosFileSystem(site.url, site.key)


@pytest.fixture
def options(site: Served) -> dict[str, str]:
    return {"url": site.url, "key": site.key}


# --- fsspec's own ---------------------------------------------------------------------------------


class AiosFixtures(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self, site: Served) -> AiosFileSystem:
        return AiosFileSystem(site.url, site.key)

    @pytest.fixture
    def fs_path(self) -> str:
        return f"user/test{next(COUNT)}"

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False


class TestCopy(abstract.AbstractCopyTests, AiosFixtures):
    pass


class TestGet(abstract.AbstractGetTests, AiosFixtures):
    pass


class TestOpen(abstract.AbstractOpenTests, AiosFixtures):
    pass


class TestPipe(abstract.AbstractPipeTests, AiosFixtures):
    pass


class TestPut(abstract.AbstractPutTests, AiosFixtures):
    pass


def test_all_of_fsspecs_abstract_tests_are_here() -> None:
    theirs = {name for name in vars(abstract) if name.startswith("Abstract")} - {"AbstractFixtures"}
    ours = {kind.__bases__[0].__name__ for kind in (TestCopy, TestGet, TestOpen, TestPipe, TestPut)}
    assert theirs == ours


# --- friends --------------------------------------------------------------------------------------


def test_pandas_writes_and_reads_a_csv(options: dict[str, str]) -> None:
    frame = pandas.DataFrame({"port": ["Bergen", "Oslo"], "hour": [9, 12]})
    frame.to_csv("aios://user/sales/ports.csv", index=False, storage_options=options)
    again = pandas.read_csv("aios://user/sales/ports.csv", storage_options=options)
    pandas.testing.assert_frame_equal(frame, again)


def test_text_is_read_line_by_line(fs: AiosFileSystem, options: dict[str, str]) -> None:
    with fsspec.open("aios://user/lines.txt", "w", **options) as file:
        file.writelines(f"line {n}\n" for n in range(2_000))
    with fsspec.open("aios://user/lines.txt", "r", block_size=PART, **options) as file:
        assert [line.strip() for line in file] == [f"line {n}" for n in range(2_000)]
    with fs.open("user/lines.txt", "rb") as file:
        file.seek(-10, 2)
        assert file.read() == b"line 1999\n"
    assert fs.cat_file("user/lines.txt", 5, 8) == b"0\nl"
    assert fs.cat_file("user/lines.txt", -5) == b"1999\n"
    assert fs.tail("user/lines.txt", 5) == b"1999\n"


# --- what is ours ---------------------------------------------------------------------------------


def versions(site: Served, path: str) -> tuple[FileVersion, ...]:
    with aios.connect_sync(site.url, site.key) as me:
        found: tuple[FileVersion, ...] = me.files.of("user").history(path)
        return found


def test_a_file_in_parts_is_one_version(site: Served, fs: AiosFileSystem) -> None:
    data = bytes(range(256)) * 40
    with fs.open("user/parts", "wb", block_size=PART) as file:
        for start in range(0, len(data), 700):
            file.write(data[start : start + 700])
    assert fs.cat_file("user/parts") == data
    with fs.open("user/parts", "ab", block_size=PART) as file:
        assert file.tell() == len(data)
        file.write(data)
    assert fs.cat_file("user/parts") == data + data
    assert len(versions(site, "/parts")) == 2
    assert fs.info("user/parts")["size"] == 2 * len(data)


def test_a_file_that_is_given_up_is_not_there(fs: AiosFileSystem) -> None:
    with fs.open("user/failed", "wb", block_size=PART) as file:
        file.write(bytes(5_000))
        file.discard()
        file.write(bytes(5_000))
    assert not fs.exists("user/failed")


def test_a_transaction_is_one_version(site: Served, fs: AiosFileSystem) -> None:
    with fs.transaction:
        for name in "abc":
            with fs.open(f"user/together/{name}", "wb") as file:
                file.write(name.encode())
        assert not fs.exists("user/together")
    assert fs.cat("user/together/*") == {f"user/together/{n}": n.encode() for n in "abc"}
    assert len({one.version for one in versions(site, "/together")}) == 1

    def fail() -> None:
        with fs.transaction:
            with fs.open("user/together/d", "wb") as file:
                file.write(b"d")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert not fs.exists("user/together/d")


def test_what_somebody_else_wrote_is_a_conflict(site: Served, options: dict[str, str]) -> None:
    with aios.connect_sync(site.url, site.key, program="one") as one:
        one.files.of("user").write("/shared", "one")
        theirs = AiosFileSystem(site.url, one.key)
        mine = AiosFileSystem(**options)
        with pytest.raises(Conflict, match="by pid:"):
            mine.pipe_file("user/shared", b"two")
        assert mine.cat_file("user/shared") == b"one"
        mine.pipe_file("user/shared", b"two")
        with pytest.raises(Conflict):
            theirs.pipe_file("user/shared", b"three")
        AiosFileSystem(site.url, one.key, overwrite=True).pipe_file("user/shared", b"three")
        assert mine.cat_file("user/shared") == b"three"


def test_errors_are_those_of_files(fs: AiosFileSystem) -> None:
    fs.pipe_file("user/dir/file", b"x")
    with pytest.raises(FileNotFoundError, match="no /nowhere"):
        fs.cat_file("user/nowhere")
    with pytest.raises(FileNotFoundError):
        fs.ls("nonsense/a")
    with pytest.raises(FileExistsError):
        fs.pipe_file("user/dir/file", b"y", mode="create")
    with pytest.raises(IsADirectoryError):
        fs.rm("user/dir")
    assert fs.ls("") == [
        {"name": name, "size": 0, "type": "directory"} for name in ("process", "program", "user")
    ]
    fs.mv("user/dir/file", "user/dir2/file")
    fs.mv("user/dir2/file", "program/file")
    assert fs.cat_file("program/file") == b"x"
    assert not fs.exists("user/dir2/file")


async def test_inside_an_agent_it_is_that_agent(tmp_path: Path) -> None:
    """A program that the kernel starts: its own volume, its own place in its replay."""
    script = tmp_path / "agent.py"
    script.write_text(
        "import aios, fsspec\n"
        "from aios.sdk.filesystem import AiosFileSystem\n"
        "@aios.agent\n"
        "async def main(me, task):\n"
        "    fs = AiosFileSystem()\n"
        "    fs.pipe_file('process/made.txt', b'by ' + str(me.aid).encode())\n"
        "    return fs.cat_file('process/made.txt').decode()\n"
        "if __name__ == '__main__':\n"
        "    main.run()\n"
    )
    async with serving(tmp_path) as site, site.connect() as me:
        agent = await me.spawn(str(script))
        exit = await agent.wait(reap=False)
        assert (exit.exit_status, exit.result) == (0, f"by {agent.aid}"), exit
        assert await agent.files.read("/made.txt") == f"by {agent.aid}"
        calls: Any = await me.call(GetTranscript(aid=agent.aid, names=("sto_write", "sto_read")))
        assert [call.request["place"] for call in calls.calls] == ["0", "1"]
