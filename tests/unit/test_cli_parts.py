"""The parts of the CLI that decide: no kernel, no terminal."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from aios.abi.calls import CallRecord, Limits, Status
from aios.abi.events import CallStarted
from aios.abi.messages import Usage
from aios.cli import budget, demo, doctor, exits, main, run, show, streams
from aios.config import Paths
from aios.errors import BY_CODE, InvalidCall, NotFound, NotRunning
from aios.sdk import programs


def status(aid: int, **fields: object) -> Status:
    given = {"user": "ann", "parent": 1, "program": "p", "status": "running", "state": "live"}
    return Status(aid=aid, **{**given, **fields})


# --- exit codes -----------------------------------------------------------------------------------


def test_every_error_has_a_documented_exit_code() -> None:
    documented = {row.code for row in exits.EXIT_CODES}
    for error in BY_CODE.values():
        assert exits.of_error(error("x")) in documented - {0}


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("not_running", 3),
        ("not_found", 4),
        ("invalid_call", 2),
        ("conflict", 5),
        ("core_failed", 1),
    ],
)
def test_the_narrowest_error_decides(code: str, exit_code: int) -> None:
    assert exits.of_error(BY_CODE[code]("x")) == exit_code


def test_a_program_ended_by_a_signal_exits_as_in_a_shell() -> None:
    assert [exits.of_program(status) for status in (0, 3, -15)] == [0, 3, 143]


# --- what is typed --------------------------------------------------------------------------------


def test_amounts() -> None:
    assert budget.parse(["tokens=100,calls=3", "seconds=1.5"]) == Limits(100, 1.5, 3)
    assert budget.parse([""]) == Limits()


@pytest.mark.parametrize("text", ["tokens", "tokens=many", "money=3", "tokens=-1", "seconds=inf"])
def test_a_bad_amount_is_named(text: str) -> None:
    with pytest.raises(InvalidCall, match=text.partition("=")[0]):
        budget.parse([text])


def test_the_dashes_of_run_survive_the_parser() -> None:
    assert main.prepared(["run", "-d", "--", "ls", "-l"]) == [
        "run",
        "-d",
        "--command",
        "--",
        "ls",
        "-l",
    ]
    assert "--command" in main.prepared(["run", "--model", "m", "--json", "--", "ls"])
    with_task = ["run", "--budget", "calls=3", "math", "--", "-3 + 5"]
    assert main.prepared(with_task) == with_task
    assert main.prepared(["run", "math", "1+1"]) == ["run", "math", "1+1"]
    assert main.prepared(["nice", "--", "-5", "3"]) == ["nice", "--", "-5", "3"]


def test_a_script_under_an_interpreter_goes_by_its_own_name(tmp_path: Path) -> None:
    script = tmp_path / "crawler.py"
    script.touch()
    assert run.command_line(["python3", "-u", str(script), "x"]).name == "crawler"
    assert run.command_line(["python3", "-c", "pass"]).name == "python3"
    with pytest.raises(NotFound, match="no-such-command"):
        run.command_line(["no-such-command"])


def test_a_program_does_not_inherit_the_callers_identity() -> None:
    given = {"PATH": "/bin", "AIOS_KEY": "secret", "AIOS_URL": "http://x", "AIOS_HOME": "/h"}
    assert run.environment(given) == {"PATH": "/bin"}


# --- what is shown --------------------------------------------------------------------------------


def test_a_process_says_why_it_is_suspended_and_how_it_ended() -> None:
    assert show.condition(status(1, status="suspended", reasons=("budget",))) == "suspended(budget)"
    assert show.condition(status(1, state="zombie", exit_status=-15)) == "zombie(-15)"


def test_a_table_that_is_too_wide_cuts_its_last_column() -> None:
    drawn = show.processes([status(12345, task="word " * 40, status="running")], now=10.0)
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(drawn, no_wrap=True, overflow="ellipsis")
    assert isinstance(console.file, io.StringIO)
    line = console.file.getvalue().splitlines()[1]
    assert line.startswith("12345  p        running")
    assert len(line) == 80
    assert line.endswith("…")


def test_what_a_program_wrote_gives_the_terminal_no_orders() -> None:
    assert "\x1b" not in str(show.table(("NOTE",), [("\x1b[31mred",)]))


def test_durations() -> None:
    assert [show.seconds(s) for s in (0.04, 59.9, 61, 7265)] == ["0.0s", "59.9s", "1m01s", "2h01m"]


def test_an_event_on_one_line() -> None:
    line = streams.event_line(CallStarted(seq=7, at=1.25, pid=3, call="c1", name="generate"))
    assert line.split()[0] == "7"
    assert line.endswith("3 call_started call=c1 name=generate")


def test_a_call_of_a_transcript() -> None:
    record = CallRecord(
        "c1", 3, "generate", "done", 1.0, 2.0,
        {"call": "generate", "messages": [{"role": "user", "content": "Hi"}]},
        {"message": {"role": "assistant", "content": "Hello"}},
    )  # fmt: skip
    assert streams.call_text(record) == "c1 generate done 1.00s\n  user: Hi\n  assistant: Hello"


# --- the demo -------------------------------------------------------------------------------------


def generated(text: str, path: str, **message: object) -> CallRecord:
    reply = {"message": {"role": "assistant", "content": text, **message}}
    return CallRecord("c", 3, "generate", "done", 1.0, 2.0, {"place": path}, reply)


def test_what_was_said_is_in_the_programs_order_and_without_ids() -> None:
    use = {"id": "made up", "name": "add", "arguments": "{}"}
    records = [generated("b", "1", tool_calls=[use]), generated("a", "0")]
    assert demo.said(records) == (
        ("assistant", "a", ()),
        ("assistant", "b", (("add", "{}"),)),
    )


def test_identical_needs_words_and_two_good_ends() -> None:
    good, bad = status(1, exit_status=0, usage=Usage()), status(2, exit_status=1)
    words = demo.said([generated("a", "0")])
    other = demo.said([generated("b", "0")])
    assert demo.identical(demo.Life("x", good, words), demo.Life("x", good, words))
    assert not demo.identical(demo.Life("x", good, words), demo.Life("x", good, other))
    assert not demo.identical(demo.Life("x", good, words), demo.Life("x", bad, words))
    assert not demo.identical(demo.Life("x", good, ()), demo.Life("x", good, ()))


def test_agents_of_the_demo_by_name() -> None:
    known = {"math": "1+1", "rec": "a film"}
    assert demo.chosen("", known) == known
    assert demo.chosen("rec", known) == {"rec": "a film"}
    with pytest.raises(InvalidCall, match="chef"):
        demo.chosen("math,chef", known)


# --- the doctor -----------------------------------------------------------------------------------


def test_a_program_without_a_process_is_an_orphan() -> None:
    alive = {100: 100, 101: 100, 300: 300, 400: 400}
    statuses = [status(2, os_pid=100), status(3, state="zombie", os_pid=300)]
    assert [f.text.split()[2] for f in doctor.orphans(alive, statuses, own=400)] == ["300"]


def test_a_process_whose_program_is_gone_is_found() -> None:
    (finding,) = doctor.orphans({}, [status(2, os_pid=100)], own=1)
    assert "process 2 is alive" in finding.text


def test_files_that_were_left_and_keys_that_others_can_read(tmp_path: Path) -> None:
    paths = Paths(*(tmp_path / name for name in ("config", "data", "cache", "run")))
    assert doctor.files(paths, runs=False) == []
    paths.runtime.mkdir()
    (paths.runtime / "daemon.json").touch()
    paths.models.mkdir(parents=True)
    (paths.models / ".parts-x").mkdir()
    paths.keys.mkdir(parents=True)
    (paths.keys / "ann").touch(mode=0o644)
    os.chmod(paths.keys / "ann", 0o644)
    found = [finding.text for finding in doctor.files(paths, runs=False)]
    assert [text.split()[0].rpartition("/")[2] for text in found] == [
        "daemon.json",
        ".parts-x",
        "ann",
    ]
    assert len(doctor.files(paths, runs=True)) == 2


def test_no_kernel_is_one_sentence_and_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIOS_HOME", str(tmp_path))
    assert main.code_of(["ps"]) == exits.of_error(NotRunning("x")) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "aios up" in said.err


def test_an_agent_of_ours_needs_a_task() -> None:
    for task in ("", "  "):
        with pytest.raises(InvalidCall, match="math was given no task"):
            run.spawning(programs.built_in("math"), task=task)
