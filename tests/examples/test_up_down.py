"""The kernel's life from the command line, with the real daemon and the embedded model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable

import pytest

pytestmark = [pytest.mark.model, pytest.mark.timeout(120)]
Aios = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def aios(home: dict[str, str]) -> Aios:
    def command(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["aios", *words],
            env={**home, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return command


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.endswith(".\n")
    return done.stderr


def test_up_status_down(aios: Aios) -> None:
    assert aios("status").returncode == 3
    up = json.loads(aios("up", "--json").stdout)
    assert up["url"].startswith("http://127.0.0.1:")
    assert json.loads(aios("status", "--json").stdout)["daemon"]["pid"] == up["pid"]
    again = aios("up")
    assert again.returncode == 0
    assert f"already runs (process {up['pid']})" in again.stderr
    other = aios("up", "--port", "0")
    assert other.returncode == 5
    assert "already runs" in sentence(other)
    assert aios("down").returncode == 0
    assert aios("status").returncode == 3
    down = aios("down")
    assert down.returncode == 0
    assert "no kernel is running" in sentence(down)


def test_no_tcp_opens_no_port(aios: Aios) -> None:
    assert json.loads(aios("up", "--no-tcp", "--json").stdout)["url"] is None
    assert aios("ps").returncode == 0


def test_a_port_in_use_is_one_sentence(aios: Aios) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = aios("up", "--port", port)
    assert done.returncode == 1
    assert f"port {port}" in sentence(done)
    assert aios("doctor").returncode == 0


@pytest.mark.parametrize("variable", ["AIOS_SERVER_PORT", "AIOS_SCHEDULER_QUANTUM"])
def test_a_setting_that_does_not_fit_is_one_sentence(aios: Aios, variable: str) -> None:
    done = aios("up", **{variable: "many"})
    assert done.returncode == 1
    assert variable in sentence(done)


def test_the_doctor_finds_what_a_killed_kernel_left_and_up_clears_it(aios: Aios) -> None:
    pid = json.loads(aios("up", "--json").stdout)["pid"]
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while aios("status").returncode != 3:
        assert time.monotonic() < deadline
    found = aios("doctor")
    assert found.returncode == 1
    assert "left from a kernel that is gone" in found.stdout
    assert aios("up").returncode == 0
    assert aios("doctor").stdout == "nothing is wrong\n"


def test_run_starts_a_kernel_and_says_so(aios: Aios) -> None:
    done = aios("run", "--", "python3", "-c", "print('hello')")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert "no kernel was running; started one" in done.stderr
    assert aios("status").returncode == 0


def test_a_daemon_that_stops_takes_its_programs_along(aios: Aios) -> None:
    done = aios("run", "-d", "--json", "--", "python3", "-c", "import time; time.sleep(600)")
    pid = json.loads(done.stdout)["aid"]
    os_pid = json.loads(aios("inspect", str(pid), "--json").stdout)["os_pid"]
    assert aios("down").returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(os_pid, 0)


@pytest.mark.timeout(240)
def test_the_demo_passes_its_own_check(aios: Aios, home: dict[str, str]) -> None:
    done = subprocess.run(
        ["aios", "demo", "--json"],
        env=home,
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["identical"], report["of"]) == (5, 5)
    assert sum(agent["preemptions"] for agent in report["agents"]) > 0
    assert aios("status").returncode == 3  # the kernels that it started are gone
    assert aios("doctor").returncode == 0
