"""`aios sched show|set`: who gets the next slice, and how long one is."""

from __future__ import annotations

from typing import Annotated

import typer

from aios.abi.calls import GetScheduler, SchedulerReport, SetScheduler
from aios.cli import session, show
from aios.errors import InvalidCall

app = typer.Typer(help="The scheduler's policy and quantum.", no_args_is_help=True)


def _show(report: SchedulerReport, json: bool) -> None:
    if json:
        show.json(report)
        return
    show.facts(
        (
            ("policy", f"{report.policy}  (of {', '.join(report.policies)})"),
            ("quantum", f"{report.quantum} tokens a slice"),
            ("slots", f"{report.running} of {report.slots} in use, {report.queued} tickets queued"),
        )
    )


@app.command("show")
def show_scheduler(
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """The policy, the quantum and how busy the slots are."""
    _show(session.ask(GetScheduler(), SchedulerReport), json)


@app.command("set")
def set_scheduler(
    policy: Annotated[
        str | None, typer.Argument(help="A policy that `aios sched show` names.")
    ] = None,
    quantum: Annotated[
        int | None, typer.Option("--quantum", help="Decoded tokens a slice.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Change the policy, the quantum, or both; it holds from the next slice on."""
    if policy is None and quantum is None:
        raise InvalidCall("nothing to set; name a policy, --quantum N, or both.")
    _show(session.ask(SetScheduler(policy=policy, quantum=quantum), SchedulerReport), json)
