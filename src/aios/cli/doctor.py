"""What `aios doctor` finds: things that outlived what they belonged to.

The kernel checks its own invariants (slots, sequences, open calls, budgets); from outside it is
seen whether OS processes and files agree with it, also when no kernel runs.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from msgspec import Struct

from aios.abi.calls import ListAgents, Processes, Status
from aios.cli import machine, session
from aios.config import Paths

PROC = Path("/proc")  # Linux; elsewhere OS processes are not looked at


class Finding(Struct, frozen=True):
    """One thing that should not be, in a sentence with the remedy."""

    kind: Literal["kernel", "process", "file"]
    text: str


def groups(socket: Path) -> dict[int, int]:
    """OS pid -> process group of all programs that a kernel on this socket started."""
    mark = f"AIOS_URL=unix:{socket}".encode()
    found: dict[int, int] = {}
    for entry in PROC.glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = os.getpgid(int(entry.name))
        except OSError:
            continue  # it ended while we looked, or is another user's
    return found


def orphans(running: Mapping[int, int], statuses: Iterable[Status], own: int) -> list[Finding]:
    """Programs without a process, and processes whose program is gone; *own* group is ours."""
    found: list[Finding] = []
    expected = {s.os_pid: s.aid for s in statuses if s.state != "zombie" and s.os_pid is not None}
    for os_pid, group in sorted(running.items()):
        if group not in expected and group != own:
            found.append(
                Finding(
                    "process",
                    f"OS process {os_pid} was started by a kernel here but belongs to no process; "
                    f"`kill {os_pid}` ends it.",
                )
            )
    gone = set(expected) - set(running.values())
    found += [
        Finding(
            "process",
            f"process {expected[os_pid]} is alive, but its OS process {os_pid} is gone; "
            f"`aios kill {expected[os_pid]}` clears it.",
        )
        for os_pid in sorted(gone)
        if os_pid is not None
    ]
    return found


def _is_pulling(models: Path) -> bool:
    """Whether somebody holds the lock under which the directory of models is changed."""
    try:
        with open(models / ".lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # nothing was ever pulled here
    return False


def files(paths: Paths, runs: bool) -> list[Finding]:
    """Files that a kernel or a pull left behind, and secrets that others can read."""
    found: list[Finding] = []
    for left in (paths.runtime / "daemon.json", paths.socket):
        if not runs and left.exists():
            found.append(
                Finding("file", f"{left} is left from a kernel that is gone; `aios up` clears it.")
            )
    if not _is_pulling(paths.models):
        for half in sorted(paths.models.glob(".parts-*")):
            found.append(
                Finding("file", f"{half} is half a model; the next `aios model pull` clears it.")
            )
    for key in sorted(paths.keys.glob("*")):
        if stat.S_IMODE(key.stat().st_mode) & 0o077:
            found.append(
                Finding("file", f"{key} can be read by others; `chmod 600 {key}` mends it.")
            )
    return found


async def _ask(kernel: session.Session) -> tuple[list[str], tuple[Status, ...]]:
    problems = (await kernel.page("/api/doctor"))["problems"]
    return problems, (await kernel.call(ListAgents(all=True), Processes)).processes


def examine(paths: Paths) -> list[Finding]:
    """Everything that is wrong with this AIOS_HOME; empty in good health."""
    runs = machine.running(paths) is not None
    problems, statuses = session.use(_ask) if runs else ([], ())
    found = [Finding("kernel", problem) for problem in problems] + files(paths, runs)
    if PROC.is_dir():
        found += orphans(groups(paths.socket), statuses, os.getpgid(0))
    return found
