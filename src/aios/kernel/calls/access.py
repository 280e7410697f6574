"""Calls on keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aios.abi import calls as abi
from aios.errors import NotFound
from aios.kernel.process import OpenCall, Process

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel


async def sys_key_new(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.KeyNew
) -> abi.NewKey:
    return kernel.keys.issue(target.user, request.label[:80], None)


async def sys_key_revoke(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.KeyRevoke
) -> abi.Done:
    for row in kernel.keys:
        if row.info.id == request.id and row.info.user == target.user:
            kernel.keys.revoke(row.hash, target.pid)
            return abi.Done()
    raise NotFound(f"you have no key {request.id!r}; `aios key list` shows them.")


async def sys_key_list(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.KeyList
) -> abi.Keys:
    return abi.Keys(tuple(r.info for r in kernel.keys if r.info.user == target.user))
