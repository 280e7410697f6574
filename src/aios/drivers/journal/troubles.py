"""What can go wrong with a database, in a sentence each."""

from __future__ import annotations

import struct
from pathlib import Path

import apsw
import msgspec
import zstandard

from aios.errors import StoreFailed

UNREADABLE = (
    apsw.Error,
    msgspec.DecodeError,
    UnicodeDecodeError,
    struct.error,
    zstandard.ZstdError,
)


def sentence(path: Path | str, error: Exception) -> str:
    """What was wrong with the journal at *path*, and what to do."""
    match error:
        case StoreFailed():
            return error.message
        case apsw.FullError():
            return f"the disk is full and {path} cannot grow: free some space, then try again."
        case apsw.NotADBError():
            return f"{path} is not a database: move it away, or restore it from a copy."
        case (
            apsw.CorruptError()
            | msgspec.DecodeError()
            | UnicodeDecodeError()
            | struct.error()
            | zstandard.ZstdError()
        ):
            return f"{path} is damaged ({error}): move it away, or restore it from a copy."
        case apsw.ReadOnlyError() | apsw.CantOpenError() | apsw.PermissionsError():
            return f"{path} cannot be written ({error}): check its rights and its directory's."
        case apsw.IOError():
            return f"{path} cannot be read or written ({error}): check the disk."
        case apsw.BusyError():
            return f"{path} is locked by another program: close that program, then try again."
    return f"{path} did not take a record ({type(error).__name__}: {error})."
