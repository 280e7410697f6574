"""Paths within a volume: absolute, normal, with slashes. A directory is where files are below."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aios.errors import InvalidCall

NAME_BYTES = 255  # of one part: as much as host file systems take
ROOT = "/"
CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # the last are halves of characters


def clean(path: str, limit: int, *, file: bool = False) -> str:
    """``notes//a.md`` as ``/notes/a.md``; InvalidCall for what is no path (or no *file*'s)."""
    shown = ascii(path[:200])
    if not path:
        raise InvalidCall("the path is empty: give one like /notes/plan.md.")
    if CONTROL.search(path):
        raise InvalidCall(f"the path {shown} holds a control character: leave it out.")
    size = len(path.encode())
    if size > limit:
        raise InvalidCall(f"the path {shown}… has {size} bytes: at most {limit} are kept.")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidCall(f"the path {shown} holds '..': give it from the volume's root on.")
    if size > NAME_BYTES and any(len(part.encode()) > NAME_BYTES for part in parts):
        raise InvalidCall(f"the path {shown} has a part of more than {NAME_BYTES} bytes.")
    if file and (not parts or path.endswith("/")):
        raise InvalidCall(f"the path {shown} names a directory: give that of a file.")
    return ROOT + "/".join(parts)


def base(path: str) -> str:
    """What all paths below it begin with, without the slash after it."""
    return path.rstrip("/")


def parents(path: str) -> Iterator[str]:
    """The directories that it lies in, the nearest first, without the root."""
    while (path := path.rpartition("/")[0]) != "":
        yield path


def is_within(path: str, directory: str) -> bool:
    """Whether it is that, or lies below it."""
    return path == directory or path.startswith(f"{base(directory)}/")


def under(path: str, directory: str) -> str:
    """The rest of it below *directory*, without a slash at its beginning."""
    return path[len(base(directory)) :].lstrip("/")
