"""JSON Schemas from Python types, and JSON back into them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from aios.errors import InvalidCall

Convert = Callable[[str], Any]


def of_type(kind: Any) -> dict[str, Any]:
    """The JSON Schema of a msgspec Struct, dataclass, TypedDict, pydantic model or plain type.

    Objects are closed (no further properties): a small model would never stop adding some.
    """
    if hasattr(kind, "model_json_schema"):
        schema: dict[str, Any] = kind.model_json_schema()
    else:
        try:
            schema = msgspec.json.schema(kind)
        except TypeError as error:
            raise InvalidCall(f"{kind!r} has no JSON Schema: {error}") from error
    return dict(_closed(_unfolded(schema)))


def target(schema: Any) -> tuple[dict[str, Any], Convert]:
    """From what ``generate(schema=…)`` was given: the JSON Schema, and text -> data."""
    if isinstance(schema, dict):
        return schema, msgspec.json.decode
    if hasattr(schema, "model_validate_json"):
        return of_type(schema), schema.model_validate_json
    return of_type(schema), msgspec.json.Decoder(schema).decode


def _unfolded(schema: dict[str, Any]) -> dict[str, Any]:
    """Without a reference at the top: some model servers want to see an object there."""
    definitions = dict(schema.get("$defs", {}))
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    if name not in definitions:
        return schema
    top = definitions[name]
    if f'"#/$defs/{name}"' not in msgspec.json.encode(definitions).decode():
        del definitions[name]
    return {**top, "$defs": definitions} if definitions else top


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(part) for key, part in schema.items()}
    if closed.get("type") == "object" and isinstance(closed.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed
