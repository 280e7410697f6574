"""Contexts, and what to page out. Pure: it says which, the kernel has the core do it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from aios.abi.messages import Message

if TYPE_CHECKING:
    from aios.kernel.scheduler import Ticket


class Context:
    """What was said and heard, as messages (canonical); one generation at a time writes to it."""

    __slots__ = ("_lock", "messages", "name", "tokens")

    def __init__(self, name: str, messages: tuple[Message, ...] = (), tokens: int = 0) -> None:
        self.name = name
        self.messages = list(messages)
        self.tokens = tokens  # length after the last generation, as its core counted it
        self._lock: asyncio.Lock | None = None

    def __repr__(self) -> str:
        return f"<context {self.name}: {len(self.messages)} messages, {self.tokens} tokens>"

    def lock(self) -> asyncio.Lock:
        if self._lock is None:
            self._lock = asyncio.Lock()
        return self._lock

    def copy(self) -> Context:
        return Context(self.name, tuple(self.messages), self.tokens)


def to_page_out(tickets: Iterable[Ticket], need: int, free: int) -> list[Ticket]:
    """Whose KV state leaves the cells so that *need* more tokens fit where *free* are.

    Never one that runs. Suspended ones first, then those whose turn is farthest away.
    """
    idle = [t for t in tickets if t.residency == "cells" and t.cells and not t.is_running]
    idle.sort(key=lambda t: (t.process.is_suspended, t.rank), reverse=True)
    victims = []
    for ticket in idle:
        if free >= need:
            break
        victims.append(ticket)
        free += ticket.cells
    return victims
