"""Space on the disk that is set aside for when it is full.

Then what ends or deletes something may use it, and nothing else, until it can be set aside again:
so that calls come to their end, and space can be made, on a full disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from aios.abi.events import Event
from aios.ports import (
    CallEnd,
    CallRow,
    ContextCut,
    FileCommit,
    FilePurge,
    FileUnstage,
    Forget,
    GrantGone,
    KeyGone,
    KeyRow,
    MailTaken,
    MemoryCleared,
    MemoryEnd,
    MemoryGone,
    MemoryRewind,
    ProcessRow,
    Record,
    Rewind,
    SpentRow,
    StageEnd,
)

# Enough to copy a whole write-ahead log into the file: then the log's own space is free again.
RESERVE_BYTES = 24 << 20
SMALL = 1_000  # bytes of a request or a reply that is no content worth the name

# What ends, deletes, or is as small as that.
ENDING = (
    Event,
    ContextCut,
    FilePurge,
    FileUnstage,
    Forget,
    GrantGone,
    KeyGone,
    KeyRow,
    MailTaken,
    MemoryCleared,
    MemoryEnd,
    MemoryGone,
    MemoryRewind,
    ProcessRow,
    Rewind,
    SpentRow,
    StageEnd,
)


def holds_content(records: Iterable[Record]) -> bool:
    """Whether there is anything among them that a full disk has no room for."""
    return any(not _is_ending(record) for record in records)


def _is_ending(record: Record) -> bool:
    match record:
        case CallRow():
            return not record.said and not record.tools and len(record.request) <= SMALL
        case CallEnd():
            return len(record.reply or b"") <= SMALL
        case FileCommit():
            return all(entry.content is None for entry in record.entries)
    return isinstance(record, ENDING)


class Reserve:
    """A file of so many bytes, or (while the disk is full) none."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self.is_held = False

    def make(self) -> bool:
        """Set the space aside, if it is not and there is so much; whether it is."""
        if not self.is_held:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
                try:
                    _allocate(descriptor, self._size)
                finally:
                    os.close(descriptor)
                self.is_held = True
            except OSError:
                self.release()
        return self.is_held

    def release(self) -> None:
        self.is_held = False
        try:
            os.unlink(self._path)
        except OSError:
            pass  # there was none, or the disk cannot be written: the next write says so


def _allocate(descriptor: int, size: int) -> None:
    """Blocks, not a hole."""
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    while size > 0:
        size -= os.write(descriptor, bytes(min(size, 1 << 20)))
