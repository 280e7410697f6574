"""What a server's refusal means here, in one sentence that shows no key."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct

from aios.errors import AiosError, ContextOverflow, CoreFailed, CoreRefused, InvalidCall

SHOWN = 300  # characters of what a server says
OVERFLOW = re.compile(
    r"context (length|window|size)|maximum (input|prompt|context)|prompt is too long|"
    r"too many (input )?tokens|max_model_len|longer than the model",
    re.IGNORECASE,
)
DROPPABLE = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "max_tokens",
        "max_completion_tokens",
        "stream_options",
        "session_id",
        "prompt_cache_key",
        "cache_prompt",
        "priority",
        "ignore_eos",
    }
)  # without these an answer is still one to the question


class Told(Struct):
    """An error as servers give it, more or less."""

    message: str
    code: str = ""
    type: str = ""
    param: str = ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def read(body: bytes) -> Told:
    """What an error's body tells, whatever it is."""
    try:
        data = msgspec.json.decode(body)
    except msgspec.DecodeError:
        text = body.decode(errors="replace")
        if re.match(r"\s*<(!doctype|html)", text, re.IGNORECASE):
            title = re.search(r"<title>([^<]*)", text, re.IGNORECASE)
            return Told(f"an HTML page{f' ({title[1].strip()})' if title else ''}")
        return Told(text)
    return told(data)


def told(data: Any) -> Told:
    """From ``{"error": …}`` or what is in it."""
    if isinstance(data, dict) and "error" in data:
        data = data["error"]
    if not isinstance(data, dict):
        return Told(_text(data))
    message = _text(data.get("message")) or _text(data.get("detail"))
    return Told(
        message or msgspec.json.encode(data).decode(),
        str(data.get("code") or ""),
        _text(data.get("type")),
        _text(data.get("param")),
    )


def quote(text: str, key: str | None) -> str:
    """A server's words on one line, short, and without the key, which some give back."""
    if key:
        text = text.replace(key, "[key]")
    text = re.sub(r"[^\S ]+|[\x00-\x1f\x7f]", " ", text).strip().rstrip(".")
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def unsupported(status: int, error: Told) -> str | None:
    """The field that a server refuses and that can be left out, if that is what it says."""
    if status not in (400, 422):
        return None
    if error.code in ("unsupported_parameter", "unsupported_value"):
        return error.param if error.param in DROPPABLE else None
    if "priority" in error.message and not OVERFLOW.search(error.message):
        return "priority"  # vLLM, unless it runs with --scheduling-policy priority
    return None


def is_overflow(error: Told) -> bool:
    return (
        error.code == "context_length_exceeded"
        or error.type == "exceed_context_size_error"
        or bool(OVERFLOW.search(error.message))
    )


def is_out_of_money(error: Told) -> bool:
    """No 429 that waiting helps against."""
    return "insufficient_quota" in (error.code, error.type)


def refusal(status: int, error: Told, place: str, model: str, key: str | None) -> AiosError:
    """The error for an answer that is none; *place* is the server as people know it."""
    said = quote(error.message, key)
    because = f": {said}" if said else ""
    if status in (401, 403):
        what = "needs a key, and none is set" if key is None else "refused the key"
        return CoreRefused(f"{place} {what} ({status}){because}; set the right key for it.")
    if status == 402 or is_out_of_money(error):
        return CoreRefused(f"{place} wants to be paid first ({status}){because}.")
    if status in (400, 413, 422):
        if is_overflow(error):
            return ContextOverflow(f"the prompt is too long for {model} at {place}{because}.")
        return InvalidCall(f"{place} refused the request ({status}){because}.")
    if 300 <= status < 400:
        return CoreRefused(f"{place} sends elsewhere ({status}); configure the address it names.")
    if status == 429:
        return CoreFailed(f"{place} allows no more for now (429){because}; try again later.")
    return CoreFailed(f"{place} failed ({status}){because}; try again, or see its log.")
