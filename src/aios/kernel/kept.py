"""What the journal keeps of a call: without keys, environments and secrets; and how two compare."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec

from aios.abi import calls as abi
from aios.abi import wire
from aios.abi.calls import Call, Reply
from aios.kernel.calls import storage
from aios.ports import CallRow

# fields that are not what is asked; a second life is another OS process
UNCOMPARED = ("timeout_s", "place", "recall", "os_pid")


# what is not written down as it is; all others are
KEPT: dict[type[Call | Reply], Callable[[Any], Call | Reply]] = {
    abi.SpawnAgent: lambda call: msgspec.structs.replace(call, env={}),
    abi.Spawned: lambda reply: msgspec.structs.replace(reply, key=None),
    abi.NewKey: lambda reply: msgspec.structs.replace(reply, key=""),
    abi.EncryptData: lambda call: msgspec.structs.replace(call, data=b""),
    abi.Opened: lambda reply: msgspec.structs.replace(reply, data=b""),
    abi.StoWrite: storage.kept,
    abi.StoCommit: storage.kept,
    abi.StoredFile: storage.kept,
}


def kept(value: Call | Reply) -> Call | Reply:
    """A call or a reply as it may be written down."""
    bare = KEPT.get(type(value))
    return bare(value) if bare is not None else value


def row(id: str, pid: int, name: str, started_at: float, call: Call) -> CallRow:
    """The start of a call; what a generation says is kept once, however often it is said again."""
    call = kept(call)  # type: ignore[assignment]
    if isinstance(call, abi.Generate):
        said = tuple(map(wire.encode, call.messages))
        tools = tuple(map(wire.encode, call.tools))
        bare = msgspec.structs.replace(call, messages=(), tools=())
        return CallRow(id, pid, name, started_at, wire.encode(bare), said, tools)
    return CallRow(id, pid, name, started_at, wire.encode(call))


@cache
def _defaults(name: str) -> dict[str, Any]:
    """The values of a call's fields that need not be said."""
    kind = abi.CALLS.get(name)
    fields = msgspec.structs.fields(kind) if kind else ()
    return {
        field.encode_name: wire.plain(field.default)
        for field in fields
        if field.default is not msgspec.NODEFAULT
    }


def canonical(request: dict[str, Any]) -> dict[str, Any]:
    """A request as plain data, with just what makes two of them the same."""
    plain = _defaults(request.get("call", ""))
    asked = {
        name: value
        for name, value in request.items()
        # msgspec leaves a default out only if it is that very object
        if name not in UNCOMPARED and not (name in plain and plain[name] == value)
    }
    if asked.get("call") == "record":
        asked.pop("value", None)  # what was read outside is what replay is for
    sampling = asked.get("sampling")
    if sampling and sampling.get("drawn"):  # the kernel drew the seed, not the program
        left = {k: v for k, v in sampling.items() if k not in ("seed", "drawn")}
        asked.pop("sampling")
        if left:
            asked["sampling"] = left
    return asked
