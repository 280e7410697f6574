"""What the core and its worker say to each other: MessagePack in frames, over a socket pair.

A frame is its length as a little-endian uint32, then a Request (to the worker) or a Reply. The
first request is Load. Replies come in any order; each carries its request's number.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from aios.ports import Prompt, Slice

LENGTH = struct.Struct("<I")


class Op(Struct, frozen=True, tag=True):
    """Something the worker is asked to do. ``sequence`` is a number the core chose."""


class Load(Op, frozen=True):
    """Answered with the Abilities of the engine that ``load(**options)`` of this module makes."""

    module: str
    options: dict[str, Any]


class Admit(Op, frozen=True):
    sequence: int
    prompt: Prompt
    made: tuple[int, ...]
    text: str = ""


class Measure(Op, frozen=True):
    """Answered with the prompt's length in tokens."""

    prompt: Prompt


class Run(Op, frozen=True):
    sequence: int
    grant: Slice


class Fork(Op, frozen=True):
    sequence: int
    twin: int


class PageOut(Op, frozen=True):
    sequence: int


class PageIn(Op, frozen=True):
    sequence: int


class Freeze(Op, frozen=True):
    sequence: int
    path: str


class Thaw(Op, frozen=True):
    sequence: int
    path: str


class Cancel(Op, frozen=True):
    sequence: int


class Release(Op, frozen=True):
    sequence: int


class Report(Op, frozen=True):
    """Answered with a Residency."""


class Check(Op, frozen=True):
    """Answered with the invariants that do not hold."""


Ops = (
    Load
    | Admit
    | Measure
    | Run
    | Fork
    | PageOut
    | PageIn
    | Freeze
    | Thaw
    | Cancel
    | Release
    | Report
    | Check
)


class Request(Struct, frozen=True):
    number: int
    op: Ops


class Reply(Struct, frozen=True):
    """value, or the code and the sentence of an error."""

    number: int
    value: msgspec.Raw = msgspec.Raw(b"\xc0")
    code: str = ""
    message: str = ""


_encoder = msgspec.msgpack.Encoder()


def frame(message: Request | Reply) -> bytes:
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(value))


def split(data: bytearray) -> Iterator[bytes]:
    """Take the whole frames off the front of *data*."""
    while len(data) >= LENGTH.size:
        (length,) = LENGTH.unpack_from(data)
        end = LENGTH.size + length
        if len(data) < end:
            return
        body = bytes(data[LENGTH.size : end])
        del data[:end]
        yield body
