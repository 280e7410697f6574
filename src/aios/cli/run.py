"""`aios run`: start a program as a process, and stay with it unless told not to."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from aios.abi.calls import (
    Exit,
    GetLog,
    GetStatus,
    KillAgent,
    Limits,
    Log,
    SpawnAgent,
    Spawned,
    Status,
    WaitAgent,
)
from aios.cli import budget as budgets
from aios.cli import exits, machine, session, show
from aios.errors import AiosError, InvalidCall, NotFound
from aios.sdk import programs
from aios.sdk.programs import Program

STATUS_POLL_S = 1.0  # between looks at whether a quiet program is stopped at its cap
LOG_POLL_S = 0.1  # between looks at a log that has nothing new: below what a person notices
TAIL_CHARACTERS = 2_000  # of its output: enough to see whether it printed its result itself


def command_line(argv: Sequence[str]) -> Program:
    """Any command at all as a program; one that an interpreter runs goes by the script's name."""
    if shutil.which(argv[0]) is None:
        raise NotFound(f"there is no command {argv[0]!r} on the PATH; check its name.")
    script = next((word for word in argv[1:] if not word.startswith("-")), "")
    named = script if Path(script).is_file() else argv[0]
    return Program(name=Path(named).stem, argv=tuple(argv))


_WITH_VALUE = {"--budget", "--model", "--priority"}


def names_a_program(words: Sequence[str]) -> bool:
    """Whether one of *words*, which follow `run`, is no option and no option's value."""
    before = ["", *words]
    return any(
        not word.startswith("-") and last not in _WITH_VALUE
        for last, word in zip(before, words, strict=False)
    )


def environment(of: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment for the program, less what belongs to aios itself.

    The kernel sets the program's own AIOS_KEY and addresses; the caller's must not reach it.
    """
    return {name: value for name, value in of.items() if not name.startswith("AIOS_")}


def spawning(
    what: Program,
    *,
    task: str,
    model: str | None = None,
    budget: Limits = Limits(),  # noqa: B008 (frozen)
    priority: int | None = None,
    wrap_model: bool = False,
    fail_at_cap: bool = False,
) -> SpawnAgent:
    """The call that starts *what*; a flag beats the manifest. InvalidCall without a needed task."""
    if what.name in programs.BUILT_IN and not task.strip():
        raise InvalidCall(
            f"the agent {what.name} was given no task; say what to do: "
            f'`aios run {what.name} "…"` (`aios demo` shows examples).'
        )
    return SpawnAgent(
        program=what.name,
        argv=what.argv,
        task=task,
        cwd=what.cwd or os.getcwd(),
        env=environment(os.environ),
        priority=what.priority if priority is None else priority,
        budget=budget if budget != Limits() else what.budget,
        on_exhausted="fail" if fail_at_cap else "suspend",
        model=model or what.model,
        wrap_model=wrap_model,
        **{name: getattr(what, name) for name in programs.CARRIED},
    )


def stopped(status: Status) -> str:
    """Why a program that somebody waits for says nothing, and what lets it go on."""
    if "budget" in status.reasons:
        return (
            f"process {status.aid} is suspended: its budget is used up "
            f"({show.limits(status.budget)} left); `aios budget set {status.aid} tokens=N` (or "
            "seconds=S, calls=N, usd=D) lets it go on, Ctrl-C ends it."
        )
    return f"process {status.aid} is suspended; `aios resume {status.aid}` lets it go on."


async def follow(kernel: session.Session, pid: int) -> Exit:
    """Print what *pid* prints until it has ended, then its result; Ctrl-C kills it."""
    offset, tail = 0, ""
    quiet_s, was_stopped = 0.0, False
    try:
        while True:
            log = await kernel.call(GetLog(aid=pid, offset=offset), Log)
            sys.stdout.write(log.text)
            sys.stdout.flush()
            tail = (tail + log.text)[-TAIL_CHARACTERS:]
            if log.ended and log.next == offset:
                break
            if log.next == offset:
                await asyncio.sleep(LOG_POLL_S)
                quiet_s += LOG_POLL_S
            if quiet_s >= STATUS_POLL_S:
                quiet_s = 0.0
                status = await kernel.call(GetStatus(aid=pid), Status)
                if status.state == "suspended" and not was_stopped:
                    show.note(stopped(status))
                was_stopped = status.state == "suspended"
            offset = log.next
        # not reaped: `ps -a`, `trace` and `transcript` go on showing it
        ended = await kernel.call(WaitAgent(aid=pid, reap=False), Exit)
        if ended.result and not tail.rstrip().endswith(ended.result.strip()[-TAIL_CHARACTERS:]):
            print(ended.result)
        return ended
    except asyncio.CancelledError:
        try:
            await kernel.call(KillAgent(aid=pid, reason="interrupted"), Exit)
        except AiosError as error:
            show.note(error.message)
        raise


async def _run(kernel: session.Session, spawn: SpawnAgent, detach: bool, json: bool) -> int:
    made = await kernel.call(spawn, Spawned)
    if detach:
        if json:
            show.json({"aid": made.aid})
        else:
            print(made.aid)
        return exits.OK.code
    ended = await follow(kernel, made.aid)
    if json:
        show.json(ended)
    elif ended.exit_status != 0:
        show.note(f"process {made.aid} ended with {ended.exit_status}: {ended.reason.rstrip('.')}.")
    return exits.of_program(ended.exit_status)


def run(
    words: Annotated[
        list[str],
        typer.Argument(metavar="PROGRAM [TASK]", help="program.py or NAME, and what it shall do."),
    ],
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Print the pid and return.")
    ] = False,
    budget: Annotated[
        str, typer.Option("--budget", help="What it may spend: tokens=N,seconds=S,calls=N,usd=D.")
    ] = "",
    fail_at_cap: Annotated[
        bool, typer.Option("--fail-at-cap", help="At the cap refuse calls instead of suspending.")
    ] = False,
    model: Annotated[str | None, typer.Option("--model", help="The model that answers it.")] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", help="-20 (first) to 19 (last).")
    ] = None,
    command: Annotated[
        bool,
        typer.Option("--command", help="The words are any command line; `--` does the same."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="End with one JSON object.")] = False,
) -> None:
    """Start a program, show what it prints, and exit with its exit status.

    `aios run math "12 * 12"` runs an agent (write `aios run math -- "-3 + 5"` for a task that
    begins with a dash), `aios run -- python any_program.py` any program at all:
    OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_CUSTOM_HEADERS then lead its model calls here.
    """
    if command:
        what, task = command_line(words), ""
    elif len(words) > 2:
        raise InvalidCall(
            f"{len(words) - 1} words follow {words[0]!r}; put the task in quotes, "
            "or write `aios run -- COMMAND ...` for a command line."
        )
    else:
        what = programs.find(words[0])
        task = words[1] if len(words) == 2 else ""
    spawn = spawning(
        what,
        task=task,
        budget=budgets.parse([budget]),
        model=model,
        priority=priority,
        wrap_model=command,
        fail_at_cap=fail_at_cap,
    )
    machine.start_if_none(model)
    raise typer.Exit(session.use(lambda kernel: _run(kernel, spawn, detach, json)))
