"""From configuration to a running kernel: one line a part, in order of need."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

from aios.config import Config, Paths
from aios.drivers.clock import SystemClock
from aios.drivers.cores.llama.core import LlamaCore
from aios.drivers.embedder.minilm import MiniLM
from aios.drivers.files.sqlite import SqliteFiles
from aios.drivers.journal.sqlite import SqliteJournal
from aios.drivers.memory.sqlite import SqliteMemory
from aios.drivers.programs import OsPrograms
from aios.drivers.vault import KeyFiles
from aios.kernel.kernel import Kernel
from aios.models import EmbedderStore, ModelStore
from aios.ports import Core, Cores

KEPT_ENVIRONMENT = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "TZ", "AIOS_HOME")


class LocalCores:
    """The embedded core of every model that is here or can be pulled; each is started once."""

    def __init__(self, store: ModelStore, config: Config, contexts: Path | None = None) -> None:
        self._store, self._config, self._contexts = store, config, contexts
        self.default = config.core.model

    def names(self) -> list[str]:
        return [self.default, *(m.name for m in self._store.list() if m.name != self.default)]

    async def open(self, name: str) -> Core:
        settings = self._config.core
        file = await asyncio.to_thread(self._store.ensure, name)
        core = LlamaCore(
            file.path,
            name,
            slots=settings.slots,
            threads=settings.threads,
            cells=settings.cells,
            ram_bytes=settings.ram_mb << 20,
            max_restarts=settings.restarts,
            disk=self._contexts / quote(name, safe="") if self._contexts else None,
            disk_bytes=settings.disk_mb << 20,
        )
        try:
            await core.start()
        except BaseException:  # cancelled, too: nobody else knows of its worker yet
            await core.close()
            raise
        return core


@asynccontextmanager
async def machine(
    config: Config, paths: Paths, cores: Cores | None = None
) -> AsyncIterator[Kernel]:
    """A running kernel; at the end of the block it ends its processes and closes its files."""
    paths.make()
    clock = SystemClock()
    journal = SqliteJournal(paths.journal)
    programs = OsPrograms(paths.logs)
    cores = cores or LocalCores(ModelStore(paths.models), config, paths.contexts)
    embedder = MiniLM(EmbedderStore(paths.embedder).find)
    kernel = Kernel(
        config,
        journal,
        cores,
        programs,
        clock,
        SqliteMemory(journal.read, journal.append, embedder, config.memory),
        SqliteFiles(
            journal.read,
            journal.append,
            embedder,
            config.storage,
            closed=[str(path) for path in (paths.config, paths.data, paths.runtime)],
            now=clock.now,
        ),
        KeyFiles(paths.keys),
        user=getpass.getuser(),
        snapshots=str(paths.snapshots),
        base_env={name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ},
    )
    await kernel.start()
    try:
        yield kernel
    finally:
        await kernel.close()
        await embedder.close()
