"""What a process printed, what happened to it, and what was said: logs, trace, transcript."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any

import typer

from aios.abi import wire
from aios.abi.calls import CallRecord, GetLog, GetTranscript, Log, Transcript
from aios.abi.events import Event, ProcessEnded
from aios.cli import session, show
from aios.cli.run import LOG_POLL_S
from aios.errors import InvalidCall

Pid = Annotated[int, typer.Argument(help="The process.")]
Follow = Annotated[bool, typer.Option("-f", "--follow", help="Go on until it ends or Ctrl-C.")]


async def _logs(kernel: session.Session, pid: int, follow: bool, json: bool) -> None:
    offset = 0
    while True:
        log = await kernel.call(GetLog(aid=pid, offset=offset), Log)
        if json:
            show.json(log)
        else:
            sys.stdout.write(log.text)
            sys.stdout.flush()
        drained = log.next == offset
        if drained and (log.ended or not follow):
            return
        if drained:
            await asyncio.sleep(LOG_POLL_S)
        offset = log.next


def logs(
    pid: Pid,
    follow: Follow = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a part.")] = False,
) -> None:
    """What the program printed: its stdout and stderr."""
    session.use(lambda kernel: _logs(kernel, pid, follow, json))


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def event_line(event: Event) -> str:
    """One event for a person: number, time of day, pid, name, and what it says."""
    said: dict[str, Any] = wire.plain(event)
    name = said.pop("event")
    for shown in ("seq", "at", "pid"):
        said.pop(shown, None)
    clock = time.strftime("%H:%M:%S", time.localtime(event.at))
    if usage := said.pop("usage", None):
        said |= usage
    rest = " ".join(f"{key}={_short(value)}" for key, value in said.items() if value is not None)
    line = f"{event.seq:>7} {clock}.{int(event.at % 1 * 1000):03d} {event.pid:>5} {name} {rest}"
    return show.printable(line)


async def _trace(
    kernel: session.Session, pid: int | None, follow: bool, after: int, json: bool
) -> None:
    async with aclosing(kernel.events(after=after, pid=pid, follow=follow)) as events:
        async for event in events:
            if json:
                show.json(event)
            else:
                print(event_line(event), flush=True)
            if follow and isinstance(event, ProcessEnded) and event.pid == pid:
                return


def trace(
    pid: Annotated[int | None, typer.Argument(help="Only this process's events.")] = None,
    follow: Follow = False,
    after: Annotated[int, typer.Option("--after", help="Only events numbered above this.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """What happened, event by event, oldest first."""
    session.use(lambda kernel: _trace(kernel, pid, follow, after, json))


def _said(message: dict[str, Any]) -> str:
    tools = "".join(
        f" [{use['name']}({use['arguments']})]" for use in message.get("tool_calls", ())
    )
    return f"  {message['role']}: {message.get('content', '')}{tools}"


def call_text(record: CallRecord) -> str:
    """One call of a transcript for a person: a heading, then what was said."""
    took = "" if record.ended_at is None else f" {record.ended_at - record.started_at:.2f}s"
    lines = [f"{record.id} {record.name} {record.state}{took}"]
    request = record.request if isinstance(record.request, dict) else {}
    reply = record.reply if isinstance(record.reply, dict) else {}
    if "messages" in request:
        lines += [_said(message) for message in request["messages"]]
    else:
        lines += [f"  {key}: {value}" for key, value in request.items() if key != "call"]
    if "message" in reply:
        lines.append(_said(reply["message"]))
    elif reply:
        lines += [f"  -> {key}: {value}" for key, value in reply.items()]
    if record.error:
        lines.append(f"  error: {record.error}")
    return "\n".join(lines)


def _asked(record: CallRecord) -> str:
    """What a call asked, in a few words."""
    request = record.request if isinstance(record.request, dict) else {}
    if messages := request.get("messages"):
        return str(messages[-1].get("content", ""))
    if record.name == "tool_call":
        return f"{request.get('name')}({wire.encode(request.get('arguments', {})).decode()})"
    said = {key: value for key, value in request.items() if key not in ("call", "place", "aid")}
    return " ".join(f"{key}={wire.encode(value).decode()}" for key, value in said.items())


def call_line(record: CallRecord) -> str:
    """One call of a history on one line; what a rollback left behind says so."""
    took = "-" if record.ended_at is None else f"{record.ended_at - record.started_at:.2f}s"
    state = f"{record.state}, rolled back" if record.void else record.state
    began = show.moment(record.started_at)
    about = record.error or " ".join(_asked(record).split())[:80]
    return show.printable(f"{record.id:>6} {began} {took:>7} {record.name} ({state}) {about}")


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _time(option: str, text: str | None) -> float | None:
    """``90s``, ``5m``, ``2h`` or ``1d`` ago, or a date, maybe with a time of day, of this place."""
    if text is None:
        return None
    amount, unit = text[:-1], text[-1:]
    if unit in _UNITS and amount.isascii() and amount.isdigit():
        return time.time() - int(amount) * _UNITS[unit]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise InvalidCall(
            f"{option} {text!r} is no time: write how long ago (90s, 5m, 2h, 1d) or a date "
            "such as '2026-01-31 12:00'."
        ) from error


def history(
    pid: Pid,
    names: Annotated[
        list[str] | None, typer.Option("--name", help="Only calls of this name; several times.")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="Only calls with this in what was asked or said.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="From then on: 90s, 5m, 2h, 1d ago, or a date.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Up to then.")] = None,
    limit: Annotated[int, typer.Option("--limit", help="At most this many of the newest.")] = 100,
    before: Annotated[
        str | None, typer.Option("--before", help="Only calls older than this one: c12.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON array, with contents.")] = False,
) -> None:
    """The calls that a process has made, one a line; `aios transcript` shows their contents."""
    call = GetTranscript(
        aid=pid,
        limit=limit,
        before=before,
        names=tuple(names or ()),
        text=text,
        since=_time("--since", since),
        until=_time("--until", until),
    )
    calls = session.ask(call, Transcript).calls
    if json:
        show.json(calls)
        return
    for record in calls:
        print(call_line(record))


def transcript(
    pid: Pid,
    limit: Annotated[int, typer.Option("--limit", help="At most this many of the newest.")] = 1000,
    json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False,
) -> None:
    """What a process asked and what came back, call by call."""
    calls = session.ask(GetTranscript(aid=pid, limit=limit), Transcript).calls
    if json:
        show.json(calls)
        return
    for record in calls:
        print(call_text(record))


def register(app: typer.Typer) -> None:
    for command in (logs, trace, transcript, history):
        app.command()(command)
