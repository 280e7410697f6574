"""LlamaCore: a GGUF model run by llama.cpp. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

from aios.drivers.cores.worker.core import WorkerCore, usable_cpus
from aios.ports import Abilities

THREADS = 8  # at most, when none are asked for: a small model gains nothing beyond


class LlamaCore(WorkerCore):
    """Sizes: slots and restarts are counts, cells and context_tokens tokens, ram_bytes and
    disk_bytes bytes; threads 0 means as many as this process may use, at most 8. disk is a folder
    for this core alone: what no longer fits into RAM goes there."""

    def __init__(
        self,
        model_path: Path,
        name: str,
        *,
        slots: int = 8,
        threads: int = 0,
        cells: int = 16_384,
        ram_bytes: int = 512 << 20,
        context_tokens: int | None = None,
        max_restarts: int = 5,
        disk: Path | None = None,
        disk_bytes: int = 0,
    ) -> None:
        super().__init__(
            Abilities(name, slots, context_tokens or 0, cells=cells),
            "aios.drivers.cores.llama.engine",
            {
                "path": str(model_path),
                "name": name,
                "slots": slots,
                "threads": threads or min(THREADS, usable_cpus()),
                "cells": cells,
                "ram_bytes": ram_bytes,
                "context_tokens": context_tokens,
                "disk": str(disk) if disk else None,
                "disk_bytes": disk_bytes,
            },
            source=str(model_path),
            remedy="pull or import the model again",
            ram_bytes=ram_bytes,
            max_restarts=max_restarts,
        )
