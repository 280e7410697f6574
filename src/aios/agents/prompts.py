"""Prompts are files: a conversation in Markdown, a heading per role, ``{name}`` for a value."""

from __future__ import annotations

import re
from pathlib import Path

from aios.sdk.request import Prompt


def read(beside: str, name: str, **values: object) -> Prompt:
    """The messages of ``prompts/NAME.md`` beside the file *beside*, with the values put in."""
    text = (Path(beside).parent / "prompts" / f"{name}.md").read_text()
    parts = re.split(r"^# (system|user|assistant)\n", text, flags=re.MULTILINE)[1:]
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": role, "content": _filled(said.strip(), values)} for role, said in turns]


def _filled(text: str, values: dict[str, object]) -> str:
    # one pass, so that a value with braces in it stays as it is; JSON in an example does too
    return re.sub(r"\{(\w+)\}", lambda found: str(values.get(found[1], found[0])), text)
