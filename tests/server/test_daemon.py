"""The daemon as a process of its own: up, refused, stopped, killed, and up again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

Start = Callable[..., "Daemon"]


class Daemon:
    """A daemon process; ``said`` is its first line of output, which comes when it serves."""

    def __init__(self, home: Path, *flags: str, **environment: str) -> None:
        self.home = home
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIOS", "XDG"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aios.server.daemon", *flags],
            env=kept | {"AIOS_HOME": str(home)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.said = self.process.stdout.readline()

    @property
    def told(self) -> dict[str, Any]:
        return dict(json.loads((self.home / "run" / "daemon.json").read_text()))

    @property
    def key_file(self) -> Path:
        (file,) = (self.home / "data" / "keys").iterdir()
        return file

    def client(self, **options: Any) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.key_file.read_text().strip()}"}
        return httpx2.Client(
            base_url=self.told["url"] or "http://aios",
            headers=headers,
            trust_env=False,
            timeout=10,
            **options,
        )

    def over_socket(self) -> httpx2.Client:
        return self.client(transport=httpx2.HTTPTransport(uds=self.told["socket"]))

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(15)

    def refusal(self) -> tuple[int, str]:
        """Its exit status and what it said on stderr."""
        _, errors = self.process.communicate(timeout=15)
        return self.process.returncode, errors


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("h")  # short: a socket's path has an end


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    started: list[Daemon] = []

    def make(*flags: str, **environment: str) -> Daemon:
        started.append(Daemon(home, *(flags or ("--port", "0")), **environment))
        return started[-1]

    yield make
    for daemon in started:
        if daemon.process.poll() is None:
            daemon.process.kill()
        daemon.process.communicate()


def test_up_and_down(start: Start, home: Path) -> None:
    daemon = start()
    told = daemon.told
    assert told["pid"] == daemon.process.pid
    assert told["url"] in daemon.said
    assert told["socket"] in daemon.said
    modes = {"run": 0o700, "run/aios.sock": 0o600, "run/daemon.json": 0o600, "data/keys": 0o700}
    for name, mode in modes.items():
        assert (home / name).stat().st_mode & 0o777 == mode, name
    assert daemon.key_file.stat().st_mode & 0o777 == 0o600
    for client in (daemon.client(), daemon.over_socket()):
        with client:
            assert client.get("/api/status").json()["version"] == told["version"]
            assert client.get("/api/doctor").json() == {"problems": []}
    assert daemon.end() == 0
    assert not (home / "run" / "daemon.json").exists()
    assert not (home / "run" / "aios.sock").exists()


def test_the_log_is_json_and_holds_no_secret(start: Start, home: Path) -> None:
    daemon = start()
    key = daemon.key_file.read_text().strip()
    with daemon.client() as client:
        client.post("/api/trap", json={"call": "set_status", "note": "the body's own words"})
        client.post("/api/trap", content=b"{broken", headers={"Content-Type": "application/json"})
    daemon.end()
    text = (home / "data" / "logs" / "daemon.log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["message"].split()[0] for line in lines] == [
        "wrote",
        "serving",
        "stopping",
        "stopped",
    ]
    assert key not in text
    assert "own words" not in text


def test_one_daemon_a_directory(start: Start) -> None:
    first = start()
    status, said = start().refusal()
    assert status == 5
    assert said.count("\n") == 1
    assert f"process {first.process.pid}" in said
    with first.client() as client:
        assert client.get("/api/status").status_code == 200


def test_a_port_in_use_is_named_with_its_setting(start: Start, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = start("--port", str(port)).refusal()
    assert status == 1
    assert said.count("\n") == 1
    assert f"port {port}" in said
    assert "server.port" in said
    assert not (home / "run" / "daemon.json").exists()


@pytest.mark.parametrize(
    ("flags", "environment", "named"),
    [
        (("--port", "sixty"), {}, "sixty"),
        (("--port", "70000"), {}, "70000"),
        (("--no-tcp",), {"AIOS_SCHEDULER_QUANTUM": "many"}, "AIOS_SCHEDULER_QUANTUM"),
        (("--port", "0"), {"AIOS_SERVER_HOST": "0.0.0.0"}, "0.0.0.0"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    start: Start, flags: tuple[str, ...], environment: dict[str, str], named: str
) -> None:
    status, said = start(*flags, **environment).refusal()
    assert status == 1
    assert said.startswith("aios: ")
    assert said.count("\n") == 1
    assert named in said


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / ("long" * 25), "--no-tcp")
    status, said = daemon.refusal()
    assert (status, said.count("\n")) == (1, 1)
    assert "AIOS_HOME" in said


def test_without_a_port(start: Start) -> None:
    daemon = start("--no-tcp")
    assert daemon.told["url"] is None
    with daemon.over_socket() as client:
        assert client.get("/api/status").status_code == 200


def test_killed_and_up_again_with_the_same_key(start: Start) -> None:
    first = start()
    key = first.key_file.read_text()
    first.end(signal.SIGKILL)
    second = start()
    assert second.told["pid"] == second.process.pid
    assert second.key_file.read_text() == key
    with second.over_socket() as client:
        assert client.get("/api/doctor").json() == {"problems": []}


def test_a_lost_key_file_is_made_anew(start: Start) -> None:
    first = start()
    old = first.key_file.read_text()
    first.key_file.unlink()
    first.end()
    second = start()
    assert second.key_file.read_text() != old
    with second.client() as client:
        assert client.get("/api/status").status_code == 200


def test_down_over_http(start: Start) -> None:
    daemon = start()
    with daemon.client() as client:
        assert client.post("/api/down", json={}).json() == {"stopping": True}
    assert daemon.process.wait(15) == 0


def test_open_streams_do_not_hold_it_up(start: Start) -> None:
    daemon = start()
    query = {"follow": "true"}
    with daemon.client() as client, client.stream("GET", "/api/events", params=query) as stream:
        assert stream.status_code == 200
        assert daemon.end() == 0
        assert "stopping" in stream.read().decode().splitlines()[-2]
