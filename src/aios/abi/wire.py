"""Bytes <-> data; the only file that knows how the ABI looks on the wire (JSON)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar, Union

import msgspec

from aios.abi.calls import CALLS, Call
from aios.abi.events import EVENTS, Event
from aios.errors import InvalidCall

T = TypeVar("T")
DEPTH = 128  # of nested arrays and objects: far below where an encoder's recursion ends

_encoder = msgspec.json.Encoder()
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


def encode(value: Any) -> bytes:
    """Any ABI value as JSON."""
    return _encoder.encode(value)


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


@cache
def _calls() -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(Union[tuple(CALLS.values())])  # noqa: UP007 (built at run time)


@cache
def _events() -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(Union[EVENTS])  # noqa: UP007 (built at run time)


def check_depth(data: bytes | str) -> None:
    """InvalidCall for JSON nested deeper than DEPTH."""
    raw = data.encode(errors="replace") if isinstance(data, str) else data
    if raw.count(b"[") + raw.count(b"{") <= DEPTH:
        return  # nearly always
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", raw)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > DEPTH:
            raise InvalidCall(f"the data is nested deeper than {DEPTH} levels: send it flatter.")


def decode(data: bytes | str, kind: type[T]) -> T:
    """*data* as a *kind*; InvalidCall says what does not fit."""
    try:
        return _decoder(kind).decode(data)  # type: ignore[no-any-return, arg-type]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidCall(f"the data is not a valid {kind.__name__}: {error}") from error


def decode_call(data: bytes | str) -> Call:
    """A system call from its JSON, the name under ``call``."""
    check_depth(data)
    try:
        return _calls().decode(data)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidCall(
            f"this is not a valid system call: {error}; GET /api/openapi.json describes each."
        ) from error


def decode_event(data: bytes | str) -> Event:
    return _events().decode(data)  # type: ignore[no-any-return]


def encode_lines(values: Sequence[Any]) -> bytes:
    """ABI values as JSON, one a line."""
    return _encoder.encode_lines(values)


def decode_events(lines: bytes) -> list[Event]:
    """Events from JSON, one a line."""
    return _events().decode_lines(lines)


def plain(value: Any) -> Any:
    """An ABI value as dicts, lists and scalars, for ``--json`` and for tables."""
    return msgspec.to_builtins(value)
