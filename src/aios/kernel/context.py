"""Contexts, and what to page out. Pure: it says which, the kernel has the core do it.

A context is a list of turns, each a message at a position. What is appended takes the next whole
position; what a strategy puts in the place of others (a summary, a pointer) stands between two, at
a broken one. So nothing that stays is ever written again, and its prefix stays the same.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from aios.abi import wire
from aios.abi.calls import Strategy
from aios.abi.messages import Message
from aios.ports import ContextRow, ContextSetting

if TYPE_CHECKING:
    from aios.kernel.scheduler import Ticket


class Turn(NamedTuple):
    """A message at its place in a context."""

    position: float
    message: Message

    @property
    def is_made(self) -> bool:
        """Whether a strategy put it there in the place of others."""
        return not float(self.position).is_integer()


class Setting(Struct, frozen=True, omit_defaults=True):
    """How a context is kept within its window, and what that took out of it so far (messages).

    None is what its process was spawned with; of window, failing that, the model's own.
    """

    window: int | None = None
    strategy: Strategy | None = None
    compactions: int = 0
    dropped: int = 0


class Context:
    """What was said and heard, as messages (canonical); one generation at a time writes to it."""

    __slots__ = ("_lock", "name", "setting", "tokens", "turns")

    def __init__(
        self,
        name: str,
        turns: Iterable[Turn] = (),
        setting: Setting = Setting(),  # noqa: B008 (frozen)
        tokens: int = 0,
    ) -> None:
        self.name = name
        self.turns = list(turns)
        self.setting = setting
        self.tokens = tokens  # length after the last generation, as its core counted it
        self._lock: asyncio.Lock | None = None

    def __repr__(self) -> str:
        return f"<context {self.name}: {len(self.turns)} messages, {self.tokens} tokens>"

    @classmethod
    def from_rows(
        cls, name: str, rows: Iterable[ContextRow], setting: ContextSetting | None = None
    ) -> Context:
        """As the journal kept it: its rows, in order, and its setting if it has one."""
        turns = (Turn(row.position, wire.decode(row.message, Message)) for row in rows)
        return cls(name, turns, wire.decode(setting.detail, Setting) if setting else Setting())

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(turn.message for turn in self.turns)

    def lock(self) -> asyncio.Lock:
        if self._lock is None:
            self._lock = asyncio.Lock()
        return self._lock

    def copy(self) -> Context:
        return Context(self.name, self.turns, self.setting, self.tokens)

    def append(self, pid: int, call: str, messages: Iterable[Message]) -> list[ContextRow]:
        """Put messages at its end; what to journal of that. pid is whose context it is."""
        new = self.after(messages)
        self.turns += new
        return self.rows(pid, call, new)

    def after(self, messages: Iterable[Message]) -> list[Turn]:
        """Messages as the turns that would come next."""
        first = int(self.turns[-1].position) + 1 if self.turns else 0
        return [Turn(first + ordinal, message) for ordinal, message in enumerate(messages)]

    def put(self, turns: Iterable[Turn]) -> None:
        """Turns to their positions, which nobody has."""
        for turn in turns:
            insort(self.turns, turn, key=lambda one: one.position)

    def take(self, positions: Sequence[float]) -> None:
        """Turns out of it."""
        gone = set(positions)
        self.turns = [turn for turn in self.turns if turn.position not in gone]

    def rows(self, pid: int, call: str, turns: Iterable[Turn]) -> list[ContextRow]:
        """Turns as the journal keeps them, brought by a call (``c12``)."""
        return [
            ContextRow(pid, self.name, turn.position, call, wire.encode(turn.message))
            for turn in turns
        ]

    def kept(self, pid: int) -> ContextSetting:
        """Its setting as the journal keeps it."""
        return ContextSetting(pid, self.name, wire.encode(self.setting))

    def records(self, pid: int, call: str) -> list[ContextRow | ContextSetting]:
        """All of it, for the journal: a copy of it is process *pid*'s since a call."""
        return [self.kept(pid), *self.rows(pid, call, self.turns)]


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
