"""Files in the journal's database.

    commit, stage, rollback, purge, … -> what changes, as records for the journal
    read, listing, history, search, … -> what is there

It writes nothing by itself but vectors, which are made of what is there and can be made again, and
files of directories that are mounted ``rw``. A change is planned in one read of the database while
no other change of that volume is; what was planned before is on the disk by then, or was refused.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from aios import config
from aios.abi.calls import (
    Allotment,
    FileDiff,
    FileHits,
    FileInfo,
    Files,
    FileVersions,
    Mounted,
    StoredVersion,
    StoRollback,
)
from aios.drivers.files import outside, past, paths
from aios.drivers.files.passages import passages
from aios.drivers.files.plan import Plan, left, staged_by
from aios.drivers.files.search import Meaning, search
from aios.drivers.files.view import Entry, View
from aios.errors import (
    AiosError,
    Conflict,
    InvalidCall,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
)
from aios.ports import (
    Author,
    Embedder,
    FileChange,
    FileMount,
    FilePart,
    FilePurge,
    FileUnstage,
    HostPlace,
    Record,
    StageEnd,
    VolumeCopy,
    VolumeQuota,
)

if TYPE_CHECKING:
    from aios.drivers.files.vectors import Matrices, Vectors

T = TypeVar("T")
Planned = tuple[T, list[Record]]

SETTINGS = config.Storage()
REMEMBERED = 10_000  # volumes whose last stamp is remembered: longer than any append takes
QUERY = 2_000  # characters of a query that its vector is made of
FOUND = 1_000  # passages that one search shows, at most

RESERVED = """
SELECT coalesce(sum(quota), 0) FROM volumes WHERE user = :user AND owner <> :owner
"""
SIZE = "SELECT coalesce((SELECT bytes FROM volumes WHERE owner = ?), 0)"
HEADS = """
SELECT owner, version FROM volumes
WHERE owner = 'pid:' || :pid OR id IN (SELECT volume FROM commits WHERE writer = :pid)
"""
PURGED = """
SELECT DISTINCT path FROM entries
WHERE volume = :volume AND (path = :path OR path >= :base || '/' AND path < :base || '0')
"""

# What a volume holds without these paths, or without these staged changes of a process.
KEPT = """
SELECT coalesce(sum(bytes), 0) FROM chunks WHERE id IN (
    SELECT chunk FROM content_chunks WHERE content IN (
        SELECT content FROM entries WHERE volume = :volume AND content > 0 AND NOT (
            :path IS NOT NULL AND (
                path = :path OR path >= :base || '/' AND path < :base || '0'))
        UNION SELECT content FROM staged WHERE volume = :volume AND content > 0 AND NOT (
            writer IS :writer AND number IN (SELECT value FROM json_each(:numbers)))))
"""


class Read(Protocol):
    """Runs a query on the journal's database in a transaction of its own; it may take long."""

    async def __call__(self, query: Callable[[Any], T]) -> T: ...


class _Behind(Exception):
    """A change that was planned before is not on the disk yet."""


class SqliteFiles:
    """A ports.Files. *read* and *append* are the journal's; *closed* is never mounted."""

    def __init__(
        self,
        read: Read,
        append: Callable[[Sequence[Record]], Awaitable[None]],
        embedder: Embedder | None = None,
        settings: config.Storage = SETTINGS,
        *,
        closed: Sequence[str] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._read, self._append, self._settings = read, append, settings
        self._embedder, self._closed, self._now = embedder, tuple(closed), now
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._stamps: OrderedDict[str, int] = OrderedDict()  # of the last change that was planned
        self._vectors: Vectors | None = None
        self._matrices: Matrices | None = None

    def __repr__(self) -> str:
        return f"<SqliteFiles with {self._embedder or 'no embedder'}>"

    async def start(self) -> None:
        if self._embedder is not None and self._embedder.model is not None:
            self._vectors_of(self._embedder).start()

    def _vectors_of(self, embedder: Embedder) -> Vectors:
        if self._vectors is None:
            from aios.drivers.files.vectors import Matrices, Vectors  # numpy, once it is needed

            indexed = self._settings.indexed_bytes
            self._vectors = Vectors(embedder, self._read, self._append, indexed)
            self._matrices = Matrices(self._settings.cache_mb << 20)
        return self._vectors

    async def close(self) -> None:
        if self._vectors is not None:
            await self._vectors.close()

    # --- planning ---------------------------------------------------------------------------------

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _view(self, owner: str, look: Callable[[View], T]) -> T:
        """What is made of a volume as it is on the disk."""
        return await self._read(lambda connection: look(View(connection, owner)))

    async def _plan(self, owner: str, plan: Callable[[View], Planned[T]]) -> Planned[T]:
        """Plan a change of a volume, on all that was planned before it."""
        async with self._lock(owner):
            return await self._plan_alone(owner, plan)

    async def _plan_alone(self, owner: str, plan: Callable[[View], Planned[T]]) -> Planned[T]:
        planned = self._stamps.get(owner, 0)

        def run(view: View, *, waited: bool) -> tuple[Planned[T], int]:
            if view.stamp < planned and not waited:
                raise _Behind
            return plan(view), view.stamp

        try:
            result, stamp = await self._view(owner, partial(run, waited=False))
        except _Behind:
            await self._append([])  # done when all before it is kept, or was refused
            result, stamp = await self._view(owner, partial(run, waited=True))
        if result[1]:
            self._stamps[owner] = stamp + 1
            self._stamps.move_to_end(owner)
            if len(self._stamps) > REMEMBERED:
                self._stamps.popitem(last=False)
            if self._vectors is not None:
                self._vectors.wake()
        return result

    # --- changes ----------------------------------------------------------------------------------

    async def commit(
        self,
        owner: str,
        changes: Sequence[FileChange],
        author: Author,
        seen: Mapping[str, int],
        message: str = "",
        staged: Sequence[str] | None = None,
    ) -> Planned[StoredVersion]:
        def plan(view: View) -> Planned[StoredVersion]:
            made = self._plan_of(view, author, seen)
            waiting = []
            if staged is not None:
                wanted = [paths.clean(path, self._settings.path_bytes) for path in staged]
                waiting = staged_by(view, author.pid, wanted)
                if not waiting and not changes:
                    raise NotFound(
                        f"process {author.pid} has staged nothing there in {owner}: write with "
                        "stage first, or give changes."
                    )
            view.prefetch([*(made.clean(c.path) for c in changes), *(one.path for one in waiting)])
            for one in waiting:
                made.make_staged(one)
            for change in changes:
                made.make(change)
            return self._committed(made, message, [one.number for one in waiting])

        return await self._plan(owner, plan)

    def _plan_of(self, view: View, author: Author, seen: Mapping[str, int]) -> Plan:
        return Plan(view, author, seen, self._settings)

    def _committed(
        self, made: Plan, message: str, staged: Sequence[int] = ()
    ) -> Planned[StoredVersion]:
        view = made.view
        if not made.changes:
            room = left(view, self._settings, view.bytes)
            return StoredVersion(view.owner, view.version, (), room), []
        records = made.commit(message, staged)
        room = left(view, self._settings, made.size)
        shown = tuple(dict.fromkeys(made.shown or made.changes))
        return StoredVersion(view.owner, view.version + 1, shown, room), records

    async def stage(
        self, owner: str, change: FileChange, author: Author, seen: Mapping[str, int]
    ) -> Planned[StoredVersion]:
        def plan(view: View) -> Planned[StoredVersion]:
            made = self._plan_of(view, author, seen)
            records = made.stage(change)
            room = left(view, self._settings, made.size)
            return StoredVersion(owner, view.version, tuple(made.shown), room, True), records

        return await self._plan(owner, plan)

    async def discard(
        self, owner: str, author: Author, wanted: Sequence[str]
    ) -> Planned[StoredVersion]:
        def plan(view: View) -> Planned[StoredVersion]:
            clean = [paths.clean(path, self._settings.path_bytes) for path in wanted]
            waiting = staged_by(view, author.pid, clean)
            shown = tuple(dict.fromkeys(one.path for one in waiting))
            records: list[Record] = []
            numbers = tuple(one.number for one in waiting)
            values = {"writer": author.pid, "numbers": json.dumps(numbers)}
            room = left(view, self._settings, _kept(view, values))
            if waiting:
                records = [FileUnstage(owner, view.stamp + 1, author.pid, numbers)]
            return StoredVersion(owner, view.version, shown, room), records

        return await self._plan(owner, plan)

    async def rollback(
        self, owner: str, path: str, author: Author, which: StoRollback
    ) -> Planned[StoredVersion]:
        path = paths.clean(path, self._settings.path_bytes)

        def plan(view: View) -> Planned[StoredVersion]:
            made = self._plan_of(view, author, {})
            past.rollback(made, path, which)
            return self._committed(made, f"rolled back {path}")

        return await self._plan(owner, plan)

    async def purge(self, owner: str, path: str, author: Author) -> Planned[StoredVersion]:
        path = paths.clean(path, self._settings.path_bytes)

        def plan(view: View) -> Planned[StoredVersion]:
            view.check_versioned(path)
            values = {"volume": view.volume, "path": path, "base": paths.base(path)}
            found = tuple(one for (one,) in view.connection.execute(PURGED, values))
            if not found:
                raise NotFound(f"there has never been a {path} in {owner}.")
            record = FilePurge(
                owner=owner,
                stamp=view.stamp + 1,
                version=view.version + 1,
                writer=author.pid,
                author=author.name,
                call=author.call,
                at=author.at,
                paths=(path,),
            )
            room = left(view, self._settings, _kept(view, values))
            return StoredVersion(owner, view.version + 1, found, room), [record]

        return await self._plan(owner, plan)

    async def alloc(self, owner: str, size: int, author: Author) -> Planned[Allotment]:
        if size < 1:
            raise InvalidCall(f"a quota of {size} bytes holds nothing: give at least 1.")

        def plan(view: View) -> Planned[Allotment]:
            if size < view.bytes:
                raise Conflict(
                    f"{owner} holds {view.bytes:,} bytes, more than the {size:,} of this quota: "
                    "purge files with sto_delete first, or set more aside."
                )
            values = {"user": author.user, "owner": owner}
            others = view.connection.execute(RESERVED, values).get
            most = self._settings.reserve_bytes
            if others + size > most:
                raise QuotaExceeded(
                    f"{size:,} bytes cannot be set aside for {owner}: of {most:,} for the user "
                    f"{author.user} {max(0, most - others):,} are left; ask for less, or raise "
                    "storage.reserve_bytes."
                )
            record = VolumeQuota(owner, author.user, view.stamp + 1, size)
            return Allotment(owner, size, view.bytes), [record]

        async with self._lock(f"reserve:{author.user}"):
            await self._append([])  # the quotas that were set before count
            return await self._plan(owner, plan)

    async def mount(
        self, owner: str, path: str, host: str | None, mode: str, author: Author
    ) -> Planned[Mounted]:
        path = paths.clean(path, self._settings.path_bytes, file=True)
        real = None if host is None else await asyncio.to_thread(self._mountable, host, mode)

        def plan(view: View) -> Planned[Mounted]:
            there = next((m for m in view.mounts if m.path == path), None)
            if real is None and there is None:
                raise NotFound(f"nothing is mounted at {path} in {owner}.")
            if real is not None:
                for other in view.mounts:
                    if paths.is_within(other.path, path) or paths.is_within(path, other.path):
                        raise Conflict(
                            f"{other.path} in {owner} is a mounted directory ({other.host}): take "
                            "it away first, or choose another path."
                        )
                head = view.head(path)
                is_file = head is not None and head.is_there
                if is_file or (mode != "cow" and view.is_directory(path)):
                    raise Conflict(
                        f"{path} in {owner} has files, which the directory would hide: choose "
                        "another path, or move them."
                    )
            record = FileMount(owner, author.user, view.stamp + 1, path, real, mode)
            shown = real if real is not None else there.host if there is not None else ""
            return Mounted(owner, path, shown, mode if real is not None else "none"), [record]

        return await self._plan(owner, plan)

    def _mountable(self, host: str, mode: str) -> str:
        real = outside.checked(host, self._closed)
        need = os.R_OK | os.X_OK | (os.W_OK if mode == "rw" else 0)
        if not os.access(real, need):
            raise PermissionDenied(f"{host} is not yours to {'write' if mode == 'rw' else 'read'}.")
        return real

    # --- what is there ----------------------------------------------------------------------------

    async def read(
        self, owner: str, path: str, version: int | None, offset: int, length: int | None
    ) -> FilePart:
        path, most = self._file(path), self._settings.part_bytes
        if offset < 0 or (length is not None and length < 0):
            raise InvalidCall(f"offset {offset} and length {length}: give 0 or more bytes.")

        def look(view: View) -> FilePart:
            found = _found(view, path, version)
            wanted = max(0, found.size - offset) if length is None else length
            if min(wanted, max(0, found.size - offset)) > most:
                raise InvalidCall(
                    f"{path} has {found.size:,} bytes: read it in parts of at most {most:,}, with "
                    "offset and length."
                )
            data = view.read(found, offset, offset + wanted)
            return FilePart(path, found.version, found.size, data, found.host)

        return await self._view(owner, look)

    def _file(self, path: str) -> str:
        return paths.clean(path, self._settings.path_bytes, file=True)

    async def listing(self, owner: str, path: str, version: int | None, recursive: bool) -> Files:
        path = paths.clean(path, self._settings.path_bytes)

        def look(view: View) -> Files:
            if version is not None:
                view.check_version(version)
            found = _listed(view, path, version, recursive)
            return Files(owner, view.version if version is None else version, found)

        return await self._view(owner, look)

    async def history(self, owner: str, path: str, limit: int) -> FileVersions:
        path = paths.clean(path, self._settings.path_bytes)
        return await self._view(owner, lambda view: past.history(view, path, limit))

    async def diff(self, owner: str, path: str, since: int, until: int | None) -> FileDiff:
        path = paths.clean(path, self._settings.path_bytes)
        return await self._view(owner, lambda view: past.diff(view, path, since, until))

    async def search(self, owners: Sequence[str], query: str, path: str, limit: int) -> FileHits:
        path = paths.clean(path, self._settings.path_bytes)
        if not query.strip():
            raise InvalidCall("the query is empty: say what to look for.")
        if not 1 <= limit <= FOUND:
            raise InvalidCall(f"limit is {limit}: ask for 1 to {FOUND:,} passages.")
        meaning, notes = await self._meaning(query)
        found = await self._read(
            lambda connection: search(
                connection, owners, query, path, meaning, limit, self._settings.indexed_bytes
            )
        )
        if found.without:
            notes.append(
                f"passages without a vector yet ({found.without:,}) were looked for by words only"
            )
            if self._vectors is not None and self._vectors.trouble:
                notes.append(f"no vectors are made now: {self._vectors.trouble.rstrip('.')}")
        if found.mounted:
            notes.append("mounted directories are not searched, but what was written over them is")
        return FileHits(found.hits, "; ".join(notes))

    async def _meaning(self, query: str) -> tuple[Meaning | None, list[str]]:
        """What is meant, or why only words are looked for."""
        embedder = self._embedder
        if embedder is None or embedder.model is None:
            missing = "there is no embedder here" if embedder is None else embedder.missing
            return None, [f"found by words only: {missing}"]
        self._vectors_of(embedder).start()  # it may have come just now
        assert self._matrices is not None
        try:
            made = await embedder.embed([query[:QUERY]])
        except AiosError as error:
            return None, [f"found by words only: {error.message.rstrip('.')}"]
        return Meaning(embedder.model, made.vectors[0], self._matrices), []

    async def size(self, owner: str) -> int:
        return await self._read(lambda connection: int(connection.execute(SIZE, (owner,)).get))

    async def heads(self, pid: int) -> dict[str, int]:
        return await self._read(lambda connection: dict(connection.execute(HEADS, {"pid": pid})))

    # --- directories that are written to ----------------------------------------------------------

    async def place(self, owner: str, path: str) -> HostPlace | None:
        path = paths.clean(path, self._settings.path_bytes)

        def look(view: View) -> HostPlace | None:
            mount = view.mount_of(path)
            if mount is None or mount.mode != "rw":
                return None
            return HostPlace(owner, path, mount.path, mount.host)

        return await self._view(owner, look)

    async def host_change(
        self, place: HostPlace, change: FileChange, seen: Mapping[str, int], again: bool
    ) -> int:
        async with self._lock(f"host:{place.host}"):
            return await asyncio.to_thread(
                outside.change, place, change, seen, again, self._settings
            )

    # --- the lives of processes -------------------------------------------------------------------

    def ended(self, pid: int) -> list[Record]:
        return [StageEnd(pid, None)]

    def forgotten(self, pid: int) -> list[Record]:
        self._stamps.pop(f"pid:{pid}", None)
        return []  # its rows go with the process's own

    async def copy(self, from_pid: int, to_pid: int, upto_call: int | None = None) -> list[Record]:
        source, limit = f"pid:{from_pid}", self._settings.indexed_bytes
        upto = (1 << 62) if upto_call is None else upto_call

        def look(view: View) -> VolumeCopy:
            found = past.as_of(view, upto)
            cut = (
                (one.path, passages(one.path, view.read(one), limit))
                for one in found
                if one.size <= limit
            )
            return VolumeCopy(from_pid, to_pid, upto_call, tuple(one for one in cut if one[1]))

        async with self._lock(source):
            await self._append([])
            return [await self._view(source, look)]

    async def rewind(self, pid: int, call: int) -> list[Record]:
        records: list[Record] = []
        async with self._written_since(pid, call) as owners:
            for owner in owners:
                _, planned = await self._plan_alone(owner, partial(self._rewound, pid, call))
                records += planned
        return [*records, StageEnd(pid, call)]

    def _rewound(self, pid: int, call: int, view: View) -> Planned[None]:
        author = past.author(view, pid, call, self._now())
        made = self._plan_of(view, author, {})
        past.rewind(made, pid, call)
        return None, made.commit(f"rolled back to after c{call}") if made.changes else []

    @asynccontextmanager
    async def _written_since(self, pid: int, call: int) -> AsyncIterator[list[str]]:
        """The volumes that a process wrote to after a call, while nobody else changes them."""
        await self._append([])
        values = {"pid": pid, "call": call}
        owners = await self._read(
            lambda connection: [
                owner for (owner,) in connection.execute(past.OWNERS_SINCE, values).fetchall()
            ]
        )
        async with AsyncExitStack() as locks:
            for owner in owners:  # in order, so that two never wait for one another
                await locks.enter_async_context(self._lock(owner))
            yield owners

    async def held(self, pid: int, call: int) -> list[str]:
        found: list[str] = []
        async with self._written_since(pid, call) as owners:
            for owner in owners:
                found += await self._view(
                    owner,
                    lambda view: [
                        past.shown_held(view, path, by)
                        for path, by in past.written_since(view, pid, call)
                        if by is not None
                    ],
                )
        return found


def _found(view: View, path: str, version: int | None) -> Entry:
    """A file that is there; the error says what there is instead."""
    if version is None:
        found = view.head(path)
    else:
        view.check_versioned(path)
        view.check_version(version)
        found = view.then(path, version)
    if found is not None and found.is_there:
        return found
    if version is None and view.is_directory(path):
        raise InvalidCall(f"{path} in {view.owner} is a directory: list it, and read its files.")
    if found is not None and not found.uncovered:
        raise NotFound(
            f"{path} was deleted from {view.owner} in version {found.version} by {found.author}: "
            "its older versions can be read."
        )
    at = "" if version is None else f" at version {version}"
    raise NotFound(f"there is no {path} in {view.owner}{at}.")


def _listed(view: View, path: str, version: int | None, recursive: bool) -> tuple[FileInfo, ...]:
    """A file, or what is in a directory."""
    if version is not None:
        below = list(view.at(path, version).values())
    elif recursive:
        below = list(view.below(path))
    else:
        below = list(view.own(path))
    files: dict[str, FileInfo] = {}
    if version is None and not recursive:
        files = _outside(view, path, {found.path for found in below})
    for found in (found for found in below if found.is_there):
        if found.path != path and not recursive:
            name, slash, _ = paths.under(found.path, path).partition("/")
            if slash:
                inner = f"{paths.base(path)}/{name}"
                files.setdefault(inner, FileInfo(inner, "directory"))
                continue
        files[found.path] = FileInfo(
            found.path, "file", found.size, found.version, found.at, found.writer, found.host
        )
    if not files and path != paths.ROOT and not (version is None and view.is_directory(path)):
        raise NotFound(f"there is no {path} in {view.owner}.")
    return tuple(files[one] for one in sorted(files))


def _outside(view: View, path: str, covered: set[str]) -> dict[str, FileInfo]:
    """What mounted directories show in a directory, or at a path."""
    found: dict[str, FileInfo] = {}
    for mount in view.mounts:
        if paths.is_within(mount.path, path) and mount.path != path:
            name = paths.under(mount.path, path).partition("/")[0]
            inner = f"{paths.base(path)}/{name}"
            host = mount.host if inner == mount.path else ""
            found[inner] = FileInfo(inner, "directory", mount=host)
    mount_here = view.mount_of(path)
    if mount_here is None:
        return found
    head = view.head(path) if path not in covered else None
    if head is not None and head.host:
        found[path] = FileInfo(path, "file", head.size, head.version, head.at, 0, head.host)
    for name, file in view.beside(path).items():
        inner = f"{paths.base(path)}/{name}"
        if file.is_directory:
            found[inner] = FileInfo(inner, "directory", mount=mount_here.host)
        elif inner not in covered:
            at = file.version / 1e9
            found[inner] = FileInfo(inner, "file", file.size, file.version, at, 0, mount_here.host)
    return found


def _kept(view: View, without: Mapping[str, Any]) -> int:
    """What a volume holds without some of it, in bytes."""
    values = {"volume": view.volume, "path": None, "base": None, "writer": None, "numbers": "[]"}
    return int(view.connection.execute(KEPT, {**values, **without}).get)
