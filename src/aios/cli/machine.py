"""The kernel's life: up, down, status, doctor."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from aios.abi.calls import GetScheduler, ListAgents, Processes, SchedulerReport
from aios.cli import exits, session, show
from aios.cli.model import fetch_if_known, fetch_if_missing
from aios.config import Paths, settings
from aios.errors import Conflict, SetupError
from aios.sdk.address import Daemon, not_running

END = signal.SIGUSR1  # has a daemon end its processes too; after TERM the next one goes on
START_S = 30.0  # a daemon is ready in one; a disk that sleeps may cost more
STOP_S = 30.0  # programs get 5 s to end, then the journal is closed
LOOK_S = 0.05  # between two looks at a daemon that starts or stops

Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


def running(paths: Paths) -> Daemon | None:
    """The daemon of these paths, if one answers its socket."""
    try:
        daemon = msgspec.json.decode((paths.runtime / "daemon.json").read_bytes(), type=Daemon)
    except (OSError, msgspec.DecodeError):
        return None
    return daemon if _is_alive(daemon.pid) and _answers(daemon) else None


def _is_alive(pid: int) -> bool:
    try:
        # our own child that has ended is a zombie until we ask for it
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    except ChildProcessError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's, but alive
    return True


def _answers(daemon: Daemon) -> bool:
    if daemon.socket is None:
        return True
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(1.0)
        try:
            line.connect(daemon.socket)
        except OSError:
            return False
    return True


def _command(flags: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "aios.server.daemon", *flags]


def start(flags: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Daemon:
    """Start a daemon and wait until it answers; SetupError says why it cannot."""
    paths = Paths.find()
    paths.make()
    said = paths.logs / "daemon.err"
    with said.open("wb") as output:
        child = subprocess.Popen(
            _command(flags),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    until = time.monotonic() + START_S
    try:
        while time.monotonic() < until:
            daemon = running(paths)
            if daemon is not None and daemon.pid == child.pid:
                return daemon
            if child.poll() is not None:
                raise SetupError(_last_line(said) or f"the kernel ended at once; see {said}.")
            time.sleep(LOOK_S)
    except KeyboardInterrupt:  # who asked for it does not want it any more
        child.terminate()
        child.wait(STOP_S)
        raise
    child.terminate()
    raise SetupError(f"the kernel was not ready within {START_S:g} s; see {said}.")


def _last_line(file: Path) -> str:
    lines = file.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("aios: ") if lines else ""


def stop(daemon: Daemon) -> None:
    """End a daemon with all its processes, and wait until it is gone."""
    os.kill(daemon.pid, END)
    until = time.monotonic() + STOP_S
    while _is_alive(daemon.pid):
        if time.monotonic() > until:
            raise SetupError(
                f"the kernel (process {daemon.pid}) did not end within {STOP_S:g} s; "
                f"`kill -9 {daemon.pid}` ends it, and the next `aios up` cleans up."
            )
        time.sleep(LOOK_S)


def any_port() -> list[str]:
    """Flags for a kernel that nobody asked for: any free port where the default one is taken."""
    port = next(setting for setting in settings(Paths.find()) if setting.name == "server.port")
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", int(port.value)))
        except OSError:
            return ["--port", "0"] if port.source == "default" else []
    return []


def is_here() -> bool:
    """Whether a kernel runs here, or the environment names one."""
    return "AIOS_URL" in os.environ or running(Paths.find()) is not None


def start_if_none(model: str | None = None) -> None:
    """Make sure that a kernel and the model are here, and say what had to be done for it."""
    if is_here():
        if model is not None:
            fetch_if_known(model)
        return
    fetch_if_missing(model)
    daemon = start(any_port())
    show.note(f"no kernel was running; started one (process {daemon.pid}), `aios down` stops it.")


def up(
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay in this terminal until Ctrl-C.")
    ] = False,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="0 takes any free one.")
    ] = None,
    no_tcp: Annotated[
        bool, typer.Option("--no-tcp", help="Only the Unix socket, no port at all.")
    ] = False,
    json: Json = False,
) -> None:
    """Start the kernel."""
    paths = Paths.find()
    flags = ["--no-tcp"] if no_tcp else []
    if port is not None:
        flags += ["--port", str(port)]
    daemon = running(paths)
    if daemon is not None and (flags or foreground):
        raise Conflict(
            f"a kernel already runs here (process {daemon.pid}); `aios down` stops it first."
        )
    if daemon is not None:
        show.note(f"the kernel already runs (process {daemon.pid}).")
    else:
        fetch_if_missing(None)
        if foreground:
            os.execv(sys.executable, _command(flags))
        daemon = start(flags)
    if json:
        show.json(daemon)
    else:
        print(f"kernel up: process {daemon.pid}, {daemon.url or daemon.socket}")


def down(json: Json = False) -> None:
    """Stop the kernel and every program it started."""
    paths = Paths.find()
    daemon = running(paths)
    if daemon is None:
        show.note(not_running(str(paths.runtime)).message)
    else:
        stop(daemon)
    if json:
        show.json({"stopped": daemon.pid if daemon else None})
    elif daemon is not None:
        print(f"kernel down: process {daemon.pid} has ended")


async def _status(kernel: session.Session) -> dict[str, Any]:
    scheduler = await kernel.call(GetScheduler(), SchedulerReport)
    found = await kernel.call(ListAgents(), Processes)
    states: dict[str, int] = {}
    for process in found.processes:
        states[process.status] = states.get(process.status, 0) + 1
    return {"scheduler": scheduler, "processes": states}


def status(json: Json = False) -> None:
    """Whether a kernel runs, where it answers, and how busy it is."""
    paths = Paths.find()
    daemon = running(paths)
    if daemon is None:
        if json:
            show.json({"running": False})
        raise not_running(str(paths.runtime))
    seen = session.use(_status)
    model = next(s.value for s in settings(paths) if s.name == "core.model")
    if json:
        show.json({"running": True, "daemon": daemon, "model": model, **seen})
        return
    scheduler: SchedulerReport = seen["scheduler"]
    states = ", ".join(f"{count} {state}" for state, count in sorted(seen["processes"].items()))
    show.facts(
        (
            ("kernel", f"running, process {daemon.pid}"),
            ("address", daemon.url or "no port"),
            ("socket", daemon.socket or "-"),
            ("model", model),
            ("policy", f"{scheduler.policy}, quantum {scheduler.quantum} tokens"),
            ("slots", f"{scheduler.running} of {scheduler.slots} in use, "
                      f"{scheduler.queued} tickets queued"),
            ("processes", states or "none"),
        )
    )  # fmt: skip


def doctor(json: Json = False) -> None:
    """Look for what should not be there: orphan processes, slots, files, open calls."""
    from aios.cli.doctor import examine

    findings = examine(Paths.find())
    if json:
        show.json({"findings": findings})
    else:
        for finding in findings:
            print(f"{finding.kind}: {finding.text}")
        if not findings:
            print("nothing is wrong")
    if findings:
        raise typer.Exit(exits.FAILED.code)


def register(app: typer.Typer) -> None:
    for command in (up, down, status, doctor):
        app.command()(command)
