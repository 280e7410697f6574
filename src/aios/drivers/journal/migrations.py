"""Brings a journal file to this version's schema: numbered .sql files, one transaction each."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from aios.drivers.journal.content import hash_of
from aios.errors import SetupError

SCHEMA = Path(__file__).with_name("schema")
APPLICATION = 0x61696F73  # "aios", in the file's header
INCREMENTAL = 2  # auto_vacuum: the file shrinks in steps, when it is asked to


def newest_version() -> int:
    """Of the journals that this aios writes."""
    return max(_scripts(SCHEMA))


def _scripts(schema: Path) -> dict[int, Path]:
    return {int(file.name[:4]): file for file in schema.glob("[0-9]*.sql")}


def migrate(connection: Any, path: Path | None, schema: Path = SCHEMA) -> None:
    """Run what *path* has not had yet; the file as it was is kept beside it, named for its version.

    No path: a database in memory. SetupError if the file was written by a newer aios, or is some
    other program's.
    """
    scripts = _scripts(schema)
    newest = max(scripts)
    version = connection.pragma("user_version")
    owner = connection.pragma("application_id")
    if version > newest:
        raise SetupError(
            f"{path} is a journal of version {version} and this aios knows up to {newest}: "
            "upgrade aios, or set AIOS_HOME to another directory."
        )
    empty = not connection.pragma("schema_version")
    if not empty and owner != APPLICATION:
        raise SetupError(
            f"{path} is another program's database: move it away, or set AIOS_HOME to another "
            "directory."
        )
    if not version:
        connection.pragma("auto_vacuum", "INCREMENTAL")  # settled by the first table
    elif path is not None and version < newest:
        _back_up(connection, path.with_name(f"{path.name}.version-{version}"))
    connection.create_scalar_function("content_hash", hash_of, 1, deterministic=True)
    with nullcontext() if version else connection:  # a new file is whole, or is not there
        for number in range(version + 1, newest + 1):
            with connection:
                connection.execute(scripts[number].read_text())
                connection.pragma("user_version", number)
    if connection.pragma("auto_vacuum") != INCREMENTAL:  # version 1 did not set it
        connection.pragma("auto_vacuum", "INCREMENTAL")
        connection.execute("VACUUM")


def _back_up(connection: Any, copy: Path) -> None:
    copy.unlink(missing_ok=True)  # left by a migration that was cut short
    os.close(os.open(copy, os.O_CREAT | os.O_EXCL, 0o600))
    connection.execute("VACUUM INTO ?", (str(copy),))
