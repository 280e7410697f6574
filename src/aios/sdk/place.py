"""Where in its program a call stands: the same path in every life, whatever finishes first.

A path is the place of a task and an ordinal in it: ``0``, ``1``, ``2`` in the program's main line;
``1.scene.0/0`` is the first call of the first ``scene`` task that was made after one call of the
main line. A task gets its place when it is *made* (a task factory sees to it), in program order, so
``asyncio.gather`` replays; what the event loop happens to run first does not matter. Tasks that
never call leave no gap in the numbers of others, because tasks are counted by name.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any


class Place:
    """A task's place: its prefix, and what it has counted so far."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.calls = 0
        self.tasks: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Place {self.prefix or '/'} calls={self.calls}>"

    def next(self) -> str:
        path = f"{self.prefix}{self.calls}"
        self.calls += 1
        return path

    def inner(self, name: str) -> Place:
        key = f"{self.calls}.{name}"
        ordinal = self.tasks[key]
        self.tasks[key] += 1
        return Place(f"{self.prefix}{key}.{ordinal}/")


_here: ContextVar[Place | None] = ContextVar("aios_place", default=None)


def next_path() -> str | None:
    """The path of the call that is being made; None outside of any program (no replay there)."""
    place = _here.get()
    return place.next() if place else None


@contextmanager
def at(place: Place | None) -> Iterator[None]:
    """Be at this place; None is outside the program: nothing made in here is counted."""
    token = _here.set(place)
    try:
        yield
    finally:
        _here.reset(token)


def begin() -> None:
    """Start the main line here, unless the caller is on one already."""
    if _here.get() is None:
        _here.set(Place())


def number_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Have this loop give each new task its place; a factory that is set already is kept inside."""
    make = loop.get_task_factory()
    if getattr(make, "numbers_tasks", False):
        return

    def numbered(
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        **options: Any,
    ) -> asyncio.Future[Any]:
        place = _here.get()
        # a context that the caller made himself is not ours to write to
        if place and options.get("context") is None:
            name = getattr(coroutine, "__name__", "task")
            options["context"] = context = copy_context()
            context.run(_here.set, place.inner(name))
        if make is None:
            return asyncio.Task(coroutine, loop=loop, **options)
        return make(loop, coroutine, **options)

    numbered.numbers_tasks = True  # type: ignore[attr-defined]
    loop.set_task_factory(numbered)
