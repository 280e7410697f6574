"""TransformersCore: a model of Hugging Face, run by PyTorch. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

from aios.drivers.cores.worker.core import WorkerCore, usable_cpus
from aios.ports import Abilities


class TransformersCore(WorkerCore):
    """*source* is a folder, or a repository on the hub ("google/gemma-2b-it").

    device is "auto" (the GPUs if there are any, else the CPU), "cpu" or "cuda:N"; max_memory says
    how much of each device the weights may take ({"0": "24GB", "cpu": "64GB"}), dtype what they are
    computed in ("auto": as they are stored), quantization "4bit" or "8bit" that bitsandbytes makes
    them smaller, gguf_file that they are in this file of the folder or repository. cache is where
    repositories are kept (None: where the library keeps them).

    Sizes: slots and restarts are counts, context_tokens and cells tokens (None: what the model was
    trained for, what the memory left holds), ram_bytes and disk_bytes bytes; threads 0 means as
    many as this process may use. disk is a folder for this core alone: what no longer fits into RAM
    goes there. *deterministic* off computes what is asked for and no padding (``engine``).
    """

    def __init__(
        self,
        source: str,
        name: str,
        *,
        slots: int = 8,
        threads: int = 0,
        device: str = "auto",
        max_memory: dict[str, str] | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        gguf_file: str | None = None,
        token: str | None = None,
        cache: Path | None = None,
        context_tokens: int | None = None,
        cells: int | None = None,
        ram_bytes: int = 512 << 20,
        disk: Path | None = None,
        disk_bytes: int = 0,
        deterministic: bool = True,
        max_restarts: int = 5,
    ) -> None:
        super().__init__(
            Abilities(name, slots, context_tokens or 0, exact_snapshots=deterministic),
            "aios.drivers.cores.transformers.start",
            {
                "source": source,
                "name": name,
                "slots": slots,
                "threads": threads or usable_cpus(),
                "device": device,
                "max_memory": max_memory,
                "dtype": dtype,
                "quantization": quantization,
                "gguf_file": gguf_file,
                "token": token,
                "cache": str(cache) if cache else None,
                "context_tokens": context_tokens,
                "cells": cells,
                "ram_bytes": ram_bytes,
                "disk": str(disk) if disk else None,
                "disk_bytes": disk_bytes,
                "deterministic": deterministic,
            },
            source=source,
            remedy="choose another model, or give it more memory",
            ram_bytes=ram_bytes,
            max_restarts=max_restarts,
        )
