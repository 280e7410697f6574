"""`aios demo`: five agents at once on one small model, then each alone, and the words compared."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from aios.abi.calls import (
    CallRecord,
    Exit,
    GetScheduler,
    GetStatus,
    GetTranscript,
    KillAgent,
    ListAgents,
    Processes,
    SchedulerReport,
    SetScheduler,
    Spawned,
    Status,
    Transcript,
    WaitAgent,
)
from aios.cli import exits, machine, session, show
from aios.cli.model import about, fetch_if_missing
from aios.cli.run import spawning
from aios.errors import AiosError, InvalidCall

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SLOTS = 3  # of a kernel that the demo starts: fewer than agents, so that preemption is seen
LOOK_S = 0.25  # between two looks at the process table: the eye follows, the kernel hardly notices

Said = tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]


class Life(Struct, frozen=True):
    """One agent's run from its creation to its end, and all that the model said in it."""

    name: str
    status: Status
    said: Said

    @property
    def turnaround_s(self) -> float:
        return (self.status.ended_at or self.status.created_at) - self.status.created_at

    @property
    def is_good(self) -> bool:
        return self.status.exit_status == 0


class Choice(Struct, frozen=True):
    """What the command line says about how to run."""

    policy: str
    quantum: int
    model: str | None


def chosen(agents: str, known: Mapping[str, str]) -> dict[str, str]:
    """Name -> task of the agents to run; InvalidCall names one that there is not."""
    names = [name.strip() for name in agents.split(",") if name.strip()] or list(known)
    for name in names:
        if name not in known:
            raise InvalidCall(f"the demo has no agent {name!r}; it has {', '.join(known)}.")
    return {name: known[name] for name in names}


def said(records: Sequence[CallRecord]) -> Said:
    """What the model said, generation by generation: role, content, and the tools it asked for.

    By the calls' places in the program where they have one: calls made at once may start in any
    order. Ids of tool uses are left out, they are made up anew in each run.
    """
    replies: list[tuple[str, int, dict[str, Any]]] = []
    for number, record in enumerate(records):
        if record.name == "generate" and isinstance(record.reply, dict):
            path = (record.request or {}).get("place") or ""
            replies.append((path, number, record.reply["message"]))
    return tuple(
        (
            message["role"],
            message.get("content", ""),
            tuple((use["name"], use["arguments"]) for use in message.get("tool_calls", ())),
        )
        for _, _, message in sorted(replies, key=lambda reply: reply[:2])
    )


def mean_turnaround(lives: Sequence[Life]) -> float:
    """Seconds from when the first of them was asked for to each one's answer, on average."""
    asked = min(life.status.created_at for life in lives)
    answered = [life.status.ended_at or asked for life in lives]
    return round(sum(answered) / len(answered) - asked, 2)


def identical(together: Life, alone: Life) -> bool:
    return together.is_good and alone.is_good and together.said == alone.said and bool(alone.said)


# --- what is seen ---------------------------------------------------------------------------------


def _process_table(lives: Mapping[int, Status]) -> RenderableType:
    return show.table(
        (">PID", "PROGRAM", "STATE", ">TOKENS", ">SLICES", ">PREEMPTIONS", "RESIDENCY"),
        (
            (
                aid,
                show.program(status.program),
                show.condition(status),
                status.usage.tokens,
                status.usage.slices,
                status.usage.preemptions,
                status.residency or "-",
            )
            for aid, status in lives.items()
        ),
    )


class Board:
    """The process table: live on a terminal, elsewhere a line for each start and end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Any = None
        self._begun: set[int] = set()
        self._ended: set[int] = set()

    def __enter__(self) -> Board:
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False)
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*error)

    def update(self, lives: Mapping[int, Status]) -> None:
        if self._live is not None:
            self._live.update(_process_table(lives), refresh=True)
            return
        for aid, status in lives.items():
            named = f"  process {aid} ({show.program(status.program)})"
            if aid not in self._begun:
                self._begun.add(aid)
                self._console.print(f"{named} has started")
            if status.state == "zombie" and aid not in self._ended:
                self._ended.add(aid)
                used = status.usage
                self._console.print(
                    f"{named} has ended with {status.exit_status}: {used.tokens} tokens in "
                    f"{used.slices} slices, {used.preemptions} preemptions"
                )


# --- what is done ---------------------------------------------------------------------------------


@asynccontextmanager
async def _scheduled(kernel: session.Session, choice: Choice) -> AsyncIterator[SchedulerReport]:
    """The asked policy for as long as the block lasts, then the former one again."""
    before = await kernel.call(GetScheduler(), SchedulerReport)
    former = SetScheduler(policy=before.policy, quantum=before.quantum)
    now = await kernel.call(
        SetScheduler(policy=choice.policy, quantum=choice.quantum), SchedulerReport
    )
    try:
        yield now
    finally:
        await kernel.call(former, SchedulerReport)


async def _lives(
    kernel: session.Session, tasks: Mapping[str, str], model: str | None, board: Board
) -> list[Life]:
    """Start all the agents at once and watch them to their ends; cut off, they are killed."""
    from aios.sdk import programs

    names: dict[int, str] = {}
    try:
        for name, task in tasks.items():
            spawn = spawning(programs.find(name), task=task, model=model)
            names[(await kernel.call(spawn, Spawned)).aid] = name
        while True:
            found = (await kernel.call(ListAgents(all=True), Processes)).processes
            ours = {status.aid: status for status in found if status.aid in names}
            board.update(ours)
            if all(status.state == "zombie" for status in ours.values()):
                break
            await asyncio.sleep(LOOK_S)
    except BaseException:
        for aid in names:
            try:
                await kernel.call(KillAgent(aid=aid, reason="the demo was cut off"), Exit)
            except AiosError as error:
                show.note(error.message)
        raise
    lives = []
    for aid, name in names.items():
        status = await kernel.call(GetStatus(aid=aid), Status)
        transcript = await kernel.call(GetTranscript(aid=aid), Transcript)
        lives.append(Life(name, status, said(transcript.calls)))
        await kernel.call(WaitAgent(aid=aid), Exit)  # reaped: a demo leaves no zombies
    return lives


async def _together(
    kernel: session.Session, tasks: Mapping[str, str], choice: Choice, console: Console
) -> tuple[SchedulerReport, list[Life]]:
    async with _scheduled(kernel, choice) as scheduler:
        console.print(
            f"{len(tasks)} agents at once, {scheduler.slots} slots, {scheduler.policy}, "
            f"quantum {scheduler.quantum} tokens:"
        )
        with Board(console) as board:
            return scheduler, await _lives(kernel, tasks, choice.model, board)


async def _alone(
    kernel: session.Session, tasks: Mapping[str, str], choice: Choice, console: Console
) -> list[Life]:
    console.print("\nand now each alone, one after another:")
    lives: list[Life] = []
    async with _scheduled(kernel, choice):
        for name, task in tasks.items():
            with Board(console) as board:
                lives += await _lives(kernel, {name: task}, choice.model, board)
    return lives


@contextmanager
def _kernel(model: str | None) -> Iterator[bool]:
    """The kernel that runs here, else one for as long as the block lasts; True if it is ours.

    Ours has few slots, so that the agents have to take turns.
    """
    if machine.is_here():
        yield False
        return
    fetch_if_missing(model)
    daemon = machine.start(machine.any_port(), {"AIOS_CORE_SLOTS": str(SLOTS), **os.environ})
    try:
        yield True
    finally:
        machine.stop(daemon)


def _compared(together: Life, alone: Life, task: str) -> dict[str, Any]:
    used = together.status.usage
    return {
        "name": together.name,
        "task": task,
        "answer": together.status.result,
        "exit_status": together.status.exit_status,
        "tokens": used.tokens,
        "slices": used.slices,
        "preemptions": used.preemptions,
        "waiting_s": round(used.waiting_s, 2),
        "turnaround_s": round(together.turnaround_s, 2),
        "alone_turnaround_s": round(alone.turnaround_s, 2),
        "identical": identical(together, alone),
    }


def _print_answer(console: Console, life: Life, task: str) -> None:
    from rich.text import Text

    end = life.status
    answer = end.result if life.is_good else f"failed with {end.exit_status}: {end.exit_reason}"
    console.print(Text(f"\n{life.name}: ", style="bold"), Text(task), sep="")
    console.print(Text(answer or "(no answer)"), soft_wrap=True)


def _print_report(report: dict[str, Any]) -> None:
    agents = report["agents"]
    columns = (
        *("AGENT", ">TOKENS", ">SLICES", ">PREEMPTIONS", ">WAITING", ">TURNAROUND", ">ALONE"),
        "SAME WORDS",
    )
    rows = (
        (
            agent["name"],
            agent["tokens"],
            agent["slices"],
            agent["preemptions"],
            show.seconds(agent["waiting_s"]),
            show.seconds(agent["turnaround_s"]),
            show.seconds(agent["alone_turnaround_s"]),
            "yes" if agent["identical"] else "NO",
        )
        for agent in agents
    )
    show.out("")
    show.out(show.table(columns, rows))
    show.out("")
    for way, key in (("all at once", "together"), ("one after another", "alone")):
        total, mean = report[f"{key}_s"], report[f"{key}_mean_turnaround_s"]
        print(f"{way + ':':<19}{total:5.1f} s in all, on average {mean:5.1f} s until an answer")
    if not report["own_kernel"]:
        print("(the second time, the prompts were in the cache of the kernel that runs here)")
    verdict = "passed" if report["identical"] == report["of"] else "FAILED"
    print(
        f"consistency check {verdict}: the words of {report['identical']} of {report['of']} agents "
        "are identical, all at once and alone"
    )
    print(about(report["model"]))


def demonstrate(agents: str, policy: str, quantum: int, model: str | None, json: bool) -> int:
    """The whole demo; its exit code. Without a kernel it runs one of its own, afresh for each half,
    so that the second half finds nothing that the first one has computed.
    """
    from aios.agents import DEMO

    tasks = chosen(agents, DEMO)
    choice = Choice(policy, quantum, model)
    console = show.console()
    with _kernel(model) as own:
        if own:
            show.note(f"no kernel is running; the demo runs one of its own, with {SLOTS} slots.")
        began = time.monotonic()
        scheduler, together = session.use(lambda kernel: _together(kernel, tasks, choice, console))
        together_s = time.monotonic() - began
    for life in together:
        _print_answer(console, life, tasks[life.name])
    with _kernel(model):
        began = time.monotonic()
        alone = session.use(lambda kernel: _alone(kernel, tasks, choice, console))
        alone_s = time.monotonic() - began
    pairs = zip(together, alone, strict=True)
    compared = [_compared(*pair, tasks[pair[0].name]) for pair in pairs]
    report = {
        "model": together[0].status.model,
        "policy": scheduler.policy,
        "quantum": scheduler.quantum,
        "slots": scheduler.slots,
        "own_kernel": own,
        "together_s": round(together_s, 2),
        "alone_s": round(alone_s, 2),
        "together_mean_turnaround_s": mean_turnaround(together),
        "alone_mean_turnaround_s": mean_turnaround(alone),
        "agents": compared,
        "identical": sum(agent["identical"] for agent in compared),
        "of": len(compared),
    }
    _print_report(report)
    if json:
        show.json(report)
    return exits.OK.code if report["identical"] == report["of"] else exits.FAILED.code
