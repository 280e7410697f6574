"""all-MiniLM-L6-v2 in this process: onnxruntime in threads of its own, loaded on first use.

A longer text is embedded in pieces of a window; its vector is their mean, by their lengths.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from msgspec import Struct

from aios.errors import ContextOverflow, DriverError, NotFound
from aios.ports import Embedded, EmbedderFiles

NAME = "all-minilm-l6-v2"
DIMENSIONS = 384
WINDOW = 256  # tokens that it was trained to read at once, the two marks around them included
MOST = 8_192  # tokens of one text: as many as OpenAI's embedders read
BATCH = 4_096  # tokens, padding included: past it a batch only needs more memory
NICE = 10  # of the background thread, where threads have a priority of their own (Linux)
NEEDED = ("numpy", "onnxruntime", "tokenizers")


class Piece(Struct, frozen=True):
    """A window of the text of this number, as token ids with their marks."""

    text: int
    ids: list[int]


class MiniLM:
    """A ports.Embedder; *find* says where its files are, or None while they are not there."""

    name = NAME
    dimensions = DIMENSIONS

    def __init__(self, find: Callable[[], EmbedderFiles | None]) -> None:
        self._find = find
        self._files: EmbedderFiles | None = None
        self._loaded: _Loaded | None = None
        self._loading = threading.Lock()
        self._callers = ThreadPoolExecutor(1, "embedder")
        self._background = ThreadPoolExecutor(1, "embedder-background", initializer=_yield)

    def __repr__(self) -> str:
        return f"<MiniLM {self.model or 'not there'}>"

    @property
    def model(self) -> str | None:
        if self._files is None and not _absent():
            self._files = self._find()
        return self._files.model if self._files else None

    @property
    def missing(self) -> str:
        if self.model is not None:
            return ""
        if absent := _absent():
            return f"the embedder needs {', '.join(absent)} (`pip install 'aios[embed]'`)"
        return "the embedder is not installed (`aios embed install` gets it)"

    async def embed(self, texts: Sequence[str], *, background: bool = False) -> Embedded:
        if self.model is None:
            raise NotFound(f"texts cannot be embedded: {self.missing}.")
        pool = self._background if background else self._callers
        return await asyncio.get_running_loop().run_in_executor(pool, self._embed, texts)

    async def close(self) -> None:
        for pool in (self._callers, self._background):
            pool.shutdown(wait=False, cancel_futures=True)

    def _embed(self, texts: Sequence[str]) -> Embedded:
        with self._loading:
            if self._loaded is None:
                assert self._files is not None
                self._loaded = _Loaded(self._files)
        return self._loaded.embed(texts)


class _Loaded:
    """Graph and tokenizer in memory; several threads may use them at once."""

    def __init__(self, files: EmbedderFiles) -> None:
        try:
            import onnxruntime  # 0.3 s: only who embeds pays for it
            from tokenizers import Tokenizer

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.enable_cpu_mem_arena = False  # it would keep the most it ever needed
            options.log_severity_level = 3  # errors
            self._session = onnxruntime.InferenceSession(
                files.graph, options, providers=["CPUExecutionProvider"]
            )
            self._tokenizer = Tokenizer.from_file(files.tokenizer)
        except Exception as error:  # noqa: BLE001 (the libraries raise plain Exceptions)
            raise DriverError(
                f"the embedder in {os.path.dirname(files.graph)!r} cannot be loaded ({error}): "
                "remove that directory, then `aios embed install`."
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._begin, self._end = self._tokenizer.encode("").ids  # the marks around every text

    def embed(self, texts: Sequence[str]) -> Embedded:
        import numpy as np

        pieces: list[Piece] = []
        tokens = 0
        for number, text in enumerate(texts):
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            tokens += len(ids)
            if len(ids) > MOST:
                raise ContextOverflow(
                    f"text {number} has {len(ids):,} tokens, and {NAME} reads {MOST:,}: embed it "
                    "in parts."
                )
            pieces += self._pieces(number, ids)
        sums = np.zeros((len(texts), DIMENSIONS), np.float32)
        for batch in _batches(pieces):
            for piece, vector in zip(batch, self._run(batch), strict=True):
                sums[piece.text] += vector * len(piece.ids)
        sums /= np.linalg.norm(sums, axis=1, keepdims=True)
        return Embedded(tuple(row.tobytes() for row in sums.astype("<f4")), tokens)

    def _pieces(self, number: int, ids: list[int]) -> Iterator[Piece]:
        inside = WINDOW - 2
        for first in range(0, max(len(ids), 1), inside):
            yield Piece(number, [self._begin, *ids[first : first + inside], self._end])

    def _run(self, batch: Sequence[Piece]) -> Any:
        import numpy as np

        longest = max(len(piece.ids) for piece in batch)
        ids = np.zeros((len(batch), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, piece in enumerate(batch):
            ids[row, : len(piece.ids)] = piece.ids
            mask[row, : len(piece.ids)] = 1
        try:
            return self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        except Exception as error:  # noqa: BLE001 (the library raises plain Exceptions)
            raise DriverError(f"the embedder failed ({error}): try again.") from error


def _batches(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Of nearly the same length, so that little is padding."""
    batch: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: len(piece.ids)):
        if batch and (len(batch) + 1) * len(piece.ids) > BATCH:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _absent() -> list[str]:
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def _yield() -> None:
    """Let this thread run when nobody else wants to."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
