"""The room that downloaded things are in: one changes it at a time, and nothing half-made stays."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from aios.errors import DriverError, StoreFailed

Progress = Callable[[str, int, int], None]
"""Takes a stage and how far it is, in bytes done and in total (0: not known).

The stages are wait (another pulls), download, check, join, requantise, build and copy. Raising ends
it.
"""

_PARTS = ".parts-"  # begins the name of a directory of half-made files
_SPARE_BYTES = 50_000_000
_CHUNK = 1_000_000
_LOOK_S = 0.1


@contextlib.contextmanager
def changing(directory: Path, progress: Progress) -> Iterator[Path]:
    """Hold the directory's lock; gives one for half-made files, which goes afterwards."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(directory / ".lock", "wb") as lock:
            _take(lock.fileno(), progress)
            for left in directory.glob(f"{_PARTS}*"):  # whoever made it has died
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=_PARTS, dir=directory) as parts:
                yield Path(parts)
    except OSError as error:
        remedy = "make room" if error.errno == errno.ENOSPC else "mend that"
        raise StoreFailed(
            f"{str(directory)!r} cannot be written to: {error}; {remedy} and try again."
        ) from error


def _take(lock: int, progress: Progress) -> None:
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("wait", 0, 0)
            time.sleep(_LOOK_S)
        else:
            return


def need(directory: Path, size: int) -> None:
    """StoreFailed unless so many bytes, and some to spare, are free."""
    free = shutil.disk_usage(directory).free
    if free < size + _SPARE_BYTES:
        raise StoreFailed(
            f"{str(directory)!r} has {free // 1_000_000:,} MB free, and "
            f"{(size + _SPARE_BYTES) // 1_000_000:,} MB are needed; make room and try again."
        )


def copy(source: Path, target: Path | None, size: int, report: Callable[[int, int], None]) -> str:
    """The SHA-256 of the source, copied on the way if there is a target."""
    digest = hashlib.sha256()
    done = 0
    with contextlib.ExitStack() as files:
        given = files.enter_context(open(source, "rb"))
        made = files.enter_context(open(target, "xb")) if target else None
        while chunk := given.read(_CHUNK):
            digest.update(chunk)
            if made:
                made.write(chunk)
            done += len(chunk)
            report(done, size)
        if made:
            made.flush()
            os.fsync(made.fileno())
    return digest.hexdigest()


def join(
    sources: Sequence[Path], target: Path, size: int, report: Callable[[int, int], None]
) -> list[str]:
    """Write them one after another; the SHA-256 of each. What has been written is removed."""
    found, done = [], 0
    with open(target, "xb") as made:
        for source in sources:
            digest = hashlib.sha256()
            with open(source, "rb") as given:
                while chunk := given.read(_CHUNK):
                    digest.update(chunk)
                    made.write(chunk)
                    done += len(chunk)
                    report(done, size)
            source.unlink()
            found.append(digest.hexdigest())
        made.flush()
        os.fsync(made.fileno())
    return found


def check(file: Path, sha256: str, whose: str, progress: Progress) -> None:
    """DriverError unless it is this file, bit by bit."""
    found = copy(file, None, file.stat().st_size, lambda *at: progress("check", *at))
    compare(found, sha256, whose)


def compare(found: str, sha256: str, whose: str) -> None:
    """DriverError unless they are one."""
    if found != sha256:
        raise DriverError(
            f"{whose} the SHA-256 {found} instead of {sha256}; nothing was kept, and another "
            "try helps only if the download was damaged."
        )
