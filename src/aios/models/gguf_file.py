"""What is in a GGUF file: read carefully, because it may come from anywhere.

Every length is checked against the file before it is used; weights are not read. Needs neither
numpy nor much memory. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from msgspec import Struct

from aios.errors import InvalidCall, NotFound

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}

TENSOR_TYPES: dict[int, tuple[str, int, int]] = {  # name, values in a block, bytes of a block
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

WINDOWED = {"gemma3"}  # architectures whose window llama.cpp heeds; for some it is only noted

# More than any model has; stops a damaged count from being looped over.
_MOST_FIELDS, _MOST_TENSORS, _MOST_ELEMENTS, _MOST_NAME = 100_000, 1_000_000, 50_000_000, 65_536


class Tensor(Struct, frozen=True):
    """shape is as in the file, the length of a row first; start is the offset in the file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    start: int
    bytes: int


class GgufFile(Struct, frozen=True):
    """fields holds the scalars and strings of the metadata, fields_at where each value starts.

    The metadata lies at metadata[0]:metadata[1] of the file; alignment is that of the weights.
    """

    path: Path
    bytes: int
    version: int
    fields: dict[str, Any]
    fields_at: dict[str, int]
    metadata: tuple[int, int]
    tensors: tuple[Tensor, ...]
    alignment: int

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture", ""))

    @property
    def context(self) -> int:
        """The length that it was trained for, in tokens; 0 if the file does not say."""
        return self._number(f"{self.architecture}.context_length", 0)

    @property
    def files(self) -> int:
        """How many files the model is split into."""
        return self._number("split.count", 1)

    @property
    def is_windowed(self) -> bool:
        """Is it known to attend through a sliding window? Of other kinds the core finds out."""
        window = self._number(f"{self.architecture}.attention.sliding_window", 0)
        return self.architecture in WINDOWED and window > 0

    def _number(self, key: str, default: int) -> int:
        value = self.fields.get(key)
        return value if isinstance(value, int) else default


class _Damaged(Exception):
    """Says what is wrong, for the end of a sentence."""


class _Reader:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size
        self.at = 0

    def take(self, count: int, what: str) -> bytes:
        self._use(count, what)
        return self._file.read(count)

    def skip(self, count: int, what: str) -> None:
        self._use(count, what)
        self._file.seek(count, os.SEEK_CUR)

    def _use(self, count: int, what: str) -> None:
        if count > self._left:
            raise _Damaged(f"it ends in the middle of {what}, at byte {self.at + self._left:,}")
        self._left -= count
        self.at += count

    def unpack(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def count(self, most: int, what: str, code: str = "Q") -> int:
        count: int = self.unpack(code, what)
        if count > most:
            raise _Damaged(f"it claims {count:,} {what}")
        return count

    def name(self, what: str) -> str:
        length = self.count(_MOST_NAME, f"bytes in {what}")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            raise _Damaged(f"{what} is not text") from None

    def value(self, kind: int, key: str) -> Any:
        """A scalar or a string; None for an array, which is passed over."""
        if kind == STRING:
            length = self.unpack("Q", key)
            return self.take(length, key).decode(errors="replace")
        if kind == ARRAY:
            self._skip_array(key)
            return None
        if kind not in SCALARS:
            raise _Damaged(f"{key} has the unknown type {kind}")
        return self.unpack(SCALARS[kind], key)

    def _skip_array(self, key: str) -> None:
        kind = self.unpack("I", key)
        count = self.count(_MOST_ELEMENTS, f"elements in {key}")
        if kind == STRING:
            for _ in range(count):
                self.skip(self.unpack("Q", key), key)
        elif kind in SCALARS:
            self.skip(count * struct.calcsize("<" + SCALARS[kind]), key)
        else:
            raise _Damaged(f"{key} is an array of the type {kind}")


def read(path: Path, called: str = "") -> GgufFile:
    """Its contents but for the weights; InvalidCall says what is damaged in what is *called* so."""
    called = called or repr(str(path))
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _read(path, _Reader(file, size), size)
    except FileNotFoundError:
        raise NotFound(f"there is no file {str(path)!r}.") from None
    except OSError as error:
        raise InvalidCall(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except _Damaged as damage:
        raise InvalidCall(
            f"{called} is not a whole GGUF file: {damage}; get it again, or take another."
        ) from None


def _read(path: Path, reader: _Reader, size: int) -> GgufFile:
    if size < len(MAGIC) or reader.take(len(MAGIC), "its first word") != MAGIC:
        raise _Damaged("it does not begin with the letters GGUF")
    version = reader.unpack("I", "its version")
    if version not in (2, 3):
        raise _Damaged(f"its version is {version}, and only 2 and 3 are known")
    tensor_count = reader.count(_MOST_TENSORS, "tensors")
    field_count = reader.count(_MOST_FIELDS, "fields")

    begin = reader.at
    fields: dict[str, Any] = {}
    fields_at: dict[str, int] = {}
    for number in range(field_count):
        key = reader.name(f"the name of field {number}")
        kind = reader.unpack("I", key)
        fields_at[key] = reader.at
        value = reader.value(kind, key)
        if value is not None:
            fields[key] = value
    metadata = (begin, reader.at)

    infos = [_tensor_info(reader, number) for number in range(tensor_count)]
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Damaged(f"its alignment is {alignment!r}")
    data_start = reader.at + -reader.at % alignment
    tensors = tuple(
        Tensor(name, shape, kind, data_start + offset, length)
        for name, shape, kind, offset, length in infos
    )
    for tensor in tensors:
        if tensor.start + tensor.bytes > size:
            raise _Damaged(
                f"it has {size:,} bytes, but the tensor {tensor.name} ends at byte "
                f"{tensor.start + tensor.bytes:,}"
            )
    return GgufFile(path, size, version, fields, fields_at, metadata, tensors, alignment)


def _tensor_info(reader: _Reader, number: int) -> tuple[str, tuple[int, ...], str, int, int]:
    name = reader.name(f"the name of tensor {number}")
    dimensions = reader.count(4, f"dimensions of {name}", "I")
    shape = tuple(reader.unpack("Q", name) for _ in range(dimensions))
    kind = reader.unpack("I", name)
    offset = reader.unpack("Q", name)
    if kind not in TENSOR_TYPES:
        raise _Damaged(f"the tensor {name} has the unknown type {kind}")
    label, values, block = TENSOR_TYPES[kind]
    elements = 1
    for length in shape:
        elements *= length
    if shape and shape[0] % values:
        raise _Damaged(f"a row of the tensor {name} is not a whole number of blocks")
    return name, shape, label, offset, elements // values * block
