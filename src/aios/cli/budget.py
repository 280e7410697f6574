"""`aios budget show|set`: what a process may still spend."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec
import typer

from aios.abi.calls import GetUsage, Limits, SetBudget, UsageReport
from aios.cli import session, show
from aios.errors import InvalidCall

app = typer.Typer(help="What a process may still spend.", no_args_is_help=True)

_KINDS = {"tokens": int, "seconds": float, "calls": int, "usd": float}


def parse(parts: Iterable[str]) -> Limits:
    """``["tokens=100,calls=3", "seconds=5"]`` as Limits; InvalidCall names what does not fit."""
    amounts: dict[str, float] = {}
    for part in (part for text in parts for part in text.split(",") if part):
        name, equals, value = part.partition("=")
        if not equals or name not in _KINDS:
            raise InvalidCall(
                f"{part!r} is not an amount; write tokens=N, seconds=S, calls=N or usd=D, "
                "with commas between several."
            )
        try:
            amounts[name] = _KINDS[name](value)
        except ValueError:
            raise InvalidCall(f"{name}={value!r} is not a number; write {name}=100.") from None
        if not 0 <= amounts[name] < 2**53:
            raise InvalidCall(f"{name}={value} is out of range; write a number from 0 up.")
    return msgspec.convert(amounts, Limits)


def _show(report: UsageReport, json: bool) -> None:
    if json:
        show.json(report)
        return
    left, spent = report.budget, report.usage
    limited = (
        ("tokens", spent.tokens, left.tokens),
        ("seconds", f"{spent.running_s:.1f}", left.seconds),
        ("calls", spent.calls, left.calls),
        ("usd", f"{spent.usd:.6f}", left.usd),
    )
    rows = [(of, used, "no limit" if rest is None else f"{rest:g}") for of, used, rest in limited]
    rows += [
        ("memory", f"{report.memory_bytes:,} bytes", ""),
        ("storage", f"{report.storage_bytes:,} bytes", ""),
        ("CPU", f"{report.cpu_s:.1f}s", ""),
        ("RAM", f"{report.rss_bytes:,} bytes", ""),
    ]
    show.out(show.table(("OF", ">SPENT", ">LEFT"), rows))


@app.command("show")
def show_budget(
    pid: Annotated[int, typer.Argument(help="The process.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """What a process has spent and what is left."""
    _show(session.ask(GetUsage(aid=pid), UsageReport), json)


@app.command("set")
def set_budget(
    pid: Annotated[int, typer.Argument(help="The process.")],
    amounts: Annotated[list[str], typer.Argument(help="tokens=N seconds=S calls=N usd=D")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Replace what is left of the named amounts; a process stopped at the cap goes on."""
    limits = parse(amounts)
    if limits == Limits():
        raise InvalidCall("no amount was given; write for example tokens=500.")
    _show(session.ask(SetBudget(aid=pid, budget=limits), UsageReport), json)
