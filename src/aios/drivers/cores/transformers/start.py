"""What the worker process calls to get an engine. Heavy libraries are imported here, if they are
there, and not before they were told how to work."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from aios.errors import SetupError

NEEDED = ("torch", "transformers", "accelerate")
ENVIRONMENT = {
    "MKL_DYNAMIC": "FALSE",  # else the number of threads, and so the bits, are the library's choice
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # likewise, for the way a product is split on a GPU
    "TOKENIZERS_PARALLELISM": "false",
}


def load(
    *,
    source: str,
    name: str,
    threads: int,
    device: str = "auto",
    max_memory: dict[str, str] | None = None,
    dtype: str = "auto",
    quantization: str | None = None,
    gguf_file: str | None = None,
    token: str | None = None,
    cache: str | None = None,
    disk: str | None = None,
    **options: Any,
) -> Any:
    """An Engine: *options* as it takes them, the others as TransformersCore does."""
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            raise SetupError(
                f"a model of Hugging Face needs the package {package}, which is not installed; "
                "`pip install 'aios[hf]'`."
            )
    os.environ.update(ENVIRONMENT | os.environ)
    import torch

    from aios.drivers.cores.transformers.engine import Engine
    from aios.drivers.cores.transformers.loading import Wanted
    from aios.drivers.cores.transformers.loading import load as load_model

    torch.set_num_threads(threads)
    wanted = Wanted(source, device, max_memory, dtype, quantization, gguf_file, token, cache)
    model, tokenizer = load_model(wanted)
    return Engine(model, tokenizer, name, disk=Path(disk) if disk else None, **options)
