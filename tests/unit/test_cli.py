"""The commands against a kernel on the scripted core, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aios.cli import exits, main

DAEMON = Path(__file__).with_name("scripted_daemon.py")
AGENT = """
import aios

@aios.agent
async def parrot(me, task):
    print("I heard:", task, flush=True)
    return (await me.generate(task)).text
"""
SLEEPER = "import time\nprint('asleep', flush=True)\nwhile True: time.sleep(60)\n"
FAILING = "import sys\nprint('no')\nsys.exit(7)\n"

Aios = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An AIOS_HOME in which a kernel runs."""
    folder = tmp_path_factory.mktemp("h")
    environment = {**os.environ, "AIOS_HOME": str(folder)}
    daemon = subprocess.Popen(
        [sys.executable, str(DAEMON)], env=environment, stdout=subprocess.PIPE
    )
    told = folder / "run" / "daemon.json"
    ready = threading.Event()
    while not told.exists() and daemon.poll() is None:
        ready.wait(0.02)  # another process: there is nothing else to wait on
    assert daemon.poll() is None
    yield folder
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(20) == 0
    assert daemon.stdout
    daemon.stdout.close()


@pytest.fixture
def aios(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Aios:
    """Run one command line in a folder with programs; exit code, stdout, stderr."""
    monkeypatch.setenv("AIOS_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    for name, text in (("parrot", AGENT), ("sleeper", SLEEPER), ("failing", FAILING)):
        (tmp_path / f"{name}.py").write_text(text)

    def command(*words: str) -> tuple[int, str, str]:
        code = main.code_of(words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def read(aios: Aios, *words: str) -> object:
    code, out, err = aios(*words, "--json")
    assert code == 0, err
    return json.loads(out.splitlines()[-1])  # `run` shows the program's output first


def test_run_shows_the_output_and_ends_with_the_exit_status(aios: Aios) -> None:
    assert aios("run", "parrot.py", "Polly") == (0, "I heard: Polly\nYou said: Polly\n", "")
    code, out, err = aios("run", "failing.py")
    assert (code, out) == (7, "no\n")
    assert "ended with 7" in err


def test_run_takes_any_command_line(aios: Aios) -> None:
    show = "import os, sys; print(os.environ['OPENAI_BASE_URL'][:16], sys.argv[1:])"
    code, out, _ = aios("run", "--", sys.executable, "-c", show, "-d", "--json")
    assert (code, out) == (0, "http://127.0.0.1 ['-d', '--json']\n")


def test_ps_inspect_logs_trace_transcript_agree_on_a_process(aios: Aios) -> None:
    ended = read(aios, "run", "parrot.py", "One two three")
    pid = str(ended["aid"])
    assert ended["result"] == "You said: One two three"
    listed = {p["aid"]: p for p in read(aios, "ps", "-a")}
    assert listed[ended["aid"]]["state"] == "zombie"
    assert ended["aid"] not in {p["aid"] for p in read(aios, "ps")}
    assert read(aios, "inspect", pid)["task"] == "One two three"
    assert aios("logs", pid)[1].startswith("I heard: One two three")
    events = [json.loads(line) for line in aios("trace", pid, "--json")[1].splitlines()]
    assert events[0]["event"] == "process_created"
    assert {event["pid"] for event in events} == {ended["aid"]}
    later = [
        json.loads(line)
        for line in aios("trace", pid, "--after", str(events[-2]["seq"]), "--json")[1].splitlines()
    ]
    assert later == events[-1:]
    generate = next(c for c in read(aios, "transcript", pid) if c["name"] == "generate")
    assert generate["reply"]["message"]["content"] == "You said: One two three"


def test_suspend_nice_budget_resume_kill_wait(aios: Aios) -> None:
    code, out, _ = aios("run", "-d", "--budget", "tokens=9", "sleeper.py")
    assert code == 0
    pid = out.strip()
    assert read(aios, "suspend", pid)["state"] == "suspended"
    assert read(aios, "nice", "-5", pid) == {"aid": int(pid), "priority": -5}
    assert read(aios, "budget", "show", pid)["budget"] == {"tokens": 9}
    assert read(aios, "budget", "set", pid, "tokens=20", "calls=3")["budget"] == {
        "tokens": 20,
        "calls": 3,
    }
    assert read(aios, "resume", pid)["state"] == "live"
    assert read(aios, "kill", pid, "--reason", "enough")["reason"] == "enough"
    assert aios("wait", pid)[0] == 128 + signal.SIGTERM
    code, _, err = aios("inspect", pid)
    assert code == exits.NOT_FOUND.code
    assert err.startswith("aios: ")


def test_fork_is_a_new_process(aios: Aios) -> None:
    pid = aios("run", "-d", "sleeper.py")[1].strip()
    forked = aios("fork", pid)[1].strip()
    assert int(forked) > int(pid)
    assert aios("kill", pid, forked)[0] == 0


def test_following_the_trace_of_a_process_ends_with_it(aios: Aios) -> None:
    code, pid, _ = aios("run", "-d", "failing.py")
    assert code == 0
    code, out, _ = aios("trace", "-f", pid.strip())
    assert code == 0
    assert "process_ended exit_status=7" in out.splitlines()[-1]


def test_a_task_may_begin_with_a_dash(aios: Aios) -> None:
    code, out, _ = aios("run", "parrot.py", "--", "-3 + 5")
    assert (code, out.splitlines()[0]) == (0, "I heard: -3 + 5")


def test_run_says_that_the_cap_stopped_the_program(home: Path, tmp_path: Path) -> None:
    (tmp_path / "parrot.py").write_text(AGENT)
    words = ["run", "--budget", "calls=0", "parrot.py", "hello"]
    running = subprocess.Popen(
        [sys.executable, "-m", "aios.cli.main", *words],
        cwd=tmp_path,
        env={**os.environ, "AIOS_HOME": str(home)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert running.stderr
    said = running.stderr.readline()
    running.send_signal(signal.SIGINT)
    assert running.wait(20) == exits.INTERRUPTED.code
    running.stderr.close()
    assert "its budget is used up (calls=0 left); `aios budget set" in said


def test_a_reader_that_goes_away_or_a_full_disk_is_no_traceback(home: Path) -> None:
    command = [sys.executable, "-m", "aios.cli.main", "trace"]
    environment = {**os.environ, "AIOS_HOME": str(home)}
    gone, ours = os.pipe()
    os.close(gone)
    for out, code in ((ours, 0), (os.open("/dev/full", os.O_WRONLY), exits.FAILED.code)):
        done = subprocess.run(
            command, env=environment, stdout=out, stderr=subprocess.PIPE, text=True, timeout=20
        )
        os.close(out)
        assert done.returncode == code
        assert done.stderr.count("\n") == (code != 0), done.stderr


@pytest.mark.parametrize("key", ["not-a-key", "cl\u00e9", "two\nlines"])
def test_a_wrong_key_is_refused(aios: Aios, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("AIOS_KEY", key)
    code, out, err = aios("ps")
    assert (code, out, err.count("\n")) == (exits.REFUSED.code, "", 1)


def test_interrupting_run_kills_the_process(aios: Aios, home: Path, tmp_path: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "aios.cli.main", "run", "sleeper.py"],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stdout
    assert running.stdout.readline() == "asleep\n"
    running.send_signal(signal.SIGINT)
    assert running.wait(20) == exits.INTERRUPTED.code
    running.stdout.close()
    assert not [p for p in read(aios, "ps") if p["program"] == "sleeper"]


def test_sched_is_shown_and_set(aios: Aios) -> None:
    before = read(aios, "sched", "show")
    assert read(aios, "sched", "set", "fifo", "--quantum", "8")["policy"] == "fifo"
    after = read(aios, "sched", "set", before["policy"], "--quantum", str(before["quantum"]))
    assert after["quantum"] == before["quantum"]


def test_a_key_is_made_listed_and_revoked(aios: Aios, monkeypatch: pytest.MonkeyPatch) -> None:
    made = read(aios, "key", "new", "--label", "laptop")
    assert made["id"] in {key["id"] for key in read(aios, "key", "list")}
    with monkeypatch.context() as as_laptop:
        as_laptop.setenv("AIOS_KEY", made["key"])
        assert aios("ps")[0] == 0
        as_laptop.setenv("AIOS_KEY", "wrong")
        assert aios("ps")[0] == exits.REFUSED.code
    assert aios("key", "revoke", made["id"])[0] == 0
    monkeypatch.setenv("AIOS_KEY", made["key"])
    assert aios("ps")[0] == exits.REFUSED.code


def test_status_doctor_config(aios: Aios) -> None:
    assert read(aios, "status")["running"] is True
    assert read(aios, "doctor") == {"findings": []}
    names = {setting["name"] for setting in read(aios, "config", "show")["settings"]}
    assert "scheduler.quantum" in names


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("ps",), "login"),
        (("ps", "-a"), "TASK"),
        (("inspect", "1"), "program"),
        (("status",), "running, process"),
        (("budget", "show", "1"), "no limit"),
        (("sched", "show"), "tokens a slice"),
        (("key", "list"), "first"),
        (("config", "show"), "scheduler.quantum"),
        (("trace",), "kernel_started"),
        (("doctor",), "nothing is wrong"),
        (("model", "list"), "CONTEXT"),
        (("version",), "aios"),
        (("help", "exit-codes"), "no kernel"),
        (("run", "--help"), "--budget"),
    ],
)
def test_what_a_person_sees(aios: Aios, words: tuple[str, ...], shown: str) -> None:
    code, out, _ = aios(*words)
    assert code == 0
    assert shown in out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("inspect", "99999"), exits.NOT_FOUND),
        (("kill", "99999"), exits.NOT_FOUND),
        (("logs", "99999"), exits.NOT_FOUND),
        (("trace", "99999"), exits.NOT_FOUND),
        (("trace", "-f", "99999"), exits.NOT_FOUND),
        (("run", "nobody"), exits.NOT_FOUND),
        (("run", "--", "no-such-command"), exits.NOT_FOUND),
        (("run", "parrot.py", "two", "tasks"), exits.USAGE),
        (("run", "--budget", "money=1", "parrot.py"), exits.USAGE),
        (("sched", "set", "lottery"), exits.USAGE),
        (("sched", "set"), exits.USAGE),
        (("budget", "set", "1", "tokens=x"), exits.USAGE),
        (("nice", "99", "1"), exits.USAGE),
        (("frobnicate",), exits.USAGE),
        (("ps", "--frobnicate"), exits.USAGE),
        (("inspect", "seven"), exits.USAGE),
    ],
)
def test_bad_input_is_one_sentence(
    aios: Aios, words: tuple[str, ...], code: exits.ExitCode
) -> None:
    found, out, err = aios(*words)
    assert (found, out) == (code.code, "")
    assert err.startswith("aios: ")
    assert err.count("\n") == 1
    assert err.endswith(".\n")


def test_the_journal_can_be_looked_at_and_made_smaller(aios: Aios) -> None:
    assert aios("run", "parrot.py", "Polly")[0] == 0
    report = read(aios, "journal", "stats")
    assert isinstance(report, dict)
    assert report["rows"]["calls"] > 0
    assert 1 <= report["first_event"] < report["last_event"]
    code, out, _ = aios("journal", "stats")
    assert (code, "of which" in out, "events" in out) == (0, True, True)
    gone = read(aios, "journal", "prune", "--days", "0", "--max-size", "1M")
    assert isinstance(gone, dict)
    assert gone["events"] > 0
    after = read(aios, "journal", "stats")
    assert isinstance(after, dict)
    assert after["first_event"] > report["last_event"] - 1
    code, out, _ = aios("journal", "prune")
    assert (code, "calls and" in out) == (0, True)
    code, _, err = aios("journal", "prune", "--days", "-1")
    assert (code, "days is -1: give 0 or more" in err) == (exits.USAGE.code, True)


def test_a_context_is_set_shown_cut_and_cleared(aios: Aios, tmp_path: Path) -> None:
    pid = str(read(aios, "run", "-d", "sleeper.py")["aid"])
    talk = [{"role": "system", "content": "Be brief.\x1b[2J"}]
    talk += [{"role": "user", "content": f"turn {n} of many"} for n in range(20)]
    talk.append({"role": "user", "content": "keep this", "pinned": True})
    (tmp_path / "talk.json").write_text(json.dumps(talk))
    told = read(aios, "context", "set", pid, "talk.json", "--strategy", "drop")
    assert (told["used"], told["pinned"]) == (20 * 5 + 2 * 3, 2)
    code, out, _ = aios("context", "show", pid, "-m")
    assert code == 0
    assert "106 of 8192 tokens" in out
    assert "user (pinned):\n  keep this" in out
    assert "\x1b" not in out
    assert read(aios, "context", "expand", pid, "4096")["window"] == 4096
    assert read(aios, "context", "compact", pid, "--tokens", "50")["used"] <= 50
    assert read(aios, "context", "clear", pid)["used"] == 3
    assert read(aios, "context", "clear", pid, "--pins")["used"] == 0
    for words in (
        ("set", pid),
        ("set", pid, "--strategy", "forget"),
        ("set", pid, "no-such-file.json"),
        ("set", pid, "sleeper.py"),
        ("expand", pid, "1"),
    ):
        code, out, err = aios("context", *words)
        assert (code, out, err.count("\n")) == (exits.USAGE.code, "", 1), words
        assert err.endswith(".\n")
    assert aios("context", "show", pid, "--name", "other")[0] == exits.NOT_FOUND.code
    assert aios("kill", pid)[0] == 0
