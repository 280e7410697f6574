"""Older versions of a volume: what they were, what differs, and back to them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from aios.abi.calls import FileDiff, FileVersion, FileVersions, StoRollback
from aios.drivers.files import paths
from aios.drivers.files.plan import Plan
from aios.drivers.files.view import Entry, View, entry
from aios.errors import InvalidCall, NotFound
from aios.ports import Author

LINES = 20_000  # of two texts, at most, that are compared line by line
BYTES = 1_000_000  # likewise
SHOWN = 1_000_000  # characters of a diff

WITHIN = "(path = :path OR path >= :base || '/' AND path < :base || '0')"
HISTORY = f"""
SELECT path, entries.version, coalesce(bytes, 0), at, writer, call, message,
       coalesce(content, 0) = 0
FROM entries JOIN commits USING (volume, version) LEFT JOIN contents ON contents.id = content
WHERE entries.volume = :volume AND {WITHIN}
ORDER BY entries.version DESC, path LIMIT :limit
"""
VERSIONS = f"""
SELECT DISTINCT version FROM entries WHERE volume = :volume AND {WITHIN}
ORDER BY version DESC LIMIT :limit
"""
LAST_BEFORE = "SELECT max(version) FROM commits WHERE volume = :volume AND at <= :time"
CHANGED = f"""
SELECT DISTINCT path FROM entries
WHERE volume = :volume AND version > :since AND version <= :until AND {WITHIN} ORDER BY path
"""
# What a process wrote after a call, whether somebody else has since, and how it was before.
WRITTEN_SINCE = """
SELECT DISTINCT path, (
    SELECT author FROM entries AS other JOIN commits USING (volume, version)
    WHERE other.volume = entries.volume AND other.path = entries.path
      AND writer <> :pid AND call > :call ORDER BY version DESC LIMIT 1)
FROM entries JOIN commits USING (volume, version)
WHERE volume = :volume AND writer = :pid AND call > :call ORDER BY path
"""
BEFORE = """
SELECT path, entries.version, entries.content, contents.hash, contents.bytes, writer, author, at,
       call, max(entries.version)
FROM entries JOIN commits ON commits.volume = entries.volume AND commits.version = entries.version
LEFT JOIN contents ON contents.id = entries.content
WHERE entries.volume = :volume AND call <= :call AND (:path IS NULL OR path = :path)
GROUP BY path
"""
OWNERS_SINCE = """
SELECT DISTINCT owner FROM commits JOIN volumes ON volumes.id = volume
WHERE writer = :pid AND call > :call ORDER BY owner
"""
NAME = "SELECT author FROM commits WHERE volume = ? AND writer = ? ORDER BY version DESC LIMIT 1"


def history(view: View, path: str, limit: int) -> FileVersions:
    view.check_versioned(path)
    if limit < 1:
        raise InvalidCall(f"limit is {limit}: ask for 1 version or more.")
    values = {**_values(view, path), "limit": limit}
    found = tuple(
        FileVersion(path, version, size, at, writer, f"c{call}", message, bool(deleted))
        for path, version, size, at, writer, call, message, deleted in view.connection.execute(
            HISTORY, values
        )
    )
    if not found and path != paths.ROOT:
        raise NotFound(f"there has never been a {path} in {view.owner}.")
    return FileVersions(view.owner, found)


def _values(view: View, path: str) -> dict[str, Any]:
    return {"volume": view.volume, "path": path, "base": paths.base(path)}


def changed(view: View, path: str, since: int, until: int) -> list[str]:
    """The paths that have entries after one version and up to another."""
    values = {**_values(view, path), "since": since, "until": until}
    return [path for (path,) in view.connection.execute(CHANGED, values)]


# --- back to them ---------------------------------------------------------------------------------


def rollback(plan: Plan, path: str, which: StoRollback) -> None:
    """Plan what makes a file, or all below a directory, as it was."""
    view = plan.view
    view.check_versioned(path)
    given = [value for value in (which.version, which.back, which.time) if value is not None]
    if len(given) != 1:
        raise InvalidCall("say how far to go back: give one of version, back and time.")
    version = _version(view, path, which)
    found = changed(view, path, version, view.version)
    is_file = found == [path] or view.then(path, view.version) is not None
    if is_file and view.then(path, version) is None:
        first = _versions(view, path)[-1]
        raise NotFound(
            f"{path} was not in {view.owner} at version {version}: its first is {first}."
        )
    restore(plan, {path: view.then(path, version) for path in found})


def _version(view: View, path: str, which: StoRollback) -> int:
    """The version of the volume that is meant."""
    if which.version is not None:
        view.check_version(which.version)
        return which.version
    if which.back is not None:
        if which.back < 1:
            raise InvalidCall(f"back is {which.back}: go back 1 version or more.")
        found = _versions(view, path, which.back + 1)
        if not found:
            raise NotFound(f"there has never been a {path} in {view.owner}.")
        if len(found) <= which.back:
            most = f"go back {len(found) - 1} at most" if len(found) > 1 else "that is its first"
            raise NotFound(
                f"{path} in {view.owner} cannot go back {which.back} of its {len(found)} versions: "
                f"{most}."
            )
        return found[which.back]
    values = {"volume": view.volume, "time": which.time}
    version: int | None = view.connection.execute(LAST_BEFORE, values).get
    if version is None:
        raise NotFound(f"{view.owner} has no version from then: its first one is newer.")
    return version


def _versions(view: View, path: str, limit: int = -1) -> list[int]:
    values = {**_values(view, path), "limit": limit}
    return [version for (version,) in view.connection.execute(VERSIONS, values)]


def restore(plan: Plan, wanted: dict[str, Entry | None]) -> None:
    """Plan these paths as these entries say; None: as if never written."""
    view, back = plan.view, {}
    for path, then in wanted.items():
        head = view.head(path)
        is_same = (
            head is not None
            and then is not None
            and head.content == then.content  # both None: deleted
            and head.uncovered == then.uncovered
        )
        was_never = head is None or head.uncovered
        if head is not None and not head.is_there and view.mount_of(path) is None:
            was_never = True  # deleted, and nothing shows through
        if is_same or (then is None and was_never):
            continue
        if then is None or then.content is None:
            plan.drop(path, uncovered=then is None or then.uncovered)
        else:
            back[path] = then.content
    for path, content in back.items():  # now that what is in their way has gone
        plan.check_place(path)
        plan.put(path, content)


# --- after a call ---------------------------------------------------------------------------------


def rewind(plan: Plan, pid: int, call: int) -> None:
    """Plan what a process wrote after a call as it was then; not what others changed since."""
    view, wanted = plan.view, dict[str, Entry | None]()
    for path, by in written_since(view, pid, call):
        if by is None:
            values = {"volume": view.volume, "call": call, "path": path}
            row = view.connection.execute(BEFORE, values).fetchone()
            wanted[path] = entry(row) if row else None
    restore(plan, wanted)


def shown_held(view: View, path: str, by: str) -> str:
    return f"{view.owner}:{path}, which {by} changed since"


def written_since(view: View, pid: int, call: int) -> list[tuple[str, str | None]]:
    """What a process wrote after a call, each with who else did, if anybody."""
    values = {"volume": view.volume, "pid": pid, "call": call}
    return list(view.connection.execute(WRITTEN_SINCE, values))


def name_of(view: View, pid: int) -> str:
    """What a process is called as an author."""
    found: str | None = view.connection.execute(NAME, (view.volume, pid)).get
    return found or f"pid:{pid}"


def as_of(view: View, call: int) -> list[Entry]:
    """What was in a volume when a call had ended."""
    rows = view.connection.execute(BEFORE, {"volume": view.volume, "call": call, "path": None})
    return [found for found in map(entry, rows.fetchall()) if found.is_there]


def author(view: View, pid: int, call: int, at: float) -> Author:
    return Author(pid, name_of(view, pid), view.user, call, at)


# --- differences ----------------------------------------------------------------------------------


def diff(view: View, path: str, since: int, until: int | None) -> FileDiff:
    """Unified diffs of what changed after one version, up to another."""
    view.check_versioned(path)
    until = view.version if until is None else until
    if since:
        view.check_version(since)
    if until:
        view.check_version(until)
    if since > until:
        raise InvalidCall(f"since {since} is after until {until}: give the older version first.")
    found = []
    parts: list[str] = []
    for one in changed(view, path, since, until):
        before, after = view.then(one, since), view.then(one, until)
        old = before.content if before else None
        new = after.content if after else None
        if old == new:
            continue
        found.append(one)
        if sum(map(len, parts)) < SHOWN:
            parts += _diff(view, one, before, after, since, until)
    text = "".join(parts)
    if len(text) > SHOWN:
        text = f"{text[:SHOWN]}\n… and more: ask for one path at a time.\n"
    return FileDiff(view.owner, text, tuple(found))


def _diff(
    view: View, path: str, before: Entry | None, after: Entry | None, since: int, until: int
) -> Iterator[str]:
    old, new = _text(view, before), _text(view, after)
    sizes = [entry.size if entry is not None else 0 for entry in (before, after)]
    if old is None or new is None or len(old) + len(new) > LINES:
        yield f"{path} differs: {sizes[0]:,} bytes in version {since}, {sizes[1]:,} in {until}\n"
        return
    lines = difflib.unified_diff(old, new, f"{path}@{since}", f"{path}@{until}")
    for line in lines:
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _text(view: View, found: Entry | None) -> list[str] | None:
    """The lines of a text; None if it is none, or too long."""
    if found is None or found.content is None:
        return []
    if found.size > BYTES:
        return None
    data = view.read(found)
    if b"\0" in data:
        return None
    try:
        return data.decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return None
