"""Write a GGUF again with its Q4_1 tensors as Q4_0: python -m aios.models.requantise IN OUT

Runs as a process of its own, with low priority, so that the memory that it needs (about 60 MB) is
never the kernel's. Prints ``DONE TOTAL`` in bytes read as it goes on. The result's bytes depend on
the input's alone: metadata and the other tensors are copied as they are.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from aios.models import gguf_file
from aios.models.gguf_file import GgufFile, Tensor

_CHUNK = 4_000_000  # bytes read at a time; as float32 values they take 26 MB
_Q4_0_FILE = 2  # general.file_type: mostly Q4_0
_CODES = {
    name: (code, values, size) for code, (name, values, size) in gguf_file.TENSOR_TYPES.items()
}


def requantise(source: Path, target: Path, report: Callable[[int, int], None]) -> None:
    """InvalidCall if the source is damaged; report takes bytes done and in total."""
    model = gguf_file.read(source)
    total = sum(tensor.bytes for tensor in model.tensors)
    done = 0
    with open(source, "rb") as given, open(target, "wb") as made:
        made.write(_head(model, given))
        for tensor in model.tensors:
            made.write(bytes(-made.tell() % model.alignment))
            for chunk in _chunks(given, tensor):
                made.write(_to_q4_0(chunk) if tensor.kind == "Q4_1" else chunk)
                done += len(chunk)
                report(done, total)
        made.write(bytes(-made.tell() % model.alignment))
        made.flush()
        os.fsync(made.fileno())


def _head(model: GgufFile, given: BinaryIO) -> bytes:
    """All before the weights: the metadata as it was, but for the file's type; new offsets."""
    begin, end = model.metadata
    given.seek(0)
    head = bytearray(given.read(end))
    if "general.file_type" in model.fields:
        struct.pack_into("<I", head, model.fields_at["general.file_type"], _Q4_0_FILE)
    offset = 0
    for tensor in model.tensors:
        code, values, size = _CODES["Q4_0" if tensor.kind == "Q4_1" else tensor.kind]
        name = tensor.name.encode()
        head += struct.pack(f"<Q{len(name)}sI", len(name), name, len(tensor.shape))
        head += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, code, offset)
        _, given_values, given_size = _CODES[tensor.kind]
        length = tensor.bytes // given_size * given_values // values * size
        offset += length + -length % model.alignment
    return bytes(head)


def _chunks(given: BinaryIO, tensor: Tensor) -> Iterator[bytes]:
    """The tensor's bytes, in whole blocks."""
    _, _, size = _CODES[tensor.kind]
    given.seek(tensor.start)
    left = tensor.bytes
    while left:
        chunk = given.read(min(left, _CHUNK // size * size))
        left -= len(chunk)
        yield chunk


def _to_q4_0(chunk: bytes) -> bytes:
    import numpy as np
    from gguf import GGMLQuantizationType, quants  # here: reading a file needs neither

    blocks = np.frombuffer(chunk, np.uint8).reshape(1, -1)
    values = quants.dequantize(blocks, GGMLQuantizationType.Q4_1)
    packed: bytes = quants.quantize(values, GGMLQuantizationType.Q4_0).tobytes()
    return packed


def main(source: str, target: str) -> None:
    os.nice(10)
    reported = -1

    def report(done: int, total: int) -> None:
        nonlocal reported
        if done * 100 // total > reported:
            reported = done * 100 // total
            sys.stdout.write(f"{done} {total}\n")
            sys.stdout.flush()

    requantise(Path(source), Path(target), report)


if __name__ == "__main__":
    main(*sys.argv[1:])
