"""From configuration to a running kernel: one line a part, in order of need."""

from __future__ import annotations

import getpass
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aios.config import Config, Paths
from aios.drivers.clock import SystemClock
from aios.drivers.cores.configured import ConfiguredCores
from aios.drivers.embedder.minilm import MiniLM
from aios.drivers.files.sqlite import SqliteFiles
from aios.drivers.journal.sqlite import SqliteJournal
from aios.drivers.memory.sqlite import SqliteMemory
from aios.drivers.programs import OsPrograms
from aios.drivers.vault import KeyFiles
from aios.kernel.kernel import Kernel
from aios.models import EmbedderStore, ModelStore
from aios.ports import Cores

KEPT_ENVIRONMENT = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "TZ", "AIOS_HOME")


@asynccontextmanager
async def machine(
    config: Config, paths: Paths, cores: Cores | None = None
) -> AsyncIterator[Kernel]:
    """A running kernel; at the end of the block it ends its processes and closes its files."""
    paths.make()
    clock = SystemClock()
    journal = SqliteJournal(paths.journal)
    programs = OsPrograms(paths.logs)
    own = ConfiguredCores(ModelStore(paths.models), config, clock, paths.contexts)
    embedder = MiniLM(EmbedderStore(paths.embedder).find)
    kernel = Kernel(
        config,
        journal,
        cores or own,
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
    own.on_gate = kernel.gate_changed
    await kernel.start()
    try:
        yield kernel
    finally:
        await kernel.close()
        await embedder.close()
