"""Constrained output: a JSON Schema becomes a matcher that says which tokens may come next.

A matcher's state is the tokens it has consumed: after a restore it is built again from those.
"""

from __future__ import annotations

import json
from typing import Any

import llguidance

from aios.abi.messages import ToolSpec
from aios.errors import InvalidCall

OPEN = {  # where one of these says more about an object, closing it could contradict it
    "additionalProperties",
    "unevaluatedProperties",
    "patternProperties",
    "propertyNames",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "$ref",
}
NAMED = {"properties", "$defs", "definitions"}  # whose values map names to schemas
COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammars:
    """Builds matchers for one model's vocabulary."""

    def __init__(self, tokenizer: llguidance.LLTokenizer) -> None:
        self._tokenizer = tokenizer

    def matcher(self, schema: dict[str, Any]) -> llguidance.LLMatcher:
        """InvalidCall if *schema* is not a JSON Schema that can be followed."""
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                json.dumps(closed(schema)), defaults=COMPACT
            )
        except ValueError as error:
            raise InvalidCall(f"the JSON schema is not valid: {_line(error)}.") from error
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise InvalidCall(f"the JSON schema is not valid: {_line(matcher.get_error())}.")
        return matcher


def dead_end(matcher: llguidance.LLMatcher) -> InvalidCall:
    """For a matcher in error: why nothing may come next, in a sentence."""
    why = _line(matcher.get_error())
    if "NoExtensionBias" in why:
        why = "the model has no token that could come next"
    return InvalidCall(f"the JSON schema cannot be followed any further: {why}.")


def call_schema(tools: tuple[ToolSpec, ...], choice: str) -> dict[str, Any]:
    """The JSON Schema of a call of one of *tools*; *choice* is ``required`` or a tool's name."""
    allowed = tools if choice == "required" else [t for t in tools if t.name == choice]
    if not allowed:
        known = ", ".join(tool.name for tool in tools) or "none"
        raise InvalidCall(f"tool_choice is {choice!r}, but the tools given are: {known}.")
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": _without_definitions(tool)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in allowed
    ]
    definitions: dict[str, Any] = {}
    for tool in allowed:
        definitions |= tool.parameters.get("$defs", {})
    root = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**root, "$defs": definitions} if definitions else root


def closed(schema: Any) -> Any:
    """The schema with its objects closed where it does not say: what matches it matches the other.

    A small model left free to add properties never stops adding them.
    """
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: value
        if key in OPEN | {"const", "enum", "default", "examples"}
        else {name: closed(part) for name, part in value.items()}
        if key in NAMED and isinstance(value, dict)
        else closed(value)
        for key, value in schema.items()
    }
    properties = schema.get("properties")
    if (
        isinstance(properties, dict)
        and not OPEN & schema.keys()
        and set(schema.get("required", ())) <= properties.keys()
    ):
        found["additionalProperties"] = False
    return found


def _without_definitions(tool: ToolSpec) -> dict[str, Any]:
    """They move to the root, where ``#/$defs/NAME`` looks for them."""
    return {key: value for key, value in tool.parameters.items() if key != "$defs"}


def _line(error: object) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
