"""Snapshot files: one sequence, exactly as it was between two slices.

    MAGIC  8 bytes      then VERSION, header length, KV length as little-endian uint64
    header              MessagePack: the model's id, prompt, tokens, made tokens, computed, and of a
                        beam search the whole tree, with what each part of the KV is
    KV                  the engine's own state of the first ``computed`` positions; may be empty;
                        then, of a beam search, that of each run of nodes
    checksum            BLAKE2b of all before, 32 bytes

There are no pending logits, sampler state or grammar state to keep: the last made token is fed
again (``sequences``), random numbers follow from the seed and the count of made tokens
(``sampling``), a matcher is rebuilt from them (``grammar``). A position below len(tokens) was
computed as prompt, the others were decoded: that is the path that is repeated without the KV.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from aios.drivers.cores.kept.disk import Bytes
from aios.drivers.cores.text.searches import Kept
from aios.errors import InvalidCall, StoreFailed
from aios.ports import Prompt

MAGIC = b"AIOSSNAP"
VERSION = 1
HEAD = struct.Struct("<8sQQQ")
CHECKSUM = 32


class Part(Struct, frozen=True):
    """A run of a beam search's nodes in a KV state: what it takes there, in bytes."""

    nodes: tuple[int, ...]
    bytes: int


class Snapshot(Struct, frozen=True):
    """parts are what the KV holds after the first *computed* positions."""

    prompt: Prompt
    tokens: tuple[int, ...]
    made: tuple[int, ...]
    max_tokens: int
    computed: int
    kv: Bytes
    parts: tuple[Part, ...] = ()
    search: Kept | None = None


class _Header(Struct, frozen=True):
    model: str
    prompt: Prompt
    tokens: tuple[int, ...]
    made: tuple[int, ...]
    max_tokens: int
    computed: int
    parts: tuple[Part, ...] = ()
    search: Kept | None = None


def write(path: Path, model: str, snapshot: Snapshot) -> int:
    """Write it atomically and durably; its size in bytes."""
    s = snapshot
    header = msgspec.msgpack.encode(
        _Header(model, s.prompt, s.tokens, s.made, s.max_tokens, s.computed, s.parts, s.search)
    )
    parts = [HEAD.pack(MAGIC, VERSION, len(header), s.kv.nbytes), header, s.kv.tobytes()]
    checksum = hashlib.blake2b(digest_size=CHECKSUM)
    for part in parts:
        checksum.update(part)
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            for part in (*parts, checksum.digest()):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        return path.stat().st_size
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StoreFailed(f"the snapshot {path} cannot be written: {error.strerror}.") from error


def read(path: Path, model: str) -> Snapshot:
    """InvalidCall if it is not there, damaged, or of another model."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidCall(f"the snapshot {path} cannot be read: {error.strerror}.") from error
    damaged = InvalidCall(f"the snapshot {path} is damaged or not a snapshot; take a new one.")
    if len(data) < HEAD.size + CHECKSUM or not data.startswith(MAGIC):
        raise damaged
    _, version, header_size, kv_size = HEAD.unpack_from(data)
    if version != VERSION:
        raise InvalidCall(f"the snapshot {path} has format {version}, this aios reads {VERSION}.")
    body, checksum = memoryview(data)[:-CHECKSUM], data[-CHECKSUM:]
    if len(body) != HEAD.size + header_size + kv_size:
        raise damaged
    if hashlib.blake2b(body, digest_size=CHECKSUM).digest() != checksum:
        raise damaged
    kv_start = HEAD.size + header_size
    try:
        header = msgspec.msgpack.decode(body[HEAD.size : kv_start], type=_Header)
    except msgspec.DecodeError as error:
        raise damaged from error
    if header.model != model:
        raise InvalidCall(
            f"the snapshot {path} is of the model {header.model[:12]}, this core runs {model[:12]}."
        )
    return Snapshot(
        header.prompt,
        header.tokens,
        header.made,
        header.max_tokens,
        header.computed,
        np.frombuffer(body[kv_start:], np.uint8),
        header.parts,
        header.search,
    )


def model_id(path: Path) -> str:
    """The SHA-256 of a model file, hex; kept beside it while its size and time are the same."""
    stat = path.stat()
    mark = f"{stat.st_size} {stat.st_mtime_ns}"
    note = path.with_name(f"{path.name}.sha256")
    try:
        known, _, of = note.read_text().strip().partition(" ")
        if of == mark:
            return known
    except (OSError, UnicodeDecodeError):
        pass  # no note yet, or an unreadable one: it is written anew
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        note.write_text(f"{found} {mark}\n")
    except OSError:
        pass  # a read-only models directory: computed again next time
    return found
