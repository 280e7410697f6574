"""`aios fs`: the files of users, programs and processes, with all their versions."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aios.abi.calls import (
    Done,
    FileDiff,
    FileHits,
    FileInfo,
    Files,
    FileVersions,
    Mounted,
    StoDelete,
    StoDiff,
    StoHistory,
    StoList,
    StoMount,
    StoMove,
    StoredVersion,
    StoRollback,
    StoSearch,
    StoShare,
)
from aios.cli import session, show
from aios.errors import InvalidCall

if TYPE_CHECKING:
    from aios.sdk.files import Files as Volume

app = typer.Typer(
    help="Files of users, programs and processes, with all their versions.", no_args_is_help=True
)

MODES: tuple[Literal["ro", "cow", "rw"], ...] = ("ro", "cow", "rw")
Place = Annotated[str, typer.Argument(help="A path in the volume.")]
Directory = Annotated[str, typer.Argument(help="A path in the volume; else all of it.")]
OfVolume = Annotated[
    str | None,
    typer.Option("--volume", "-v", help="process, program, user, or an owner such as pid:7."),
]
Pid = Annotated[int | None, typer.Option("--pid", help="Of this process; else your own.")]
Version = Annotated[int | None, typer.Option("--version", help="As it was at this version.")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


def _volume(text: str | None, pid: int | None) -> str:
    """A person's files are to outlive the terminal: the user's, unless a process is named."""
    return text or ("user" if pid is None else "process")


def _time(text: str) -> float:
    try:
        if len(text) <= 5:  # 9:30
            today = datetime.now().date().isoformat()
            return datetime.fromisoformat(f"{today} {text:0>5}").timestamp()
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise InvalidCall(
            f"{text!r} is no time: write 2026-11-22, 2026-11-22T12:30 or 12:30."
        ) from error


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds") if seconds else ""


def _told(made: StoredVersion, json: bool) -> None:
    if json:
        show.json(made)
    else:
        what = f"{len(made.paths)} files" if len(made.paths) != 1 else made.paths[0]
        show.note(f"{made.volume} is at version {made.version}: {what}; {made.left:,} bytes left.")


async def _files(opened: session.Session, volume: str | None, pid: int | None) -> Volume:
    return (await opened.process(pid)).files.of(_volume(volume, pid))


@app.command("ls")
def ls(
    path: Directory = "/",
    version: Version = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="All below it.")] = False,
    volume: OfVolume = None,
    pid: Pid = None,
    json: Json = False,
) -> None:
    """What is in a directory."""
    call = StoList(
        aid=pid, path=path, volume=_volume(volume, pid), version=version, recursive=recursive
    )
    listed = session.ask(call, Files)
    if json:
        show.json(listed)
        return
    show.out(
        show.table(
            (">BYTES", ">VERSION", ">BY", "WRITTEN", "PATH"), (_row(file) for file in listed.files)
        )
    )


def _row(file: FileInfo) -> tuple[object, ...]:
    if file.kind == "directory":
        return "-", "-", "-", "", f"{file.path}/" + (f" -> {file.mount}" if file.mount else "")
    version, by = (file.version, file.aid) if not file.mount else ("-", "-")
    return f"{file.bytes:,}", version, by, _when(file.at), file.path


@app.command("cat")
def cat(path: Place, version: Version = None, volume: OfVolume = None, pid: Pid = None) -> None:
    """Print a file."""

    async def read(opened: session.Session) -> bytes:
        files = await _files(opened, volume, pid)
        return await files.read_bytes(path, version=version)

    sys.stdout.buffer.write(session.use(read))
    sys.stdout.flush()


@app.command("put")
def put(
    source: Annotated[Path, typer.Argument(help="A file here, or - for what is piped in.")],
    path: Place,
    append: Annotated[bool, typer.Option("--append", help="Add to its end.")] = False,
    new: Annotated[bool, typer.Option("--new", help="Only if there is none.")] = False,
    message: Annotated[str, typer.Option("--message", "-m", help="Why; `log` shows it.")] = "",
    volume: OfVolume = None,
    pid: Pid = None,
    json: Json = False,
) -> None:
    """Write a file of yours into a volume; what was there stays as an older version."""
    data = sys.stdin.buffer.read() if str(source) == "-" else _read(source)
    if path.endswith("/") and str(source) != "-":
        path += source.name

    async def write(opened: session.Session) -> StoredVersion:
        files = await _files(opened, volume, pid)
        expect = 0 if new else -1
        return await files.write(path, data, expect=expect, append=append, message=message)

    _told(session.use(write), json)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidCall(f"{file} cannot be read: {error.strerror}.") from error


@app.command("get")
def get(
    path: Place,
    target: Annotated[Path | None, typer.Argument(help="Where to; else its name, here.")] = None,
    version: Version = None,
    volume: OfVolume = None,
    pid: Pid = None,
) -> None:
    """Copy a file out of a volume."""

    async def read(opened: session.Session) -> bytes:
        files = await _files(opened, volume, pid)
        return await files.read_bytes(path, version=version)

    target = target or Path(os.path.basename(path.rstrip("/")))
    if target.is_dir():
        target /= os.path.basename(path)
    data = session.use(read)
    try:
        target.write_bytes(data)
    except OSError as error:
        raise InvalidCall(f"{target} cannot be written: {error.strerror}.") from error
    show.note(f"{target} has {len(data):,} bytes.")


@app.command("rm")
def rm(
    path: Place,
    purge: Annotated[
        bool, typer.Option("--purge", help="With all versions, for good; else they stay.")
    ] = False,
    volume: OfVolume = None,
    pid: Pid = None,
    json: Json = False,
) -> None:
    """Delete a file or a directory."""
    call = StoDelete(
        aid=pid, path=path, volume=_volume(volume, pid), purge=purge, expect=None if purge else -1
    )
    _told(session.ask(call, StoredVersion), json)


@app.command("mv")
def mv(
    path: Place,
    to: Annotated[str, typer.Argument(help="The path that it gets.")],
    copy: Annotated[bool, typer.Option("--copy", help="Leave the original.")] = False,
    volume: OfVolume = None,
    pid: Pid = None,
    json: Json = False,
) -> None:
    """Give a file or a directory another path."""
    call = StoMove(aid=pid, path=path, to=to, volume=_volume(volume, pid), copy=copy, expect=-1)
    _told(session.ask(call, StoredVersion), json)


@app.command("log")
def log(
    path: Directory = "/",
    limit: Annotated[int, typer.Option("-n", "--limit", help="At most so many.")] = 100,
    volume: OfVolume = None,
    pid: Pid = None,
    json: Json = False,
) -> None:
    """The versions of a file, or of all in a directory, newest first."""
    call = StoHistory(aid=pid, path=path, volume=_volume(volume, pid), limit=limit)
    found = session.ask(call, FileVersions)
    if json:
        show.json(found)
        return
    show.out(
        show.table(
            (">VERSION", "WRITTEN", ">BY", "CALL", ">BYTES", "PATH", "MESSAGE"),
            (
                (
                    one.version,
                    _when(one.at),
                    one.aid,
                    one.call,
                    "deleted" if one.deleted else f"{one.bytes:,}",
                    one.path,
                    one.message,
                )
                for one in found.versions
            ),
        )
    )


@app.command("diff")
def diff(
    path: Directory = "/",
    since: Annotated[int, typer.Option("--since", help="After this version.")] = 0,
    until: Annotated[int | None, typer.Option("--until", help="Up to this one; else now.")] = None,
    volume: OfVolume = None,
    pid: Pid = None,
    json: Json = False,
) -> None:
    """What changed between two versions."""
    call = StoDiff(aid=pid, path=path, volume=_volume(volume, pid), since=since, until=until)
    found = session.ask(call, FileDiff)
    if json:
        show.json(found)
    else:
        print(found.text, end="")


@app.command("rollback")
def rollback(
    path: Directory = "/",
    version: Annotated[int | None, typer.Option("--version", help="To this version.")] = None,
    back: Annotated[int | None, typer.Option("--back", help="So many versions ago.")] = None,
    time: Annotated[str | None, typer.Option("--time", help="To this time.")] = None,
    volume: OfVolume = None,
    pid: Pid = None,
    json: Json = False,
) -> None:
    """Make a file, or all in a directory, as it was; the versions since stay."""
    call = StoRollback(
        aid=pid,
        path=path,
        volume=_volume(volume, pid),
        version=version,
        back=back,
        time=None if time is None else _time(time),
    )
    _told(session.ask(call, StoredVersion), json)


@app.command("search")
def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    path: Annotated[str, typer.Option("--path", help="Only below this directory.")] = "/",
    limit: Annotated[int, typer.Option("-n", "--limit", help="At most so many.")] = 10,
    volume: Annotated[list[str] | None, typer.Option("--volume", "-v", help="Again.")] = None,
    pid: Pid = None,
    json: Json = False,
) -> None:
    """Find passages of files by words and by meaning."""
    volumes = tuple(volume or ("process", "program", "user"))
    found = session.ask(
        StoSearch(aid=pid, query=query, volumes=volumes, path=path, limit=limit), FileHits
    )
    if json:
        show.json(found)
        return
    show.out(
        show.table(
            (">SCORE", "WHERE", "WHY", "TEXT"),
            (
                (
                    f"{hit.score:.2f}",
                    f"{hit.volume}:{hit.path}:{hit.line}",
                    hit.why,
                    " ".join(hit.text.split())[:200],
                )
                for hit in found.hits
            ),
        )
    )
    if found.note:
        show.note(found.note)


@app.command("mount")
def mount(
    path: Place,
    host: Annotated[Path | None, typer.Argument(help="A directory of this machine.")] = None,
    mode: Annotated[str, typer.Option("--mode", metavar="|".join(MODES))] = "ro",
    off: Annotated[bool, typer.Option("--off", help="Take the mount away.")] = False,
    volume: OfVolume = None,
    pid: Pid = None,
    json: Json = False,
) -> None:
    """Show a directory of this machine in a volume: ro, cow (changes stay there) or rw."""
    if (host is None) != off:
        raise InvalidCall("say which directory to mount, or --off to take the mount away.")
    found = next((one for one in MODES if one == mode), None)
    if found is None:
        raise InvalidCall(f"there is no mode {mode!r}; there are {', '.join(MODES)}.")
    where = None if host is None else str(host.expanduser().absolute())
    call = StoMount(aid=pid, path=path, host=where, volume=_volume(volume, pid), mode=found)
    mounted = session.ask(call, Mounted)
    if json:
        show.json(mounted)
    elif off:
        show.note(f"{mounted.host} is no longer at {mounted.path} in {mounted.volume}.")
    else:
        show.note(f"{mounted.host} is at {mounted.path} in {mounted.volume} ({mounted.mode}).")


@app.command("share")
def share(
    to: Annotated[int, typer.Argument(help="The process that may read it.")],
    path: Directory = "/",
    write: Annotated[bool, typer.Option("--write", help="It may write as well.")] = False,
    until: Annotated[str | None, typer.Option("--until", help="Until this time.")] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take it back.")] = False,
    volume: OfVolume = None,
    pid: Pid = None,
) -> None:
    """Let another process use what is at a path of a volume."""
    call = StoShare(
        aid=pid,
        to=to,
        path=path,
        volume=_volume(volume, pid),
        write=write,
        until=None if until is None else _time(until),
        revoke=revoke,
    )
    session.ask(call, Done)
