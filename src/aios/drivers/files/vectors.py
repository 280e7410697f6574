"""Vectors of passages: made in the background, and a cache of them for searches.

What was written while there was no embedder, or by another one, gets its vectors here as well.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aios.drivers.chore import Chore
from aios.drivers.files import chunks
from aios.drivers.files.passages import texts
from aios.ports import Embedder, FileContent, PassageVector, Record

Floats = npt.NDArray[np.float32]

BATCH = 16  # passages; about a third of a second on one core, after which others may append

PENDING = f"""
SELECT passages.id, passages.path, ordinal, contents.hash, bytes FROM passages
JOIN heads ON heads.volume = passages.volume AND heads.path = passages.path
JOIN contents ON contents.id = heads.content
WHERE passages.id > :after AND NOT EXISTS (
    SELECT 1 FROM passage_vectors WHERE passage = passages.id AND model = :model)
ORDER BY passages.id LIMIT {BATCH}
"""
STAMP = """
SELECT count(*), coalesce(max(passage), 0), coalesce(sum(passage), 0) FROM passage_vectors
WHERE volume = ? AND model = ?
"""
VECTORS = "SELECT passage, vector FROM passage_vectors WHERE volume = ? AND model = ?"


class Vectors:
    """The background task that makes them."""

    def __init__(
        self,
        embedder: Embedder,
        read: Callable[[Callable[[Any], Any]], Awaitable[Any]],
        append: Callable[[Sequence[Record]], Awaitable[None]],
        indexed: int,
    ) -> None:
        self._embedder, self._read, self._append = embedder, read, append
        self._indexed = indexed
        self._chore = Chore(self._batch)
        self._is_planned = False  # something was, which is there after the next append
        self._model: str | None = None  # whose vectors it has been making
        self._after = 0  # up to this passage all have one

    @property
    def trouble(self) -> str:
        """Why it does not go on; empty if it does."""
        return self._chore.trouble

    def start(self) -> None:
        self._chore.start()

    async def close(self) -> None:
        await self._chore.close()

    def wake(self) -> None:
        """Something was written."""
        self._is_planned = True
        self._chore.wake()

    async def _batch(self) -> bool:
        """Make some; whether there may be more."""
        if self._is_planned:
            self._is_planned = False
            await self._append([])
        model = self._embedder.model
        if model is None:
            return False
        if model != self._model:
            self._model, self._after = model, 0
        values = {"after": self._after, "model": model}
        pending: list[tuple[int, str]] = await self._read(
            lambda connection: _pending(connection, values, self._indexed)
        )
        if not pending:
            return False
        made = await self._embedder.embed([text for _, text in pending], background=True)
        await self._append(
            [
                PassageVector(number, model, vector)
                for (number, _), vector in zip(pending, made.vectors, strict=True)
            ]
        )
        self._after = pending[-1][0]
        return True


def _pending(connection: Any, values: dict[str, Any], indexed: int) -> list[tuple[int, str]]:
    """Passages without a vector: number and text, with the file's name before it."""
    found = []
    cut: dict[tuple[str, bytes], list[tuple[int, str]]] = {}
    for number, path, ordinal, hash, size in connection.execute(PENDING, values).fetchall():
        if (path, hash) not in cut:
            cut[path, hash] = texts(path, chunks.read(connection, FileContent(hash, size)), indexed)
        text = cut[path, hash][ordinal][1] if ordinal < len(cut[path, hash]) else ""
        found.append((number, f"{path.rpartition('/')[2]}\n{text}"))
    return found


class Matrices:
    """The vectors of the volumes that were searched last, within so many bytes. Only a cache."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()  # readers are threads
        self._kept: OrderedDict[tuple[int, str], tuple[Any, list[int], Floats]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<matrices of {len(self._kept)} volumes, {self.held:,} bytes>"

    @property
    def held(self) -> int:
        """Bytes."""
        return sum(vectors.nbytes for _, _, vectors in self._kept.values())

    def cosines(
        self, connection: Any, volumes: Sequence[int], model: str, vector: bytes
    ) -> dict[int, float]:
        """How near each passage of the volumes is to a unit vector."""
        wanted = np.frombuffer(vector, "<f4").astype(np.float32)
        found: dict[int, float] = {}
        for volume in volumes:
            numbers, vectors = self._of(connection, volume, model, len(wanted))
            if numbers:
                found |= zip(numbers, (vectors @ wanted).tolist(), strict=True)
        return found

    def _of(
        self, connection: Any, volume: int, model: str, dimensions: int
    ) -> tuple[list[int], Floats]:
        stamp = connection.execute(STAMP, (volume, model)).fetchone()
        with self._lock:
            kept = self._kept.pop((volume, model), None)
            if kept is not None and kept[0] == stamp:
                self._kept[volume, model] = kept
                return kept[1], kept[2]
        rows = connection.execute(VECTORS, (volume, model)).fetchall()
        packed = b"".join(vector for _, vector in rows)
        vectors = np.frombuffer(packed, "<f4").astype(np.float32).reshape(-1, dimensions)
        numbers = [number for number, _ in rows]
        with self._lock:
            self._kept[volume, model] = stamp, numbers, vectors
            while self._kept and self.held > self._limit:
                self._kept.popitem(last=False)
        return numbers, vectors
