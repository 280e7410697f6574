"""Directories of this machine, from which no path leads out.

Nothing here follows a symbolic link: not in the mounted directory's own path, not below it, not if
one takes the place of a directory meanwhile. Where Linux has it, openat2 sees to that; elsewhere a
path is walked part by part, each opened in the one before it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from msgspec import Struct

from aios.errors import AiosError, Conflict, InvalidCall, NotFound, PermissionDenied, StoreFailed

Opening = Callable[[int, str, int], int]  # directory, path below it, flags -> descriptor

OPENAT2 = 437  # the same number on every Linux
BENEATH, NO_SYMLINKS, NO_MAGICLINKS = 0x08, 0x04, 0x02
AGAIN = 16  # tries, when something on the way is renamed meanwhile
SAFE = os.O_CLOEXEC | os.O_NOFOLLOW
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | SAFE
MODE = 0o644  # of a new file, less what the umask takes


class HostFile(Struct, frozen=True):
    """A file (or a directory): its size, and the time of its last change in nanoseconds."""

    is_directory: bool
    size: int
    version: int


class _How(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def openat2(folder: int, path: str, flags: int) -> int:
    """A descriptor of what is at *path* below *folder*; OSError if a link is on the way."""
    libc = ctypes.CDLL(None, use_errno=True)
    how = _How(flags | SAFE, 0, BENEATH | NO_SYMLINKS | NO_MAGICLINKS)
    name = ctypes.c_char_p(os.fsencode(path))
    for _ in range(AGAIN):
        found = libc.syscall(OPENAT2, folder, name, ctypes.byref(how), ctypes.sizeof(how))
        if found >= 0:
            return int(found)
        if ctypes.get_errno() != errno.EAGAIN:
            break
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), path)


@cache
def has_openat2() -> bool:
    if sys.platform != "linux":
        return False
    root = os.open("/", DIRECTORY)
    try:
        os.close(openat2(root, ".", DIRECTORY))
    except OSError:  # an older kernel, or a sandbox that does not know it
        return False
    finally:
        os.close(root)
    return True


def walk(folder: int, path: str, flags: int) -> int:
    """The same by hand: each directory is opened in the one before it, without following links."""
    *parts, last = path.split("/")
    here = os.dup(folder)
    try:
        for part in parts:
            there = os.open(part, DIRECTORY, dir_fd=here)
            os.close(here)
            here = there
        return os.open(last, flags | SAFE, dir_fd=here)
    finally:
        os.close(here)


class Host:
    """A mounted directory; paths are those below it, ``""`` itself."""

    def __init__(self, path: str, opening: Opening | None = None) -> None:
        self.path = path
        self._open = opening or (openat2 if has_openat2() else walk)

    def __repr__(self) -> str:
        return f"<host directory {self.path}>"

    def look(self, path: str) -> HostFile | None:
        """What is there; None for nothing, and for what is neither file nor directory."""
        self._check(path)
        try:
            with self._directory(os.path.dirname(path)) as folder:
                found = os.stat(os.path.basename(path) or ".", dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._sentence(path, error) from error
        return _found(found)

    def read(self, path: str, start: int = 0, end: int | None = None) -> tuple[HostFile, bytes]:
        """A file, and its bytes from *start* to *end*."""
        self._check(path)
        try:
            with self._root() as root:
                # not to wait at a pipe that somebody put there
                file = self._open(root, path or ".", os.O_RDONLY | os.O_NONBLOCK)
            with os.fdopen(file, "rb") as opened:
                found = _found(os.fstat(file))
                if found is None or found.is_directory:
                    raise InvalidCall(f"{self._shown(path)} is no file: give the path of one.")
                opened.seek(start)
                size = -1 if end is None else max(0, end - start)
                return found, opened.read(size)
        except OSError as error:
            raise self._sentence(path, error) from error

    def names(self, path: str) -> list[tuple[str, HostFile]]:
        """What is in a directory; links, pipes and devices are left out."""
        self._check(path)
        try:
            with self._directory(path) as folder:
                found = [
                    (name, _found(os.stat(name, dir_fd=folder, follow_symlinks=False)))
                    for name in sorted(os.listdir(folder))
                    if name.isprintable()
                ]
        except OSError as error:
            raise self._sentence(path, error) from error
        return [(name, file) for name, file in found if file is not None]

    def walk(self, path: str) -> Iterator[tuple[str, HostFile]]:
        """All files below a directory."""
        for name, file in self.names(path):
            inner = f"{path}/{name}" if path else name
            if file.is_directory:
                yield from self.walk(inner)
            else:
                yield inner, file

    def write(self, path: str, data: bytes) -> HostFile:
        """Put a file there, whole or not at all; directories on the way are made."""
        self._check(path)
        try:
            with self._made(os.path.dirname(path)) as folder:
                name = os.path.basename(path)
                mode = self._replaceable(folder, name, path)
                draft = f".aios-{secrets.token_hex(8)}"
                file = os.open(
                    draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE, MODE, dir_fd=folder
                )
                try:
                    with os.fdopen(file, "wb") as out:
                        out.write(data)
                        out.flush()
                        if mode is not None:
                            os.fchmod(file, mode)
                        os.fsync(file)
                        written = _found(os.fstat(file))
                    os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
                except BaseException:
                    os.unlink(draft, dir_fd=folder)
                    raise
                os.fsync(folder)
        except OSError as error:
            raise self._sentence(path, error) from error
        assert written is not None
        return written

    def delete(self, path: str) -> None:
        """Remove a file."""
        self._check(path)
        try:
            with self._directory(os.path.dirname(path)) as folder:
                name = os.path.basename(path)
                self._replaceable(folder, name, path)
                os.unlink(name, dir_fd=folder)
                os.fsync(folder)
        except OSError as error:
            raise self._sentence(path, error) from error

    def move(self, path: str, to: str) -> None:
        """Rename a file; what is at *to* is replaced."""
        self._check(path)
        self._check(to)
        try:
            with (
                self._directory(os.path.dirname(path)) as source,
                self._made(os.path.dirname(to)) as target,
            ):
                self._replaceable(source, os.path.basename(path), path)
                self._replaceable(target, os.path.basename(to), to)
                os.rename(
                    os.path.basename(path),
                    os.path.basename(to),
                    src_dir_fd=source,
                    dst_dir_fd=target,
                )
                os.fsync(source)
                os.fsync(target)
        except OSError as error:
            raise self._sentence(path, error) from error

    def _check(self, path: str) -> None:
        if path.startswith("/") or ".." in path.split("/"):
            raise PermissionDenied(f"{self._shown(path)} leads out of {self.path}.")

    @contextmanager
    def _root(self) -> Iterator[int]:
        top = os.open("/", DIRECTORY)
        try:
            root = self._open(top, self.path.lstrip("/") or ".", DIRECTORY)
        finally:
            os.close(top)
        try:
            yield root
        finally:
            os.close(root)

    @contextmanager
    def _directory(self, path: str) -> Iterator[int]:
        with self._root() as root:
            folder = self._open(root, path or ".", DIRECTORY)
        try:
            yield folder
        finally:
            os.close(folder)

    @contextmanager
    def _made(self, path: str) -> Iterator[int]:
        """A directory, made with those above it if need be, one in the other."""
        with self._root() as root:
            here = os.dup(root)
        try:
            for part in path.split("/") if path else ():
                try:
                    there = os.open(part, DIRECTORY, dir_fd=here)
                except FileNotFoundError:
                    os.mkdir(part, dir_fd=here)
                    os.fsync(here)
                    there = os.open(part, DIRECTORY, dir_fd=here)
                os.close(here)
                here = there
            yield here
        finally:
            os.close(here)

    def _replaceable(self, folder: int, name: str, path: str) -> int | None:
        """The mode of the file that is there (None: nothing); only a plain file may be replaced."""
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(found.st_mode):
            raise Conflict(f"{self._shown(path)} is a directory: name a file.")
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.ELOOP, "", path)
        return stat.S_IMODE(found.st_mode)

    def _shown(self, path: str) -> str:
        return os.path.join(self.path, path)

    def _sentence(self, path: str, error: OSError) -> AiosError:
        where = self._shown(path)
        match error.errno:
            case errno.ENOENT:
                return NotFound(f"there is no {where} on this machine.")
            case errno.ELOOP | errno.EXDEV:
                return PermissionDenied(
                    f"{where} is a symbolic link, a pipe or a device, or lies behind a link: "
                    "only plain files below a mounted directory can be used."
                )
            case errno.ENOTDIR:
                return NotFound(f"{where} lies below a file or behind a symbolic link, not in one.")
            case errno.EACCES | errno.EPERM | errno.EROFS:
                return PermissionDenied(
                    f"this machine does not allow it at {where}: {error.strerror}."
                )
            case errno.EISDIR:
                return InvalidCall(f"{where} is a directory: give the path of a file.")
            case errno.ENOSPC | errno.EDQUOT:
                return StoreFailed(f"there is no room for {where} on its disk: free some space.")
        return StoreFailed(f"{where} cannot be used ({error.strerror}): check the disk.")


def _found(found: os.stat_result) -> HostFile | None:
    is_directory = stat.S_ISDIR(found.st_mode)
    if not is_directory and not stat.S_ISREG(found.st_mode):
        return None
    return HostFile(is_directory, 0 if is_directory else found.st_size, found.st_mtime_ns)
