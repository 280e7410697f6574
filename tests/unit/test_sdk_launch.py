"""What ``python -m aios.sdk.launch`` finds in a file, and what the public names are."""

import subprocess
import sys
from pathlib import Path

import pytest

import aios
from aios.errors import InvalidCall, NotFound
from aios.sdk import launch

ONE = "import aios\n\n@aios.agent\nasync def trip(me, task):\n    return task\n"


def test_the_one_agent_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "words.py").write_text("WORD = 'trip'\n")
    (tmp_path / "a.py").write_text(f"from words import WORD\n{ONE}")
    assert launch.load(str(tmp_path / "a.py")).name == "trip"


def test_none_or_two_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "none.py").write_text("x = 1\n")
    with pytest.raises(NotFound, match="and has none"):
        launch.load(str(tmp_path / "none.py"))
    (tmp_path / "two.py").write_text(ONE + ONE.replace("trip", "stay"))
    with pytest.raises(NotFound, match="has 2: trip, stay"):
        launch.load(str(tmp_path / "two.py"))
    with pytest.raises(NotFound, match="no program at"):
        launch.load(str(tmp_path / "gone.py"))


def test_a_module_and_a_function_in_it() -> None:
    assert launch.load("aios.agents.math").name == "math"
    assert launch.load("aios.agents.rec:rec").name == "rec"
    with pytest.raises(NotFound, match="has none"):
        launch.load("aios.agents.rec:nothing")


def test_an_agent_takes_me_and_a_task() -> None:
    with pytest.raises(InvalidCall, match="must take two arguments"):
        aios.agent(lambda me: None)


def test_public_names_are_sorted_and_real() -> None:
    assert aios.__all__ == sorted(aios.__all__)
    for name in aios.__all__:
        assert getattr(aios, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = aios.nothing


def test_importing_aios_loads_nothing_else() -> None:
    check = "import sys, aios; print([m for m in sys.modules if m.startswith('aios.')])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
