"""What a program reads from outside, so that a second life reads the same: ``await aios.now()``."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from aios.errors import InvalidCall
from aios.sdk.process import Me

current: ContextVar[Me | None] = ContextVar("aios_me", default=None)


def _me() -> Me:
    me = current.get()
    if me is None:
        raise InvalidCall("this works inside an agent, or inside `async with aios.connect()`.")
    return me


async def now() -> float:
    """Seconds since the epoch."""
    return await _me().now()


async def random() -> float:
    """A number in [0, 1)."""
    return await _me().random()


async def step(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Do something outside and keep its result, which is JSON data; see ``Me.step``."""
    return await _me().step(function, *args, **kwargs)
