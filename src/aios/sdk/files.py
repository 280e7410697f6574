"""The files of a process as an object: ``await me.files.write("/plan.md", "Buy the tickets.")``.

They are in the process's own volume, which goes with it; ``me.files.of("user")`` are its user's,
``of("program")`` its program's. Every version is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import msgspec

from aios.abi.calls import (
    Allotment,
    Done,
    FileDiff,
    FileDraft,
    FileHits,
    FileInfo,
    FileVersion,
    FileVersions,
    Mounted,
    StoAlloc,
    StoCommit,
    StoDelete,
    StoDiff,
    StoHistory,
    StoList,
    StoMount,
    StoMove,
    StoRead,
    StoredFile,
    StoredVersion,
    StoRollback,
    StoSearch,
    StoShare,
    StoWrite,
)
from aios.abi.calls import Files as Listing
from aios.errors import AiosError, Conflict, InvalidCall

if TYPE_CHECKING:
    from aios.sdk.process import Process

PART = 4_000_000  # bytes of a file in one call; a longer one goes in several
ALL = ("process", "program", "user")


class Files:
    """A volume of a process; every method is one system call (or more, for a long file)."""

    def __init__(self, process: Process, volume: str = "process") -> None:
        self._process, self.volume = process, volume

    def __repr__(self) -> str:
        return f"<files {self.volume} of {self._process!r}>"

    def of(self, volume: str) -> Files:
        """Another volume: process, program, user, or an owner that shares with this process."""
        return Files(self._process, volume)

    async def write(
        self,
        path: str,
        data: str | bytes,
        *,
        expect: int | None = None,
        append: bool = False,
        stage: bool = False,
        message: str = "",
    ) -> StoredVersion:
        """Write a file whole, or add to its end; a new version of the volume.

        Conflict if somebody else wrote it since this process read it, or if it is not at version
        *expect* (0: new; -1: whatever is there). With *stage* it waits for ``commit``.
        """
        call = StoWrite(
            aid=self._process.aid,
            path=path,
            volume=self.volume,
            expect=expect,
            append=append,
            stage=stage,
            message=message,
        )
        if len(data) * 4 > PART and isinstance(data, str):
            data = data.encode()
        if isinstance(data, str):
            return await self._process.call(msgspec.structs.replace(call, text=data), StoredVersion)
        if len(data) <= PART:
            call = msgspec.structs.replace(call, content=data)
            return await self._process.call(call, StoredVersion)
        return await self._write_parts(call, data)

    async def _write_parts(self, call: StoWrite, data: bytes) -> StoredVersion:
        """A long file: its parts are staged, then committed as one."""
        written = None
        try:
            for start in range(0, len(data), PART):
                part = msgspec.structs.replace(
                    call,
                    content=data[start : start + PART],
                    stage=True,
                    append=call.append or start > 0,
                    expect=call.expect if not start else -1,
                )
                written = await self._process.call(part, StoredVersion)
            if call.stage:
                assert written is not None
                return written
            return await self.commit(paths=(call.path,), message=call.message)
        except AiosError:
            if not call.stage:
                await self.discard(call.path)
            raise

    async def read(self, path: str, *, version: int | None = None) -> str:
        """A text, as it is or was at a version; InvalidCall if it is not UTF-8."""
        first = await self._read(path, version, 0, PART, binary=False)
        if first.text is not None and first.bytes <= PART:
            return first.text
        data = await self.read_bytes(path, version=version)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise InvalidCall(
                f"{path} is no text in UTF-8 (byte {error.start}): use read_bytes."
            ) from error

    async def read_bytes(
        self, path: str, *, version: int | None = None, offset: int = 0, length: int | None = None
    ) -> bytes:
        """The bytes of a file, or *length* of them from *offset* on."""
        wanted = PART if length is None else min(PART, length)
        first = await self._read(path, version, offset, wanted)
        parts, at = [first.content], offset + len(first.content)
        end = first.bytes if length is None else min(first.bytes, offset + length)
        while at < end:
            # the version that was begun with, whoever writes meanwhile
            known = version if first.mount else first.version
            part = await self._read(path, known, at, min(PART, end - at))
            if part.version != first.version or not part.content:
                raise Conflict(f"{path} was changed while it was read: read it again.")
            parts.append(part.content)
            at += len(part.content)
        return b"".join(parts)

    async def _read(
        self, path: str, version: int | None, offset: int, length: int, *, binary: bool = True
    ) -> StoredFile:
        call = StoRead(
            aid=self._process.aid,
            path=path,
            volume=self.volume,
            version=version,
            offset=offset,
            length=length,
            binary=binary,
        )
        return await self._process.call(call, StoredFile)

    async def list(
        self, path: str = "/", *, version: int | None = None, recursive: bool = False
    ) -> tuple[FileInfo, ...]:
        """What is in a directory, or everything below it."""
        call = StoList(
            aid=self._process.aid,
            path=path,
            volume=self.volume,
            version=version,
            recursive=recursive,
        )
        return (await self._process.call(call, Listing)).files

    async def move(
        self, path: str, to: str, *, expect: int | None = None, stage: bool = False
    ) -> StoredVersion:
        """Give a file or a directory another path; what is at *to* is replaced, as by write."""
        return await self._move(path, to, expect, copy=False, stage=stage)

    async def copy(
        self, path: str, to: str, *, expect: int | None = None, stage: bool = False
    ) -> StoredVersion:
        """The same, and the original stays; it takes no room."""
        return await self._move(path, to, expect, copy=True, stage=stage)

    async def _move(
        self, path: str, to: str, expect: int | None, *, copy: bool, stage: bool
    ) -> StoredVersion:
        call = StoMove(
            aid=self._process.aid,
            path=path,
            to=to,
            volume=self.volume,
            expect=expect,
            copy=copy,
            stage=stage,
        )
        return await self._process.call(call, StoredVersion)

    async def delete(
        self, path: str, *, expect: int | None = None, stage: bool = False, purge: bool = False
    ) -> StoredVersion:
        """Delete a file or a directory; with *purge* all its versions as well, for good."""
        call = StoDelete(
            aid=self._process.aid,
            path=path,
            volume=self.volume,
            expect=expect,
            stage=stage,
            purge=purge,
        )
        return await self._process.call(call, StoredVersion)

    async def commit(
        self,
        changes: Mapping[str, str | bytes | None] | Iterable[FileDraft] = (),
        *,
        message: str = "",
        paths: Iterable[str] = (),
    ) -> StoredVersion:
        """Change many files at once, as one version: ``{path: data}``, None deletes.

        Without changes, what was staged is committed (of *paths*, if any are given).
        """
        if isinstance(changes, Mapping):
            changes = [_draft(path, data) for path, data in changes.items()]
        call = StoCommit(
            aid=self._process.aid,
            volume=self.volume,
            message=message,
            changes=tuple(changes),
            paths=tuple(paths),
        )
        return await self._process.call(call, StoredVersion)

    async def discard(self, *paths: str) -> StoredVersion:
        """Give up what was staged (of these paths, if any are given)."""
        call = StoCommit(aid=self._process.aid, volume=self.volume, paths=paths, discard=True)
        return await self._process.call(call, StoredVersion)

    async def search(
        self,
        query: str,
        *,
        volumes: Iterable[str] | None = None,
        path: str = "/",
        limit: int = 10,
    ) -> FileHits:
        """The passages that fit best, by words and by meaning; by default in this volume.

        Each of ``.hits`` has the path, the line, the passage and why it was found; ``.note`` says
        what could not be done.
        """
        call = StoSearch(
            aid=self._process.aid,
            query=query,
            volumes=(self.volume,) if volumes is None else tuple(volumes),
            path=path,
            limit=limit,
        )
        return await self._process.call(call, FileHits)

    async def history(self, path: str = "/", *, limit: int = 100) -> tuple[FileVersion, ...]:
        """The versions of a file, or of all below a directory, newest first."""
        call = StoHistory(aid=self._process.aid, path=path, volume=self.volume, limit=limit)
        return (await self._process.call(call, FileVersions)).versions

    async def diff(self, path: str = "/", *, since: int, until: int | None = None) -> FileDiff:
        """What changed after one version and up to another (None: now)."""
        call = StoDiff(
            aid=self._process.aid, path=path, volume=self.volume, since=since, until=until
        )
        return await self._process.call(call, FileDiff)

    async def rollback(
        self,
        path: str = "/",
        *,
        version: int | None = None,
        back: int | None = None,
        time: float | None = None,
    ) -> StoredVersion:
        """Make a file or the volume as it was: at a version, so many versions ago, or at a time."""
        call = StoRollback(
            aid=self._process.aid,
            path=path,
            volume=self.volume,
            version=version,
            back=back,
            time=time,
        )
        return await self._process.call(call, StoredVersion)

    async def alloc(self, size: int) -> Allotment:
        """Set the volume's quota to so many bytes, and set them aside."""
        call = StoAlloc(aid=self._process.aid, size=size, volume=self.volume)
        return await self._process.call(call, Allotment)

    async def mount(self, path: str, host: str, mode: Literal["ro", "cow", "rw"] = "ro") -> Mounted:
        """Show a directory of this machine at a path; only with a user's own key."""
        call = StoMount(aid=self._process.aid, path=path, host=host, volume=self.volume, mode=mode)
        return await self._process.call(call, Mounted)

    async def unmount(self, path: str) -> Mounted:
        """Take it away; what was written over a ``cow`` mount stays in the volume."""
        call = StoMount(aid=self._process.aid, path=path, host=None, volume=self.volume)
        return await self._process.call(call, Mounted)

    async def share(
        self, to: int | Process, path: str = "/", *, write: bool = False, until: float | None = None
    ) -> None:
        """Let another process read (or write) what is at a path, until a time."""
        await self._share(to, path, write=write, until=until, revoke=False)

    async def unshare(self, to: int | Process, path: str = "/") -> None:
        """Take that back."""
        await self._share(to, path, write=False, until=None, revoke=True)

    async def _share(
        self, to: int | Process, path: str, *, write: bool, until: float | None, revoke: bool
    ) -> None:
        call = StoShare(
            aid=self._process.aid,
            to=to if isinstance(to, int) else to.aid,
            path=path,
            volume=self.volume,
            write=write,
            until=until,
            revoke=revoke,
        )
        await self._process.call(call, Done)


def _draft(path: str, data: str | bytes | None) -> FileDraft:
    if isinstance(data, bytes):
        return FileDraft(path, content=data)
    return FileDraft(path, text=data)
