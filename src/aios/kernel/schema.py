"""Whether data fits a JSON Schema. The library is loaded when the first tool is called."""

from __future__ import annotations

from typing import Any


def mismatch(value: Any, schema: dict[str, Any]) -> str | None:
    """What does not fit, in words; None when all does."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return f"the schema itself is not valid ({error.message})"
    for wrong in Draft202012Validator(schema).iter_errors(value):
        return f"{wrong.message} (at {wrong.json_path})"
    return None
