"""Whether data fits a JSON Schema. The library is loaded when the first tool is called."""

from __future__ import annotations

from typing import Any


def mismatch(value: Any, schema: dict[str, Any]) -> str | None:
    """What does not fit, in words; None when all does."""
    from jsonschema import Draft202012Validator, SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return f"the schema itself is not valid ({error.message})"
    # a registry of its own: the default one fetches what a $ref points at from the network
    validator = Draft202012Validator(schema, registry=Registry())
    try:
        for wrong in validator.iter_errors(value):
            return f"{wrong.message} (at {wrong.json_path})"
    except Unresolvable as error:
        return f"the schema refers to {error.ref!r}, which is not in it"
    except RecursionError:
        return "the schema refers to itself without an end"
    return None
