"""The LLM system calls of the paper's table 2, by its names (arXiv 2403.16971, version 1).

    async with aios.connect(program="notes") as me:
        id = await syscalls.mem_write(None, "The train leaves at nine.")

They are plain functions for code that runs as a process (an agent, or ``async with aios.connect``),
and take the paper's arguments; an *aid* of None is the caller's own. A *record* is what the call
that wrote it returned, its id, or a Record: of memory with a text, of storage with a path as its
id. The methods of ``Me`` and ``Process`` do the same, and more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from msgspec import Struct

from aios.abi.calls import (
    Aid,
    Allotment,
    Cleared,
    ClrContext,
    ContextReport,
    ExpContext,
    GenSnapshot,
    GetAid,
    GetContext,
    GetPriority,
    GetStatus,
    MemAlloc,
    MemClear,
    MemoryRecord,
    MemoryRecords,
    MemRead,
    MemUpdate,
    MemWrite,
    Priority,
    Remembered,
    ResumeAgent,
    SetAid,
    SetContext,
    SetPriority,
    SetStatus,
    Snapshot,
    Status,
    StoAlloc,
    StoDelete,
    StoRead,
    StoredFile,
    StoredVersion,
    StoWrite,
    SuspendAgent,
)
from aios.abi.messages import Message
from aios.errors import InvalidCall
from aios.sdk.answer import Answer
from aios.sdk.steps import me


class Record(Struct, frozen=True, omit_defaults=True):
    """What is remembered or stored.

    id is empty for memory, whose kernel gives one (with an id, the record of that id is corrected),
    and a path for storage. data, tags and source are for memory, content is for storage.
    """

    text: str = ""
    id: str = ""
    data: Any = None
    tags: tuple[str, ...] = ()
    source: str = ""
    content: bytes | None = None


# --- agents ---------------------------------------------------------------------------------------


async def get_aid() -> int:
    return (await me().call(GetAid(), Aid)).aid


async def set_aid(aid: int, of: int | None = None) -> int:
    """Give a process that has not run yet (the caller, or *of*) this number."""
    return (await me().call(SetAid(aid=aid, of=of), Aid)).aid


async def get_status(aid: int | None = None) -> Status:
    return await me().call(GetStatus(aid=aid), Status)


async def set_status(aid: int | None, status: Literal["suspended", "running"]) -> Status:
    return await me().call(SetStatus(aid=aid, status=status), Status)


async def get_priority(aid: int | None = None) -> int:
    """-20 (first) to 19 (last)."""
    return (await me().call(GetPriority(aid=aid), Priority)).priority


async def set_priority(aid: int | None, priority: int) -> int:
    return (await me().call(SetPriority(aid=aid, priority=priority), Priority)).priority


async def suspend_agent(aid: int) -> Status:
    return await me().call(SuspendAgent(aid=aid), Status)


async def resume_agent(aid: int) -> Status:
    return await me().call(ResumeAgent(aid=aid), Status)


# --- contexts -------------------------------------------------------------------------------------


async def gen_snapshot(aid: int | None = None, target: str | None = None) -> Snapshot:
    """Freeze an open generation exactly: a process's only one, or the call named *target*."""
    return await me().call(GenSnapshot(aid=aid, target=target), Snapshot)


async def gen_restore(snapshot: str | Snapshot) -> Answer:
    """Continue a frozen generation to its end."""
    name = snapshot.snapshot if isinstance(snapshot, Snapshot) else snapshot
    return await me().restore(name)


async def get_context(context: str = "main", *, aid: int | None = None) -> ContextReport:
    """The window's length, what of it is used and pinned, and the messages."""
    return await me().call(GetContext(aid=aid, context=context, messages=True), ContextReport)


async def exp_context(window: int | None = None, *, aid: int | None = None) -> ContextReport:
    """Expand a process's window to so many tokens; None: as far as the model goes."""
    return await me().call(ExpContext(aid=aid, window=window), ContextReport)


async def clr_context(context: str = "main", *, aid: int | None = None) -> ContextReport:
    """Empty a context; pinned messages stay."""
    return await me().call(ClrContext(aid=aid, context=context), ContextReport)


async def set_context(
    messages: Iterable[Message], context: str = "main", *, aid: int | None = None
) -> ContextReport:
    """Replace a context's messages."""
    call = SetContext(aid=aid, context=context, messages=tuple(messages))
    return await me().call(call, ContextReport)


# --- memory ---------------------------------------------------------------------------------------


async def mem_write(aid: int | None, record: str | Record) -> str:
    """Remember a text or a Record; its id. With an id, the Record corrects the one of that id."""
    given = Record(record) if isinstance(record, str) else record
    if given.content is not None:
        raise InvalidCall(
            "memory keeps texts and JSON data: give `text` and `data`, not `content`."
        )
    said = {"text": given.text, "data": given.data, "tags": given.tags, "source": given.source}
    call = MemUpdate(aid=aid, id=given.id, **said) if given.id else MemWrite(aid=aid, **said)
    return (await me().call(call, Remembered)).id


async def mem_read(aid: int | None, record: str | Record) -> MemoryRecord:
    found = await me().call(MemRead(aid=aid, id=_id(record)), MemoryRecords)
    return found.records[0]


async def mem_clear(aid: int | None, record: str | Record | None = None) -> int:
    """Delete a record, or (None) all of a process's, for good; how many went."""
    id = None if record is None else _id(record)
    return (await me().call(MemClear(aid=aid, id=id), Cleared)).count


async def mem_alloc(aid: int | None, size: int) -> Allotment:
    """Set and reserve a quota of memory, in bytes."""
    return await me().call(MemAlloc(aid=aid, size=size), Allotment)


# --- storage --------------------------------------------------------------------------------------


async def sto_write(aid: int | None, record: Record) -> str:
    """Store a Record at the path that is its id, as a new version; the path."""
    if record.data is not None or record.tags or record.source:
        raise InvalidCall("storage keeps files: give `text` or `content`, and a path as `id`.")
    text = None if record.content is not None else record.text
    call = StoWrite(aid=aid, path=_id(record), text=text, content=record.content)
    await me().call(call, StoredVersion)
    return record.id


async def sto_read(aid: int | None, record: str | Record) -> StoredFile:
    return await me().call(StoRead(aid=aid, path=_id(record)), StoredFile)


async def sto_delete(aid: int | None, record: str | Record) -> StoredVersion:
    """Delete a file; its earlier versions are kept."""
    return await me().call(StoDelete(aid=aid, path=_id(record)), StoredVersion)


async def sto_alloc(aid: int | None, size: int) -> Allotment:
    """Set and reserve a quota of storage, in bytes."""
    return await me().call(StoAlloc(aid=aid, size=size), Allotment)


def _id(record: str | Record) -> str:
    id = record if isinstance(record, str) else record.id
    if not id:
        raise InvalidCall("the record has no id: give the one that writing it returned.")
    return id
