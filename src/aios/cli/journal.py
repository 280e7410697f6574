"""`aios journal stats|verify|prune|export`: what is on disk, if it is sound, and less of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TextIO

import msgspec
import typer

from aios.abi import wire
from aios.abi.calls import GetJournal, JournalReport, PruneJournal, Pruning
from aios.cli import exits, session, show
from aios.errors import InvalidCall

app = typer.Typer(help="The journal: all that the kernel keeps.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
File = Annotated[
    Path | None, typer.Option("--file", help="Another journal than that of AIOS_HOME.")
]
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
SHOWN = 20  # problems; the rest are counted


def _size(amount: int) -> str:
    """Bytes as a person reads them."""
    if amount < 10**6:
        return f"{amount / 10**3:.1f} kB"
    return f"{amount / 10**6:,.1f} MB"


@app.command("stats")
def stats(json: Json = False) -> None:
    """How large the journal is, and what is in it."""
    report = session.ask(GetJournal(), JournalReport)
    if json:
        show.json(report)
        return
    show.facts(
        (
            ("file", f"{_size(report.bytes)}, of which {_size(report.free_bytes)} are free"),
            ("write-ahead log", _size(report.wal_bytes)),
            ("events", f"{report.first_event} to {report.last_event}"),
            ("schema", f"version {report.version}"),
        )
    )
    print()
    filled = sorted(report.rows.items(), key=lambda row: (-row[1], row[0]))
    show.out(show.table(("TABLE", ">ROWS"), [(name, rows) for name, rows in filled if rows]))


def _bytes(text: str | None) -> int | None:
    """``500M`` as bytes."""
    if text is None:
        return None
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        amount = float(number) * UNITS[unit]
        return int(amount)
    except (KeyError, ValueError, OverflowError):
        raise InvalidCall(
            f"--max-size is {text!r}: give bytes, or a number with K, M or G, as in 500M."
        ) from None


@app.command("prune")
def prune(
    days: Annotated[
        float | None, typer.Option("--days", help="Keep what is younger than so many days.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", help="Then drop the oldest until it fits: 500M, 2G.")
    ] = None,
    json: Json = False,
) -> None:
    """Forget old history now; nothing that a living process needs. The kernel does so each hour."""
    call = PruneJournal(days=days, max_bytes=_bytes(max_size))
    gone = session.ask(call, Pruning)
    if json:
        show.json(gone)
        return
    print(
        f"{gone.events} events, {gone.calls} calls and {gone.blobs} blobs are gone; "
        f"the file is {_size(gone.bytes)} smaller."
    )


def _path(file: Path | None) -> Path:
    from aios.config import Paths

    return file.absolute() if file else Paths.find().journal


@app.command("verify")
def verify(file: File = None, json: Json = False) -> None:
    """Whether the journal is sound; it may be in use. Exit code 1 if it is not."""
    from aios.drivers.journal.file import JournalFile

    path = _path(file)
    with JournalFile(path) as journal:
        found = list(journal.problems()) or list(_without_ends(journal))
    if json:
        show.json({"journal": str(path), "sound": not found, "problems": found})
    elif not found:
        print(f"{path} is sound.")
    else:
        for problem in found[:SHOWN]:
            print(show.printable(problem))
        if len(found) > SHOWN:
            print(f"... and {len(found) - SHOWN} more (--json shows them).")
        show.note(f"{path} is not sound: restore it from a copy, or go on with care.")
    if found:
        raise typer.Exit(exits.FAILED.code)


def _without_ends(journal: Any) -> Iterator[str]:
    """Starts without an end, and ends without a start that was not pruned."""
    from aios.kernel.trace import check_ends

    first = next(iter(journal.events()), None)
    pruned = first is not None and first.seq > 1
    for problem in check_ends(journal.events(), journal.open_now()):
        if not (pruned and problem.endswith("without a start")):
            yield problem


@app.command("export")
def export(
    to: Annotated[Path | None, typer.Argument(help="A file to make; else it is printed.")] = None,
    aid: Annotated[int | None, typer.Option("--aid", help="Of this process only.")] = None,
    file: File = None,
) -> None:
    """All events, then all calls with their contents, as JSON: one a line."""
    from aios.drivers.journal.file import JournalFile

    with JournalFile(_path(file)) as journal:
        lines = _lines(journal, aid)
        if to is None:
            _write(sys.stdout, lines)
            return
        with to.open("x") as out:
            to.chmod(0o600)  # what agents said is nobody else's
            _write(out, lines)


def _lines(journal: Any, aid: int | None) -> Iterator[bytes]:
    for event in journal.events(aid):
        yield wire.encode(event)
    for history in journal.calls(aid):
        start, end = history.start, history.end
        yield wire.encode(
            {
                "call": start.name,
                "id": start.id,
                "aid": start.pid,
                "started_at": start.started_at,
                "void": history.void,
                "state": end.state if end else "open",
                "ended_at": end.ended_at if end else None,
                "error": end.error if end else None,
                "code": end.code if end else None,
                "request": msgspec.Raw(start.request),
                "reply": msgspec.Raw(end.reply) if end and end.reply else None,
            }
        )


def _write(out: TextIO, lines: Iterable[bytes]) -> None:
    for line in lines:
        out.write(line.decode() + "\n")
