"""Prompt chunks whose KV is kept for others: 64 tokens each, in RAM.

A chunk is known by a hash of its tokens and of those of all chunks before it. Only what was
computed as a full chunk of a prompt is here, so a result does not depend on what was kept when it
was made.
Whoever uses a chunk marks those before it as used too; so the one to drop, used longest ago and
deepest, is never one that another builds upon.

The naive twin keeps nothing: every sequence computes its own prompt (``share=False``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from aios.drivers.cores.kept.disk import Bytes
from aios.drivers.cores.transformers.cells import BLOCK


class Chunk:
    """Its KV, how many chunks come before it, and the turn it was last used in."""

    __slots__ = ("data", "depth", "used_at")

    def __init__(self, data: Bytes, depth: int, used_at: int) -> None:
        self.data, self.depth, self.used_at = data, depth, used_at


class Prefixes:
    def __init__(self) -> None:
        self._chunks: dict[bytes, Chunk] = {}
        self.size = 0  # in bytes

    def __repr__(self) -> str:
        return f"<prefixes: {len(self._chunks)} chunks, {self.size} bytes>"

    def get(self, keys: Sequence[bytes], depth: int, turn: int) -> Chunk | None:
        """The chunk at *depth* of a prompt, used now."""
        found = self._chunks.get(keys[depth])
        if found:
            for key in keys[: depth + 1]:
                if chunk := self._chunks.get(key):
                    chunk.used_at = turn
        return found

    def known(self, keys: Sequence[bytes]) -> int:
        """How many of a prompt's first chunks are here."""
        return next((i for i, key in enumerate(keys) if key not in self._chunks), len(keys))

    def add(self, key: bytes, data: Bytes, depth: int, turn: int) -> None:
        self._chunks[key] = Chunk(data, depth, turn)
        self.size += data.nbytes

    def drop_one(self) -> int:
        """Drop the chunk that is least likely to be wanted; the bytes that it had."""
        if not self._chunks:
            return 0
        key = min(self._chunks, key=lambda k: (self._chunks[k].used_at, -self._chunks[k].depth))
        size = self._chunks.pop(key).data.nbytes
        self.size -= size
        return size

    def check(self) -> list[str]:
        total = sum(chunk.data.nbytes for chunk in self._chunks.values())
        return [] if total == self.size else [f"chunks take {total} bytes, counted {self.size}"]


def keys_of(tokens: Sequence[int]) -> tuple[bytes, ...]:
    """The names of a prompt's full chunks."""
    found: list[bytes] = []
    for start in range(0, len(tokens) // BLOCK * BLOCK, BLOCK):
        chunk = np.asarray(tokens[start : start + BLOCK], np.int64).tobytes()
        before = found[-1] if found else b""
        found.append(hashlib.blake2b(before + chunk, digest_size=16).digest())
    return tuple(found)
