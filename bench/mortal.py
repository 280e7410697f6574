"""A machine that is killed and started again while agents work on it; for a bench and for tests.

A Machine is a home with a daemon; ``kill`` ends kernel, engine and agents as the power button does.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil

from aios.abi import wire
from aios.abi.calls import (
    Call,
    CallRecord,
    Exit,
    GetTranscript,
    ListAgents,
    Processes,
    Reply,
    SettleCall,
    SpawnAgent,
    Spawned,
    Status,
    Transcript,
    WaitAgent,
)
from aios.errors import TimedOut, from_code
from aios.sdk.programs import of_path

R = TypeVar("R", bound=Reply)

AGENT = Path(__file__).with_name("mortal_agent.py")
DAEMON = (sys.executable, "-m", "aios.server.daemon", "--no-tcp")
READY_S = 60.0  # for a daemon, on a busy machine
FINISH_S = 300.0  # for all agents
LOOK_S = 0.002  # between two looks whether a daemon answers
KEPT = ("PATH", "PYTHONPATH", "VIRTUAL_ENV")  # what an agent needs to be the Python that we are


class Machine:
    """A home, and the daemon that is started on it again and again."""

    def __init__(self, home: Path, daemon: Sequence[str] = DAEMON, **settings: str) -> None:
        self.home, self._daemon = home, daemon
        others = {name: value for name, value in os.environ.items() if "AIOS_" not in name}
        self.environment = others | settings | {"AIOS_HOME": str(home)}
        self._process: subprocess.Popen[bytes] | None = None
        home.mkdir(parents=True, exist_ok=True)

    # --- its life ---------------------------------------------------------------------------------

    def up(self) -> float:
        """Start a daemon; the seconds until its first answer on the socket."""
        began = time.perf_counter()
        with (self.home / "errors").open("ab") as errors:
            self._process = subprocess.Popen(
                self._daemon, env=self.environment, stdout=subprocess.DEVNULL, stderr=errors
            )
        while not self.is_up():
            if self._process.poll() is not None or time.perf_counter() - began > READY_S:
                raise RuntimeError((self.home / "errors").read_text())
            time.sleep(LOOK_S)
        return time.perf_counter() - began

    def is_up(self) -> bool:
        try:
            self.page("/api/status")
        except (OSError, ValueError):
            return False
        return True

    def kill(self, *, only_the_kernel: bool = False) -> None:
        """KILL to the kernel, and to all that it started."""
        told = json.loads((self.home / "run" / "daemon.json").read_text())
        kernel = psutil.Process(told["pid"])
        below = [] if only_the_kernel else kernel.children(recursive=True)
        for victim in (kernel, *below):
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                pass  # it ended by itself, or with the kernel
        if self._process is not None:
            self._process.wait()
        else:
            kernel.wait()

    def close(self) -> None:
        if self.is_up():
            self.kill()

    # --- asking it --------------------------------------------------------------------------------

    def command(self, *words: str) -> str:
        """What an aios command says."""
        done = subprocess.run(
            (sys.executable, "-m", "aios.cli.main", *words),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"aios {' '.join(words)}: {done.stderr}")
        return done.stdout

    def page(self, path: str) -> Any:
        """A page of its API."""
        return json.loads(self._exchange("GET", path))

    def ask(self, call: Call, kind: type[R]) -> R:
        """A system call as its user."""
        return wire.decode(self._exchange("POST", "/api/trap", wire.encode(call)), kind)

    def _exchange(self, method: str, path: str, body: bytes = b"") -> bytes:
        """By hand: no more of our own time than must be, and no connection that outlives a kill."""
        (key,) = (file for file in (self.home / "data" / "keys").iterdir() if not file.suffix)
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(self.home / "run" / "aios.sock"))
            line.sendall(
                f"{method} {path} HTTP/1.0\r\nHost: aios\r\nContent-Length: {len(body)}\r\n"
                f"Authorization: Bearer {key.read_text().strip()}\r\n"
                "Content-Type: application/json\r\n\r\n".encode()
                + body
            )
            answer = b"".join(iter(lambda: line.recv(65_536), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            error = json.loads(body)["error"] if body else {"code": "", "message": head.decode()}
            raise from_code(error["code"], error["message"])
        return body

    # --- agents -----------------------------------------------------------------------------------

    def begin(self, names: Sequence[str], turns: int, effect_s: float = 0.01) -> None:
        """Start an agent of each name; their effects take so long before and after they happen."""
        argv = of_path(AGENT).argv
        env = {name: os.environ[name] for name in KEPT if name in os.environ}
        env |= {"AIOS_MARKS": str(self.home), "AIOS_TURNS": str(turns)}
        env["AIOS_EFFECT_S"] = str(effect_s)
        for name in names:
            self.ask(SpawnAgent(program=name, argv=argv, task=name, env=env), Spawned)

    def agents(self) -> dict[str, Status]:
        """Those that were begun, by name, also when they have ended."""
        found = self.ask(ListAgents(all=True), Processes).processes
        return {status.program: status for status in found if status.task == status.program}

    def have_ended(self, within_s: float) -> bool:
        """Wait so long for all agents to end; whether they have."""
        until = time.monotonic() + within_s
        for status in self.agents().values():
            left = max(0.0, until - time.monotonic())
            try:
                self.ask(WaitAgent(aid=status.aid, reap=False, timeout_s=left), Exit)
            except TimedOut:
                return False
        return True

    def finish(self, *, by_command: bool = False) -> int:
        """Let all agents come to their end; how many calls had to be settled."""
        settled, until = 0, time.monotonic() + FINISH_S
        while not self.have_ended(0.5) and time.monotonic() < until:
            settled += self.settle(by_command=by_command)
        return settled

    def settle(self, *, by_command: bool = False) -> int:
        """Settle calls of unknown outcome by what the file of effects says; how many there were."""
        settled = 0
        for name, status in self.agents().items():
            for call in unknown_calls(status):
                # each turn calls the tool once
                turn = len([r for r in self.transcript(status.aid, "tool_call") if _is_done(r)])
                happened = f"{name} {turn}" in self.marks("effects")
                value = f"counted {turn}" if happened else None
                outcome: Literal["done", "retry"] = "done" if happened else "retry"
                if by_command:
                    given = ("--value", json.dumps(value)) if happened else ()
                    self.command("settle", str(status.aid), call, f"--{outcome}", *given)
                else:
                    self.ask(
                        SettleCall(aid=status.aid, target=call, outcome=outcome, value=value),
                        Status,
                    )
                settled += 1
        return settled

    def transcript(self, aid: int, *names: str) -> list[CallRecord]:
        call = GetTranscript(aid=aid, limit=1_000_000, names=names)
        return [record for record in self.ask(call, Transcript).calls if not record.void]

    def said(self, aid: int) -> list[Any]:
        """Role, content and tool calls of all that a process said and heard, in order."""
        turns: list[Any] = []
        for record in filter(_is_done, self.transcript(aid, "generate", "tool_call")):
            if record.name == "generate":
                turns += map(_turn, (*record.request["messages"], record.reply["message"]))
            else:
                turns.append(("called", record.request["name"], record.reply["content"]))
        return turns

    # --- what agents left -------------------------------------------------------------------------

    def marks(self, file: str) -> list[str]:
        """The lines that agents left in a file."""
        path = self.home / file
        return path.read_text().splitlines() if path.exists() else []

    def twice(self) -> list[str]:
        """Effects that happened more than once."""
        return [at for at, count in Counter(self.marks("effects")).items() if count > 1]

    def torn(self) -> list[str]:
        """What agents were told, and later told otherwise."""
        told: dict[str, Any] = {}
        torn = []
        for line in self.marks("told"):
            *where, said = json.loads(line)
            if told.setdefault(str(where), said) != said:
                torn.append(f"{where}: {told[str(where)]!r}, later {said!r}")
        return torn


def unknown_calls(status: Status) -> list[str]:
    """The ids of its calls that have to be settled."""
    calls = (call.split() for call in status.open_calls)
    return [id for id, _, state in calls if state == "unknown"]


def _is_done(record: CallRecord) -> bool:
    return record.state == "done"


def _turn(message: dict[str, Any]) -> tuple[Any, ...]:
    calls = [(use["name"], use["arguments"]) for use in message.get("tool_calls", ())]
    return message["role"], message.get("content", ""), calls
