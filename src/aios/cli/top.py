"""`aios top` and `aios ps --watch`: the process table, live."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from aios.abi.calls import GetScheduler, ListAgents, Processes, SchedulerReport
from aios.cli import session, show

if TYPE_CHECKING:
    from rich.console import RenderableType


def header(scheduler: SchedulerReport, found: Processes) -> str:
    """One line over the table: policy, slots, and how many processes are in which state."""
    states: dict[str, int] = {}
    for status in found.processes:
        states[status.status] = states.get(status.status, 0) + 1
    counts = ", ".join(f"{number} {state}" for state, number in sorted(states.items())) or "none"
    return (
        f"{scheduler.policy}, quantum {scheduler.quantum} | "
        f"slots {scheduler.running} of {scheduler.slots}, {scheduler.queued} queued | "
        f"processes: {counts}"
    )


def screen(scheduler: SchedulerReport | None, found: Processes, now: float) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    table = show.processes(found.processes, now)
    return Group(Text(header(scheduler, found)), table) if scheduler else table


async def _live(
    kernel: session.Session, *, all: bool, json: bool, interval_s: float, scheduler: bool
) -> None:
    from rich.live import Live

    async def look() -> tuple[SchedulerReport | None, Processes]:
        found = await kernel.call(ListAgents(all=all), Processes)
        report = await kernel.call(GetScheduler(), SchedulerReport) if scheduler else None
        return report, found

    if json or not sys.stdout.isatty():
        while True:
            report, found = await look()
            if json:
                show.json({"scheduler": report, "processes": found.processes})
            else:
                show.out(screen(report, found, time.time()))
            await asyncio.sleep(interval_s)
    report, found = await look()
    with Live(screen(report, found, time.time()), auto_refresh=False, screen=scheduler) as live:
        while True:
            await asyncio.sleep(interval_s)
            live.update(screen(*await look(), time.time()), refresh=True)


def watch_processes(all: bool, json: bool) -> None:
    session.use(lambda kernel: _live(kernel, all=all, json=json, interval_s=1.0, scheduler=False))


def top(
    interval: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds.")] = 1.0,
    all: Annotated[bool, typer.Option("-a", "--all", help="Also those that have ended.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a refresh.")] = False,
) -> None:
    """The scheduler and the processes, live, until Ctrl-C."""
    session.use(
        lambda kernel: _live(kernel, all=all, json=json, interval_s=interval, scheduler=True)
    )
