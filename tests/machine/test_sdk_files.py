"""Files from the SDK, against a real kernel and server."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from served import Served, serving
from test_filesystem import Thread

import aios
from aios.abi.calls import FileDraft
from aios.config import Config, Storage
from aios.errors import Conflict, InvalidCall, NotFound, QuotaExceeded
from aios.sdk.files import PART


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    config = Config(storage=Storage(process_bytes=3 * PART))
    async with serving(tmp_path, config=config) as found:
        yield found


async def test_files_are_an_object(served: Served) -> None:
    async with served.connect(program="notes") as me:
        files = me.files
        one = await files.write("/plan.md", "one\n", message="first")
        await files.write("/plan.md", "two\n", append=True)
        assert await files.read("/plan.md") == "one\ntwo\n"
        assert await files.read("/plan.md", version=one.version) == "one\n"
        assert await files.read_bytes("/plan.md", offset=4, length=3) == b"two"
        await files.commit({"/a": "a", "/b": b"\xff", "/plan.md": None}, message="many")
        assert [file.path for file in await files.list()] == ["/a", "/b"]
        assert [file.path for file in await files.list(version=1)] == ["/plan.md"]
        await files.commit([FileDraft("/a", text="!", append=True)])
        assert await files.read("/a") == "a!"
        with pytest.raises(InvalidCall, match="no text in UTF-8"):
            await files.read("/b")
        await files.write("/c", "staged", stage=True)
        await files.delete("/b", stage=True)
        await files.commit(message="staged")
        await files.write("/d", "never", stage=True)
        await files.discard()
        assert [file.path for file in await files.list()] == ["/a", "/c"]
        assert [one.message for one in await files.history("/c")] == ["staged"]
        assert (await files.diff("/a", since=3)).paths == ("/a",)
        await files.move("/c", "/x/c")
        await files.copy("/x/c", "/y")
        await files.rollback(version=2)
        assert await files.read("/plan.md") == "one\ntwo\n"
        assert (await files.search("two")).hits[0].path == "/plan.md"
        await files.delete("/plan.md", purge=True)
        with pytest.raises(NotFound):
            await files.history("/plan.md")


async def test_volumes_of_program_and_user(served: Served) -> None:
    async with served.connect(program="one") as one, served.connect(program="two") as two:
        await one.files.of("user").write("/ours", "1")
        await one.files.of("program").write("/mine", "1")
        assert await two.files.of("user").read("/ours") == "1"
        with pytest.raises(NotFound):
            await two.files.of("program").read("/mine")
        await one.files.write("/shared/a", "ferry")
        await one.files.share(two, "/shared")
        theirs = two.files.of(f"pid:{one.aid}")
        assert await theirs.read("/shared/a") == "ferry"
        assert (await theirs.search("ferry", path="/shared")).hits
        await one.files.unshare(two, "/shared")
        with pytest.raises(NotFound):
            await theirs.list("/shared")
        with pytest.raises(Conflict):
            await two.files.of("user").write("/new", "1", expect=3)
        assert (await two.files.alloc(1_000)).size == 1_000


async def test_a_long_file_goes_in_parts_and_is_one_version(served: Served) -> None:
    data = bytes(range(256)) * (PART // 128)  # two parts, and a little
    async with served.connect(program="notes") as me:
        await me.files.write("/waits", "x", stage=True)
        made = await me.files.write("/long", data, expect=0)
        assert made.version == 1
        assert await me.files.read_bytes("/long") == data
        part = await me.files.read_bytes("/long", offset=PART - 5, length=10)
        assert part == data[PART - 5 : PART + 5]
        assert [file.path for file in await me.files.list()] == ["/long"]
        await me.files.commit()  # what waited still does
        assert await me.files.read("/waits") == "x"
        text = "é" * PART
        with pytest.raises(QuotaExceeded, match="left of 12,000,000"):
            await me.files.write("/too long", random.Random(1).randbytes(3 * PART))
        with pytest.raises(NotFound, match="staged nothing"):
            await me.files.commit()
        await me.files.delete("/long", purge=True)
        await me.files.write("/text", text)
        assert await me.files.read("/text") == text


async def test_a_person_mounts_for_a_process(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "README").write_text("hello")
    async with served.connect() as person, served.connect(program="notes") as me:
        mounted = await person.process(me.aid).files.mount("/p", str(folder), "cow")
        assert (mounted.volume, mounted.host) == (f"pid:{me.aid}", str(folder))
        assert await me.files.read("/p/README") == "hello"
        await me.files.write("/p/README", "changed")
        assert (folder / "README").read_text() == "hello"
        await person.process(me.aid).files.unmount("/p")
        assert await me.files.read("/p/README") == "changed"


def test_for_plain_python(tmp_path: Path) -> None:
    with Thread(tmp_path) as site, aios.connect_sync(site.url, site.key, program="notes") as me:
        me.files.write("/a", "1")
        ours = me.files.of("user")
        ours.write("/b", "2")
        assert (me.files.read("/a"), ours.read("/b")) == ("1", "2")
