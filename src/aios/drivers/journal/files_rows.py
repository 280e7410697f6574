"""Records of files to rows.

Each change of a volume carries the stamp that follows the one it was planned on. One that was
planned on another that did not get here is refused as a whole, with its call.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from aios.ports import (
    ChunkRow,
    FileCommit,
    FileContent,
    FileEntry,
    FileMount,
    FilePurge,
    FileStage,
    FileUnstage,
    Passage,
    PassageVector,
    StageEnd,
    VolumeCopy,
    VolumeQuota,
)

if TYPE_CHECKING:
    from aios.drivers.journal.rows import Rows

SWEPT = 2_000  # contents, or chunks, that one step drops: some milliseconds

CHUNK = "INSERT OR IGNORE INTO chunks (hash, bytes, packed, body) VALUES"
CHANGED = """
UPDATE volumes SET stamp = :stamp, version = coalesce(:version, version),
    bytes = coalesce(:bytes, bytes)
WHERE owner = :owner AND stamp = :stamp - 1 RETURNING id
"""
CREATED = """
INSERT OR IGNORE INTO volumes (owner, user, stamp, version, bytes) VALUES (:owner, :user, 0, 0, 0)
"""
COMMIT = """
INSERT INTO commits VALUES (:volume, :version, :writer, :author, :call, :at, :message)
"""
CONTENTS = """
SELECT hash, contents.id FROM json_each(?) CROSS JOIN contents ON hash = unhex(value)
"""
CHUNKS = "SELECT hash, chunks.id FROM json_each(?) CROSS JOIN chunks ON hash = unhex(value)"
LAST_CONTENT = "SELECT coalesce(max(id), 0) FROM contents"
NEW_CONTENT = "INSERT INTO contents VALUES"
ITS_CHUNK = "INSERT INTO content_chunks VALUES"
HELD = "INSERT OR IGNORE INTO volume_chunks VALUES"
ENTRY = "INSERT INTO entries VALUES"
HEAD = "REPLACE INTO heads VALUES"
PASSAGES = """
SELECT path, hash, id, ordinal, line FROM passages
WHERE volume = ? AND path IN (SELECT value FROM json_each(?))
"""
LAST_PASSAGE = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'passages'), 0)"
PASSAGE = "INSERT INTO passages VALUES"
MOVED = "UPDATE passages SET ordinal = ?, line = ? WHERE id = ?"
UNFOUND = "DELETE FROM passages WHERE id = ?"
WORDS = "INSERT INTO file_words (rowid, text, marks) VALUES"

COMMITTED = """
UPDATE staged SET died = :call WHERE volume = :volume AND writer = :writer
    AND number IN (SELECT value FROM json_each(:numbers))
"""
STAGE = """
INSERT INTO staged VALUES
    (:volume, :writer, :number, :call, NULL, :kind, :path, :to, :expect, :content)
"""
STAGED = """
SELECT DISTINCT volume, content FROM staged
WHERE writer = :writer AND (:volume IS NULL OR volume = :volume)
  AND (:numbers IS NULL OR number IN (SELECT value FROM json_each(:numbers)))
  AND (:call IS NULL OR born > :call)
"""
UNSTAGE = STAGED.replace("SELECT DISTINCT volume, content", "DELETE")
BACK = "UPDATE staged SET died = NULL WHERE writer = :writer AND died > :call"
PURGED = """
volume = :volume AND EXISTS (
    SELECT 1 FROM json_each(:paths) WHERE entries.path = value
    OR entries.path >= value || '/' AND entries.path < value || '0')
"""
PURGED_CONTENTS = f"SELECT DISTINCT content FROM entries WHERE content > 0 AND {PURGED}"
COMMITTED_THERE = f"died IS NOT NULL AND {PURGED.replace('entries.', 'staged.')}"
PURGED_STAGED = f"SELECT DISTINCT content FROM staged WHERE content > 0 AND {COMMITTED_THERE}"
PURGE = f"""
DELETE FROM staged WHERE {COMMITTED_THERE};
DELETE FROM passages WHERE {PURGED.replace("entries.", "passages.")};
DELETE FROM heads WHERE {PURGED.replace("entries.", "heads.")};
DELETE FROM entries WHERE {PURGED};
"""
# A volume holds what its versions, and what is staged in it, are made of.
UNHELD = """
SELECT DISTINCT chunk FROM content_chunks AS gone WHERE content IN (
    SELECT value FROM json_each(:contents))
AND NOT EXISTS (
    SELECT 1 FROM content_chunks AS other JOIN entries ON entries.content = other.content
    WHERE other.chunk = gone.chunk AND entries.volume = :volume)
AND NOT EXISTS (
    SELECT 1 FROM content_chunks AS other JOIN staged ON staged.content = other.content
    WHERE other.chunk = gone.chunk AND staged.volume = :volume)
"""
UNHOLD = """
INSERT OR IGNORE INTO loose_contents SELECT value FROM json_each(:contents);
INSERT OR IGNORE INTO loose_chunks SELECT value FROM json_each(:chunks);
UPDATE volumes SET bytes = bytes - (
    SELECT coalesce(sum(bytes), 0) FROM chunks WHERE id IN (SELECT value FROM json_each(:chunks))
) WHERE id = :volume;
DELETE FROM volume_chunks
    WHERE volume = :volume AND chunk IN (SELECT value FROM json_each(:chunks));
"""
MOUNT = "REPLACE INTO mounts VALUES (?, ?, ?, ?)"
UNMOUNT = "DELETE FROM mounts WHERE volume = ? AND path = ?"
QUOTA = "UPDATE volumes SET quota = :quota WHERE id = :volume"

GONE = """
INSERT OR IGNORE INTO loose_contents
    SELECT content FROM entries WHERE volume = :volume AND content > 0
    UNION SELECT content FROM staged WHERE volume = :volume AND content > 0;
INSERT OR IGNORE INTO loose_chunks SELECT chunk FROM volume_chunks WHERE volume = :volume;
DELETE FROM passages WHERE volume = :volume;
DELETE FROM heads WHERE volume = :volume;
DELETE FROM entries WHERE volume = :volume;
DELETE FROM commits WHERE volume = :volume;
DELETE FROM staged WHERE volume = :volume;
DELETE FROM mounts WHERE volume = :volume;
DELETE FROM volume_chunks WHERE volume = :volume;
DELETE FROM volumes WHERE id = :volume;
DELETE FROM grants WHERE substr(resource, 1, length(:shared)) = :shared;
"""

# The copy's versions are the original's, so that what was read at one can be read again.
COPY = """
INSERT INTO volumes (owner, user, stamp, version, bytes, quota)
    SELECT :to_owner, user, 1, (
        SELECT coalesce(max(version), 0) FROM commits WHERE volume = :volume AND call <= :upto
    ), 0, quota FROM volumes WHERE id = :volume
    RETURNING id
"""
COPIED = """
INSERT INTO commits
    SELECT :copy, version, iif(writer = :from_pid, :to_pid, writer),
        iif(author = :from_owner, :to_owner, author), call, at, message
    FROM commits WHERE volume = :volume AND call <= :upto;
INSERT INTO entries SELECT :copy, path, version, content FROM entries
    WHERE volume = :volume AND version IN (SELECT version FROM commits WHERE volume = :copy);
INSERT INTO heads SELECT :copy, path, max(version), content FROM entries
    WHERE volume = :copy GROUP BY path;
INSERT INTO staged
    SELECT :copy, :to_pid, number, born, NULL, kind, path, target, expect, content
    FROM staged WHERE volume = :volume AND writer = :from_pid
        AND born <= :upto AND coalesce(died > :upto, true);
INSERT INTO mounts SELECT :copy, path, host, mode FROM mounts WHERE volume = :volume;
INSERT OR IGNORE INTO volume_chunks SELECT :copy, chunk FROM content_chunks WHERE content IN (
    SELECT content FROM entries WHERE volume = :copy
    UNION SELECT content FROM staged WHERE volume = :copy);
UPDATE volumes SET bytes = (
    SELECT coalesce(sum(bytes), 0) FROM volume_chunks JOIN chunks ON chunks.id = chunk
    WHERE volume = :copy) WHERE id = :copy;
"""
STAGED_ELSEWHERE = """
INSERT INTO staged
    SELECT volume, :to_pid, number, born, NULL, kind, path, target, expect, content
    FROM staged WHERE volume IS NOT :volume AND writer = :from_pid
        AND born <= :upto AND coalesce(died > :upto, true)
"""
VECTOR = """
REPLACE INTO passage_vectors SELECT id, volume, :model, :vector FROM passages WHERE id = :passage
"""
EVERY = (1 << 63) - 1  # above the number of every call

DEAD_CONTENTS = f"""
SELECT content FROM loose_contents LIMIT {SWEPT}
"""
SWEEP_CONTENTS = """
DELETE FROM content_chunks WHERE content IN (SELECT value FROM json_each(:numbers))
    AND NOT EXISTS (SELECT 1 FROM entries WHERE entries.content = content_chunks.content)
    AND NOT EXISTS (SELECT 1 FROM staged WHERE staged.content = content_chunks.content);
DELETE FROM contents WHERE id IN (SELECT value FROM json_each(:numbers))
    AND NOT EXISTS (SELECT 1 FROM entries WHERE entries.content = contents.id)
    AND NOT EXISTS (SELECT 1 FROM staged WHERE staged.content = contents.id);
DELETE FROM loose_contents WHERE content IN (SELECT value FROM json_each(:numbers));
"""
DEAD_CHUNKS = f"SELECT chunk FROM loose_chunks LIMIT {SWEPT}"
SWEEP_CHUNKS = """
DELETE FROM chunks WHERE id IN (SELECT value FROM json_each(:numbers))
    AND NOT EXISTS (SELECT 1 FROM volume_chunks WHERE chunk = chunks.id);
DELETE FROM loose_chunks WHERE chunk IN (SELECT value FROM json_each(:numbers));
"""


def sweep(connection: Any) -> int:
    """Drop some of the contents, and then of the chunks, that nothing refers to; how many it saw.

    Contents first: a chunk without a volume may still be part of a content that is to go.
    """
    for found, drop in ((DEAD_CONTENTS, SWEEP_CONTENTS), (DEAD_CHUNKS, SWEEP_CHUNKS)):
        numbers = [number for (number,) in connection.execute(found)]
        if numbers:
            connection.execute(drop, {"numbers": json.dumps(numbers)})
            return len(numbers)
    return 0


def _sweep_now(rows: Rows) -> None:
    """What is little goes at once; of much, the rest when the journal is pruned."""
    sweep(rows.connection)
    sweep(rows.connection)


def chunk(rows: Rows, row: ChunkRow) -> None:
    rows.add(CHUNK, (row.hash, row.size, int(row.packed), row.body))


def commit(rows: Rows, commit: FileCommit) -> None:
    volume = _changed(rows, commit, commit.user, version=commit.version, size=commit.size)
    _commit(rows, volume, commit, commit.message)
    _entries(rows, volume, commit.version, commit.entries)
    _index(rows, volume, {entry.path: entry.passages for entry in commit.entries})
    if commit.staged:
        rows.execute(
            COMMITTED,
            volume=volume,
            writer=commit.writer,
            call=commit.call,
            numbers=json.dumps(commit.staged),
        )


def _commit(rows: Rows, volume: int, commit: FileCommit | FilePurge, message: str) -> None:
    rows.execute(
        COMMIT,
        volume=volume,
        version=commit.version,
        writer=commit.writer,
        author=commit.author,
        call=commit.call,
        at=commit.at,
        message=message,
    )


def _changed(
    rows: Rows,
    change: Any,
    user: str | None = None,
    *,
    version: int | None = None,
    size: int | None = None,
) -> int:
    """The volume's number; ValueError if the change was planned on what is not there."""
    if user is not None and change.stamp == 1:
        rows.execute(CREATED, owner=change.owner, user=user)
    found = rows.execute(
        CHANGED, owner=change.owner, stamp=change.stamp, version=version, bytes=size
    ).get
    if found is None:
        raise ValueError(f"a change of {change.owner} was planned on one that was not kept")
    return int(found)


def _entries(rows: Rows, volume: int, version: int, entries: Sequence[FileEntry]) -> None:
    contents = _contents(rows, volume, [e.content for e in entries if e.content is not None])
    for entry in entries:
        content = 0 if entry.uncovered else None
        if entry.content is not None:
            content = contents[entry.content.hash]
        rows.add(ENTRY, (volume, entry.path, version, content))
        rows.add(HEAD, (volume, entry.path, version, content))


def _contents(rows: Rows, volume: int, contents: Sequence[FileContent]) -> dict[bytes, int]:
    """The numbers of contents by their hashes, old ones and new; the volume holds their chunks.

    ValueError if one is planned on chunks that are not there.
    """
    execute = rows.connection.execute
    found = _ids(rows, CONTENTS, (content.hash for content in contents))
    chunks = _ids(rows, CHUNKS, (hash for content in contents for hash, _ in content.chunks))
    number = execute(LAST_CONTENT).get
    for content in contents:
        try:
            held = [(chunks[hash], size) for hash, size in content.chunks]
        except KeyError:
            held = []
        for chunk, _ in held:
            rows.add(HELD, (volume, chunk))
        if content.hash in found:
            continue
        if sum(size for _, size in held) != content.size:
            raise ValueError("a file was planned on chunks that were not kept")
        number += 1
        found[content.hash] = number
        rows.add(NEW_CONTENT, (number, content.hash, content.size))
        start = 0
        for chunk, size in held:
            rows.add(ITS_CHUNK, (number, start, chunk))
            start += size
    return found


def _ids(rows: Rows, query: str, hashes: Iterable[bytes]) -> dict[bytes, int]:
    wanted = json.dumps([hash.hex() for hash in hashes])
    return dict(rows.connection.execute(query, (wanted,)))


def _index(rows: Rows, volume: int, files: Mapping[str, Sequence[Passage]]) -> None:
    """Make these the passages of files; those that a file has already stay, with their vectors.

    What goes is dropped before what comes is added: the index writes itself out in between.
    """
    execute = rows.connection.execute
    before: defaultdict[tuple[str, bytes], list[tuple[int, int, int]]] = defaultdict(list)
    values = (volume, json.dumps(list(files)))
    for path, hash, number, ordinal, line in execute(PASSAGES, values):
        before[path, hash].append((number, ordinal, line))
    new: list[tuple[str, int, Passage, bytes]] = []
    for path, passages in files.items():
        for ordinal, passage in enumerate(passages):
            hash = blake3(passage.words.encode()).digest(16)
            if not before.get((path, hash)):
                new.append((path, ordinal, passage, hash))
                continue
            number, *place = before[path, hash].pop(0)
            if place != [ordinal, passage.line]:
                execute(MOVED, (ordinal, passage.line, number))
    gone = [(number,) for same in before.values() for number, _, _ in same]
    rows.connection.executemany(UNFOUND, gone)
    number = execute(LAST_PASSAGE).get
    for path, ordinal, passage, hash in new:
        number += 1
        rows.add(PASSAGE, (number, volume, path, ordinal, passage.line, hash))
        rows.add(WORDS, (number, passage.words, f"v{volume}"))


def purge(rows: Rows, purge: FilePurge) -> None:
    volume = _changed(rows, purge, version=purge.version)
    message = f"purged {', '.join(purge.paths)}"
    _commit(rows, volume, purge, message)
    # the root's path is empty here: all paths begin with a slash
    which = {"volume": volume, "paths": json.dumps([path.rstrip("/") for path in purge.paths])}
    contents = [number for (number,) in rows.execute(PURGED_CONTENTS, **which)]
    contents += [number for (number,) in rows.execute(PURGED_STAGED, **which)]
    rows.execute(PURGE, **which)
    _unhold(rows, volume, contents)
    _sweep_now(rows)


def _unhold(rows: Rows, volume: int, contents: Sequence[int]) -> None:
    """What these contents are made of, and nothing else in the volume, it holds no more."""
    values = {"volume": volume, "contents": json.dumps(contents)}
    chunks = [number for (number,) in rows.execute(UNHELD, **values)]
    rows.execute(UNHOLD, chunks=json.dumps(chunks), **values)


def stage(rows: Rows, stage: FileStage) -> None:
    volume = _changed(rows, stage, stage.user, size=stage.size)
    content = None
    if stage.content is not None:
        content = _contents(rows, volume, [stage.content])[stage.content.hash]
    rows.execute(
        STAGE,
        volume=volume,
        writer=stage.writer,
        number=stage.number,
        call=stage.call,
        kind=stage.kind,
        path=stage.path,
        to=stage.to,
        expect=stage.expect,
        content=content,
    )


def unstage(rows: Rows, unstage: FileUnstage) -> None:
    volume = _changed(rows, unstage)
    _unstage(rows, unstage.writer, volume=volume, numbers=json.dumps(unstage.numbers))


def stage_end(rows: Rows, end: StageEnd) -> None:
    _unstage(rows, end.writer, call=end.call)
    if end.call is not None:
        rows.execute(BACK, writer=end.writer, call=end.call)


def _unstage(rows: Rows, writer: int, **which: Any) -> None:
    which = {"writer": writer, "volume": None, "numbers": None, "call": None, **which}
    contents = defaultdict(list)
    for volume, content in rows.execute(STAGED, **which):
        if content is not None:
            contents[volume].append(content)
    rows.execute(UNSTAGE, **which)
    for volume, its in contents.items():
        _unhold(rows, volume, its)


def mount(rows: Rows, mount: FileMount) -> None:
    volume = _changed(rows, mount, mount.user)
    if mount.host is None:
        rows.connection.execute(UNMOUNT, (volume, mount.path))
    else:
        rows.connection.execute(MOUNT, (volume, mount.path, mount.host, mount.mode))


def quota(rows: Rows, quota: VolumeQuota) -> None:
    rows.execute(QUOTA, volume=_changed(rows, quota, quota.user), quota=quota.quota)


def copy(rows: Rows, copy: VolumeCopy) -> None:
    values = {
        "from_pid": copy.from_pid,
        "to_pid": copy.to_pid,
        "from_owner": f"pid:{copy.from_pid}",
        "to_owner": f"pid:{copy.to_pid}",
        "upto": EVERY if copy.upto is None else copy.upto,
    }
    volume = _number(rows, f"pid:{copy.from_pid}")
    rows.execute(STAGED_ELSEWHERE, volume=volume, **values)
    if volume is None:
        return
    made = int(rows.execute(COPY, volume=volume, **values).get)
    rows.execute(COPIED, volume=volume, copy=made, **values)
    _index(rows, made, dict(copy.passages))


def _number(rows: Rows, owner: str) -> int | None:
    found: int | None = rows.execute("SELECT id FROM volumes WHERE owner = :owner", owner=owner).get
    return found


def forget(rows: Rows, pid: int) -> None:
    """A process was reaped: its volume goes, and what it had staged elsewhere."""
    _unstage(rows, pid)
    owner = f"pid:{pid}"
    volume = _number(rows, owner)
    if volume is not None:
        rows.execute(GONE, volume=volume, shared=f"files:{owner}:")
        _sweep_now(rows)


def vector(rows: Rows, row: PassageVector) -> None:
    rows.execute(VECTOR, passage=row.passage, model=row.model, vector=row.vector)


TAKE: dict[type[Any], Callable[[Rows, Any], None]] = {
    ChunkRow: chunk,
    FileCommit: commit,
    FilePurge: purge,
    FileStage: stage,
    FileUnstage: unstage,
    StageEnd: stage_end,
    FileMount: mount,
    VolumeQuota: quota,
    VolumeCopy: copy,
    PassageVector: vector,
}
