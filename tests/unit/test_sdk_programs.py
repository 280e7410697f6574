"""A name or a path becomes a command line, or a sentence that says what there is."""

import sys
from pathlib import Path

import pytest

from aios.abi.calls import Limits
from aios.errors import InvalidCall, NotFound
from aios.sdk import programs

AGENT = "import aios\n\n@aios.agent\nasync def trip(me, task):\n    return task\n"
LAUNCH = (sys.executable, "-m", "aios.sdk.launch")


def test_a_file_with_an_agent_is_launched(tmp_path: Path) -> None:
    file = tmp_path / "trip.py"
    file.write_text(AGENT)
    for name in ("trip.py", "./trip.py", str(file)):
        program = programs.find(name, tmp_path)
        assert program.name == "trip"
        assert program.argv == (*LAUNCH, str(file))


@pytest.mark.parametrize("mark", ["@aios.agent(name='x')", "@agent", "@agent()"])
def test_other_ways_to_mark_an_agent(mark: str, tmp_path: Path) -> None:
    source = f"{mark}\ndef trip(me, task): ...\n".encode()
    assert programs.defines_agent(source, tmp_path)


def test_a_plain_script_is_just_run(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("print('hello')\n")
    assert programs.find("plain.py", tmp_path).argv == (
        sys.executable,
        str(tmp_path / "plain.py"),
    )


def test_the_five_agents_go_by_name(tmp_path: Path) -> None:
    assert programs.find("math", tmp_path).argv == (*LAUNCH, "aios.agents.math")


def test_a_manifest_goes_by_its_name_and_beats_the_rest(tmp_path: Path) -> None:
    (tmp_path / "trip.py").write_text(AGENT)
    (tmp_path / "agent.toml").write_text(
        'name = "math"\nversion = "1"\nentry = "trip.py"\nmodel = "big"\npriority = 3\n'
        "[budget]\ntokens = 500\n"
    )
    program = programs.find("math", tmp_path)
    assert program.argv == (*LAUNCH, str(tmp_path / "trip.py"))
    assert (program.model, program.budget, program.priority) == ("big", Limits(tokens=500), 3)
    assert programs.find(str(tmp_path)) == program


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "is no manifest of an agent"),
        ('name = "x"', "missing required field `entry`"),
        ('name = "x"\nentry = "x.py"\ncolour = 1', "unknown field `colour`"),
    ],
)
def test_a_bad_manifest(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(text)
    with pytest.raises(InvalidCall, match=said):
        programs.find(".", tmp_path)


def test_a_manifest_whose_entry_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('name = "x"\nentry = "gone.py"')
    with pytest.raises(NotFound, match=r"names the entry 'gone\.py'"):
        programs.find(".", tmp_path)


def test_an_unknown_name_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="one of coding, math, narrative, rec, travel"):
        programs.find("trvel", tmp_path)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no program at .*nothing\.py"):
        programs.find("nothing.py", tmp_path)


def test_a_file_that_is_not_python(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def (")
    with pytest.raises(InvalidCall, match="not valid Python"):
        programs.find("bad.py", tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InvalidCall, match="neither a .py file nor executable"):
        programs.find("notes.txt", tmp_path)
