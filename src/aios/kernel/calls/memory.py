"""Calls on memory: whose records a process may change, and whose it may look at.

A process changes its own records, its program's and its user's. It looks at those and at what was
shared with it: a grant to mem_read ``memory:OWNER`` or ``memory:ID@OWNER``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.errors import InvalidCall, NotFound
from aios.kernel.access import no_process
from aios.kernel.process import OpenCall, Process
from aios.ports import GrantGone, GrantRow, MemoryFilter, MemoryView, Record, Stamp

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel

SCOPES: tuple[abi.Scope, ...] = ("process", "program", "user")
SHARED = "memory:"
SINGLE = re.compile(r"memory:(?P<id>m\d+)@(?P<owner>.+)", re.DOTALL)  # no owner begins like an id


def owner_of(process: Process, scope: abi.Scope) -> str:
    match scope:
        case "process":
            return f"pid:{process.pid}"
        case "program":
            return f"program:{process.user}/{process.program}"
        case "user":
            return f"user:{process.user}"


def owners_of(process: Process, scopes: Iterable[abi.Scope] = SCOPES) -> tuple[str, ...]:
    return tuple(owner_of(process, scope) for scope in dict.fromkeys(scopes))


def view_of(kernel: Kernel, process: Process, scopes: Iterable[abi.Scope] = SCOPES) -> MemoryView:
    """What a process may look at: its scopes, and what is shared with it."""
    owners, records = dict.fromkeys(owners_of(process, scopes)), []
    for resource in kernel.grants.resources(f"pid:{process.pid}", "mem_read", kernel.clock.now()):
        if single := SINGLE.fullmatch(resource):
            records.append((single["owner"], single["id"]))
        elif resource.startswith(SHARED):
            owners[resource.removeprefix(SHARED)] = None
    return MemoryView(tuple(owners), tuple(records))


def _keep(kernel: Kernel, call: OpenCall, records: Iterable[Record]) -> None:
    """Journal them with the end of the call, or have it all forgotten."""
    call.effects += records
    call.undo.append(kernel.memory.recount)


def _stamp(kernel: Kernel, call: OpenCall) -> Stamp:
    return Stamp(call.process.pid, int(call.id[1:]), kernel.clock.now())


async def sys_mem_alloc(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.MemAlloc
) -> abi.Allotment:
    owner = owner_of(target, request.scope)
    allotment, records = await kernel.memory.alloc(owner, target.user, request.size)
    _keep(kernel, call, records)
    return allotment


async def sys_mem_write(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.MemWrite
) -> abi.Remembered:
    owner = owner_of(target, request.scope)
    remembered, records = await kernel.memory.write(owner, request, _stamp(kernel, call))
    _keep(kernel, call, records)
    return remembered


async def sys_mem_update(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.MemUpdate
) -> abi.Remembered:
    owners = owners_of(target)
    remembered, records = await kernel.memory.update(owners, request, _stamp(kernel, call))
    _keep(kernel, call, records)
    return remembered


async def sys_mem_clear(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.MemClear
) -> abi.Cleared:
    if request.id is None:
        cleared, records = await kernel.memory.clear_all(owner_of(target, request.scope))
    else:
        cleared, records = await kernel.memory.clear(owners_of(target), request.id)
    _keep(kernel, call, records)
    return cleared


async def sys_mem_read(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.MemRead
) -> abi.MemoryRecords:
    if request.id is not None:
        view = view_of(kernel, target)
        return abi.MemoryRecords(tuple(await kernel.memory.find(view, request.id, request.history)))
    which = MemoryFilter(
        tags=request.tags, after=request.after, before=request.before, history=request.history
    )
    owner = owner_of(target, request.scope)
    return abi.MemoryRecords(tuple(await kernel.memory.newest(owner, which, request.limit)))


async def sys_mem_search(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.MemSearch
) -> abi.MemoryHits:
    which = MemoryFilter(request.tags, request.source or None, request.after, request.before)
    view = view_of(kernel, target, request.scopes)
    return await kernel.memory.search(view, request.query, which, request.limit)


async def sys_mem_share(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.MemShare
) -> abi.Done:
    receiver = kernel.processes.get(request.to)
    if receiver is None or receiver.user != target.user or receiver.state == "zombie":
        raise no_process(request.to)
    if receiver is target:
        raise InvalidCall(f"process {target.pid} has its own records already: name another one.")
    resource = f"{SHARED}{owner_of(target, request.scope)}"
    if request.id is not None:
        found = await kernel.memory.find(MemoryView(owners_of(target)), request.id)
        resource = f"{SHARED}{request.id}@{found[0].owner}"
    row = GrantRow(f"pid:{receiver.pid}", "mem_read", resource, request.until)
    before = kernel.grants.remove(row.holder, row.action, row.resource)
    if not request.revoke:
        kernel.grants.add(row)
        call.effects.append(row)
    elif before is None:
        raise NotFound(f"{resource} is not shared with process {receiver.pid}.")
    else:
        call.effects.append(GrantGone(row.holder, row.action, row.resource))

    def as_before() -> None:
        kernel.grants.remove(row.holder, row.action, row.resource)
        if before is not None:
            kernel.grants.add(before)

    call.undo.append(as_before)
    return abi.Done()


async def sys_embed(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.Embed
) -> abi.Embedding:
    embedding = await kernel.memory.embed(request.texts)
    asked = request.model
    if asked is not None and kernel.config.server.aliases.get(asked, asked) != embedding.model:
        if not target.wrap_model:
            raise NotFound(
                f"there is no embedder named {asked[:100]!r} here; there is {embedding.model}."
            )
        kernel.trace.emit(ev.ModelSubstituted, target.pid, asked=asked, used=embedding.model)
    return embedding
