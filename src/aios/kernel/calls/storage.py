"""Calls on storage: whose volumes a process may use, and what it has seen of them.

A process uses its own volume, its program's and its user's, those of the processes below it, and
what was shared with it: a grant to sto_read or sto_write ``files:OWNER:PATH``. What it read is
remembered with its version, so that a write does not hide what somebody else wrote since.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import msgspec
from blake3 import blake3

from aios.abi import calls as abi
from aios.errors import InvalidCall, NotFound, PermissionDenied
from aios.kernel import access
from aios.kernel.access import no_process
from aios.kernel.process import OpenCall, Process
from aios.ports import Author, FileChange, GrantGone, GrantRow, Record

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel

T = TypeVar("T")

SHARED = "files:"
SEEN = 10_000  # paths of a volume that a process is known to have read; the oldest go
READING, WRITING = ("sto_read", "sto_write"), ("sto_write",)


# --- whose ----------------------------------------------------------------------------------------


def owner_of(process: Process, volume: str) -> str | None:
    """The owner that a volume's word stands for; None if it is an owner itself."""
    match volume:
        case "process":
            return f"pid:{process.pid}"
        case "program":
            return f"program:{process.user}/{process.program}"
        case "user":
            return f"user:{process.user}"
    return None


def _is_own(kernel: Kernel, call: OpenCall, target: Process, owner: str) -> bool:
    """Whether a volume is a process's to use, shared or not."""
    if owner in (owner_of(target, "process"), owner_of(target, "program")):
        return True
    kind, _, name = owner.partition(":")
    if kind == "pid" and name.isascii() and name.isdigit():
        process = kernel.processes.get(int(name))
        return process is not None and access.sees(
            kernel.grants, call.process, process, kernel.clock.now()
        )
    if owner == f"user:{target.user}":
        return True
    return kind == "program" and target.parent is None and name.startswith(f"{target.user}/")


def _owner(
    kernel: Kernel,
    call: OpenCall,
    target: Process,
    volume: str,
    path: str,
    actions: Iterable[str] = READING,
) -> str:
    """Whose volume is meant; NotFound if it is none that the process may use like that."""
    owner = owner_of(target, volume)
    if owner is not None or _is_own(kernel, call, target, volume):
        return owner or volume
    now, holder = kernel.clock.now(), f"pid:{target.pid}"
    for place in _upwards(path):
        resource = f"{SHARED}{volume}:{place}"
        if any(kernel.grants.allows(holder, action, resource, now) for action in actions):
            return volume
    may_read = actions is WRITING and any(
        kernel.grants.allows(holder, "sto_read", f"{SHARED}{volume}:{place}", now)
        for place in _upwards(path)
    )
    if may_read:
        raise PermissionDenied(
            f"{path} in {volume} is shared with process {target.pid} to be read, not written."
        )
    raise NotFound(
        f"there is no volume {ascii(volume[:200])} that you may use at {ascii(path[:200])}: name "
        "process, program, user, or one that is shared with you."
    )


def _upwards(path: str) -> Iterable[str]:
    """A path and all that it lies in. What is no normal path is nothing that was shared."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        return
    for count in range(len(parts), -1, -1):
        yield "/" + "/".join(parts[:count])


def _author(kernel: Kernel, call: OpenCall, target: Process) -> Author:
    caller = call.process
    name = f"user:{caller.user}" if caller.parent is None else f"pid:{caller.pid}"
    return Author(caller.pid, name, target.user, int(call.id[1:]), kernel.clock.now())


# --- what was seen --------------------------------------------------------------------------------


def _saw(process: Process, owner: str, path: str, version: int) -> None:
    seen = process.seen_files.setdefault(owner, {})
    seen.pop(path, None)
    seen[path] = version
    if len(seen) > SEEN:
        del seen[next(iter(seen))]


def _seen(process: Process, owner: str) -> dict[str, int]:
    return process.seen_files.get(owner, {})


# --- what the journal keeps -----------------------------------------------------------------------


def kept(value: abi.Call | abi.Reply) -> abi.Call | abi.Reply:
    """A call or a reply without the contents of files, which are kept with the files.

    What was read of a mounted directory is kept whole: it has no versions to read again.
    """
    match value:
        case abi.StoWrite():
            return msgspec.structs.replace(value, text=_digest(value), content=None)
        case abi.StoCommit(changes=changes) if changes:
            bare = (
                msgspec.structs.replace(one, text=_digest(one), content=None) for one in changes
            )
            return msgspec.structs.replace(value, changes=tuple(bare))
        case abi.StoredFile(mount=""):
            return msgspec.structs.replace(value, text=None, content=b"")
    return value


def _digest(value: abi.StoWrite | abi.FileDraft) -> str | None:
    """``blake3:…, 12 bytes``: says whether two are the same, not what they are."""
    if value.text is None and value.content is None:
        return None
    data = value.content or b""
    if value.text is not None:
        data = value.text.encode(errors="surrogatepass")
    return f"blake3:{blake3(data).hexdigest(16)}, {len(data)} bytes"


async def read_again(
    kernel: Kernel, caller: Process, request: abi.StoRead, reply: abi.StoredFile
) -> abi.StoredFile:
    """For a second life: what the first one read, from the version that it read."""
    owner = reply.volume
    if request.aid is None:  # a fork's own volume has the versions of the original's
        owner = owner_of(caller, request.volume) or owner
    if request.version is None:
        _saw(caller, owner, reply.path, reply.version)
    if reply.mount:
        return reply
    part = await kernel.files.read(owner, reply.path, reply.version, request.offset, request.length)
    text = None if request.binary else _text(part.data)
    return msgspec.structs.replace(reply, text=text, content=b"" if text is not None else part.data)


async def written_again(
    kernel: Kernel, caller: Process, request: abi.StoWrite, reply: abi.StoredVersion
) -> abi.StoredVersion:
    """For a second life: it knows again what it wrote into a mounted directory."""
    for path in reply.paths:
        if await kernel.files.place(reply.volume, path) is not None:
            _saw(caller, reply.volume, path, reply.version)
    return reply


# --- calls ----------------------------------------------------------------------------------------


def _keep(call: OpenCall, planned: tuple[T, Iterable[Record]]) -> T:
    """Journal what was planned with the end of the call."""
    reply, records = planned
    call.effects += records
    return reply


def _data(kernel: Kernel, value: abi.StoWrite | abi.FileDraft) -> bytes:
    """What is to be written; InvalidCall if it is not said once, or is too much for one call."""
    if (value.text is None) == (value.content is None):
        raise InvalidCall(f"{ascii(value.path[:200])}: give either text or content to write.")
    try:
        data = value.text.encode() if value.text is not None else value.content or b""
    except UnicodeEncodeError as error:
        raise InvalidCall(
            f"the text for {ascii(value.path[:200])} has half a character at {error.start}: give "
            "whole ones, or bytes as content."
        ) from error
    most = kernel.config.storage.part_bytes
    if len(data) > most:
        raise InvalidCall(
            f"{len(data):,} bytes are too many for one call: write {ascii(value.path[:200])} in "
            f"parts of at most {most:,}, with append and stage, then commit them."
        )
    return data


async def _change(
    kernel: Kernel,
    call: OpenCall,
    target: Process,
    owner: str,
    change: FileChange,
    stage: bool,
    message: str = "",
) -> abi.StoredVersion:
    """Make a change now, or stage it."""
    author, seen = _author(kernel, call, target), _seen(call.process, owner)
    if stage:
        return _keep(call, await kernel.files.stage(owner, change, author, seen))
    place = await kernel.files.place(owner, change.path)
    if place is None:
        return _keep(call, await kernel.files.commit(owner, [change], author, seen, message))
    await kernel.trace.durable()  # the intent, before the effect: this one is outside
    again = call.made is not None
    version = await kernel.files.host_change(place, change, seen, again)
    _saw(call.process, owner, place.path, version)
    return abi.StoredVersion(owner, version, (place.path,), 0)


async def sys_sto_alloc(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.StoAlloc
) -> abi.Allotment:
    owner = _own(kernel, call, target, request.volume)
    author = _author(kernel, call, target)
    return _keep(call, await kernel.files.alloc(owner, request.size, author))


def _own(kernel: Kernel, call: OpenCall, target: Process, volume: str) -> str:
    """A volume that is the process's own: what is shared with it does not count."""
    owner = owner_of(target, volume)
    if owner is None and not _is_own(kernel, call, target, volume):
        raise NotFound(f"there is no volume {ascii(volume[:200])} that is yours.")
    return owner or volume


async def sys_sto_write(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.StoWrite
) -> abi.StoredVersion:
    owner = _owner(kernel, call, target, request.volume, request.path, WRITING)
    change = FileChange(
        kind="append" if request.append else "write",
        path=request.path,
        data=_data(kernel, request),
        expect=request.expect,
    )
    return await _change(kernel, call, target, owner, change, request.stage, request.message)


async def sys_sto_read(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.StoRead
) -> abi.StoredFile:
    owner = _owner(kernel, call, target, request.volume, request.path)
    part = await kernel.files.read(
        owner, request.path, request.version, request.offset, request.length
    )
    if request.version is None:
        _saw(call.process, owner, part.path, part.version)
    text = None if request.binary else _text(part.data)
    return abi.StoredFile(
        path=part.path,
        volume=owner,
        version=part.version,
        bytes=part.size,
        offset=request.offset,
        text=text,
        content=b"" if text is not None else part.data,
        mount=part.mount,
    )


def _text(data: bytes) -> str | None:
    """The text that it is, if it is one."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


async def sys_sto_delete(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.StoDelete
) -> abi.StoredVersion:
    if request.purge:
        if request.stage:
            raise InvalidCall("a purge cannot be staged: it takes away what a commit would keep.")
        # others' versions are not for those with whom a path is shared
        owner = _own(kernel, call, target, request.volume)
        author = _author(kernel, call, target)
        return _keep(call, await kernel.files.purge(owner, request.path, author))
    owner = _owner(kernel, call, target, request.volume, request.path, WRITING)
    change = FileChange(kind="delete", path=request.path, expect=request.expect)
    return await _change(kernel, call, target, owner, change, request.stage)


async def sys_sto_list(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.StoList
) -> abi.Files:
    owner = _owner(kernel, call, target, request.volume, request.path)
    return await kernel.files.listing(owner, request.path, request.version, request.recursive)


async def sys_sto_move(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.StoMove
) -> abi.StoredVersion:
    actions = READING if request.copy else WRITING
    owner = _owner(kernel, call, target, request.volume, request.path, actions)
    _owner(kernel, call, target, request.volume, request.to, WRITING)
    change = FileChange(
        kind="copy" if request.copy else "move",
        path=request.path,
        to=request.to,
        expect=request.expect,
    )
    return await _change(kernel, call, target, owner, change, request.stage)


async def sys_sto_search(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.StoSearch
) -> abi.FileHits:
    owners = [
        _owner(kernel, call, target, volume, request.path)
        for volume in dict.fromkeys(request.volumes)
    ]
    return await kernel.files.search(owners, request.query, request.path, request.limit)


async def sys_sto_history(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.StoHistory
) -> abi.FileVersions:
    owner = _owner(kernel, call, target, request.volume, request.path)
    return await kernel.files.history(owner, request.path, request.limit)


async def sys_sto_diff(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.StoDiff
) -> abi.FileDiff:
    owner = _owner(kernel, call, target, request.volume, request.path)
    return await kernel.files.diff(owner, request.path, request.since, request.until)


async def sys_sto_rollback(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.StoRollback
) -> abi.StoredVersion:
    owner = _owner(kernel, call, target, request.volume, request.path, WRITING)
    author = _author(kernel, call, target)
    return _keep(call, await kernel.files.rollback(owner, request.path, author, request))


async def sys_sto_commit(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.StoCommit
) -> abi.StoredVersion:
    concerned = [*request.paths, *(change.path for change in request.changes)]
    owner = _owner(kernel, call, target, request.volume, "/" if not concerned else concerned[0])
    for path in concerned:
        _owner(kernel, call, target, request.volume, path, WRITING)
    author = _author(kernel, call, target)
    if request.discard:
        if request.changes:
            raise InvalidCall("discard gives up what is staged: leave changes out.")
        return _keep(call, await kernel.files.discard(owner, author, request.paths))
    changes = [_drafted(kernel, draft) for draft in request.changes]
    staged = request.paths if request.paths or not changes else None
    seen = _seen(call.process, owner)
    planned = kernel.files.commit(owner, changes, author, seen, request.message, staged)
    return _keep(call, await planned)


def _drafted(kernel: Kernel, draft: abi.FileDraft) -> FileChange:
    if draft.text is None and draft.content is None:
        return FileChange(kind="delete", path=draft.path, expect=draft.expect)
    data = _data(kernel, draft)
    return FileChange(
        kind="append" if draft.append else "write",
        path=draft.path,
        data=data,
        expect=draft.expect,
    )


async def sys_sto_mount(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.StoMount
) -> abi.Mounted:
    caller = call.process
    if caller.parent is not None:
        raise PermissionDenied(
            f"process {caller.pid} may not mount directories of this machine: that is for a user's "
            "own key."
        )
    if caller.user != kernel.user:
        raise PermissionDenied(
            f"the directories of this machine are {kernel.user}'s, who runs this kernel: "
            f"{caller.user} may not mount them."
        )
    owner = _own(kernel, call, target, request.volume)
    author = _author(kernel, call, target)
    mounted = kernel.files.mount(owner, request.path, request.host, request.mode, author)
    return _keep(call, await mounted)


async def sys_sto_share(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.StoShare
) -> abi.Done:
    receiver = kernel.processes.get(request.to)
    if receiver is None or receiver.user != target.user or receiver.state == "zombie":
        raise no_process(request.to)
    if receiver is target:
        raise InvalidCall(f"process {target.pid} has its own files already: name another one.")
    owner = _own(kernel, call, target, request.volume)
    place = next(iter(_upwards(request.path)), None)
    if place is None or not request.path:
        raise InvalidCall(
            f"the path {ascii(request.path[:200])} cannot be shared: give / or one without '..'."
        )
    resource, holder = f"{SHARED}{owner}:{place}", f"pid:{receiver.pid}"
    before = [kernel.grants.remove(holder, action, resource) for action in READING]
    if not request.revoke:
        for action in READING if request.write else READING[:1]:
            row = GrantRow(holder, action, resource, request.until)
            kernel.grants.add(row)
            call.effects.append(row)
        if not request.write and before[1] is not None:
            call.effects.append(GrantGone(holder, "sto_write", resource))
    elif not any(before):
        raise NotFound(f"{place} in {owner} is not shared with process {receiver.pid}.")
    else:
        call.effects += [GrantGone(row.holder, row.action, row.resource) for row in before if row]
    call.undo.append(partial(_as_before, kernel, holder, resource, before))
    return abi.Done()


def _as_before(
    kernel: Kernel, holder: str, resource: str, before: Iterable[GrantRow | None]
) -> None:
    for action in READING:
        kernel.grants.remove(holder, action, resource)
    for row in before:
        if row is not None:
            kernel.grants.add(row)
