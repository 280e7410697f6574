"""A disk that remembers every write, and what it holds when the power is cut.

A write is on the disk for sure once its file was synced after it. Until then all of it, none of it,
or any sector of 512 bytes of it may be there, and so may later writes: disks do not keep order.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apsw

SECTOR = 512

WAYS = ("none", "all", "some", "torn")  # of what was not synced: what is on the disk


class Op(NamedTuple):
    """What the database asked of the disk. data is what a write writes, offset where."""

    kind: str  # create, write, truncate (to offset), sync, delete
    file: str
    offset: int = 0
    data: bytes = b""


class Disk(apsw.VFS):  # type: ignore[misc]
    """SQLite's way to the disk: notes what it does, and fails when it is told to.

    ``fail`` is asked before each write, truncate and sync (with its kind) and raises what the
    database is to hear.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.log: list[Op] = []
        self.fail: Callable[[str], None] = lambda kind: None
        super().__init__(name, "", maxpathname=1024)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        return _File(self, path, flags)

    def xDelete(self, path: str, sync_folder: bool) -> None:
        self.fail("delete")
        super().xDelete(path, sync_folder)
        self.log.append(Op("delete", os.path.basename(path)))


class _File(apsw.VFSFile):  # type: ignore[misc]
    def __init__(self, disk: Disk, path: str, flags: list[int]) -> None:
        self._disk, self._name = disk, os.path.basename(path)
        if not os.path.exists(path) or not os.path.getsize(path):
            disk.log.append(Op("create", self._name))
        super().__init__("", path, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.fail("write")
        super().xWrite(data, offset)
        self._disk.log.append(Op("write", self._name, offset, bytes(data)))

    def xTruncate(self, size: int) -> None:
        self._disk.fail("truncate")
        super().xTruncate(size)
        self._disk.log.append(Op("truncate", self._name, size))

    def xSync(self, flags: int) -> None:
        self._disk.fail("sync")
        super().xSync(flags)
        self._disk.log.append(Op("sync", self._name))


class Platter:
    """What is on the disk for sure, and what was asked of it since.

    lying are files that it says it has synced, and has not.
    """

    def __init__(self, lying: Container[str] = ()) -> None:
        self._lying = lying
        self._files: dict[str, bytearray] = {}
        self._pending: list[Op] = []

    def do(self, op: Op) -> None:
        if op.kind == "delete":  # SQLite deletes with care: what it deletes it no longer needs
            self._files.pop(op.file, None)
            self._pending = [other for other in self._pending if other.file != op.file]
        elif op.kind == "sync" and op.file not in self._lying:
            for other in self._pending:
                if other.file == op.file:
                    _apply(self._files, other)
            self._pending = [other for other in self._pending if other.file != op.file]
        elif op.kind != "sync":
            self._pending.append(op)

    def after_a_cut(self, way: str, chance: random.Random) -> dict[str, bytearray]:
        """The files as they are when the power is cut now."""
        files = {name: bytearray(content) for name, content in self._files.items()}
        last = next((op for op in reversed(self._pending) if op.kind == "write"), None)
        for op in self._pending:
            if op.kind == "create":
                continue  # it is there with the first thing that is in it
            match way:
                case "all":
                    _apply(files, op)
                case "some" if chance.random() < 0.5:
                    _apply(files, op)
                case "torn" if op is last or chance.random() < 0.5:
                    for part in _sectors(op):
                        if chance.random() < 0.5:
                            _apply(files, part)
        return files


def _sectors(op: Op) -> Iterator[Op]:
    """A write as the writes of its sectors."""
    if op.kind != "write":
        yield op
        return
    done = 0
    while done < len(op.data):
        size = SECTOR - (op.offset + done) % SECTOR
        yield op._replace(offset=op.offset + done, data=op.data[done : done + size])
        done += size


def _apply(files: dict[str, bytearray], op: Op) -> None:
    content = files.setdefault(op.file, bytearray())
    if op.kind == "truncate":
        del content[op.offset :]
        content.extend(bytes(op.offset - len(content)))
    elif op.kind == "write":
        content.extend(bytes(max(0, op.offset - len(content))))
        content[op.offset : op.offset + len(op.data)] = op.data


def lay(files: dict[str, bytearray], folder: Path) -> None:
    """Put such files into a folder, in place of what was there."""
    for old in folder.iterdir():
        old.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
