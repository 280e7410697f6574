"""`aios fs` against a kernel on the scripted core, in a process of its own."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_cli import Aios, aios, home, read

from aios.cli import exits

__all__ = ["aios", "home"]  # fixtures


@pytest.fixture
def note(tmp_path: Path) -> Path:
    file = tmp_path / "note.txt"
    file.write_text("the ferry leaves at nine\n")
    return file


def test_a_file_goes_in_and_comes_out(aios: Aios, note: Path, tmp_path: Path) -> None:
    code, out, err = aios("fs", "put", str(note), "/in/", "-m", "first")
    assert (code, out) == (0, "")
    assert "user:" in err
    assert "is at version" in err
    note.write_text("the ferry leaves at ten\n")
    assert aios("fs", "put", str(note), "/in/note.txt")[0] == 0
    assert aios("fs", "cat", "/in/note.txt")[1] == "the ferry leaves at ten\n"
    assert aios("fs", "get", "/in/note.txt", str(tmp_path / "out"))[0] == 0
    assert (tmp_path / "out").read_text() == "the ferry leaves at ten\n"
    code, out, _ = aios("fs", "ls", "/in")
    assert out.splitlines()[1].split()[0] == "24"
    log = read(aios, "fs", "log", "/in/note.txt")
    assert [one.get("message", "") for one in log["versions"]] == ["", "first"]  # type: ignore[index]
    first = str(log["versions"][-1]["version"])  # type: ignore[index]
    assert "+the ferry leaves at ten" in aios("fs", "diff", "/in/note.txt", "--since", first)[1]
    assert aios("fs", "rollback", "/in/note.txt", "--back", "1")[0] == 0
    assert aios("fs", "get", "/in/note.txt", str(tmp_path))[0] == 0
    assert note.read_text() == "the ferry leaves at nine\n"
    assert "words: ferry" in aios("fs", "search", "ferry", "-v", "user")[1]
    assert aios("fs", "mv", "/in/note.txt", "/out.txt")[0] == 0
    assert aios("fs", "rm", "/out.txt")[0] == 0
    assert aios("fs", "get", "/out.txt", str(tmp_path))[0] == exits.NOT_FOUND.code
    assert aios("fs", "rm", "/out.txt", "--purge")[0] == 0
    assert aios("fs", "log", "/out.txt")[0] == exits.NOT_FOUND.code


def test_what_is_piped_in_is_written(
    aios: Aios, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\xffpiped")))
    assert aios("fs", "put", "-", "/piped", "--new")[0] == 0
    assert aios("fs", "get", "/piped", str(tmp_path / "piped"))[0] == 0
    assert (tmp_path / "piped").read_bytes() == b"\xffpiped"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"again")))
    code, _, err = aios("fs", "put", "-", "/piped", "--new")
    assert code == exits.REFUSED.code
    assert "was made for version 0" in err


def test_a_directory_is_mounted_and_taken_away(aios: Aios, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "README").write_text("hello")
    assert aios("fs", "mount", "/p", str(folder))[0] == 0
    assert "/p/README" in aios("fs", "ls", "/p")[1]
    assert aios("fs", "mount", "/p", "--off")[0] == 0
    assert aios("fs", "ls", "/p")[0] == exits.NOT_FOUND.code


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("put", "nowhere", "/x"), "nowhere cannot be read"),
        (("rollback", "/x"), "say how far to go back"),
        (("rollback", "/x", "--time", "soon"), "'soon' is no time"),
        (("mount", "/x"), "which directory to mount"),
        (("mount", "/x", "/tmp", "--mode", "wild"), "no mode 'wild'"),
        (("ls", "/a/../b"), "holds '..'"),
    ],
)
def test_bad_input_gets_a_sentence(aios: Aios, words: tuple[str, ...], says: str) -> None:
    code, _, err = aios("fs", *words)
    assert code == exits.USAGE.code
    assert says in err
