"""From tokens to what is shown: text that never splits a character, stops where it must, and keeps
tool calls apart.

An answer is a function of the tokens fed to it, whatever the slices were; so after a restore it is
built again from the tokens made so far.
"""

from __future__ import annotations

import codecs
import copy
import json
from typing import Any

from aios.abi.messages import ToolUse

CALL, END_OF_CALL = "<tool_call>", "</tool_call>"


class Answer:
    """What the model has said so far.

    tools are the names it may call; *forced* that the whole answer is one call. ``text`` is
    everything said, up to a stop string; ``take`` gives what may be shown and was not yet.
    """

    def __init__(
        self, stop: tuple[str, ...] = (), tools: tuple[str, ...] = (), *, forced: bool = False
    ) -> None:
        self._stop, self._tools, self._forced = stop, tools, forced
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._shown = 0
        self.text = ""
        self.is_stopped = False

    @property
    def may_stop(self) -> bool:
        """Are there texts that would end it?"""
        return bool(self._stop)

    def copy(self) -> Answer:
        twin = copy.copy(self)
        twin._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        twin._decoder.setstate(self._decoder.getstate())
        return twin

    def feed(self, piece: bytes) -> None:
        """The bytes of one more token."""
        before = len(self.text)
        self.text += self._decoder.decode(piece)
        self._find_stop(before)

    def end(self) -> None:
        """No more tokens come: half a character at the end becomes a replacement character."""
        before = len(self.text)
        self.text += self._decoder.decode(b"", final=True)
        self._find_stop(before)

    def _find_stop(self, before: int) -> None:
        hits = []
        for stop in self._stop:
            hit = self.text.find(stop, max(0, before - len(stop) + 1))
            if hit >= 0:
                hits.append(hit)
        if hits:
            self.text = self.text[: min(hits)]
            self.is_stopped = True

    def take(self) -> str:
        """What can be shown now: not what may yet become a stop string or a tool call."""
        return self._show(len(self.text) - self._held())

    def finish(self, identity: str) -> tuple[str, tuple[ToolUse, ...]]:
        """The rest of the text, and the calls; *identity* makes their ids unique."""
        start, calls = self._calls()
        uses = tuple(
            ToolUse(f"call_{identity}{number or ''}", name, arguments)
            for number, (name, arguments) in enumerate(calls)
        )
        if not uses:
            return self._show(len(self.text)), ()
        self.text = self.text[:start].rstrip() if start else ""
        return self._show(max(self._shown, len(self.text))), uses

    def _show(self, end: int) -> str:
        shown, self._shown = self.text[self._shown : end], max(self._shown, end)
        return shown

    def _held(self) -> int:
        """How many characters at the end are held back."""
        if self._tools:
            start = self._start_of_call()
            if start is not None:
                return len(self.text) - start
        watched = (*self._stop, CALL) if self._tools else self._stop
        if self.is_stopped or not watched:
            return 0
        longest = min(max(map(len, watched)) - 1, len(self.text))
        for length in range(longest, 0, -1):
            tail = self.text[-length:]
            if any(text.startswith(tail) for text in watched):
                return length
        return 0

    def _start_of_call(self) -> int | None:
        if self._forced:
            return 0
        found = self.text.find(CALL)
        if found >= 0:
            return found
        return 0 if self.text.lstrip()[:1] in ("{", "") else None

    def _calls(self) -> tuple[int, list[tuple[str, str]]]:
        """Where the calls begin, and (name, arguments as JSON) of each."""
        if not self._tools:
            return 0, []
        marked = self.text.find(CALL)
        if marked < 0 or self._forced:
            return 0, self._read(self.text)
        found = []
        for part in self.text[marked:].split(CALL)[1:]:
            found += self._read(part.split(END_OF_CALL)[0])
        return marked, found

    def _read(self, text: str) -> list[tuple[str, str]]:
        try:
            value = json.loads(text)
        except ValueError:
            return []
        calls = value if isinstance(value, list) else [value]
        found = [self._call(call) for call in calls]
        return [call for call in found if call is not None]

    def _call(self, value: Any) -> tuple[str, str] | None:
        if not isinstance(value, dict) or value.get("name") not in self._tools:
            return None
        arguments = value.get("arguments", {})
        if not isinstance(arguments, dict):
            return None
        return value["name"], json.dumps(arguments, ensure_ascii=False)
