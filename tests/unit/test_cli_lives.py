"""The commands on a process's lives, against a kernel that is killed and started again."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aios.cli import exits, main

DAEMON = Path(__file__).with_name("scripted_daemon.py")
PAYER = """
import os, time
import aios


@aios.tool
def pay(amount: int) -> str:
    with open("paid", "a") as paid:
        paid.write("x")
    while os.environ["AIOS_LIFE"] == "1":
        time.sleep(60)
    return f"paid {amount}"


@aios.agent
async def payer(me, task):
    await me.log_event("begun", {"task": task})
    return (await me.generate(task, tools=[pay], tool_choice="pay")).text
"""
WAITER = """
import aios


@aios.agent
async def waiter(me, task):
    await me.generate(task)
    return (await me.receive()).body
"""

Aios = Callable[..., tuple[int, str, str]]


class Home:
    """An AIOS_HOME in which a kernel runs, or has been killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemon: subprocess.Popen[bytes]

    def start(self) -> None:
        told = self.folder / "run" / "daemon.json"
        told.unlink(missing_ok=True)
        environment = {**os.environ, "AIOS_HOME": str(self.folder)}
        self.daemon = subprocess.Popen(
            [sys.executable, str(DAEMON), "--durable"], env=environment, stdout=subprocess.DEVNULL
        )
        _until(lambda: told.exists() or self.daemon.poll() is not None)
        self.daemon.send_signal(signal.SIGUSR2)  # its core runs freely

    def kill(self) -> None:
        self.daemon.kill()
        self.daemon.wait()


def _until(holds: Callable[[], object]) -> None:
    """Look again and again: another process does not tell us."""
    pause = threading.Event()
    while not holds():
        pause.wait(0.02)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    made = Home(tmp_path_factory.mktemp("h"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def aios(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Aios:
    """Run one command line in a folder with programs; exit code, stdout, stderr."""
    monkeypatch.setenv("AIOS_HOME", str(home.folder))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "payer.py").write_text(PAYER)
    (tmp_path / "waiter.py").write_text(WAITER)

    def command(*words: str) -> tuple[int, str, str]:
        code = main.code_of(words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def read(aios: Aios, *words: str) -> Any:
    code, out, err = aios(*words, "--json")
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.fixture
def paying(aios: Aios, home: Home, tmp_path: Path) -> tuple[str, str]:
    """A process and its call that a killed kernel left: paid, but nobody knows."""
    pid = aios("run", "-d", "payer.py", "the bill")[1].strip()
    paid = tmp_path / "paid"
    _until(lambda: paid.exists() and paid.read_text() == "x")
    home.kill()
    home.start()
    _until(lambda: read(aios, "inspect", pid).get("reasons") == ["unknown_outcome"])
    [call] = [c for c in read(aios, "inspect", pid)["open_calls"] if c.endswith(" unknown")]
    return pid, call.split()[0]


def test_a_call_of_unknown_outcome_is_shown(aios: Aios, paying: tuple[str, str]) -> None:
    pid, call = paying
    [line] = [line for line in aios("ps")[1].splitlines() if line.split()[0] == pid]
    assert f"suspended(unknown {call})" in line
    shown = aios("inspect", pid)[1]
    assert f"`aios settle {pid} {call} --done|--retry|--fail`" in shown
    assert "lives        1" in shown
    assert f"{call} tool_call unknown" in shown
    [record] = read(aios, "history", pid, "--name", "tool_call")
    assert (record["id"], record["state"]) == (call, "unknown")
    code, _, err = aios("resume", pid)
    assert code == exits.REFUSED.code
    assert f"`aios settle {pid} CALL" in err
    assert aios("kill", pid)[0] == 0


@pytest.mark.parametrize(
    ("outcome", "status", "result", "paid"),
    [
        (("--done", "--value", '"paid 7"'), 0, "You said: paid 7", "x"),
        (("--done",), 0, "You said:", "x"),
        (("--retry",), 0, "You said: paid 1", "xx"),
        (("--fail",), 1, None, "x"),
    ],
    ids=["done", "done without a value", "retry", "fail"],
)
def test_it_is_settled(
    aios: Aios,
    paying: tuple[str, str],
    tmp_path: Path,
    outcome: tuple[str, ...],
    status: int,
    result: str | None,
    paid: str,
) -> None:
    pid, call = paying
    code, out, err = aios("settle", pid, call, *outcome)
    assert (code, err) == (0, "")
    assert out.startswith(f"process {pid} is ")
    code, out, _ = aios("wait", pid, "--keep", "--json")
    ended = json.loads(out)
    assert (code, ended["exit_status"], ended.get("result")) == (status, status, result)
    assert (tmp_path / "paid").read_text() == paid
    assert read(aios, "inspect", pid)["lives"] == 2
    if status:
        assert f"call {call} was under way" in ended["reason"]


def test_settled_twice_is_refused(aios: Aios, paying: tuple[str, str]) -> None:
    pid, call = paying
    assert aios("settle", pid, call, "--fail")[0] == 0
    code, _, err = aios("settle", pid, call, "--done")
    assert code == exits.NOT_FOUND.code
    assert "unknown outcome" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "0 outcomes were given"),
        (("--done", "--fail"), "2 outcomes were given"),
        (("--retry", "--value", "1"), "goes with --done only"),
        (("--done", "--value", "paid"), "is not JSON"),
    ],
)
def test_an_outcome_that_is_none(aios: Aios, words: tuple[str, ...], said: str) -> None:
    code, out, err = aios("settle", "1", "c1", *words)
    assert (code, out, err.count("\n")) == (exits.USAGE.code, "", 1)
    assert said in err


# --- snapshots, forks, history --------------------------------------------------------------------


@pytest.fixture
def waiting(aios: Aios) -> Iterator[str]:
    """A process that has generated once and waits for mail."""
    pid = aios("run", "-d", "waiter.py", "rain in Oslo")[1].strip()
    _until(lambda: "recv_message active" in aios("inspect", pid)[1])
    yield pid
    aios("kill", pid)


def test_snapshot_rollback_fork(aios: Aios, waiting: str) -> None:
    assert aios("snapshots", waiting)[1].split() == ["SNAPSHOT", "AFTER", "TAKEN", "LABEL"]
    name = aios("snapshot", waiting, "--label", "before mail")[1].strip()
    assert f"{name} " in aios("snapshots", waiting)[1]
    assert [one["snapshot"] for one in read(aios, "snapshots", waiting)] == [name]
    code, out, _ = aios("rollback", waiting, name)
    assert (code, out) == (0, f"process {waiting} is back at {name}\n")
    assert read(aios, "inspect", waiting)["lives"] == 2
    [said] = [c for c in read(aios, "history", waiting) if c["name"] == "generate"]
    fork = aios("fork", waiting, "--at", said["id"])[1].strip()
    assert read(aios, "inspect", fork)["note"] == f"fork of {waiting} at {said['id']}"
    assert aios("kill", fork)[0] == 0
    assert aios("rollback", waiting, "a0")[0] == exits.NOT_FOUND.code
    assert aios("fork", waiting, "--at", "c0")[0] == exits.NOT_FOUND.code
    assert aios("fork", waiting, "--at", "first")[0] == exits.USAGE.code


def test_history_is_narrowed(aios: Aios, waiting: str) -> None:
    lines = aios("history", waiting)[1].splitlines()
    assert [line.split()[4] for line in lines] == ["get_aid", "generate", "recv_message"]
    assert lines[1].endswith("generate (done) rain in Oslo")
    assert aios("history", waiting, "--text", "OSLO", "--name", "generate")[1] == f"{lines[1]}\n"
    assert aios("history", waiting, "--before", lines[1].split()[0])[1] == f"{lines[0]}\n"
    assert aios("history", waiting, "--limit", "1")[1] == f"{lines[2]}\n"
    assert aios("history", waiting, "--since", "1h")[1].splitlines() == lines
    assert aios("history", waiting, "--until", "1h")[1] == ""
    assert aios("history", waiting, "--since", "2024-01-31 12:00")[1].splitlines() == lines
    for option, value in (("--since", "yesterday"), ("--name", "frobnicate"), ("--limit", "0")):
        code, _, err = aios("history", waiting, option, value)
        assert (code, err.count("\n")) == (exits.USAGE.code, 1)


# --- secrets --------------------------------------------------------------------------------------


def fed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_encrypt_and_decrypt(
    aios: Aios, monkeypatch: pytest.MonkeyPatch, home: Home, tmp_path: Path
) -> None:
    secret = b"the launch code \xff\x00"
    fed(monkeypatch, secret)
    code, token, _ = aios("encrypt")
    assert (code, token.count("\n")) == (0, 1)
    fed(monkeypatch, token.encode())
    assert base64.b64decode(read(aios, "decrypt")["data"]) == secret
    opened = subprocess.run(
        [sys.executable, "-m", "aios.cli.main", "decrypt"],
        input=token.encode(), capture_output=True, check=True, timeout=20,
    )  # fmt: skip
    assert (opened.stdout, opened.stderr) == (secret, b"")
    for wrong in (token[:-9].encode(), b"\xff", b""):
        fed(monkeypatch, wrong)
        code, out, err = aios("decrypt")
        assert (code, out, err.count("\n")) == (exits.USAGE.code, "", 1)
