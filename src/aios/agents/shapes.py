"""The shapes that answers must have, as JSON Schemas."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def record(**fields: Schema) -> Schema:
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


def words(least: int, most: int) -> Schema:
    """A text of so many words: it ends at a word, where maxLength would cut one in two."""
    word = r"[\w'’-]{1,16}"
    return matching(f"{word}(,? {word}){{{least - 1},{most - 1}}}[?!]?")


def sentence(most: int) -> Schema:
    """One sentence of at most so many characters."""
    return matching(rf'[A-Z][^".\\\n]{{15,{most}}}\.')


def listed(item: Schema, least: int, most: int) -> Schema:
    return {"type": "array", "items": item, "minItems": least, "maxItems": most}


def one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def matching(pattern: str) -> Schema:
    return {"type": "string", "pattern": f"^({pattern})$"}
