"""A volume as it is in the database at one moment, with the directories mounted in it.

Made and used inside one transaction of a reader.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from msgspec import Struct

from aios.drivers.files import chunks, paths
from aios.drivers.files.hosts import Host, HostFile
from aios.errors import InvalidCall, NotFound
from aios.ports import FileContent

WALKED = 100_000  # files of a mounted directory that one call looks at

VOLUME = "SELECT id, user, stamp, version, bytes, quota FROM volumes WHERE owner = ?"
MOUNTS = "SELECT path, host, mode FROM mounts WHERE volume = ? ORDER BY path"
# An entry of a path with what is known of its commit: the newest, or the newest up to a version.
COLUMNS = """
path, entries.version, entries.content, contents.hash, contents.bytes, writer, author, at, call
"""
JOINED = """
JOIN commits ON commits.volume = entries.volume AND commits.version = entries.version
LEFT JOIN contents ON contents.id = entries.content
"""
HEADS = f"SELECT {COLUMNS} FROM heads AS entries {JOINED} WHERE entries.volume = :volume AND"
ENTRIES_AT = f"""
SELECT {COLUMNS}, max(entries.version) FROM entries {JOINED}
WHERE entries.volume = :volume AND entries.version <= :version AND
"""
ONLY = "path = :path"
HEAD = f"{HEADS} {ONLY}"
HEADS_OF = f"{HEADS} path IN (SELECT value FROM json_each(:paths))"
WITHIN = "(path = :path OR path >= :base || '/' AND path < :base || '0')"
LIVE_BELOW = """
SELECT path FROM heads WHERE volume = :volume AND content > 0
  AND path >= :base || '/' AND path < :base || '0' LIMIT 1
"""


class Entry(Struct, frozen=True):
    """A path at a version; content None: it is not there then. writer 0 is the host."""

    path: str
    version: int
    content: FileContent | None
    uncovered: bool = False
    writer: int = 0
    author: str = "somebody outside"
    at: float = 0.0
    call: int = 0
    host: str = ""  # the directory that it lies in, if not in the volume
    size: int = 0

    @property
    def is_there(self) -> bool:
        return self.content is not None or bool(self.host)


class Mount(Struct, frozen=True):
    path: str
    host: str
    mode: str

    def under(self, path: str) -> str:
        return paths.under(path, self.path)


def entry(row: Any) -> Entry:
    path, version, content, hash, size, writer, author, at, call = row[:9]
    held = None if hash is None else FileContent(hash, size)
    return Entry(path, version, held, content == 0, writer, author, at, call, "", size or 0)


class View:
    """A volume that may not exist yet: then it is empty."""

    def __init__(self, connection: Any, owner: str) -> None:
        self.connection, self.owner = connection, owner
        row = connection.execute(VOLUME, (owner,)).fetchone() or (None, "", 0, 0, 0, None)
        self.volume: int | None = row[0]
        self.user: str = row[1]
        self.stamp: int = row[2]
        self.version: int = row[3]
        self.bytes: int = row[4]
        self.quota: int | None = row[5]
        self._heads: dict[str, Entry | None] = {}

    def __repr__(self) -> str:
        return f"<view of {self.owner} at version {self.version}>"

    @cached_property
    def mounts(self) -> list[Mount]:
        return [Mount(*row) for row in self.connection.execute(MOUNTS, (self.volume,))]

    def mount_of(self, path: str) -> Mount | None:
        """The mount that a path lies in."""
        return next((m for m in self.mounts if paths.is_within(path, m.path)), None)

    def mounts_below(self, path: str) -> list[Mount]:
        return [m for m in self.mounts if paths.is_within(m.path, path) and m.path != path]

    def check_version(self, version: int) -> None:
        if not 1 <= version <= self.version:
            has = f"has versions 1 to {self.version}" if self.version else "has no version yet"
            raise NotFound(f"there is no version {version} of {self.owner}: it {has}.")

    def prefetch(self, wanted: Iterable[str]) -> None:
        """Read the heads of paths, and of those on the way to them, at once."""
        all_of = {one for path in wanted for one in (path, *paths.parents(path))}
        values = {"volume": self.volume, "paths": json.dumps(list(all_of))}
        known = {one.path: one for one in map(entry, self.connection.execute(HEADS_OF, values))}
        self._heads = {path: known.get(path) for path in all_of}

    # --- what is there now ------------------------------------------------------------------------

    def head(self, path: str) -> Entry | None:
        """What is at a path, or was there last; from the host where that shows through."""
        mount = self.mount_of(path)
        if mount is None or mount.mode == "cow":
            found = self._heads[path] if path in self._heads else self._entry(HEAD, path)
            if mount is None or (found is not None and not found.uncovered):
                return found
        host = Host(mount.host)
        file = host.look(mount.under(path))
        if file is None or file.is_directory:
            return None
        return _outside(path, mount, file)

    def is_directory(self, path: str) -> bool:
        if path == paths.ROOT or any(paths.is_within(m.path, path) for m in self.mounts):
            return True
        if self._has_below(path):
            return True
        mount = self.mount_of(path)
        if mount is None:
            return False
        found = Host(mount.host).look(mount.under(path))
        return found is not None and found.is_directory

    def _has_below(self, path: str) -> bool:
        values = {"volume": self.volume, "base": paths.base(path)}
        return self.connection.execute(LIVE_BELOW, values).get is not None

    def own(self, path: str) -> Iterator[Entry]:
        """What the volume itself has at or below a path, deleted files as well.

        Not what a mounted directory hides.
        """
        for found in self._entries(f"{HEADS} {WITHIN}", path):
            mount = self.mount_of(found.path)
            if mount is None or (mount.mode == "cow" and not found.uncovered):
                yield found

    def below(self, path: str) -> Iterator[Entry]:
        """All files at or below a path, those of mounted directories as well."""
        covered: set[str] = set()
        for found in self.own(path):
            covered.add(found.path)
            if found.is_there:
                yield found
        for mount in self.mounts:
            if paths.is_within(path, mount.path) or paths.is_within(mount.path, path):
                for found in self._outside_below(mount, path):
                    if found.path not in covered:
                        yield found

    def beside(self, path: str) -> dict[str, HostFile]:
        """What a mounted directory has just below a path, by name."""
        mount = self.mount_of(path)
        if mount is None:
            return {}
        host, inner = Host(mount.host), mount.under(path)
        found = host.look(inner)
        return dict(host.names(inner)) if found is not None and found.is_directory else {}

    def _outside_below(self, mount: Mount, path: str) -> Iterator[Entry]:
        host = Host(mount.host)
        inner = mount.under(path) if paths.is_within(path, mount.path) else ""
        top = host.look(inner)
        if top is not None and not top.is_directory:
            yield _outside(path, mount, top)
        elif top is not None:
            for count, (name, file) in enumerate(host.walk(inner)):
                if count == WALKED:
                    raise InvalidCall(
                        f"there are over {WALKED:,} files below {path}: name a directory in it."
                    )
                yield _outside(f"{paths.base(mount.path)}/{name}", mount, file)

    # --- what was there ---------------------------------------------------------------------------

    def at(self, path: str, version: int) -> dict[str, Entry]:
        """The entries at or below a path as of a version, deleted ones as well."""
        sql = f"{ENTRIES_AT} {WITHIN} GROUP BY path"
        return {found.path: found for found in self._entries(sql, path, version)}

    def then(self, path: str, version: int) -> Entry | None:
        """The entry of a path as of a version."""
        return self._entry(f"{ENTRIES_AT} {ONLY} GROUP BY path", path, version)

    def _entry(self, sql: str, path: str, version: int | None = None) -> Entry | None:
        return next(self._entries(sql, path, version), None)

    def _entries(self, sql: str, path: str, version: int | None = None) -> Iterator[Entry]:
        values = {
            "volume": self.volume,
            "path": path,
            "base": paths.base(path),
            "version": version,
        }
        # all at once: a walk over the host between two of them would hold the statement
        return iter([entry(row) for row in self.connection.execute(sql, values)])

    # --- contents ---------------------------------------------------------------------------------

    def read(self, found: Entry, start: int = 0, end: int | None = None) -> bytes:
        """Bytes of a file that is there."""
        if found.content is not None:
            return chunks.read(self.connection, found.content, start, end)
        mount = self.mount_of(found.path)
        if mount is None:
            raise NotFound(f"{found.path} is not in {self.owner}.")
        return Host(mount.host).read(mount.under(found.path), start, end)[1]

    def not_versioned(self, path: str) -> Mount | None:
        """The mount whose files have no versions, if a path lies in one."""
        mount = self.mount_of(path)
        return mount if mount is not None and mount.mode != "cow" else None

    def check_versioned(self, path: str) -> None:
        mount = self.not_versioned(path)
        if mount is not None:
            raise InvalidCall(
                f"{path} lies in the directory {mount.host}, which keeps no versions: mount it "
                "with the mode cow to have them."
            )


def _outside(path: str, mount: Mount, file: HostFile) -> Entry:
    return Entry(path, file.version, None, host=mount.host, size=file.size, at=file.version / 1e9)
