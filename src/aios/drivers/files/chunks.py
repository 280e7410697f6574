"""Bytes as chunks, cut where their content says: what an edit leaves alone is found again.

FastCDC finds the cuts, BLAKE3 names the chunks, zstd makes them small.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import zstandard
from blake3 import blake3
from fastcdc import fastcdc

from aios.ports import ChunkRow, FileContent

LEAST, USUAL, MOST = 2_048, 8_192, 32_768  # bytes of a chunk
LEVEL = 3  # of zstd: its default
PACKED_FROM = 64  # bytes; a smaller frame is not worth it

KNOWN = """
SELECT hash FROM json_each(:hashes) CROSS JOIN chunks ON hash = unhex(value)
CROSS JOIN volume_chunks ON volume = :volume AND chunk = chunks.id
"""
OF_CONTENT = """
SELECT chunks.hash, chunks.bytes FROM contents
JOIN content_chunks ON content = contents.id JOIN chunks ON chunks.id = chunk
WHERE contents.hash = ? ORDER BY start
"""
ONE = "SELECT packed, body FROM chunks WHERE hash = ?"
PART = """
SELECT start, packed, body FROM contents
JOIN content_chunks ON content = contents.id JOIN chunks ON chunks.id = chunk
WHERE contents.hash = :hash AND start < :end AND start >= coalesce((
    SELECT max(start) FROM content_chunks WHERE content = contents.id AND start <= :start), 0)
ORDER BY start
"""


def cut(data: bytes) -> list[bytes]:
    """The chunks of *data*."""
    if len(data) <= LEAST:
        return [data] if data else []
    pieces = fastcdc(data, LEAST, USUAL, MOST)
    return [data[piece.offset : piece.offset + piece.length] for piece in pieces]


def digest(data: bytes) -> bytes:
    return blake3(data).digest()


def content_of(pieces: Iterable[tuple[bytes, int]]) -> FileContent:
    """A content made of chunks, each given as (hash, size)."""
    pieces = tuple(pieces)
    whole = blake3(b"".join(hash for hash, _ in pieces)).digest()
    return FileContent(whole, sum(size for _, size in pieces), pieces)


def row(hash: bytes, data: bytes) -> ChunkRow:
    """A chunk as it is kept: packed where that is smaller by a tenth."""
    if len(data) >= PACKED_FROM:
        frame = zstandard.compress(data, LEVEL)
        if len(frame) < 0.9 * len(data):
            return ChunkRow(hash, len(data), True, frame)
    return ChunkRow(hash, len(data), False, data)


def known(connection: Any, volume: int | None, hashes: Sequence[bytes]) -> set[bytes]:
    """Which of them a volume holds already."""
    if volume is None:
        return set()
    values = {"volume": volume, "hashes": json.dumps([hash.hex() for hash in hashes])}
    return {hash for (hash,) in connection.execute(KNOWN, values)}


def of_content(connection: Any, content: FileContent) -> list[tuple[bytes, int]]:
    """The chunks of a content that is in the database, as (hash, size)."""
    return list(connection.execute(OF_CONTENT, (content.hash,)))


def one(connection: Any, hash: bytes) -> bytes:
    """A chunk that is in the database."""
    packed, body = connection.execute(ONE, (hash,)).fetchone()
    return unpacked(packed, body)


def unpacked(packed: int, body: bytes) -> bytes:
    return zstandard.decompress(body) if packed else body


def read(connection: Any, content: FileContent, start: int = 0, end: int | None = None) -> bytes:
    """Bytes of a content that is in the database."""
    end = content.size if end is None else min(end, content.size)
    if start >= end:
        return b""
    values = {"hash": content.hash, "start": start, "end": end}
    first, parts = None, []
    for at, packed, body in connection.execute(PART, values):
        first = at if first is None else first
        parts.append(unpacked(packed, body))
    first = first or 0
    return b"".join(parts)[start - first : end - first]
