"""A daemon of its own for a bench: a home that goes away, the models of this user."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from aios.config import Paths

READY_S = 30.0


class Daemon:
    """A running daemon: its socket, its port's address, its user's key, its OS pid."""

    def __init__(self, home: Path, told: dict[str, Any]) -> None:
        self.pid, self.url = int(told["pid"]), str(told["url"])
        self.socket = f"unix:{told['socket']}"
        self.key = next((home / "data" / "keys").iterdir()).read_text().strip()


@contextmanager
def daemon(config: str = "", /, **settings: object) -> Iterator[Daemon]:
    """Start one with these settings (``core_slots=8``) and stop it at the end of the block.

    *config* is the text of its config.toml.
    """
    with tempfile.TemporaryDirectory(prefix="aios-bench-") as folder:
        home = Path(folder)
        environment = {
            **os.environ,
            "AIOS_HOME": folder,
            "AIOS_MODELS": str(Paths.find().models),
            **{f"AIOS_{name.upper()}": str(value) for name, value in settings.items()},
        }
        if config:
            (home / "config").mkdir()
            (home / "config" / "config.toml").write_text(config)
        process = subprocess.Popen(
            [sys.executable, "-m", "aios.server.daemon", "--port", "0"], env=environment
        )
        try:
            yield Daemon(home, _ready(home, process))
        finally:
            process.terminate()
            process.wait(READY_S)


def _ready(home: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        for file in home.rglob("daemon.json"):
            told: dict[str, Any] = msgspec.json.decode(file.read_bytes())
            return told
        time.sleep(0.01)
    raise RuntimeError("the daemon did not start; run `python -m aios.server.daemon` to see why")
