"""Calls on cores: which there are, and which take what is new."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.errors import InvalidCall, NotFound
from aios.kernel.process import OpenCall, Process

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel
    from aios.kernel.routing import CoreNow

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
LOOK_S = 0.1  # between two looks whether a core that is removed is idle


async def sys_core_list(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.CoreList
) -> abi.CoreInfos:
    return _infos(kernel)


async def sys_core_add(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.CoreAdd
) -> abi.CoreInfos:
    if not NAME.fullmatch(request.name):
        raise InvalidCall(
            f"{request.name[:100]!r} is no name for a core: use letters, digits and . _ - /, at "
            "most 100 of them."
        )
    kernel.cores.add(request.name, request.spec)
    kernel.trace.emit(ev.CoreAdded, call.process.pid, core=request.name)
    return _infos(kernel)


async def sys_core_drain(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.CoreDrain
) -> abi.CoreInfos:
    _find(kernel, request.name)
    if request.undo:
        kernel.draining.discard(request.name)
    else:
        _drain(kernel, request.name)
    kernel.trace.emit(ev.CoreDrained, call.process.pid, core=request.name, undo=request.undo)
    return _infos(kernel)


async def sys_core_remove(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.CoreRemove
) -> abi.Done:
    _find(kernel, request.name)
    if request.name == kernel.cores.default:
        raise InvalidCall(
            f"{request.name} is the default: set core.model to another first, and start anew."
        )
    kernel.cores.remove(request.name)
    _drain(kernel, request.name)
    scheduler = kernel.schedulers.get(request.name)
    if scheduler is not None:
        while scheduler.tickets:
            await kernel.clock.sleep(LOOK_S)
        del kernel.schedulers[request.name]
        await scheduler.core.close()
    kernel.draining.discard(request.name)
    kernel.trace.emit(ev.CoreRemoved, call.process.pid, core=request.name)
    return abi.Done()


def _drain(kernel: Kernel, name: str) -> None:
    kernel.draining.add(name)
    if scheduler := kernel.schedulers.get(name):
        scheduler.drain()


def _find(kernel: Kernel, name: str) -> None:
    names = [facts.name for facts in kernel.cores.facts()]
    if name not in names:
        raise NotFound(f"there is no core {name[:100]!r}; there are {', '.join(names)}.")


def _infos(kernel: Kernel) -> abi.CoreInfos:
    return abi.CoreInfos(tuple(_info(kernel, core) for core in kernel.cores_now()))


def _info(kernel: Kernel, core: CoreNow) -> abi.CoreInfo:
    facts, name = core.facts, core.facts.name
    scheduler, trouble = kernel.schedulers.get(name), kernel.troubles.get(name)
    report = scheduler.report() if scheduler else None
    return abi.CoreInfo(
        name=name,
        kind=facts.kind,
        model=facts.model,
        state=(
            "draining" if core.is_draining else "down" if trouble else "up" if scheduler else "cold"
        ),
        classes=facts.classes,
        price=facts.price,
        slots=report.slots if report else 0,
        context_tokens=core.context_tokens,
        running=report.running if report else 0,
        queued=report.queued if report else 0,
        speed=round(core.speed, 2),
        where=facts.where,
        message=trouble.message if trouble else "",
    )
