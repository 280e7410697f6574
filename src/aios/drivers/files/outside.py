"""Changes of directories that are mounted ``rw``: made at once, each whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aios import config
from aios.drivers.files import paths
from aios.drivers.files.hosts import Host, HostFile
from aios.drivers.files.plan import ANY
from aios.errors import (
    Conflict,
    InvalidCall,
    NotFound,
    OutcomeUnknown,
    PermissionDenied,
    QuotaExceeded,
)
from aios.ports import FileChange, HostPlace


def change(
    place: HostPlace,
    change: FileChange,
    seen: Mapping[str, int],
    again: bool,
    settings: config.Storage,
) -> int:
    """Make a change; the file's new version (0: deleted). See ports.Files.host_change."""
    host = Host(place.host)
    path = paths.under(place.path, place.mount)
    if not path:
        raise Conflict(f"{place.path} is a mounted directory: name a file in it.")
    found = host.look(path)
    if found is not None and found.is_directory:
        raise InvalidCall(
            f"{place.path} is a directory ({place.host}): change its files one by one."
        )
    to = ""
    if change.kind in ("move", "copy"):
        to = paths.clean(change.to, settings.path_bytes, file=True)
        if not paths.is_within(to, place.mount) or to == place.mount:
            raise InvalidCall(
                f"{place.path} lies in the mounted directory {place.host} and {to} does not: read "
                "the file and write it there."
            )
    target = paths.under(to, place.mount)
    if again and (done := _done(host, path, target, found, change)) is not None:
        return done
    match change.kind:
        case "write" | "append":
            _check(place, found, change, seen, again)
            data = change.data
            if change.kind == "append" and found is not None:
                data = host.read(path)[1] + data
            if len(data) > settings.file_bytes:
                raise QuotaExceeded(
                    f"{place.path} would have {len(data):,} bytes, and a file may have "
                    f"{settings.file_bytes:,}: split it, or raise storage.file_bytes."
                )
            return host.write(path, data).version
        case "delete":
            if found is None:
                raise NotFound(f"there is no {place.path} in {place.owner}.")
            _check(place, found, change, seen, again)
            host.delete(path)
            return 0
    if found is None:
        raise NotFound(f"there is no {place.path} in {place.owner}.")
    there = host.look(target)
    if there is not None:
        at = HostPlace(place.owner, to, place.mount, place.host)
        _check(at, there, change, seen, again)
    if change.kind == "copy":
        return host.write(target, host.read(path)[1]).version
    host.move(path, target)
    return found.version


def _check(
    place: HostPlace,
    found: HostFile | None,
    change: FileChange,
    seen: Mapping[str, int],
    again: bool,
) -> None:
    """Conflict unless the file is as it is expected to be."""
    if change.expect == ANY:
        return
    version = 0 if found is None else found.version
    expected = change.expect
    if expected is None:
        expected = seen.get(place.path, 0 if found is None else None)
    if expected == version:
        return
    where = f"{place.path} ({place.host})"
    if again:
        raise OutcomeUnknown(
            f"{where} was to be changed when the kernel died, and is neither as it was nor as it "
            "was to be: look at it."
        )
    why = "has not been read by this process" if expected is None else "has changed since"
    raise Conflict(f"{where} {why}: read it again, or give expect -1 to replace it.")


def _done(
    host: Host, path: str, target: str, found: HostFile | None, change: FileChange
) -> int | None:
    """The version, if the change was made before a crash; OutcomeUnknown if nobody can tell."""
    match change.kind:
        case "write" if found is not None and found.size == len(change.data):
            return found.version if host.read(path)[1] == change.data else None
        case "append" if found is not None and found.size >= len(change.data) > 0:
            if host.read(path, found.size - len(change.data))[1] == change.data:
                raise OutcomeUnknown(
                    f"{path} in {host.path} ends with what was to be added when the kernel died: "
                    "look whether it is there once or is still missing."
                )
        case "delete" if found is None:
            return 0
        case "move" if found is None:
            there = host.look(target)
            return None if there is None else there.version
    return None


def checked(path: str, closed: tuple[str, ...]) -> str:
    """A directory's real path, if it may be mounted."""
    shown = ascii(path[:200])
    if not path.startswith("/") or "\0" in path:
        raise InvalidCall(f"the directory {shown} is no absolute path: begin it with a slash.")
    real = Path(path).resolve()
    if not real.is_dir():
        raise NotFound(f"there is no directory {shown} on this machine.")
    for one in closed:
        own = Path(one).resolve()
        if real == own or real in own.parents or own in real.parents:
            raise PermissionDenied(
                f"{shown} holds files of aios itself ({own}): mount a directory without them."
            )
    return str(real)
