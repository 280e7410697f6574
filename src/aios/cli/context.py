"""`aios context show|clear|set|expand|compact`: what is in a process's contexts, and how full."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from aios.abi.calls import (
    Call,
    ClrContext,
    CompactContext,
    ContextReport,
    ExpContext,
    GetContext,
    SetContext,
    Strategy,
)
from aios.abi.messages import Message
from aios.cli import session, show
from aios.errors import InvalidCall

app = typer.Typer(help="The contexts of a process.", no_args_is_help=True)

STRATEGIES: tuple[Strategy, ...] = ("drop", "summarise", "page", "fail")
Pid = Annotated[int, typer.Argument(help="The process, as `aios ps` numbers it.")]
Name = Annotated[str, typer.Option("--name", help="Which of its contexts.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]
Kept = Annotated[
    str | None,
    typer.Option("--strategy", metavar="|".join(STRATEGIES), help="How it is kept short."),
]


def _strategy(text: str | None) -> Strategy | None:
    for strategy in STRATEGIES:
        if text == strategy:
            return strategy
    if text is None:
        return None
    raise InvalidCall(f"there is no strategy {text!r}; there are {', '.join(STRATEGIES)}.")


def _show(call: Call, json: bool) -> ContextReport:
    report = session.ask(call, ContextReport)
    if json:
        show.json(report)
        return report
    share = f" ({100 * report.used // report.window} %)" if report.window else ""
    show.facts(
        (
            ("context", f"{report.context} of process {report.aid}"),
            ("used", f"{report.used} of {report.window} tokens{share}"),
            ("stays", f"{report.pinned} messages (the system prompt and pins)"),
            ("strategy", report.strategy),
            ("shortened", f"{report.compactions} times, by {report.dropped} messages"),
        )
    )
    return report


@app.command("show")
def show_context(
    pid: Pid,
    name: Name = "main",
    messages: Annotated[
        bool, typer.Option("-m", "--messages", help="Also what is in it, oldest first.")
    ] = False,
    json: Json = False,
) -> None:
    """How full a context is, and what is in it."""
    report = _show(GetContext(aid=pid, context=name, messages=messages), json)
    if json:
        return
    for message in report.messages:
        calls = [f"-> {call.name}({call.arguments})" for call in message.tool_calls]
        pin = " (pinned)" if message.pinned else ""
        lines = "\n".join(filter(None, [message.content, *calls])).split("\n")
        print(f"\n{message.role}{pin}:")
        print("\n".join(f"  {show.printable(line)}" for line in lines))


@app.command()
def clear(
    pid: Pid,
    name: Name = "main",
    pins: Annotated[bool, typer.Option("--pins", help="What is pinned goes too.")] = False,
    json: Json = False,
) -> None:
    """Empty a context; what is pinned stays."""
    _show(ClrContext(aid=pid, context=name, pins=pins), json)


@app.command("set")
def set_context(
    pid: Pid,
    file: Annotated[
        str | None,
        typer.Argument(help="A JSON list of messages (role, content), - for stdin; or none."),
    ] = None,
    name: Name = "main",
    strategy: Kept = None,
    json: Json = False,
) -> None:
    """Replace what is in a context, or choose how it is kept within its window."""
    if file is None and strategy is None:
        raise InvalidCall("nothing to set: give a file of messages, --strategy, or both.")
    messages = None if file is None else read(file)
    call = SetContext(aid=pid, context=name, messages=messages, strategy=_strategy(strategy))
    _show(call, json)


@app.command()
def expand(
    pid: Pid,
    window: Annotated[
        int | None, typer.Argument(help="Tokens; without it as many as the model has.")
    ] = None,
    name: Name = "main",
    json: Json = False,
) -> None:
    """Widen (or narrow) the window of a context."""
    _show(ExpContext(aid=pid, context=name, window=window), json)


@app.command()
def compact(
    pid: Pid,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="To at most so many; else half its window.")
    ] = None,
    name: Name = "main",
    strategy: Kept = None,
    json: Json = False,
) -> None:
    """Make a context shorter now."""
    call = CompactContext(aid=pid, context=name, tokens=tokens, strategy=_strategy(strategy))
    _show(call, json)


def read(file: str) -> tuple[Message, ...]:
    """The messages in a JSON file; InvalidCall says what does not fit."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise InvalidCall(f"{file} cannot be read: {error.strerror}.") from error
    try:
        return msgspec.json.decode(data, type=tuple[Message, ...])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidCall(f"{file} is no JSON list of messages: {error}.") from error
