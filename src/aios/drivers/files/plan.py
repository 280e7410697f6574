"""What changes make of a volume: decided on a view of it, handed over as records.

Nothing here writes; the journal does, if it takes the records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from aios import config
from aios.drivers.files import chunks, paths
from aios.drivers.files.passages import passages
from aios.drivers.files.view import Entry, View
from aios.errors import Conflict, InvalidCall, NotFound, PermissionDenied, QuotaExceeded
from aios.ports import (
    Author,
    FileChange,
    FileCommit,
    FileContent,
    FileEntry,
    FileStage,
    Passage,
    Record,
)

ANY = -1  # as what a change expects: whatever is there
MESSAGE = 1_000  # characters of a commit's message that are kept

STAGED = """
SELECT number, kind, path, target, expect, contents.hash, contents.bytes
FROM staged LEFT JOIN contents ON contents.id = staged.content
WHERE volume = ? AND writer = ? AND died IS NULL ORDER BY number
"""
LAST_STAGED = "SELECT coalesce(max(number), 0) FROM staged WHERE volume = ? AND writer = ?"


class Staged(Struct, frozen=True):
    """A change that waits; content is what it writes or appends."""

    number: int
    kind: str
    path: str
    to: str
    expect: int
    content: FileContent | None

    def concerns(self, wanted: Iterable[str]) -> bool:
        return any(paths.is_within(path, one) for one in wanted for path in (self.path, self.to))


def staged_by(view: View, writer: int, wanted: Sequence[str] = ()) -> list[Staged]:
    """What a process has staged, in order; of these paths, if any are named."""
    found = []
    for row in view.connection.execute(STAGED, (view.volume, writer)):
        number, kind, path, to, expect, hash, size = row
        content = None if hash is None else FileContent(hash, size)
        found.append(Staged(number, kind, path, to, expect, content))
    return [one for one in found if not wanted or one.concerns(wanted)]


class Plan:
    """Changes of one volume by one author, one after another; each sees those before it."""

    def __init__(
        self, view: View, author: Author, seen: Mapping[str, int], settings: config.Storage
    ) -> None:
        self.view, self._author, self._seen, self._settings = view, author, seen, settings
        self._contents: dict[str, FileContent | None] = {}  # what each path becomes
        self._uncovered: set[str] = set()
        self._new: dict[bytes, bytes] = {}  # chunks, by their hashes
        self.shown: list[str] = []  # what was asked for, for the reply
        self.size = view.bytes  # of the volume, with what is planned

    def __repr__(self) -> str:
        return f"<plan of {len(self._contents)} changes for {self.view!r}>"

    # --- changes ----------------------------------------------------------------------------------

    def make(self, change: FileChange) -> None:
        """Any change."""
        path = self.clean(change.path)
        match change.kind:
            case "write":
                self.check(path, change.expect)
                self.put(path, self.content(change.data))
            case "append":
                self.check(path, change.expect)
                self.append(path, change.data)
            case "delete":
                self.delete(path, change.expect)
            case "move" | "copy":
                to = self.clean(change.to)
                self.move(path, to, change.expect, is_copy=change.kind == "copy")
        self.shown.append(path)

    def make_staged(self, staged: Staged) -> None:
        """A change that waited. What somebody else wrote meanwhile is a Conflict."""
        path, expect = staged.path, staged.expect
        head = self.view.head(staged.to or path)
        if head is not None and head.writer == self._author.pid:
            expect = ANY  # who changed it since is the one who staged this
        match staged.kind:
            case "write":
                self.check(path, expect)
                assert staged.content is not None
                self.put(path, staged.content)
            case "append":
                self.check(path, expect)
                assert staged.content is not None
                self._append_content(path, staged.content)
            case "delete":
                self.delete(path, expect)
            case _:
                self.move(path, staged.to, expect, is_copy=staged.kind == "copy")
        self.shown.append(path)

    def clean(self, path: str) -> str:
        return paths.clean(path, self._settings.path_bytes, file=True)

    def check(self, path: str, expect: int | None) -> int:
        """Conflict unless a path is at the version that is expected; that version (0: new)."""
        self.check_place(path)
        if path in self._contents:
            return ANY  # changed in this same plan
        head = self.view.head(path)
        is_there = head is not None and head.is_there
        version = head.version if head is not None and is_there else 0
        if expect == ANY:
            return ANY
        if expect is not None:
            if expect < 0:
                raise InvalidCall(
                    f"expect is {expect}: give a version, 0 for a new file, or -1 for any."
                )
            if expect != version:
                raise Conflict(self._conflict(path, head, f"this was made for version {expect}"))
            return expect
        if head is None or head.writer == self._author.pid:
            return version
        last = self._seen.get(path)
        if last is None and (not is_there or head.author == self._author.name):
            return version
        if last != head.version:
            saw = "has not read it" if last is None else f"last saw version {last}"
            raise Conflict(self._conflict(path, head, f"process {self._author.pid} {saw}"))
        return version

    def _conflict(self, path: str, head: Entry | None, why: str) -> str:
        where = f"{path} in {self.view.owner}"
        if head is None or not head.is_there:
            gone = f"was deleted in version {head.version} by {head.author}" if head else "is new"
            return f"{where} {gone}, and {why}: look at it again, or give expect -1 to write it."
        return (
            f"{where} is at version {head.version}, by {head.author}, and {why}: read it again "
            "and make the change anew, or give expect -1 to replace it."
        )

    def check_place(self, path: str) -> None:
        """Whether there can be a file: no directory is there, no file is on the way."""
        mount = self.view.mount_of(path)
        if mount is not None and mount.mode == "ro":
            raise PermissionDenied(
                f"{path} lies in the directory {mount.host}, which is mounted to be read only."
            )
        if mount is not None and mount.mode == "rw":
            raise InvalidCall(
                f"{path} lies in the directory {mount.host}, which is written to at once: change "
                "its files one by one, without staging them."
            )
        if self._is_directory(path):
            raise Conflict(f"{path} in {self.view.owner} is a directory: name a file in it.")
        for parent in paths.parents(path):
            if self._is_there(parent):
                raise Conflict(
                    f"{parent} in {self.view.owner} is a file, so there is no {path}: choose "
                    "another path."
                )

    def _is_directory(self, path: str) -> bool:
        inside = f"{path}/"
        if any(made and other.startswith(inside) for other, made in self._contents.items()):
            return True
        if not self.view.is_directory(path):
            return False
        if not any(other.startswith(inside) for other in self._contents):
            return True
        return any(self._is_there(found.path) for found in self.view.below(path))

    def _is_there(self, path: str) -> bool:
        if path in self._contents:
            return self._contents[path] is not None
        head = self.view.head(path)
        return head is not None and head.is_there

    def put(self, path: str, content: FileContent) -> None:
        if content.size > self._settings.file_bytes:
            raise QuotaExceeded(
                f"{path} would have {content.size:,} bytes, and a file may have "
                f"{self._settings.file_bytes:,}: split it, or raise storage.file_bytes."
            )
        self._contents[path] = content
        self._uncovered.discard(path)
        if len(self._contents) > self._settings.commit_files:
            raise InvalidCall(
                f"this changes more than {self._settings.commit_files:,} files at once: do it in "
                "parts, directory by directory."
            )

    def drop(self, path: str, *, uncovered: bool = False) -> None:
        self._contents[path] = None
        if uncovered:
            self._uncovered.add(path)

    def append(self, path: str, data: bytes) -> None:
        """Add bytes at the end of a file, or make it."""
        before = self._now(path)
        if before is None:
            return self.put(path, self.content(data))
        pieces = self._pieces(before)
        if pieces and pieces[-1][1] < chunks.USUAL:  # a short end grows, so that logs stay whole
            data = self._piece(pieces.pop()[0]) + data
        added = self.content(data)
        return self.put(path, chunks.content_of([*pieces, *added.chunks]))

    def _append_content(self, path: str, content: FileContent) -> None:
        before = self._now(path)
        pieces = [] if before is None else self._pieces(before)
        self.put(path, chunks.content_of([*pieces, *self._pieces(content)]))

    def _now(self, path: str) -> FileContent | None:
        """What a file holds now, as chunks of ours; those of the host are taken in."""
        if path in self._contents:
            return self._contents[path]
        head = self.view.head(path)
        return None if head is None or not head.is_there else self.taken_in(head)

    def taken_in(self, found: Entry) -> FileContent:
        """What a file holds, as a content of ours."""
        if found.content is not None:
            return found.content
        return self.content(self.view.read(found))

    def _pieces(self, content: FileContent) -> list[tuple[bytes, int]]:
        if content.chunks or not content.size:
            return list(content.chunks)
        return chunks.of_content(self.view.connection, content)

    def content(self, data: bytes) -> FileContent:
        """Data as a content; its chunks are remembered."""
        pieces = []
        for piece in chunks.cut(data):
            hash = chunks.digest(piece)
            pieces.append((hash, len(piece)))
            self._new[hash] = piece
        return chunks.content_of(pieces)

    def delete(self, path: str, expect: int | None) -> None:
        """Delete a file, or all below a directory."""
        if self._is_there(path):
            self.check(path, expect)
            return self.drop(path)
        self._check_writable(path)
        found = self._tree(path)
        if not found:
            raise self.missing(path)
        if expect not in (None, ANY):
            raise InvalidCall(f"{path} is a directory, which has no version: leave expect out.")
        for inner in found:
            self.drop(inner)
        return None

    def missing(self, path: str) -> NotFound:
        return NotFound(f"there is no {path} in {self.view.owner}: `aios fs ls` shows what is.")

    def _check_writable(self, path: str) -> None:
        for mount in self.view.mounts:
            if paths.is_within(mount.path, path) and mount.mode != "cow":
                raise PermissionDenied(
                    f"{mount.path} is a mounted directory ({mount.host}): take it away first."
                )
            if paths.is_within(path, mount.path) and mount.mode != "cow":
                self.check_place(path)

    def _tree(self, path: str) -> list[str]:
        """The files below a directory, as changed so far."""
        inside = f"{paths.base(path)}/"
        found = {one.path for one in self.view.below(path) if one.path.startswith(inside)}
        found |= {other for other in self._contents if other.startswith(inside)}
        return sorted(one for one in found if self._is_there(one))

    def move(self, path: str, to: str, expect: int | None, *, is_copy: bool) -> None:
        """Give a file, or all below a directory, another path; *expect* is of what is at *to*."""
        if paths.is_within(to, path):
            raise InvalidCall(f"{path} cannot be moved to {to}, which is in it or the same.")
        if not is_copy:
            self._check_writable(path)
        if self._is_there(path):
            moves = [(path, to)]
        else:
            moves = [(one, f"{to}/{paths.under(one, path)}") for one in self._tree(path)]
            if not moves:
                raise self.missing(path)
        for source, target in moves:
            self.check(target, expect)
            content = self._now(source)
            assert content is not None
            self.put(target, content)
        if not is_copy:
            for source, _ in moves:
                self.drop(source)

    # --- what comes of it -------------------------------------------------------------------------

    @property
    def changes(self) -> Mapping[str, FileContent | None]:
        return self._contents

    def commit(self, message: str, staged: Sequence[int] = ()) -> list[Record]:
        """The records of all changes as one version."""
        view, author, limit = self.view, self._author, self._settings.indexed_bytes
        rows = self._held(content for content in self._contents.values() if content)
        entries = []
        for path, content in self._contents.items():
            found: tuple[Passage, ...] = ()
            if content is not None and content.size <= limit:
                found = passages(path, self._bytes(content), limit)
            entries.append(FileEntry(path, content, found, path in self._uncovered))
        commit = FileCommit(
            owner=view.owner,
            user=author.user,
            stamp=view.stamp + 1,
            version=view.version + 1,
            writer=author.pid,
            author=author.name,
            call=author.call,
            at=author.at,
            message=message[:MESSAGE],
            size=self.size,
            entries=tuple(entries),
            staged=tuple(staged),
        )
        return [*rows, commit]

    def stage(self, change: FileChange) -> list[Record]:
        """The records of a change that waits; what it expects is looked at, then and now."""
        view, author = self.view, self._author
        path, to, content = self.clean(change.path), "", None
        match change.kind:
            case "write" | "append":
                expect = self.check(path, change.expect)
                content = self.content(change.data)
                self.put(path, content)
            case "delete":
                # what is staged before it may make what it deletes
                expect = self.check(path, change.expect) if self._is_there(path) else ANY
            case _:
                to = self.clean(change.to)
                expect = self.check(to, change.expect)
        rows = self._held([content] if content is not None else [])
        self.shown.append(path)
        stage = FileStage(
            owner=view.owner,
            user=author.user,
            stamp=view.stamp + 1,
            writer=author.pid,
            number=view.connection.execute(LAST_STAGED, (view.volume, author.pid)).get + 1,
            call=author.call,
            kind=change.kind,
            path=path,
            to=to,
            expect=expect,
            content=content,
            size=self.size,
        )
        return [*rows, stage]

    def _held(self, contents: Iterable[FileContent]) -> list[Record]:
        """The chunks that the volume does not hold yet; QuotaExceeded if it may not hold them."""
        sizes = {hash: size for content in contents for hash, size in content.chunks}
        held = chunks.known(self.view.connection, self.view.volume, list(sizes))
        new = [hash for hash in sizes if hash not in held]
        added = sum(sizes[hash] for hash in new)
        check_room(self.view, self._settings, added)
        self.size = self.view.bytes + added
        return [chunks.row(hash, self._piece(hash)) for hash in new]

    def _bytes(self, content: FileContent) -> bytes:
        if not content.chunks:
            return chunks.read(self.view.connection, content)
        return b"".join(self._piece(hash) for hash, _ in content.chunks)

    def _piece(self, hash: bytes) -> bytes:
        piece = self._new.get(hash)
        return chunks.one(self.view.connection, hash) if piece is None else piece


def quota_of(view: View, settings: config.Storage) -> int:
    """How many bytes a volume may hold."""
    if view.quota is not None:
        return int(view.quota)
    of_kind = {"pid": settings.process_bytes, "program": settings.program_bytes}
    return of_kind.get(view.owner.partition(":")[0], settings.user_bytes)


def left(view: View, settings: config.Storage, size: int) -> int:
    """What may be added to a volume that holds *size* bytes."""
    return max(0, quota_of(view, settings) - size)


def check_room(view: View, settings: config.Storage, added: int) -> None:
    room = left(view, settings, view.bytes)
    if added > room:
        raise QuotaExceeded(
            f"this adds {added:,} bytes, and {view.owner} has {room:,} left of "
            f"{quota_of(view, settings):,} for all versions: purge files with sto_delete, or set "
            "more aside with sto_alloc."
        )
