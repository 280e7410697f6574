"""The CLI's line to the kernel: one session a command, as this user or as AIOS_KEY says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from aios.abi.calls import Aid, Call, GetAid, Reply
from aios.abi.events import Event

if TYPE_CHECKING:
    from aios.sdk.process import Process

T = TypeVar("T")
R = TypeVar("R", bound=Reply)


class Session:
    """Calls and events over one connection pool; close it when the command is done."""

    def __init__(self) -> None:
        # the HTTP stack costs 50 ms: only a command that talks to a kernel pays it
        from aios.sdk import address
        from aios.sdk.link import Link

        found = address.find()
        self._link = Link(found)
        self._key = found.key

    async def call(self, call: Call, kind: type[R]) -> R:
        """Have the kernel carry out *call*; its reply is a *kind*. An AiosError is its refusal."""
        return await self._link.trap(call, kind, self._key)

    def events(
        self, *, after: int = 0, pid: int | None = None, follow: bool = False
    ) -> AsyncGenerator[Event, None]:
        """What has happened since event number *after*; with follow, what happens from now on."""
        return self._link.events(self._key, after=after, aid=pid, follow=follow)

    async def process(self, pid: int | None) -> Process:
        """A process as an object; None: the one that we are."""
        from aios.sdk.process import Process

        if pid is None:
            pid = (await self.call(GetAid(), Aid)).aid
        return Process(self._link, self._key, pid)

    async def page(self, path: str) -> Any:
        """A page of the daemon's own as plain data: ``/api/status``, ``/api/doctor``."""
        return await self._link.get(path, self._key)

    async def close(self) -> None:
        await self._link.close()


async def _used(main: Callable[[Session], Awaitable[T]]) -> T:
    session = Session()
    try:
        return await main(session)
    finally:
        await session.close()


def use(main: Callable[[Session], Awaitable[T]]) -> T:
    """Run *main* with a session; NotRunning if there is no kernel."""
    return asyncio.run(_used(main))


def ask(call: Call, kind: type[R]) -> R:
    """One call, one reply."""
    return use(lambda session: session.call(call, kind))


def ask_each(calls: Sequence[Call], kind: type[R]) -> list[R]:
    """The calls in order; the first that is refused ends it."""

    async def main(session: Session) -> list[R]:
        return [await session.call(call, kind) for call in calls]

    return use(main)
