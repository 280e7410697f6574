"""Tools for a model whose server's template knows none: as text, and back from it.

As in the embedded core: the system message describes them, a call is JSON between two marks, and
one that is forced is the whole answer, held to its schema.
"""

from __future__ import annotations

from typing import Any

import msgspec

from aios.abi.messages import ToolUse
from aios.drivers.cores.remote.upstream import Piece
from aios.drivers.cores.text.answer import Answer
from aios.drivers.cores.text.grammar import call_schema, closed
from aios.drivers.cores.text.template import plain_turns
from aios.ports import Prompt


def _is_forced(prompt: Prompt) -> bool:
    return prompt.tool_choice not in ("auto", "none")


def messages(prompt: Prompt) -> list[dict[str, Any]]:
    """What is said, tools included; none that may not be called."""
    tools = prompt.tools if prompt.tool_choice != "none" else ()
    turns = plain_turns(prompt.messages, tools)
    return [{name: value for name, value in turn.items() if name != "answers"} for turn in turns]


def body(made: dict[str, Any], prompt: Prompt) -> dict[str, Any]:
    """The request without tools, but with the same meaning."""
    told = {name: value for name, value in made.items() if name not in ("tools", "tool_choice")}
    begun = made["messages"][len(prompt.messages) :]  # the answer's text so far
    told["messages"] = [*messages(prompt), *begun]
    if _is_forced(prompt):
        schema = closed(call_schema(prompt.tools, prompt.tool_choice))
        told["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "call", "schema": schema, "strict": True},
        }
        told.pop("stop", None)  # a text within a call is none that was said
    return told


class Calls:
    """Takes calls out of what comes; *identity* makes their ids unique."""

    def __init__(self, prompt: Prompt, identity: str) -> None:
        names = tuple(tool.name for tool in prompt.tools) if prompt.tool_choice != "none" else ()
        self._answer = Answer((), names, forced=_is_forced(prompt))
        self._identity = identity
        self._said = self._shown = 0

    def take(self, piece: Piece) -> Piece:
        """What of it can be shown now."""
        self._answer.feed(piece.text.encode())
        shown = self._answer.take()
        self._said += len(piece.text)
        self._shown += len(shown)
        is_held = self._shown < self._said
        return msgspec.structs.replace(piece, text=shown, is_open=piece.is_open or is_held)

    def end(self) -> tuple[Piece, tuple[ToolUse, ...]]:
        """The rest of the text, and the calls."""
        self._answer.end()
        text, calls = self._answer.finish(self._identity)
        return Piece(text), calls
