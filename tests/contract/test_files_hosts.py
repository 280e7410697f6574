"""Directories of this machine in a volume, and every way out of them."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from aios.abi.calls import (
    Call,
    FileDraft,
    KeyNew,
    SpawnAgent,
    StoCommit,
    StoDelete,
    StoDiff,
    StoHistory,
    StoList,
    StoMount,
    StoMove,
    StoRead,
    StoRollback,
    StoSearch,
    StoWrite,
)
from aios.config import Storage
from aios.drivers.files import hosts, outside
from aios.drivers.files.hosts import Host
from aios.errors import (
    AiosError,
    Conflict,
    InvalidCall,
    NotFound,
    OutcomeUnknown,
    PermissionDenied,
)
from aios.ports import FileChange, HostPlace
from aios.testing import TestKernel, machine

Trap = Callable[[Call], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory to mount; beside it, what must not be reached."""
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "README").write_text("ferry")
    (folder / "src" / "main.py").write_text("print()")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text("secret")
    return folder


@pytest.fixture
async def kernel() -> AsyncIterator[TestKernel]:
    async with machine() as kernel:
        yield kernel


@pytest.fixture
async def person(kernel: TestKernel) -> Trap:
    pid = kernel.identify(kernel.user_key)
    return lambda call: kernel.trap(pid, call)


@pytest.fixture
async def agent(kernel: TestKernel, person: Trap) -> Trap:
    pid = (await person(SpawnAgent(program="notes"))).aid
    return lambda call: kernel.trap(pid, call)


async def mount(person: Trap, folder: Path, mode: str) -> None:
    call = StoMount(path="/p", host=str(folder), volume="user", mode=mode)  # type: ignore[arg-type]
    assert (await person(call)).host == str(folder)


async def text(trap: Trap, path: str, **options: Any) -> str:
    return (await trap(StoRead(path=path, volume="user", **options))).text


async def tree(trap: Trap, path: str = "/", **options: Any) -> list[str]:
    listed = await trap(StoList(path=path, volume="user", **{"recursive": True} | options))
    return [file.path for file in listed.files]


OPENINGS = [hosts.walk, *([hosts.openat2] if hosts.has_openat2() else [])]


@pytest.fixture(params=OPENINGS, ids=lambda opening: opening.__name__)
def host(request: pytest.FixtureRequest, folder: Path) -> Host:
    """The directory, opened in both ways."""
    return Host(str(folder), request.param)


# --- ro, cow, rw ----------------------------------------------------------------------------------


async def test_a_directory_that_is_only_read(person: Trap, agent: Trap, folder: Path) -> None:
    await mount(person, folder, "ro")
    assert await tree(agent) == ["/p/README", "/p/src/main.py"]
    assert await tree(agent, "/p", recursive=False) == ["/p/README", "/p/src"]
    assert await tree(agent, recursive=False) == ["/p"]
    found = await agent(StoRead(path="/p/README", volume="user"))
    assert (found.text, found.bytes, found.mount) == ("ferry", 5, str(folder))
    changes: list[Call] = [
        StoWrite(path="/p/README", text="x", volume="user"),
        StoWrite(path="/p/new", text="x", volume="user", stage=True),
        StoDelete(path="/p/README", volume="user"),
        StoDelete(path="/p", volume="user"),
        StoMove(path="/p/README", to="/x", volume="user"),
        StoMove(path="/p", to="/x", volume="user"),
        StoCommit(changes=(FileDraft("/p/a", text="x"),), volume="user"),
    ]
    for call in changes:
        with pytest.raises(PermissionDenied):
            await agent(call)
    await agent(StoMove(path="/p/README", to="/copy", volume="user", copy=True))
    assert await text(agent, "/copy") == "ferry"
    for call in (
        StoHistory(path="/p/README", volume="user"),
        StoDiff(path="/p/README", since=1, volume="user"),
        StoRollback(path="/p/README", back=1, volume="user"),
        StoRead(path="/p/README", version=1, volume="user"),
    ):
        with pytest.raises(InvalidCall, match="keeps no versions"):
            await agent(call)
    (folder / "README").write_text("changed outside")
    assert await text(agent, "/p/README") == "changed outside"


async def test_changes_of_a_cow_directory_stay_in_the_volume(
    person: Trap, agent: Trap, folder: Path
) -> None:
    await mount(person, folder, "cow")
    with pytest.raises(Conflict, match="by somebody outside"):
        await agent(StoWrite(path="/p/README", text="x", volume="user"))
    assert await text(agent, "/p/README") == "ferry"
    await agent(StoWrite(path="/p/README", text=", bus", volume="user", append=True))
    await agent(StoDelete(path="/p/src/main.py", volume="user", expect=-1))
    await agent(StoWrite(path="/p/src/new.py", text="new", volume="user"))
    assert await tree(agent) == ["/p/README", "/p/src/new.py"]
    assert await tree(agent, "/p/src", recursive=False) == ["/p/src/new.py"]
    assert await text(agent, "/p/README") == "ferry, bus"
    with pytest.raises(NotFound, match="was deleted"):
        await agent(StoRead(path="/p/src/main.py", volume="user"))
    assert (folder / "README").read_text() == "ferry"
    assert sorted(os.listdir(folder / "src")) == ["main.py"]
    hits = await agent(StoSearch(query="bus", volumes=("user",)))
    assert [hit.path for hit in hits.hits] == ["/p/README"]
    assert "mounted directories are not searched" in hits.note
    await agent(StoRollback(path="/p", version=1, volume="user"))
    assert await tree(agent) == ["/p/README", "/p/src/main.py"]  # the host shows through again
    await agent(StoDelete(path="/p/src", volume="user"))
    assert await tree(agent) == ["/p/README"]
    await agent(StoMove(path="/p/README", to="/moved", volume="user"))
    assert await tree(agent) == ["/moved"]
    await person(StoMount(path="/p", host=None, volume="user"))
    assert await tree(agent) == ["/moved"]
    assert sorted(os.listdir(folder)) == ["README", "src"]


async def test_a_rw_directory_is_written_to(person: Trap, agent: Trap, folder: Path) -> None:
    await mount(person, folder, "rw")
    with pytest.raises(Conflict, match="has not been read by this process"):
        await agent(StoWrite(path="/p/README", text="x", volume="user"))
    await text(agent, "/p/README")
    os.chmod(folder / "README", 0o750)
    await agent(StoWrite(path="/p/README", text="bus", volume="user"))
    await agent(StoWrite(path="/p/README", text="es", volume="user", append=True))
    assert (folder / "README").read_text() == "buses"
    assert (folder / "README").stat().st_mode & 0o777 == 0o750
    await agent(StoWrite(path="/p/a/b/c", content=b"\xff", volume="user", expect=0))
    assert (folder / "a" / "b" / "c").read_bytes() == b"\xff"
    (folder / "README").write_text("changed outside")
    with pytest.raises(Conflict, match="has changed since"):
        await agent(StoWrite(path="/p/README", text="x", volume="user"))
    await agent(StoMove(path="/p/a/b/c", to="/p/d", volume="user"))
    await agent(StoMove(path="/p/d", to="/p/e", volume="user", copy=True))
    assert await tree(agent) == ["/p/README", "/p/d", "/p/e", "/p/src/main.py"]
    await agent(StoDelete(path="/p/d", volume="user", expect=-1))
    for call, error in (
        (StoWrite(path="/p/x", text="x", volume="user", stage=True), InvalidCall),
        (StoCommit(changes=(FileDraft("/p/x", text="x"),), volume="user"), InvalidCall),
        (StoMove(path="/p/e", to="/elsewhere", volume="user"), InvalidCall),
        (StoMove(path="/p/no", to="/p/x", volume="user"), NotFound),
        (StoDelete(path="/p/no", volume="user"), NotFound),
        (StoDelete(path="/p/src", volume="user"), InvalidCall),
        (StoDelete(path="/p", volume="user"), Conflict),
        (StoWrite(path="/p/src", text="x", volume="user"), InvalidCall),
        (StoWrite(path="/p/README/x", text="x", volume="user"), NotFound),
    ):
        with pytest.raises(error):
            await agent(call)
    assert sorted(os.listdir(folder)) == ["README", "a", "e", "src"]  # and no draft left behind


async def test_a_mount_is_there_in_the_next_kernel(folder: Path) -> None:
    async with machine() as kernel:
        pid = kernel.identify(kernel.user_key)
        await kernel.trap(pid, StoMount(path="/p", host=str(folder), volume="user"))
        journal: Any = kernel.journal
    async with machine(journal=journal) as kernel:
        pid = kernel.identify(kernel.user_key)
        found: Any = await kernel.trap(pid, StoRead(path="/p/README", volume="user"))
        assert found.text == "ferry"


# --- who may mount what ---------------------------------------------------------------------------


async def test_only_a_person_may_mount(
    kernel: TestKernel, person: Trap, agent: Trap, folder: Path
) -> None:
    with pytest.raises(PermissionDenied, match="that is for a user's own key"):
        await agent(StoMount(path="/p", host=str(folder)))
    bob = kernel.identify(kernel.ensure_user_key("bob") or "")
    with pytest.raises(PermissionDenied, match="are ann's"):
        await kernel.trap(bob, StoMount(path="/p", host=str(folder)))


async def test_what_cannot_be_mounted(kernel: TestKernel, person: Trap, folder: Path) -> None:
    await person(StoWrite(path="/dir/file", text="x", volume="user"))
    await person(StoMount(path="/m", host=str(folder), volume="user"))
    for path, host, error in (
        ("/p", "relative", InvalidCall),
        ("/p", str(folder / "nowhere"), NotFound),
        ("/p", str(folder / "README"), NotFound),
        ("/", str(folder), InvalidCall),
        ("/p/..", str(folder), InvalidCall),
        ("/dir", str(folder), Conflict),
        ("/dir/file", str(folder), Conflict),
        ("/m", str(folder), Conflict),
        ("/m/src", str(folder), Conflict),
        ("/p", None, NotFound),
    ):
        with pytest.raises(error):
            await person(StoMount(path=path, host=host, volume="user"))


def test_the_machines_own_files_are_not_mounted(tmp_path: Path) -> None:
    (tmp_path / "home" / "data" / "keys").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "home" / "data")
    closed = (str(tmp_path / "home" / "data"),)
    for path in ("home/data", "home/data/keys", "home", "link", "."):
        with pytest.raises(PermissionDenied, match="files of aios itself"):
            outside.checked(str(tmp_path / path), closed)
    (tmp_path / "home" / "work").mkdir()
    assert outside.checked(str(tmp_path / "home" / "work"), closed)


# --- ways out -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ro", "cow", "rw"])
async def test_no_link_leads_out(
    person: Trap, agent: Trap, folder: Path, tmp_path: Path, mode: str
) -> None:
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "dirlink").symlink_to(tmp_path / "secrets")
    (folder / "inside").symlink_to("README")  # even those that stay inside: nobody has to judge
    (folder / "dangling").symlink_to(tmp_path / "made")
    (folder / "proc").symlink_to("/proc/self/root")
    (folder / "up").symlink_to("..")
    await mount(person, folder, mode)
    names = ("link", "dirlink/key", "inside", "dangling", "proc/etc/passwd", "up/secret")
    for name in names:
        for call in (
            StoRead(path=f"/p/{name}", volume="user"),
            StoList(path=f"/p/{name}", volume="user"),
            StoMove(path=f"/p/{name}", to="/stolen", volume="user", copy=True),
        ):
            with pytest.raises(AiosError):
                await agent(call)
        if mode == "rw":
            for call in (
                StoWrite(path=f"/p/{name}", text="x", volume="user", expect=-1),
                StoWrite(path=f"/p/{name}", text="x", volume="user", append=True, expect=-1),
                StoDelete(path=f"/p/{name}", volume="user", expect=-1),
            ):
                with pytest.raises(AiosError):
                    await agent(call)
    assert await tree(agent) == ["/p/README", "/p/src/main.py"]
    assert (tmp_path / "secret").read_text() == "secret"
    assert (tmp_path / "secrets" / "key").read_text() == "secret"
    assert not (tmp_path / "made").exists()
    assert (folder / "link").is_symlink()


def test_no_link_is_followed(host: Host, folder: Path, tmp_path: Path) -> None:
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "dirlink").symlink_to(tmp_path / "secrets")
    (folder / "proc").symlink_to("/proc/self/root")
    (folder / "up").symlink_to("..")
    for path in ("link", "dirlink/key", "proc/etc/passwd", "up/secret", "../secret", "/etc/passwd"):
        for call in (host.read, host.names, host.delete, lambda path: host.write(path, b"x")):
            with pytest.raises(AiosError):
                call(path)
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_directory_that_becomes_a_link_is_not_followed(
    host: Host, folder: Path, tmp_path: Path
) -> None:
    assert host.read("src/main.py")[1] == b"print()"
    (folder / "src").rename(folder / "was")
    (folder / "src").symlink_to(tmp_path / "secrets")
    with pytest.raises(AiosError):
        host.read("src/key")
    with pytest.raises(AiosError):
        host.write("src/key", b"x")
    with pytest.raises(AiosError):
        host.names("src")
    assert (tmp_path / "secrets" / "key").read_text() == "secret"


def test_the_mounted_directory_that_becomes_a_link_is_not_followed(
    host: Host, folder: Path, tmp_path: Path
) -> None:
    folder.rename(tmp_path / "was")
    folder.symlink_to(tmp_path / "secrets")
    for call in (lambda: host.read("key"), lambda: host.names(""), lambda: host.write("key", b"")):
        with pytest.raises(AiosError):
            call()
    assert (tmp_path / "secrets" / "key").read_text() == "secret"


def test_a_link_that_is_swapped_in_again_and_again(
    host: Host, folder: Path, tmp_path: Path
) -> None:
    """Whatever is there when it is opened, nothing outside is ever read."""
    (folder / "real").mkdir()
    (folder / "real" / "key").write_text("inside")
    (folder / "evil").symlink_to(tmp_path / "secrets")
    for turn in range(200):
        now = "real" if turn % 2 else "evil"
        draft = folder / "draft"
        draft.unlink(missing_ok=True)
        draft.symlink_to(now)
        os.replace(draft, folder / "swap")
        with pytest.raises(AiosError):
            host.read("swap/key")


def test_pipes_sockets_and_devices_are_no_files(host: Host, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "socket"))
    for name in ("pipe", "socket"):
        assert host.look(name) is None
        with pytest.raises(AiosError):
            host.read(name)
        with pytest.raises(AiosError):
            host.write(name, b"x")
    assert [name for name, _ in host.names("")] == ["README", "src"]
    listening.close()


def test_a_write_that_fails_leaves_no_draft(host: Host, folder: Path) -> None:
    (folder / "there").mkdir()
    with pytest.raises(Conflict):
        host.write("there", b"x")
    host.write("new/deep/file", b"x")
    assert sorted(os.listdir(folder)) == ["README", "new", "src", "there"]
    assert os.listdir(folder / "new" / "deep") == ["file"]


# --- after a crash --------------------------------------------------------------------------------


def test_a_change_that_may_have_been_made_is_made_once(folder: Path) -> None:
    def again(kind: str, path: str, data: bytes = b"", seen: int = -1, to: str = "") -> int:
        place = HostPlace("user:ann", f"/p/{path}", "/p", str(folder))
        known = {} if seen < 0 else {f"/p/{path}": seen}
        change = FileChange(kind, f"/p/{path}", data, to)  # type: ignore[arg-type]
        return outside.change(place, change, known, True, Storage())

    host = Host(str(folder))
    before = host.read("README")[0].version
    written = again("write", "README", b"bus", before)
    assert written > before
    assert again("write", "README", b"bus", before) == written  # it was made
    with pytest.raises(OutcomeUnknown):
        again("write", "README", b"train", before)  # somebody else did something
    with pytest.raises(OutcomeUnknown, match="once or is still missing"):
        again("append", "README", b"us", written)
    assert again("append", "README", b"es", written)
    assert (folder / "README").read_text() == "buses"
    assert again("delete", "nowhere") == 0
    assert again("move", "README", to="/p/moved") == again("move", "README", to="/p/moved")


async def test_an_agent_of_another_user_sees_no_mount(
    kernel: TestKernel, person: Trap, folder: Path
) -> None:
    await mount(person, folder, "ro")
    bob = kernel.identify(kernel.ensure_user_key("bob") or "")
    with pytest.raises(NotFound):
        await kernel.trap(bob, StoRead(path="/p/README", volume="user:ann"))
    assert await person(KeyNew(label="x"))
