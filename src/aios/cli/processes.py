"""Looking at processes and steering them: ps, inspect, suspend, resume, kill, nice, wait, fork."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from aios.abi.calls import (
    Call,
    Exit,
    ForkAgent,
    GetStatus,
    KillAgent,
    ListAgents,
    Priority,
    Processes,
    Reply,
    ResumeAgent,
    SetPriority,
    Spawned,
    Status,
    SuspendAgent,
    WaitAgent,
)
from aios.cli import exits, session, show

Pid = Annotated[int, typer.Argument(help="The process, as `aios ps` numbers it.")]
Pids = Annotated[list[int], typer.Argument(help="One or more processes.")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


def ps(
    all: Annotated[bool, typer.Option("-a", "--all", help="Also those that have ended.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again every second, until Ctrl-C.")
    ] = False,
    json: Json = False,
) -> None:
    """The processes: what each is doing and what it has used."""
    if watch:
        from aios.cli.top import watch_processes

        watch_processes(all=all, json=json)
        return
    found = session.ask(ListAgents(all=all), Processes).processes
    if json:
        show.json(found)
    else:
        show.out(show.processes(found, time.time()))


def _describe(status: Status) -> None:
    used = status.usage
    end = (
        "-" if status.exit_status is None else f"{status.exit_status} {status.exit_reason}".strip()
    )
    show.facts(
        (
            ("pid", status.aid),
            ("program", status.program),
            ("argv", " ".join(status.argv) or "-"),
            ("task", status.task or "-"),
            ("user", status.user),
            ("parent", "-" if status.parent is None else status.parent),
            ("children", " ".join(map(str, status.children)) or "-"),
            ("status", show.condition(status)),
            ("note", status.note or "-"),
            ("priority", status.priority),
            ("model", status.model or "-"),
            ("open calls", ", ".join(status.open_calls) or "-"),
            ("to settle", _to_settle(status)),
            ("contexts", " ".join(status.contexts) or "-"),
            ("residency", status.residency or "-"),
            ("tokens", f"{used.prompt_tokens} prompt ({used.cached_tokens} cached), "
                       f"{used.completion_tokens} made"),
            ("calls", used.calls),
            ("slices", f"{used.slices}, {used.preemptions} times preempted"),
            ("seconds", f"{used.waiting_s:.2f} waiting, {used.running_s:.2f} on a core"),
            ("budget left", show.limits(status.budget)),
            ("OS process", "-" if status.os_pid is None else status.os_pid),
            ("created", show.moment(status.created_at)),
            ("started", show.moment(status.started_at)),
            ("ended", show.moment(status.ended_at)),
            ("lives", status.lives),
            ("exit", end),
            ("result", "-" if status.result is None else status.result),
        )
    )  # fmt: skip


def _to_settle(status: Status) -> str:
    """The calls of unknown outcome, each with the command that lets its process go on."""
    return (
        "; ".join(
            f"`aios settle {status.aid} {call} --done|--retry|--fail`"
            for call in show.unknown_calls(status)
        )
        or "-"
    )


def inspect(pid: Pid, json: Json = False) -> None:
    """Everything about one process."""
    status = session.ask(GetStatus(aid=pid), Status)
    if json:
        show.json(status)
    else:
        _describe(status)


def _steer(calls: Sequence[Call], kind: type[Reply], json: bool) -> None:
    replies = session.ask_each(calls, kind)
    if json:
        show.json(replies[0] if len(replies) == 1 else replies)


def suspend(pids: Pids, json: Json = False) -> None:
    """Stop processes where they are, in the middle of a sentence if need be."""
    _steer([SuspendAgent(aid=pid) for pid in pids], Status, json)


def resume(pids: Pids, json: Json = False) -> None:
    """Let suspended processes go on, on the same token."""
    _steer([ResumeAgent(aid=pid) for pid in pids], Status, json)


def kill(
    pids: Pids,
    reason: Annotated[str, typer.Option("--reason", help="Kept with the process.")] = "killed",
    json: Json = False,
) -> None:
    """End processes, their children first."""
    _steer([KillAgent(aid=pid, reason=reason) for pid in pids], Exit, json)


def nice(
    priority: Annotated[int, typer.Argument(help="-20 (first) to 19 (last).")],
    pid: Pid,
    json: Json = False,
) -> None:
    """Set a process's priority: `aios nice 5 12`, `aios nice -5 12`."""
    _steer([SetPriority(aid=pid, priority=priority)], Priority, json)


def wait(
    pids: Pids,
    keep: Annotated[bool, typer.Option("--keep", help="Do not reap: leave it in `ps -a`.")] = False,
    json: Json = False,
) -> None:
    """Wait until processes have ended; exits with the last one's own exit status."""
    ends: list[Exit] = []
    for pid in pids:
        ended = session.ask(WaitAgent(aid=pid, reap=not keep), Exit)
        ends.append(ended)
        if json:
            show.json(ended)
        else:
            print(f"{ended.aid} ended with {ended.exit_status} {ended.reason}".rstrip())
            if ended.result is not None:
                print(ended.result)
    raise typer.Exit(exits.of_program(ends[-1].exit_status))


def fork(
    pid: Pid,
    at: Annotated[
        str | None, typer.Option("--at", help="As it was when this call had ended: c12.")
    ] = None,
    budget: Annotated[str, typer.Option("--budget", help="tokens=N,seconds=S,calls=N,usd=D")] = "",
    json: Json = False,
) -> None:
    """A new process with a copy of this one's contexts, records and files; prints its pid.

    With --at the program is started again, is told what it was told up to there, and goes on.
    """
    from aios.cli.budget import parse

    made = session.ask(ForkAgent(aid=pid, budget=parse([budget]), at=at), Spawned)
    if json:
        show.json(made)
    else:
        print(made.aid)


def register(app: typer.Typer) -> None:
    for command in (ps, inspect, suspend, resume, kill, wait, fork):
        app.command()(command)
    # else -5 would be read as an option
    app.command(context_settings={"ignore_unknown_options": True})(nice)
