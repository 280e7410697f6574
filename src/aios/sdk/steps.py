"""What a program reads from outside, so that a second life reads the same: ``await aios.now()``."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from aios.errors import InvalidCall
from aios.sdk.process import Me

current: ContextVar[Me | None] = ContextVar("aios_me", default=None)


def me() -> Me:
    """The process that this code runs as."""
    found = current.get()
    if found is None:
        raise InvalidCall("this works inside an agent, or inside `async with aios.connect()`.")
    return found


async def now() -> float:
    """Seconds since the epoch."""
    return await me().now()


async def random() -> float:
    """A number in [0, 1)."""
    return await me().random()


async def step(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Do something outside and keep its result, which is JSON data; see ``Me.step``."""
    return await me().step(function, *args, **kwargs)
