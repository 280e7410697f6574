"""Calls on cores: which there are, and which take what is new."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.errors import InvalidCall, NotFound
from aios.kernel.process import OpenCall, Process

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel
    from aios.kernel.routing import CoreNow

LOOK_S = 0.1  # between two looks whether a core that is removed is idle


async def sys_core_list(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.CoreList
) -> abi.CoreInfos:
    return _infos(kernel)


async def sys_core_add(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.CoreAdd
) -> abi.CoreInfos:
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
    name = request.name
    _find(kernel, name)
    if name == kernel.cores.default:
        raise InvalidCall(
            f"{name} is the default: set core.model to another first, and start anew."
        )
    kernel.cores.check_removable(name)
    was_draining = name in kernel.draining
    _drain(kernel, name)
    try:
        while kernel.on_core[name] or _tickets(kernel, name):
            await kernel.clock.sleep(LOOK_S)
    except BaseException:  # who asked has gone: it stays
        if not was_draining:
            kernel.draining.discard(name)
        raise
    if name in [facts.name for facts in kernel.cores.facts()]:  # else somebody was faster
        kernel.cores.remove(name)
        kernel.draining.discard(name)
        kernel.troubles.pop(name, None)
        kernel.trace.emit(ev.CoreRemoved, call.process.pid, core=name)
        if scheduler := kernel.schedulers.pop(name, None):
            await scheduler.core.close()
    return abi.Done()


def _tickets(kernel: Kernel, name: str) -> int:
    scheduler = kernel.schedulers.get(name)
    return len(scheduler.tickets) if scheduler else 0


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
