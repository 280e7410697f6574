"""Files against a dict: whatever is done in whatever order, both hold the same, at each version."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import structs

from aios.abi.calls import (
    Call,
    FileDraft,
    SpawnAgent,
    StoAlloc,
    StoCommit,
    StoDelete,
    StoList,
    StoMove,
    StoRead,
    StoRollback,
    StoSearch,
    StoWrite,
)
from aios.drivers.journal.memory import MemoryJournal
from aios.errors import Conflict, InvalidCall, NotFound
from aios.testing import TestKernel, machine

Tree = dict[str, bytes]

PATHS = st.sampled_from(["/a", "/b", "/d/a", "/d/b", "/d/e/a", "/f"])
PLACES = st.sampled_from(["/a", "/d", "/d/e", "/f", "/g"])
DATA = st.one_of(
    st.sampled_from([b"", b" ferry ", b"\xff\xfe"]),
    st.integers(0, 9).map(lambda n: bytes([65 + n]) * (n * 3_000)),
    st.binary(max_size=20),
)


def fits(tree: Tree, path: str) -> bool:
    """Whether there can be a file at *path*: no directory is there, no file is on the way."""
    return not any(other.startswith(f"{path}/") or path.startswith(f"{other}/") for other in tree)


def words_of(data: bytes) -> list[str]:
    """Those of a text that is one."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return []
    return [] if "\0" in text else re.findall(r"[^\W_]+", text.lower())


def within(tree: Iterable[str], place: str) -> list[str]:
    return [path for path in tree if path == place or path.startswith(f"{place}/")]


class FilesAgainstADict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.journal = MemoryJournal()
        self.calls = 0
        self.kernel: TestKernel
        self._start()
        self.pid = self._trap(SpawnAgent(program="model"), login=True).aid
        self.versions: list[Tree] = [{}]  # by number; 0 is before the first
        self.staged: list[tuple[str, str, bytes | str]] = []

    # --- the kernel -------------------------------------------------------------------------------

    def _start(self) -> None:
        opening = self.stack.enter_async_context(machine(journal=self.journal))
        self.kernel = self.runner.run(_wait(opening))

    def _trap(self, call: Call, login: bool = False) -> Any:
        self.calls += 1  # a place of its own: what a second life asks is not what the first asked

        async def trap() -> Any:
            pid = self.kernel.identify(self.kernel.user_key) if login else self.pid
            return await self.kernel.trap(pid, structs.replace(call, place=f"{self.calls}"))

        return self.runner.run(trap())

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()

    # --- the model --------------------------------------------------------------------------------

    @property
    def now(self) -> Tree:
        return self.versions[-1]

    def _made(self, tree: Tree | None, call: Call, error: type[Exception] = Conflict) -> None:
        """The call makes *tree* of what is there; None: it is refused."""
        if tree is None:
            try:
                self._trap(call)
            except (error, NotFound):
                return
            raise AssertionError(f"{call} was not refused")
        made = self._trap(call)
        if made.version == len(self.versions):
            self.versions.append(tree)
        else:  # it changed nothing
            assert (made.version, tree) == (len(self.versions) - 1, self.now)

    @staticmethod
    def _apply(tree: Tree, kind: str, path: str, data: bytes | str) -> Tree | None:
        """A change of a tree; None if it does not fit."""
        tree = dict(tree)
        match kind:
            case "write" | "append":
                assert isinstance(data, bytes)
                if not fits(tree, path):
                    return None
                tree[path] = (tree.get(path, b"") if kind == "append" else b"") + data
            case "delete":
                gone = within(tree, path)
                if not gone:
                    return None
                for one in gone:
                    del tree[one]
            case "move" | "copy":
                assert isinstance(data, str)
                moved = within(tree, path)
                if not moved or data == path or data.startswith(f"{path}/"):
                    return None
                for one in moved:
                    target = data + one[len(path) :]
                    if not fits(tree, target):
                        return None
                    tree[target] = tree[one]
                for one in moved if kind == "move" else ():
                    del tree[one]
        return tree

    @staticmethod
    def _call(kind: str, path: str, data: bytes | str, stage: bool = False) -> Call:
        match kind:
            case "write" | "append":
                assert isinstance(data, bytes)
                is_append = kind == "append"
                return StoWrite(path=path, content=data, append=is_append, stage=stage)
            case "delete":
                return StoDelete(path=path, stage=stage)
        assert isinstance(data, str)
        return StoMove(path=path, to=data, copy=kind == "copy", stage=stage)

    # --- what can happen --------------------------------------------------------------------------

    @rule(path=PATHS, data=DATA, kind=st.sampled_from(["write", "append"]))
    def write(self, path: str, data: bytes, kind: str) -> None:
        self._made(self._apply(self.now, kind, path, data), self._call(kind, path, data))

    @rule(path=PLACES)
    def delete(self, path: str) -> None:
        self._made(self._apply(self.now, "delete", path, b""), self._call("delete", path, b""))

    @rule(path=PLACES, to=PLACES, kind=st.sampled_from(["move", "copy"]))
    def move(self, path: str, to: str, kind: str) -> None:
        tree = self._apply(self.now, kind, path, to)
        error = InvalidCall if to == path or to.startswith(f"{path}/") else Conflict
        self._made(tree, self._call(kind, path, to), error)

    @rule(changes=st.dictionaries(PATHS, st.one_of(st.none(), DATA), min_size=1))
    def commit_many(self, changes: dict[str, bytes | None]) -> None:
        tree: Tree | None = self.now
        for path, data in changes.items():
            if tree is not None:
                kind = "delete" if data is None else "write"
                tree = self._apply(tree, kind, path, data or b"")
        drafts = tuple(FileDraft(path, content=data) for path, data in changes.items())
        self._made(tree, StoCommit(changes=drafts))

    @rule(path=PATHS, data=DATA, kind=st.sampled_from(["write", "append", "delete"]))
    def stage(self, path: str, data: bytes, kind: str) -> None:
        if kind != "delete" and not fits(self.now, path):
            return
        self._trap(self._call(kind, path, data, stage=True))
        self.staged.append((kind, path, data))

    @rule()
    def commit(self) -> None:
        tree: Tree | None = self.now if self.staged else None
        for kind, path, data in self.staged:
            if tree is not None:
                tree = self._apply(tree, kind, path, data)
        self._made(tree, StoCommit())
        if tree is not None:
            self.staged.clear()

    @rule()
    def discard(self) -> None:
        self._trap(StoCommit(discard=True))
        self.staged.clear()

    @precondition(lambda self: len(self.versions) > 1)
    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        version = data.draw(st.integers(1, len(self.versions) - 1))
        self._made(dict(self.versions[version]), StoRollback(version=version))

    @precondition(lambda self: len(self.versions) > 2)
    @rule(data=st.data())
    def rollback_a_directory(self, data: st.DataObject) -> None:
        version = data.draw(st.integers(1, len(self.versions) - 1))
        then = {path: self.versions[version][path] for path in within(self.versions[version], "/d")}
        tree = {path: held for path, held in self.now.items() if path not in within([path], "/d")}
        self._made({**tree, **then}, StoRollback(path="/d", version=version))

    @rule()
    def kill_the_kernel(self) -> None:
        self.journal = self.journal.copy()
        old, self.stack = self.stack, AsyncExitStack()
        self._start()
        self.runner.run(old.aclose())

    # --- what holds -------------------------------------------------------------------------------

    @invariant()
    def the_tree_is_the_same(self) -> None:
        files = self._trap(StoList(recursive=True, aid=self.pid), login=True).files
        assert {file.path: file.bytes for file in files} == {
            path: len(data) for path, data in self.now.items()
        }

    @invariant()
    def every_version_is_the_same(self) -> None:
        number = len(self.versions) // 2
        for version in {number, len(self.versions) - 1} - {0}:
            tree = self.versions[version]
            listed = self._trap(StoList(aid=self.pid, recursive=True, version=version), login=True)
            assert [file.path for file in listed.files] == sorted(tree)
            for path, data in tree.items():
                call = StoRead(aid=self.pid, path=path, version=version, binary=True)
                assert self._trap(call, login=True).content == data

    @invariant()
    def what_is_found_is_there(self) -> None:
        call = StoSearch(aid=self.pid, query="ferry", volumes=("process",))
        hits = self._trap(call, login=True).hits
        with_ferry = {path for path, data in self.now.items() if "ferry" in words_of(data)}
        assert {hit.path for hit in hits} == with_ferry

    @invariant()
    def what_is_held_is_what_counts(self) -> None:
        size = self._trap(StoAlloc(aid=self.pid, size=10**9), login=True).used
        query = """
            SELECT coalesce(sum(bytes), 0) FROM chunks WHERE id IN (
                SELECT chunk FROM content_chunks WHERE content IN (
                    SELECT content FROM entries UNION SELECT content FROM staged))
        """
        assert size == self.journal._connection.execute(query).get


async def _wait(opening: Any) -> Any:
    return await opening


TestFilesAgainstADict = FilesAgainstADict.TestCase
TestFilesAgainstADict.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
