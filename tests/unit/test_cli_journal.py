"""`aios journal verify|export`: they read the file, whether or not a kernel has it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from aios.abi import calls as abi
from aios.cli import main
from aios.drivers.journal.sqlite import SqliteJournal
from aios.testing import machine, user

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def aios(capsys: pytest.CaptureFixture[str]) -> Command:
    def command(*words: str) -> tuple[int, str, str]:
        code = main.code_of(["journal", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """The journal of a machine on which two agents have spoken."""
    path = tmp_path / "journal.db"
    async with machine(["yes", "no", "maybe"], journal=SqliteJournal(path)) as kernel:
        login = kernel.identify(kernel.user_key)
        for pid in range(2):
            spawned = await kernel.trap(login, abi.SpawnAgent(program=f"p{pid}"))
            assert isinstance(spawned, abi.Spawned)
            agent = kernel.identify(str(spawned.key))
            for turn in range(1 + pid):
                await kernel.trap(agent, abi.Generate(messages=user(f"{pid}.{turn} " * 300)))
    return path


def verify(aios: Command, file: Path) -> tuple[int, list[str]]:
    code, out, _ = aios("verify", "--file", str(file), "--json")
    told = json.loads(out)
    assert told["sound"] == (not told["problems"]) == (code == 0)
    return code, told["problems"]


def test_a_sound_journal(aios: Command, file: Path) -> None:
    assert aios("verify", "--file", str(file)) == (0, f"{file} is sound.\n", "")
    assert verify(aios, file) == (0, [])


async def test_it_is_verified_while_a_kernel_writes(tmp_path: Path, aios: Command) -> None:
    path = tmp_path / "journal.db"
    async with machine(["yes"], journal=SqliteJournal(path)) as kernel:
        login = kernel.identify(kernel.user_key)
        spawned = await kernel.trap(login, abi.SpawnAgent(program="p"))
        assert isinstance(spawned, abi.Spawned)
        await kernel.trap(spawned.aid, abi.Generate(messages=user("hello")))
        assert verify(aios, path) == (0, [])
        code, out, _ = aios("export", "--file", str(path), "--aid", str(spawned.aid))
        assert code == 0
        assert '"hello"' in out


def test_export_is_all_of_it_a_line_each(aios: Command, file: Path, tmp_path: Path) -> None:
    code, out, _ = aios("export", "--file", str(file))
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    events = [line for line in lines if "event" in line]
    calls = [line for line in lines if "call" in line and "request" in line]
    assert len(events) + len(calls) == len(lines)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    said = [call for call in calls if call["call"] == "generate"]
    assert [call["request"]["messages"][-1]["content"][:3] for call in said] == [
        "0.0",
        "1.0",
        "1.1",
    ]
    assert [call["reply"]["message"]["content"] for call in said] == ["yes", "no", "maybe"]

    copy = tmp_path / "copy.jsonl"
    assert aios("export", str(copy), "--file", str(file), "--aid", str(said[0]["aid"]))[0] == 0
    assert copy.stat().st_mode & 0o077 == 0
    of_one = [json.loads(line) for line in copy.read_text().splitlines()]
    assert {line.get("pid", line.get("aid")) for line in of_one} == {said[0]["aid"]}
    code, _, err = aios("export", str(copy), "--file", str(file))
    assert (code, "File exists" in err) == (1, True)  # nothing is written over


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (
            "UPDATE blobs SET body = CAST('x' AS BLOB), packed = 0 WHERE id = 1",
            "blob 1 is not what",
        ),
        ("UPDATE blobs SET packed = NOT packed WHERE id = 1", "blob 1 is not what"),
        ("DELETE FROM blobs WHERE id = 1", "has lost its message: blob 1"),
        ("DELETE FROM turns WHERE id = 1", "says what is missing: turn 1"),
        ("UPDATE turns SET parent = 99 WHERE id = 1", "comes after one that is missing: turn 99"),
        ("INSERT INTO open_calls VALUES (99)", "call c99 is open, but has not begun"),
        ("DELETE FROM ends WHERE number = 2", "call c2 has begun, and is neither open nor ended"),
        ("DELETE FROM calls WHERE number = 2", "call c2 has an end, but has not begun"),
        ("UPDATE events SET last = last + 1 WHERE first = 1", "events 1 to"),
        ("UPDATE events SET body = substr(body, 3) WHERE first = 1", "cannot be read"),
        ("DELETE FROM events WHERE first = (SELECT max(first) FROM events)", "never ended"),
        ("INSERT INTO events_of VALUES (7, 1)", "events of process 7 are missing"),
    ],
)
def test_what_is_wrong_is_said(aios: Command, file: Path, damage: str, problem: str) -> None:
    with apsw.Connection(str(file)) as connection:
        connection.execute(damage)
        assert connection.changes() == 1
    code, problems = verify(aios, file)
    assert code == 1
    assert any(problem in said for said in problems), problems
    code, out, err = aios("verify", "--file", str(file))
    assert (code, problem in out, "is not sound" in err) == (1, True, True)


def test_a_damaged_page_is_said(aios: Command, file: Path) -> None:
    with apsw.Connection(str(file)) as connection:
        pages = connection.execute("SELECT pageno FROM dbstat WHERE name = 'calls'").get
        size = connection.pragma("page_size")
    with file.open("r+b") as damaged:
        damaged.seek(size * (pages - 1))
        damaged.write(b"\xff" * size)
    code, out, err = aios("verify", "--file", str(file))
    assert code == 1
    assert "damaged" in err or "not sound" in err
    assert len(err.splitlines()) == 1
    assert out or err


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "there is no journal at"),
        (lambda path: path.write_text("nonsense " * 1000), "is not a database"),
        (
            lambda path: apsw.Connection(str(path)).execute("CREATE TABLE t (x)"),
            "is no journal of aios",
        ),
        (
            lambda path: apsw.Connection(str(path)).execute(
                "CREATE TABLE t (x); PRAGMA application_id = 1634299763; PRAGMA user_version = 99"
            ),
            "is a journal of version 99 and this aios reads",
        ),
    ],
)
def test_what_is_no_journal(
    aios: Command, tmp_path: Path, make: Callable[[Path], object], sentence: str
) -> None:
    path = tmp_path / "journal.db"
    make(path)
    for command in ("verify", "export"):
        code, out, err = aios(command, "--file", str(path))
        assert (code, out) == (1, "")
        assert sentence in err
        assert len(err.splitlines()) == 1


def test_without_the_right_to_write_it_is_read_all_the_same(aios: Command, file: Path) -> None:
    os.chmod(file, 0o400)
    os.chmod(file.parent, 0o500)
    try:
        assert aios("verify", "--file", str(file))[0] == 0
    finally:
        os.chmod(file.parent, 0o700)


def test_a_size_that_is_none(aios: Command) -> None:
    code, _, err = aios("prune", "--max-size", "lots")
    assert (code, "--max-size is 'lots': give bytes" in err) == (2, True)
