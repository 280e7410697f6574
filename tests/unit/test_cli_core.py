"""`aios core` without a kernel: what it writes into config.toml, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aios import config
from aios.abi.calls import CoreSpec, Price
from aios.cli import main

Aios = Callable[..., tuple[int, str, str]]


@pytest.fixture
def aios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Aios:
    monkeypatch.setenv("AIOS_HOME", str(tmp_path))
    monkeypatch.delenv("AIOS_URL", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main.code_of(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


URL = "http://127.0.0.1:8000/v1"


def test_what_is_added_is_in_the_file_and_what_stood_there_stays(
    aios: Aios, tmp_path: Path
) -> None:
    file = tmp_path / "config" / "config.toml"
    file.parent.mkdir()
    file.write_text("# mine\n[scheduler]\nquantum = 16  # small\n")
    code, out, err = aios(
        *("core", "add", "box", "--url", URL, "--model", "llama", "--key-env", "BOX_KEY"),
        *("--class", "small", "--class", "fast", "--price", "0.15/0.6/0.075", "--slots", "4"),
    )
    assert (code, str(file) in out) == (0, True)
    assert "no kernel runs" in err
    assert file.read_text().startswith("# mine\n[scheduler]\nquantum = 16  # small\n")
    found = config.load(config.Paths.find())
    assert found.scheduler.quantum == 16
    assert found.cores == {
        "box": CoreSpec(
            kind="openai",
            url=URL,
            model="llama",
            key_env="BOX_KEY",
            classes=("small", "fast"),
            price=Price(0.15, 0.6, 0.075),
            slots=4,
        )
    }
    code, out, _ = aios("core", "list", "--json")
    (listed,) = json.loads(out)
    assert (code, listed["name"], listed["state"]) == (0, "box", "cold")
    assert aios("core", "add", "box", "--url", URL)[0] == 5
    assert aios("config", "show")[0] == 0
    assert aios("core", "remove", "box")[0] == 0
    assert config.load(config.Paths.find()).cores == {}
    assert "# small" in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--kind", "magic"), "magic"),
        ((), "address of its server"),
        (("--url", "ftp://x"), "'ftp://x'"),
        (("--kind", "provider", "--model", "m"), "needs its provider"),
        (("--kind", "transformers"), "needs a model"),
        (("--url", URL, "--price", "dear"), "'dear' is no price"),
        (("--url", URL, "--price", "-1/2"), "'-1/2' is no price"),
        (("--url", URL, "--price", "nan/1"), "'nan/1' is no price"),
        (("--url", URL, "--slots", "-3"), "slots"),
        (("--url", "http://me:sekret@127.0.0.1/v1"), "a name or a password"),
        (("--kind", "transformers", "--model", "m", "--max-memory", "24GB"), "no memory map"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    aios: Aios, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = aios("core", "add", "x", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "config" / "config.toml").exists()


def test_there_is_nothing_to_remove(aios: Aios) -> None:
    code, _, err = aios("core", "remove", "nope")
    assert (code, "'nope'" in err) == (4, True)
    assert aios("core", "drain", "nope")[0] == 3  # no kernel


def test_a_file_that_is_wrong_is_named(aios: Aios, tmp_path: Path) -> None:
    file = tmp_path / "config" / "config.toml"
    file.parent.mkdir()
    for text, said in (
        ("[cores.x]\nkind = 'magic'\n", "cores.x"),
        ("[cores.x]\nmodell = 'a'\n", "modell"),
        ("cores = 3\n", "[cores] must hold tables"),
        ("[cores.x\n", "cannot be read as TOML"),
        (f"[cores.x]\nurl = '{URL}'\nprice = {{prompt = nan}}\n", "price.prompt is nan"),
        (f"[cores.x]\nurl = '{URL}'\nslots = -1\n", "slots"),
    ):
        file.write_text(text)
        code, _, err = aios("core", "list")
        assert (code, said in err, err.count("\n")) == (1, True, 1 + err.count("no kernel runs"))


@pytest.mark.parametrize("name", ["", "a, b", "x:y", "local", "cheapest", "-x", "n" * 200])
def test_a_name_that_cannot_be_asked_for_is_refused(aios: Aios, name: str) -> None:
    code, _, err = aios("core", "add", "--url", URL, "--", name)
    assert (code, "is no name for a core" in err) == (2, True)


def test_who_adds_at_once_loses_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "AIOS_HOME": str(tmp_path)}
    environment.pop("AIOS_URL", None)
    command = [sys.executable, "-m", "aios.cli.main", "core", "add", "--url", URL]
    adding = [subprocess.Popen([*command, f"box{n}"], env=environment) for n in range(3)]
    assert [one.wait(60) for one in adding] == [0, 0, 0]
    text = (tmp_path / "config" / "config.toml").read_text()
    assert [f"[cores.box{n}]" in text for n in range(3)] == [True] * 3
