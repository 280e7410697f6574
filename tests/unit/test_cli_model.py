"""`aios model` on the command line: terms, and models that the embedded core does not run."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from aios.cli import exits, main, model
from aios.config import Paths
from aios.errors import NotFound, SetupError

TERMS = "https://ai.google.dev/gemma/terms"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where models are; the package index is an empty directory."""
    (tmp_path / "index").mkdir()
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AIOS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AIOS_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def test_terms_are_shown_and_without_agreement_nothing_is_fetched(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.code_of(("model", "pull", "gemma3-270m")) == exits.REFUSED.code
    said = capsys.readouterr().err.splitlines()
    assert TERMS in said[0]
    assert "Prohibited Use Policy" in said[1]
    assert "`aios model pull gemma3-270m --accept-terms`" in said[2]
    assert len(said) == 3
    assert not models.exists()


def test_terms_are_agreed_to_by_an_option(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.code_of(("model", "pull", "gemma3-270m", "--accept-terms")) == exits.FAILED.code
    said = capsys.readouterr().err
    assert TERMS in said
    assert "could not be fetched" in said  # it was tried, and this index has nothing


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (b"y\n", exits.FAILED.code, "could not be fetched"),
        (b"n\n", exits.REFUSED.code, "--accept-terms"),
        (b"\n", exits.REFUSED.code, "--accept-terms"),
    ],
)
def test_terms_are_agreed_to_on_a_terminal(
    models: Path, answer: bytes, code: int, words: str
) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    child = subprocess.Popen(
        [sys.executable, "-m", "aios.cli.main", "model", "pull", "gemma3-270m"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "COLUMNS": "400", "TERM": "dumb"},
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # it has ended, and with it its side of the terminal
            break
        if not read:
            break
        said += read
    os.close(ours)
    assert child.wait(30) == code
    assert b"Do you agree to the Gemma Terms of Use? [y/N]" in said
    assert words in said.decode()


def test_what_the_embedded_core_cannot_run_is_told_before_it_is_fetched(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.code_of(("demo", "--model", "gemma3-270m")) == exits.FAILED.code
    said = capsys.readouterr().err
    assert "the embedded core cannot run gemma3-270m" in said
    assert f"--kind transformers --model {models} --gguf-file gemma3-270m.gguf" in said
    assert not models.exists()


def test_what_config_toml_describes_is_nothing_to_pull(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ("--url", "http://127.0.0.1:9/v1", "--model", "llama", "--class", "small")
    assert main.code_of(("core", "add", "box", *at)) == 0
    for asked in ("box", "llama", "cheapest:small", "local, box"):
        model.fetch_if_missing(asked)
    for asked in ("nobody", "box, nobody", "fastest:nobody"):
        with pytest.raises(NotFound, match="there is no model 'nobody'"):
            model.fetch_if_missing(asked)
    with pytest.raises(SetupError, match="the embedded core cannot run gemma3-270m"):
        model.fetch_if_missing("box, gemma3-270m")
    added = ("--kind", "transformers", "--model", "/x", "--gguf-file", "gemma3-270m.gguf")
    assert main.code_of(("core", "add", "gemma3-270m", *added)) == 0
    model.fetch_if_missing("gemma3-270m")
    assert 'gguf_file = "gemma3-270m.gguf"' in Paths.find().config_file.read_text()
    assert not models.exists()


def test_the_list_says_what_is_to_be_had_and_for_which_core(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.code_of(("model", "list")) == 0
    said = capsys.readouterr().err
    assert "gemma3-270m (for a transformers core, under the Gemma Terms of Use)" in said
    assert "smollm2-135m," in said


@pytest.mark.parametrize(
    "words",
    [
        ("hf:ann/tiny.gguf",),
        ("smollm2-135m", "--name", "mine"),
    ],
)
def test_what_cannot_be_pulled_is_a_usage_error(
    models: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.code_of(("model", "pull", *words)) == exits.USAGE.code
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not models.exists()
