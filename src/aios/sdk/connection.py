"""``async with aios.connect() as me``: from an address to the process that we are."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from aios.abi.calls import Aid, GetAid
from aios.sdk import address, place, steps
from aios.sdk.link import Link
from aios.sdk.process import Me


class Connection:
    """Enter it to be a process: the one whose key is shown, or a new child of it for *program*."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        program: str | None = None,
        task: str = "",
        session: str | None = None,
        **options: Any,
    ) -> None:
        self._find = (url, key)
        self._program = program
        self._task = task
        self._session = session
        self._options = options
        self._link: Link | None = None
        self._me: Me | None = None
        self._outer: Me | None = None

    async def __aenter__(self) -> Me:
        place.begin()
        place.number_tasks(asyncio.get_running_loop())
        self._link = link = Link(address.find(*self._find), self._session)
        try:
            with place.at(None):  # who we are is no step of the program
                aid = (await link.trap(GetAid(), Aid, link.address.key)).aid
                self._me = Me(link, link.address.key, aid)
                if self._program:
                    self._me = await self._me.register(self._program, self._task, **self._options)
        except BaseException:
            await link.close()
            raise
        self._outer = steps.current.get()
        steps.current.set(self._me)
        return self._me

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        link, me = self._link, self._me
        assert link
        assert me
        steps.current.set(self._outer)
        try:
            if not self._program or me.ended:
                await me.close()
            elif error:
                await me.fail(error)
            else:
                await me.exit()
        finally:
            await link.close()


def connect(
    url: str | None = None,
    key: str | None = None,
    *,
    program: str | None = None,
    task: str = "",
    session: str | None = None,
    **options: Any,
) -> Connection:
    """Connect to the kernel: ``async with aios.connect() as me: await me.generate("Hello")``.

    Without arguments the kernel and the key come from the environment (a program that the kernel
    started) or from this user's files. Then ``me`` is that program's process, or the user's login
    process (one more for each *session*). With *program* it is a new process of that name, which
    ends when the block does; options are then fields of SpawnAgent (model, budget, priority).
    """
    return Connection(url, key, program=program, task=task, session=session, **options)
