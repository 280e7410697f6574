"""What a process printed, what happened to it, and what was said: logs, trace, transcript."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import aclosing
from typing import Annotated, Any

import typer

from aios.abi import wire
from aios.abi.calls import CallRecord, GetLog, GetTranscript, Log, Transcript
from aios.abi.events import Event, ProcessEnded
from aios.cli import session, show
from aios.cli.run import LOG_POLL_S

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
    for command in (logs, trace, transcript):
        app.command()(command)
