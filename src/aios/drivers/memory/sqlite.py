"""Memory in the journal's database.

    write, update, clear, alloc, copy, rewind -> what changes, as records for the journal
    find, newest, search                      -> what is there

It writes nothing by itself but vectors, which are made of what is there and can be made again. What
decides a change is either counted in RAM (holdings) or read under the owner's lock after everything
that was appended before; from the decision to the return nothing is awaited, so the journal takes
changes in the order in which they were decided.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakValueDictionary

import msgspec

from aios import config
from aios.abi.calls import (
    Allotment,
    Cleared,
    Embedding,
    MemoryHits,
    MemoryRecord,
    MemUpdate,
    MemWrite,
    Remembered,
)
from aios.drivers.memory import rows, words
from aios.drivers.memory.holdings import Holdings, take
from aios.drivers.memory.search import Meaning, search
from aios.drivers.memory.vectors import Vectors
from aios.errors import AiosError, Conflict, InvalidCall, NotFound
from aios.ports import (
    Embedder,
    MemoryCleared,
    MemoryEnd,
    MemoryFilter,
    MemoryGone,
    MemoryQuota,
    MemoryRewind,
    MemoryRow,
    MemoryView,
    Record,
    Stamp,
    VectorRow,
)

if TYPE_CHECKING:
    from aios.drivers.memory.matrices import Matrices

T = TypeVar("T")

LAST = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'memories'), 0)"
AS_OF = f"""
SELECT {rows.COLUMNS} FROM memories WHERE owner = :owner AND born <= :call ORDER BY number
"""
VECTORS = "SELECT number, model, beside, vector FROM vectors WHERE owner = :owner"
SETTINGS = config.Memory()
EVER = 1 << 62  # above every call's number
QUERY = 2_000  # characters of a query that its vector is made of


class Read(Protocol):
    """Runs a query on the journal's database in a transaction of its own; it may take long."""

    async def __call__(self, query: Callable[[Any], T]) -> T: ...


class SqliteMemory:
    """A ports.Memory. *read* and *append* are the journal's."""

    def __init__(
        self,
        read: Read,
        append: Callable[[Sequence[Record]], Awaitable[None]],
        embedder: Embedder | None = None,
        settings: config.Memory = SETTINGS,
    ) -> None:
        self._read, self._append, self._settings = read, append, settings
        self._embedder = embedder
        self._holdings = Holdings(self._settled, settings)
        self._vectors = Vectors(embedder, self._settled, append) if embedder else None
        self._matrices: Matrices | None = None
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._last: int | None = None  # the number of the newest record ever

    def __repr__(self) -> str:
        return f"<SqliteMemory with {self._embedder or 'no embedder'}>"

    async def start(self) -> None:
        if self._vectors is not None:
            self._vectors.start()

    async def close(self) -> None:
        if self._vectors is not None:
            await self._vectors.close()

    async def _settled(self, query: Callable[[Any], T]) -> T:
        """Read what is there after all that was appended until now."""
        await self._append([])
        return await self._read(query)

    def recount(self) -> None:
        self._holdings.forget()

    # --- changes ----------------------------------------------------------------------------------

    async def write(
        self, owner: str, request: MemWrite, stamp: Stamp
    ) -> tuple[Remembered, list[Record]]:
        row = self._checked(
            owner,
            stamp,
            text=request.text,
            data=rows.packed(request.data),
            tags=request.tags,
            source=request.source,
            time=stamp.at if request.time is None else request.time,
        )
        await self._find_last()
        holding = await self._holdings.of(owner)
        take(holding, owner, row.bytes)
        row = self._numbered(row)
        self._news()
        return Remembered(rows.name(row.id), owner, holding.left), [row]

    async def update(
        self, owners: Sequence[str], request: MemUpdate, stamp: Stamp
    ) -> tuple[Remembered, list[Record]]:
        id = rows.number_of(request.id)
        owner = (await self._one(owners, id)).owner
        async with self._lock(owner):
            old = await self._one([owner], id)
            if old.superseded_by is not None:
                raise Conflict(
                    f"{request.id} was corrected by {rows.name(old.superseded_by)} before: correct "
                    "that one."
                )
            row = self._checked(
                owner,
                stamp,
                text=old.text if request.text is None else request.text,
                data=old.data if request.data is None else rows.packed(request.data),
                tags=old.tags if request.tags is None else request.tags,
                source=old.source if request.source is None else request.source,
                time=old.time if request.time is None else request.time,
            )
            await self._find_last()
            holding = await self._holdings.of(owner)
            take(holding, owner, row.bytes)
            row = self._numbered(row)
            self._news(again=True)
            end = MemoryEnd(old.number, stamp.at, row.id, stamp.call)
            return Remembered(rows.name(row.id), owner, holding.left), [row, end]

    async def clear(self, owners: Sequence[str], id: str) -> tuple[Cleared, list[Record]]:
        wanted = rows.number_of(id)
        owner = (await self._one(owners, wanted)).owner
        async with self._lock(owner):
            record = await self._one([owner], wanted)
            before = await self._read(lambda connection: rows.corrected_by(connection, record))
            gone = [record, *before]
            size = sum(one.bytes for one in gone)
            holding = await self._holdings.of(owner)
            holding.records -= len(gone)
            holding.bytes -= size
            self._news(again=True)
            return Cleared(len(gone), size), [MemoryGone(tuple(one.number for one in gone))]

    async def clear_all(self, owner: str) -> tuple[Cleared, list[Record]]:
        async with self._lock(owner):
            holding = await self._holdings.of(owner)
            cleared = Cleared(holding.records, holding.bytes)
            holding.records = holding.bytes = 0
            return cleared, [MemoryCleared(owner)]

    async def alloc(self, owner: str, user: str, size: int) -> tuple[Allotment, list[Record]]:
        async with self._lock(f"user:{user}"):
            await self._holdings.check_reserve(owner, user, size)
            holding = await self._holdings.of(owner)
            if size < holding.bytes:
                raise Conflict(
                    f"{owner} holds {holding.bytes:,} bytes, more than the {size:,} of this quota: "
                    "delete some with mem_clear first, or set more aside."
                )
            holding.quota = size
            return Allotment(owner, size, holding.bytes), [MemoryQuota(owner, user, size)]

    def ended(self, pid: int) -> list[Record]:
        owner = f"pid:{pid}"
        self._holdings.forget(owner)
        return [MemoryCleared(owner, quota=True)]

    async def copy(self, from_pid: int, to_pid: int, upto_call: int | None = None) -> list[Record]:
        source, target = f"pid:{from_pid}", f"pid:{to_pid}"
        call = EVER if upto_call is None else upto_call
        async with self._lock(source):
            found, vectors = await self._settled(
                lambda connection: (
                    rows.rows(connection, AS_OF, owner=source, call=call),
                    list(connection.execute(VECTORS, {"owner": source})),
                )
            )
            await self._find_last()
            copies: dict[int, MemoryRow] = {}
            for row in found:
                if row.died is not None and row.died > call:
                    row = _good_again(row)
                copies[row.number] = msgspec.structs.replace(
                    row,
                    number=self._next(),
                    owner=target,
                    marks=words.marks(target, row.tags, row.source),
                )
            self._holdings.forget(target)
            self._news()
            return [
                *copies.values(),
                *(
                    VectorRow(
                        copies[number].number,
                        model,
                        None if beside is None else copies[beside].number,
                        vector,
                    )
                    for number, model, beside, vector in vectors
                    if number in copies and (beside is None or beside in copies)
                ),
            ]

    async def rewind(self, pid: int, call: int) -> list[Record]:
        self._news(again=True)
        return [MemoryRewind(pid, call)]  # what it means is decided where nobody can come between

    # --- questions --------------------------------------------------------------------------------

    async def find(self, view: MemoryView, id: str, history: bool = False) -> list[MemoryRecord]:
        rows.number_of(id)  # refused before anything is read

        def run(connection: Any) -> list[MemoryRow]:
            record = rows.visible(connection, view, id)
            if record is None:
                return []
            return [record, *rows.corrected_by(connection, record)] if history else [record]

        found = await self._read(run)
        if not found:
            raise _no_record(id)
        return [rows.public(record) for record in found]

    async def newest(self, owner: str, which: MemoryFilter, limit: int) -> list[MemoryRecord]:
        rows.check_limit(limit)
        rows.check_filter(which)
        found = await self._read(lambda connection: rows.newest(connection, owner, which, limit))
        return [rows.public(record) for record in found]

    async def search(
        self, view: MemoryView, query: str, which: MemoryFilter, limit: int
    ) -> MemoryHits:
        rows.check_limit(limit)
        rows.check_filter(which)
        if not query.strip():
            raise InvalidCall("the query is empty: say what to look for.")
        if len(query) > self._settings.record_bytes:
            raise InvalidCall(
                f"the query has {len(query):,} characters, and {self._settings.record_bytes:,} are "
                "read: ask for less at once."
            )
        meaning, note = await self._meaning(query)
        hits = await self._read(
            lambda connection: search(connection, view, query, meaning, which, limit)
        )
        return MemoryHits(hits, note)

    async def _meaning(self, query: str) -> tuple[Meaning | None, str]:
        """What is meant, or why only words are looked for."""
        embedder = self._embedder
        if embedder is None or self._vectors is None or embedder.model is None:
            missing = "there is no embedder here" if embedder is None else embedder.missing
            return None, f"found by words only: {missing}."
        if self._matrices is None:
            from aios.drivers.memory.matrices import Matrices  # numpy, once there are vectors

            self._matrices = Matrices(self._settings.cache_mb << 20)
        model = embedder.model
        self._vectors.look_again()
        try:
            made = await embedder.embed([query[:QUERY]])
        except AiosError as error:
            return None, f"found by words only: {error.message}"
        return Meaning(model, made.vectors[0], self._matrices), self._vectors.note

    async def embed(self, texts: Sequence[str]) -> Embedding:
        embedder = self._embedder
        if embedder is None:
            raise NotFound("there is no embedder here: start the kernel with one.")
        if not texts or not all(text.strip() for text in texts):
            raise InvalidCall("there is nothing to embed: give one text or more, none empty.")
        made = await embedder.embed(texts)
        size = f"<{embedder.dimensions}f"
        vectors = tuple(struct.unpack(size, vector) for vector in made.vectors)
        return Embedding(embedder.name, vectors, made.tokens)

    async def size(self, owner: str) -> int:
        return (await self._holdings.of(owner)).bytes

    # --- parts ------------------------------------------------------------------------------------

    def _lock(self, owner: str) -> asyncio.Lock:
        """Held from reading what is there until the change to it is decided."""
        return self._locks.setdefault(owner, asyncio.Lock())

    def _checked(self, owner: str, stamp: Stamp, **said: Any) -> MemoryRow:
        row = MemoryRow(
            number=0,
            id=0,
            owner=owner,
            writer=stamp.writer,
            born=stamp.call,
            valid_from=stamp.at,
            marks="",
            bytes=0,
            **said,
        )
        return rows.checked(row, self._settings.record_bytes)

    async def _find_last(self) -> None:
        if self._last is None:
            last = await self._settled(lambda connection: connection.execute(LAST).get)
            if self._last is None:  # nobody else was faster
                self._last = last

    def _next(self) -> int:
        assert self._last is not None, "_find_last comes first"
        self._last += 1
        return self._last

    def _numbered(self, row: MemoryRow) -> MemoryRow:
        number = self._next()
        return msgspec.structs.replace(row, number=number, id=number)

    def _news(self, *, again: bool = False) -> None:
        if self._vectors is not None:
            self._vectors.wake(again=again)

    async def _one(self, owners: Sequence[str], id: int) -> MemoryRow:
        record = await self._settled(lambda connection: rows.by_id(connection, owners, id))
        if record is None:
            raise _no_record(rows.name(id))
        return record


def _good_again(row: MemoryRow) -> MemoryRow:
    return msgspec.structs.replace(row, valid_to=None, superseded_by=None, died=None)


def _no_record(id: str) -> NotFound:
    return NotFound(
        f"there is no record {id} that you may see; mem_read without an id shows yours."
    )
