"""A process's lives: its snapshots, rolling back to them, and calls of unknown outcome."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import typer

from aios.abi.calls import (
    AgentSnapshot,
    AgentSnapshots,
    ListSnapshots,
    RollbackAgent,
    RolledBack,
    SettleCall,
    SnapshotAgent,
    Status,
)
from aios.cli import session, show
from aios.cli.processes import Json, Pid
from aios.cli.streams import call_line
from aios.errors import InvalidCall

Outcome = Literal["done", "retry", "fail"]


def snapshot(
    pid: Pid,
    label: Annotated[str, typer.Option("--label", help="A word for `aios snapshots`.")] = "",
    json: Json = False,
) -> None:
    """Remember a process as it is: contexts, records, files, its place in its program."""
    taken = session.ask(SnapshotAgent(aid=pid, label=label), AgentSnapshot)
    if json:
        show.json(taken)
    else:
        print(taken.snapshot)


def snapshots(pid: Pid, json: Json = False) -> None:
    """The snapshots that were taken of a process."""
    found = session.ask(ListSnapshots(aid=pid), AgentSnapshots).snapshots
    if json:
        show.json(found)
        return
    rows = ((one.snapshot, one.call or "-", show.moment(one.at), one.label or "-") for one in found)
    show.out(show.table(("SNAPSHOT", "AFTER", "TAKEN", "LABEL"), rows))


def rollback(
    pid: Pid,
    snapshot: Annotated[str, typer.Argument(help="As `aios snapshots PID` shows it.")],
    json: Json = False,
) -> None:
    """Take a process back to a snapshot; says which calls since then cannot be undone."""
    back = session.ask(RollbackAgent(aid=pid, snapshot=snapshot), RolledBack)
    if json:
        show.json(back)
        return
    print(f"process {back.aid} is back at {back.snapshot}")
    if back.effects:
        print("what these calls did outside cannot be undone:")
        for record in back.effects:
            print(f"  {call_line(record)}")
    for file in back.held:
        print(f"left as it is: {file}")


def _outcome(done: bool, retry: bool, fail: bool) -> Outcome:
    said: dict[Outcome, bool] = {"done": done, "retry": retry, "fail": fail}
    chosen = [outcome for outcome, is_said in said.items() if is_said]
    if len(chosen) != 1:
        raise InvalidCall(
            f"{len(chosen)} outcomes were given; say one: --done (it happened), --retry (it did "
            "not: make it again) or --fail (the program is told that nobody knows)."
        )
    return chosen[0]


def _value(text: str | None, outcome: Outcome) -> Any:
    if text is None:
        return None
    if outcome != "done":
        raise InvalidCall(f"--value {text!r} is what a call returned: it goes with --done only.")
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidCall(
            f"--value {text!r} is not JSON ({error}); a text goes in double quotes: "
            "--value '\"it is sent\"'."
        ) from error


def settle(
    pid: Pid,
    call: Annotated[str, typer.Argument(help="As `aios inspect PID` shows it: c12.")],
    done: Annotated[bool, typer.Option("--done", help="Its effect happened.")] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="It did not happen: make the call again.")
    ] = False,
    fail: Annotated[
        bool, typer.Option("--fail", help="The program gets the error OutcomeUnknown.")
    ] = False,
    value: Annotated[
        str | None, typer.Option("--value", help="What the call returned, as JSON (with --done).")
    ] = None,
    json: Json = False,
) -> None:
    """Say what became of a call that was under way when the kernel died."""
    outcome = _outcome(done, retry, fail)
    settling = SettleCall(aid=pid, target=call, outcome=outcome, value=_value(value, outcome))
    status = session.ask(settling, Status)
    if json:
        show.json(status)
    else:
        print(f"process {pid} is {show.condition(status)}")


def register(app: typer.Typer) -> None:
    for command in (snapshot, snapshots, rollback, settle):
        app.command()(command)
