"""Memory against a dict: random writes, corrections, deletions and restarts, then all questions."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Struct

from aios.abi import calls as abi
from aios.config import Config, Memory
from aios.drivers.journal.memory import MemoryJournal
from aios.errors import Conflict, NotFound, QuotaExceeded
from aios.testing import FakeClock, ScriptedEmbedder, machine, settle

T = TypeVar("T")
QUOTA = 400  # bytes for each scope: reached soon
SCOPES: tuple[abi.Scope, ...] = ("process", "program", "user")
CONFIG = Config(memory=Memory(process_bytes=QUOTA, program_bytes=QUOTA, user_bytes=QUOTA))

scopes = st.sampled_from(SCOPES)
tags = st.sets(st.sampled_from(("red", "green", "blue")), max_size=2).map(sorted).map(tuple)
fillers = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


class Kept(Struct):
    """What the dict knows of a record."""

    text: str
    tags: tuple[str, ...]
    scope: abi.Scope
    size: int
    word: str  # that no other record has
    after: str | None = None  # the id of what corrected it


class MemoryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.journal = MemoryJournal()
        self.clock = FakeClock()
        self.model: dict[str, Kept] = {}
        self.deleted: list[str] = []
        self.words = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def ask(self, call: Any) -> Any:
        """As the user: the process itself would be told in its second life what its first was."""
        call = msgspec.structs.replace(call, aid=self.pid)
        return self.run(self.kernel.trap(self.login, call))

    async def boot(self) -> None:
        self.stack = AsyncExitStack()
        # one that knows no meanings: whatever is found by it has the words as well
        parts = machine(
            journal=self.journal, clock=self.clock, config=CONFIG, embedder=ScriptedEmbedder()
        )
        self.kernel = await self.stack.enter_async_context(parts)
        self.login = self.kernel.identify(self.kernel.user_key)

    async def spawn(self) -> None:
        spawned = await self.kernel.trap(self.login, abi.SpawnAgent(program="agent"))
        assert isinstance(spawned, abi.Spawned)
        self.pid = spawned.aid

    @initialize()
    def begin(self) -> None:
        self.run(self.boot())
        self.run(self.spawn())

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.run(self.stack.aclose())
        self.runner.close()

    # --- changes ----------------------------------------------------------------------------------

    def used(self, scope: abi.Scope) -> int:
        return sum(kept.size for kept in self.model.values() if kept.scope == scope)

    def alive(self) -> dict[str, Kept]:
        return {id: kept for id, kept in self.model.items() if kept.after is None}

    def new(self, filler: str, tags: tuple[str, ...], scope: abi.Scope) -> Kept:
        self.words += 1
        word = f"unique{self.words}x"
        text = f"{word} {filler}"
        size = len(text.encode()) + sum(map(len, tags))
        return Kept(text, tags, scope, size, word)

    @rule(filler=fillers, tags=tags, scope=scopes)
    def write(self, filler: str, tags: tuple[str, ...], scope: abi.Scope) -> None:
        kept = self.new(filler, tags, scope)
        left = QUOTA - self.used(scope)
        call = abi.MemWrite(text=kept.text, tags=tags, scope=scope)
        if kept.size > left:
            with pytest.raises(QuotaExceeded, match=f"has {left} left of {QUOTA}"):
                self.ask(call)
            return
        reply = self.ask(call)
        assert reply.left == left - kept.size >= 0
        assert reply.id not in self.model
        assert reply.id not in self.deleted
        self.model[reply.id] = kept

    @precondition(lambda self: self.model)
    @rule(data=st.data(), filler=fillers)
    def correct(self, data: st.DataObject, filler: str) -> None:
        id = data.draw(st.sampled_from(sorted(self.model)))
        old = self.model[id]
        kept = self.new(filler, old.tags, old.scope)
        call = abi.MemUpdate(id=id, text=kept.text)
        if old.after is not None:
            with pytest.raises(Conflict, match=f"was corrected by {old.after} before"):
                self.ask(call)
            return
        if kept.size > QUOTA - self.used(old.scope):
            with pytest.raises(QuotaExceeded):
                self.ask(call)
            return
        reply = self.ask(call)
        old.after = reply.id
        self.model[reply.id] = kept

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.model)))
        gone = {id}
        while more := {one for one, kept in self.model.items() if kept.after in gone} - gone:
            gone |= more
        size = sum(self.model[one].size for one in gone)
        assert self.ask(abi.MemClear(id=id)) == abi.Cleared(len(gone), size)
        for one in gone:
            del self.model[one]
            self.deleted.append(one)

    @rule(scope=scopes)
    def clear(self, scope: abi.Scope) -> None:
        gone = [id for id, kept in self.model.items() if kept.scope == scope]
        cleared = self.ask(abi.MemClear(scope=scope))
        assert cleared == abi.Cleared(len(gone), self.used(scope))
        for id in gone:
            del self.model[id]
            self.deleted.append(id)

    @rule()
    def kill_the_kernel(self) -> None:
        """What is on disk at this moment is what the next kernel starts with."""
        left = self.journal.copy()
        self.run(self.stack.aclose())
        self.journal = left
        self.run(self.boot())

    @rule()
    def wait(self) -> None:
        """Vectors are made meanwhile."""
        self.run(settle())

    # --- questions --------------------------------------------------------------------------------

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def read_one(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.model)))
        now = id
        while (after := self.model[now].after) is not None:
            now = after
        (record,) = self.ask(abi.MemRead(id=id)).records
        assert (record.id, record.text) == (now, self.model[now].text)
        assert record.tags == self.model[now].tags

    @precondition(lambda self: self.deleted)
    @rule(data=st.data())
    def read_one_that_is_gone(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(self.deleted))
        with pytest.raises(NotFound):
            self.ask(abi.MemRead(id=id))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def search_by_a_unique_word(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.model)))
        kept = self.model[id]
        hits = self.ask(abi.MemSearch(query=kept.word)).hits
        with_word = [hit.record.id for hit in hits if hit.words]
        assert with_word == ([id] if kept.after is None else [])
        assert {hit.record.id for hit in hits} <= self.alive().keys()

    @rule(scope=scopes, tags=tags)
    def read_by_tag(self, scope: abi.Scope, tags: tuple[str, ...]) -> None:
        records = self.ask(abi.MemRead(scope=scope, tags=tags)).records
        wanted = [
            id
            for id, kept in self.alive().items()
            if kept.scope == scope and set(tags) <= set(kept.tags)
        ]
        assert [record.id for record in records] == sorted(
            wanted, key=lambda id: int(id[1:]), reverse=True
        )

    @invariant()
    def sizes_agree(self) -> None:
        if not hasattr(self, "pid"):
            return
        owners = {
            "process": f"pid:{self.pid}",
            "program": "program:ann/agent",
            "user": "user:ann",
        }
        for scope in SCOPES:
            assert self.run(self.kernel.memory.size(owners[scope])) == self.used(scope)


MemoryMachine.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestMemoryModel = MemoryMachine.TestCase
