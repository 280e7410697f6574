"""An agent is a function of (me, task)."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, overload

import msgspec

from aios.abi.calls import Limits
from aios.errors import InvalidCall
from aios.sdk import place
from aios.sdk.connection import connect
from aios.sdk.process import Me
from aios.sdk.sync import Sync


class Agent:
    """A function under ``@aios.agent``; the kernel starts it, or ``run`` does, right here."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        model: str | None = None,
        budget: Limits | None = None,
        priority: int | None = None,
    ) -> None:
        if len(inspect.signature(function).parameters) != 2:
            raise InvalidCall(
                f"the agent {function.__name__} must take two arguments, `me` and `task`."
            )
        self.function = function
        self.name = name or function.__name__
        self.model = model
        self.budget = budget or Limits()
        self.priority = priority

    def __repr__(self) -> str:
        return f"<Agent {self.name}>"

    def __call__(self, task: str, **options: Any) -> str:
        """Run it here to its end, from plain Python."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self.run(task, **options))
        raise InvalidCall(
            f"{self.name}(task) would block the event loop: use `await {self.name}.run(task)`."
        )

    async def run(
        self, task: str, *, url: str | None = None, key: str | None = None, **options: Any
    ) -> str:
        """Run it in this Python as a process of its own; options are fields of SpawnAgent."""
        wished = {"model": self.model, "budget": self.budget, "priority": self.priority, **options}
        async with connect(url, key, program=self.name, task=task, **wished) as me:
            with place.at(place.Place()):
                return await self.live(me, task)

    async def live(self, me: Me, task: str) -> str:
        """Its whole life as the process *me*: the kernel is told how it ended."""
        try:
            result = as_text(await self._body(me, task))
        except Exception as error:
            await me.fail(error)
            raise
        await me.exit(result)
        return result

    async def _body(self, me: Me, task: str) -> Any:
        if inspect.iscoroutinefunction(self.function):
            return await self.function(me, task)
        return await asyncio.to_thread(self.function, Sync(me, asyncio.get_running_loop()), task)


@overload
def agent(function: Callable[..., Any], /) -> Agent: ...
@overload
def agent(
    *,
    name: str | None = None,
    model: str | None = None,
    budget: Limits | None = None,
    priority: int | None = None,
) -> Callable[[Callable[..., Any]], Agent]: ...
def agent(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make ``async def travel(me, task)`` (or a plain ``def``) an agent.

    ``aios run file.py "task"`` has the kernel start it; ``await travel.run("task")`` runs it here,
    ``travel("task")`` does so from plain Python. What it returns is its result.
    """
    if function is not None:
        return Agent(function)
    return lambda function: Agent(function, **options)


def as_text(result: Any) -> str:
    """A result as text: strings as they are, nothing as nothing, the rest as JSON."""
    if result is None:
        return ""
    return result if isinstance(result, str) else msgspec.json.encode(result).decode()
