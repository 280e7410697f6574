"""A server on real sockets over a kernel on fakes, in this process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pytest
from msgspec import structs

from aios.config import Config, Server
from aios.ports import Embedder, Journal
from aios.server import listener
from aios.server.app import App
from aios.testing import ScriptedCore, TestKernel, machine, settle

HEARTBEAT_S = 0.05


class Site:
    """A kernel that is served: its core, its user's key, and where it listens."""

    def __init__(
        self, kernel: TestKernel, core: ScriptedCore, tcp: socket.socket, path: Path
    ) -> None:
        self.kernel, self.core, self.key, self.socket = kernel, core, kernel.user_key, path
        self.port: int = tcp.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.headers = {"Authorization": f"Bearer {self.key}"}
        self.stopped = asyncio.Event()
        self.app: App

    def http(self, **options: object) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            base_url=self.url, headers=self.headers, trust_env=False, timeout=10, **options
        )

    async def raw(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own, then read until the server hangs up."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            async with asyncio.timeout(10):
                return await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds in the kernel; the test's own limit is the bound."""
        async with asyncio.timeout(10):
            while not holds():
                await settle(1)

    async def until_core_is_free(self) -> None:
        async with asyncio.timeout(10):
            while (await self.core.residency()).sequences:
                await settle(1)

    def open_calls(self) -> list[str]:
        return [call.name for p in self.kernel.processes for call in p.calls.values()]


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    core: ScriptedCore | None = None,
    journal: Journal | None = None,
    arrival_s: float = listener.ARRIVAL_S,
    embedder: Embedder | None = None,
    **settings: object,
) -> AsyncIterator[Site]:
    core = core or ScriptedCore()
    server = structs.replace(Server(heartbeat_s=HEARTBEAT_S), **settings)
    path = folder / "s"
    parts = {
        "core": core,
        "journal": journal,
        "config": Config(server=server),
        "embedder": embedder,
    }
    async with machine(**parts, snapshots=folder) as kernel:
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        tcp.bind(("127.0.0.1", 0))
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(str(path))
        site = Site(kernel, core, tcp, path)
        site.app = App(kernel, server, site.stopped.set)
        doors = listener.Listener(site.app, arrival_s)
        await doors.open([tcp, unix])
        try:
            yield site
        finally:
            await doors.close(2.0)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(tmp_path) as served:
        yield served


@pytest.fixture
async def gated(tmp_path: Path) -> AsyncIterator[Site]:
    """Its core runs a slice when the test says ``site.core.step()``."""
    async with serving(tmp_path, ScriptedCore(gated=True)) as served:
        yield served
