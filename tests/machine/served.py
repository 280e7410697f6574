"""A kernel on the scripted core behind a real socket, in this process; programs are real."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aios
from aios.config import Config
from aios.drivers.programs import OsPrograms
from aios.sdk.connection import Connection
from aios.server.app import App
from aios.server.listener import Listener
from aios.testing import TestKernel, machine


class Served:
    """Where the kernel is, and the key of its user."""

    def __init__(self, kernel: TestKernel, path: Path) -> None:
        self.kernel = kernel
        self.url, self.key = f"unix:{path}", kernel.user_key

    def connect(self, **options: object) -> Connection:
        return aios.connect(self.url, self.key, **options)


@asynccontextmanager
async def serving(folder: Path, **parts: Any) -> AsyncIterator[Served]:
    """*parts* are those of ``aios.testing.machine``: core, cores, config."""
    programs = OsPrograms(folder / "logs")
    async with machine(programs=programs, snapshots=folder, **parts) as kernel:
        path = folder / "s"
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(str(path))
        kernel.socket = str(path)
        listener = Listener(App(kernel, Config().server, lambda: None))
        await listener.open([unix])
        try:
            yield Served(kernel, path)
        finally:
            await listener.close(2.0)
