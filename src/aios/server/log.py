"""The daemon's own log: one JSON object a line, in a file that cannot grow without end.

People read the message, machines the fields. Keys, request bodies and answers are never logged.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path

from aios.abi import wire

FILE_BYTES = 5_000_000  # and one older file of the same size


class Lines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "from": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return wire.encode(line).decode()


@contextlib.contextmanager
def to_file(file: Path) -> Iterator[None]:
    """Send what this process logs to *file*: our own from info on, libraries' from warning on."""
    handler = RotatingFileHandler(file, maxBytes=FILE_BYTES, backupCount=1, delay=True)
    handler.setFormatter(Lines())
    root, ours = logging.getLogger(), logging.getLogger("aios")
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
