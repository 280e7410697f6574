"""Volumes as an fsspec file system: ``pandas.read_csv("aios://user/sales.csv")``.

A path begins with a volume: process, program, user, or an owner that shares with you (with %2F for
a slash in it). It works inside an agent, as that process, and outside, as ``aios.connect`` finds
the kernel. It is synchronous; a call waits for a loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from fsspec.transaction import Transaction

from aios.abi.calls import (
    Call,
    FileInfo,
    Files,
    Reply,
    StoCommit,
    StoDelete,
    StoList,
    StoMove,
    StoRead,
    StoredFile,
    StoredVersion,
    StoWrite,
)
from aios.errors import Conflict, NotFound, PermissionDenied, QuotaExceeded
from aios.sdk import address, place, steps
from aios.sdk.address import Address
from aios.sdk.files import ALL, PART
from aios.sdk.link import Link
from aios.sdk.sync import wait_for

R = TypeVar("R", bound=Reply)


class Lines:
    """The links of this OS process, on a loop in a thread; made when they are first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._links: dict[tuple[Address, str | None], Link] = {}
        self._os_pid = 0

    def trap(self, to: Address, session: str | None, call: Call, kind: type[R]) -> R:
        with self._lock:
            if self._loop is None or self._os_pid != os.getpid():  # a fork has no threads
                self._os_pid, self._links = os.getpid(), {}
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="aios-files", daemon=True
                )
                self._thread.start()
            loop = self._loop
            link = self._links.get((to, session))
            if link is None:
                link = self._links[to, session] = Link(to, session)
        found: R = wait_for(link.trap(call, kind, to.key), loop)
        return found

    def close(self) -> None:
        """Hang up; the next call makes it all anew."""
        with self._lock:
            loop, thread, links = self._loop, self._thread, list(self._links.values())
            self._loop, self._thread, self._links = None, None, {}
        if loop is None or thread is None or self._os_pid != os.getpid():
            return
        for link in links:
            wait_for(link.close(), loop)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


lines = Lines()


class Together(Transaction):  # type: ignore[misc]
    """Files that were written in a transaction become one version of each volume."""

    fs: Any
    files: Any

    def complete(self, commit: bool = True) -> None:
        volumes: dict[str, list[str]] = {}
        for file in self.files:
            volumes.setdefault(file.volume, []).append(file.inner)
        fs, self.files = self.fs, type(self.files)()
        for volume, paths in volumes.items():
            fs.finish(volume, paths, discard=not commit)
        super().complete(commit)  # the rest of what fsspec does then


class AiosFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """fsspec's file system over volumes.

    url, key and session are as in ``aios.connect``. What somebody else changed since it was read is
    a Conflict; with overwrite it is replaced (its versions stay).
    """

    protocol = "aios"
    cachable = False  # who one is may change between two of them
    transaction_type = Together

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        session: str | None = None,
        overwrite: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        me = steps.current.get() if url is None and key is None else None
        if me is not None:
            known = me._link.address
            self._address = Address(known.url, me.key, known.where)
        else:
            self._address = address.find(url, key)
        self._session = session
        self._expect = -1 if overwrite else None

    def __repr__(self) -> str:
        return f"<AiosFileSystem {self._address.url}>"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return super()._strip_protocol(path).lstrip("/")

    def _call(self, call: Call, kind: type[R]) -> R:
        """Make a call at its place in the program; what the kernel refuses, as Python says it."""
        if here := place.next_path():
            call = msgspec.structs.replace(call, place=here)
        try:
            return lines.trap(self._address, self._session, call, kind)
        except NotFound as error:
            raise FileNotFoundError(errno.ENOENT, error.message) from error
        except PermissionDenied as error:
            raise PermissionError(errno.EACCES, error.message) from error
        except QuotaExceeded as error:
            raise OSError(errno.EDQUOT, error.message) from error

    # --- what is there ----------------------------------------------------------------------------

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        found = self._ls(self._strip_protocol(path))
        return found if detail else [one["name"] for one in found]

    def _ls(self, path: str) -> list[dict[str, Any]]:
        if not path:
            return [{"name": volume, "size": 0, "type": "directory"} for volume in ALL]
        volume, inner = split(path)
        files = self._call(StoList(path=inner, volume=volume), Files).files
        name = path.partition("/")[0]
        return [_info(name, file) for file in files]

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        found = self._ls(path)
        if len(found) == 1 and found[0]["name"] == path and found[0]["type"] == "file":
            return found[0]
        return {"name": path, "size": 0, "type": "directory"}

    def created(self, path: str) -> datetime:
        return self.modified(path)

    def modified(self, path: str) -> datetime:
        """When its newest version was written."""
        return datetime.fromtimestamp(self.info(path).get("mtime", 0.0), UTC)

    def ukey(self, path: str) -> str:
        found = self.info(path)
        return f"{found['name']}@{found.get('version', 0)}"

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        path = self._strip_protocol(path)
        if (start or 0) < 0 or (end or 0) < 0:
            size = self.info(path)["size"]
            start = max(0, size + start) if start and start < 0 else start
            end = max(0, size + end) if end and end < 0 else end
        return self.fetch(path, start or 0, end)

    def fetch(self, path: str, start: int, end: int | None, version: int | None = None) -> bytes:
        """Bytes of a file, in parts of one version."""
        volume, inner = split(path)
        parts: list[bytes] = []
        while end is None or start < end:
            length = PART if end is None else min(PART, end - start)
            call = StoRead(
                path=inner, volume=volume, version=version, offset=start, length=length, binary=True
            )
            part = self._call(call, StoredFile)
            parts.append(part.content)
            start += len(part.content)
            version = version if part.mount else part.version
            if start >= part.bytes or not part.content:
                break
        return b"".join(parts)

    # --- changes ----------------------------------------------------------------------------------

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        with self.open(path, "xb" if mode == "create" else "wb") as file:
            file.write(value)

    def put_part(
        self, path: str, data: bytes, *, append: bool, stage: bool, expect: int | None
    ) -> None:
        volume, inner = split(path)
        call = StoWrite(
            path=inner, volume=volume, content=data, append=append, stage=stage, expect=expect
        )
        try:
            self._call(call, StoredVersion)
        except Conflict as error:
            if expect == 0:
                raise FileExistsError(errno.EEXIST, error.message) from error
            raise

    def finish(self, volume: str, paths: Iterable[str], *, discard: bool = False) -> None:
        """Commit what was staged of these paths, as one version; or forget it."""
        call = StoCommit(volume=volume, paths=tuple(paths), discard=discard)
        self._call(call, StoredVersion)

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        """Nothing: a directory is there when a file is in it."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing, likewise."""

    def rmdir(self, path: str) -> None:
        """Nothing: it goes with its last file."""

    def rm_file(self, path: str) -> None:
        volume, inner = split(self._strip_protocol(path))
        self._call(StoDelete(path=inner, volume=volume, expect=self._expect), StoredVersion)

    _rm = rm_file

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        if maxdepth is not None:
            super().rm(path, recursive=recursive, maxdepth=maxdepth)
            return
        for one in self.expand_path(path):
            if not recursive and self.isdir(one):
                raise IsADirectoryError(errno.EISDIR, "it is a directory", one)
            self.rm_file(one)

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        self._move(path1, path2, copy=True)

    def _move(self, path1: str, path2: str, *, copy: bool) -> None:
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        (volume, inner), (target, to) = split(path1), split(path2)
        if copy and self.isdir(path1):
            return  # its files are copied one by one
        if volume != target:
            self.pipe_file(path2, self.cat_file(path1))
            if not copy:
                self.rm_file(path1)
            return
        call = StoMove(path=inner, to=to, volume=volume, copy=copy, expect=self._expect)
        self._call(call, StoredVersion)

    def mv(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        **options: Any,
    ) -> None:
        """One file is renamed; anything else is copied, then removed."""
        is_one = isinstance(path1, str) and isinstance(path2, str) and self.isfile(path1)
        if is_one and not path2.endswith("/") and not self.isdir(path2):
            self._move(path1, path2, copy=False)
        else:
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **options)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> AiosFile:
        if mode == "xb" and self.exists(path):
            raise FileExistsError(errno.EEXIST, "the file is there already", path)
        return AiosFile(
            self,
            path,
            mode,
            block_size or PART,
            autocommit=autocommit,
            cache_options=cache_options,
            expect=0 if mode == "xb" else self._expect,
            **options,
        )


class AiosFile(AbstractBufferedFile):  # type: ignore[misc]
    """An open file: read at one version, or written whole when it is closed."""

    def __init__(
        self,
        fs: AiosFileSystem,
        path: str,
        mode: str,
        block_size: int,
        *,
        expect: int | None,
        **options: Any,
    ) -> None:
        self.volume, self.inner = split(path)
        self._expect = expect
        self._parts = 0
        self._is_discarded = False
        super().__init__(fs, path, mode, block_size, **options)
        if mode == "ab":
            with suppress(FileNotFoundError):
                self.loc = fs.info(path)["size"]

    def _fetch_range(self, start: int, end: int) -> bytes:
        version = None if self.details.get("mount") else self.details.get("version")
        found: bytes = self.fs.fetch(self.path, start, end, version)
        return found

    def _initiate_upload(self) -> None:
        self._parts = 0

    def _upload_chunk(self, final: bool = False) -> bool:
        if self._is_discarded:
            return True
        data = self.buffer.getvalue()
        whole = final and self.autocommit and not self._parts and len(data) <= PART
        pieces = [data[start : start + PART] for start in range(0, len(data), PART)]
        for piece in pieces or ([b""] if final and not self._parts else []):
            self.fs.put_part(
                self.path,
                piece,
                append=self.mode == "ab" or self._parts > 0,
                stage=not whole,
                expect=-1 if self._parts else self._expect,
            )
            self._parts += 1
        if final and self.autocommit and not whole:
            self.commit()
        return True

    def commit(self) -> None:
        self.fs.finish(self.volume, [self.inner])

    def discard(self) -> None:
        """Give up what was written; to be closed then as any file."""
        self._is_discarded = True
        self.fs.finish(self.volume, [self.inner], discard=True)


def split(path: str) -> tuple[str, str]:
    """The volume and the path in it."""
    volume, _, inner = path.strip("/").partition("/")
    return unquote(volume), f"/{inner}"


def _info(volume: str, file: FileInfo) -> dict[str, Any]:
    return {
        "name": f"{volume}{file.path}",
        "size": file.bytes,
        "type": file.kind,
        "version": file.version,
        "mtime": file.at,
        "mount": file.mount,
    }
