"""KV states outside the cells: in RAM, or, when that is full, each in a file of its own.

A file is only a cache: one that cannot be written or read again costs a recompute, never an error.
So nothing is synced, and what a dead worker left behind is removed by the next.
"""

from __future__ import annotations

import zlib
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

SUFFIX = ".kv"


class State:
    """A KV state put away: its bytes, or the file that has them. size is in bytes."""

    __slots__ = ("checksum", "data", "file", "size")

    def __init__(self, data: Bytes | None, size: int, file: Path | None = None, checksum: int = 0):
        self.data, self.size, self.file, self.checksum = data, size, file, checksum

    def __repr__(self) -> str:
        return f"<state: {self.size} bytes {'in RAM' if self.file is None else self.file.name}>"

    @property
    def is_in_ram(self) -> bool:
        return self.file is None


class Disk:
    """The files of one worker: at most *limit* bytes in *folder*, which is this worker's alone."""

    def __init__(self, folder: Path | None, limit: int) -> None:
        self._folder = folder
        self.limit, self.used = limit if folder else 0, 0
        self._numbers = count(1)
        self._remove_all()

    def __repr__(self) -> str:
        return f"<disk: {self.used} of {self.limit} bytes>"

    def fits(self, size: int) -> bool:
        return self.used + size <= self.limit

    def write(self, data: Bytes) -> State | None:
        """A state in a new file; None if there is no room, or it cannot be written."""
        size = int(data.nbytes)
        if self._folder is None or not self.fits(size):
            return None
        file = self._folder / f"{next(self._numbers)}{SUFFIX}"
        try:
            with file.open("xb", buffering=0) as out:
                view = data.data
                while view:
                    view = view[out.write(view) :]
        except OSError:  # full, read-only, gone: it is computed again
            self._unlink(file)
            return None
        self.used += size
        return State(None, size, file, zlib.crc32(data.data))

    def read(self, state: State) -> Bytes | None:
        """What was written; None if that is not there any more, or damaged."""
        assert state.file is not None
        try:
            data = np.fromfile(state.file, np.uint8)
        except OSError:
            return None
        return (
            data if data.nbytes == state.size and zlib.crc32(data.data) == state.checksum else None
        )

    def remove(self, state: State) -> None:
        assert state.file is not None
        self._unlink(state.file)
        self.used -= state.size

    def close(self) -> None:
        self._remove_all()

    def _remove_all(self) -> None:
        """Also what a worker that was killed left behind."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            left = list(self._folder.glob(f"*{SUFFIX}"))
        except OSError:
            return  # the first write will not work either
        for file in left:
            self._unlink(file)

    def _unlink(self, file: Path) -> None:
        try:
            file.unlink(missing_ok=True)
        except OSError:
            pass  # the next worker tries again
