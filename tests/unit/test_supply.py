"""What a clone needs to set itself up: pins, licences, the two commands."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in found}


def needed() -> set[str]:
    """Every package that an install with [test] brings here, by its canonical name."""
    todo = [Requirement(r) for r in (*PROJECT["dependencies"], "aios[test]")]
    found: set[str] = set()
    followed: set[tuple[str, str]] = set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if name == PROJECT["name"]:  # our own extras
            extras = (PROJECT["optional-dependencies"][extra] for extra in wanted.extras)
            todo += [Requirement(r) for extra in extras for r in extra]
            continue
        for extra in {"", *wanted.extras}:
            if (name, extra) in followed:
                continue
            followed.add((name, extra))
            found.add(name)
            needs = [Requirement(r) for r in metadata.requires(name) or []]
            todo += [r for r in needs if r.marker is None or r.marker.evaluate({"extra": extra})]
    return found


def test_everything_needed_is_pinned_and_nothing_else() -> None:
    assert set(pins()) == needed()


def test_pins_are_versions_and_carry_no_address() -> None:
    for name, version in pins().items():
        assert re.fullmatch(r"[0-9][0-9A-Za-z.+]*", version), name


def test_every_licence_is_in_the_notice() -> None:
    listed = re.findall(r"^  ([\w-]+)  +\S", (ROOT / "NOTICE").read_text(), re.MULTILINE)
    assert {canonicalize_name(name) for name in listed} == set(pins())


def test_the_readmes_commands_and_the_one_that_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text()
    first, second = re.findall(r"^python3 -m venv .*$", readme, re.MULTILINE)
    install = "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e "
    assert first == f"{install}. && .venv/bin/aios demo"
    assert second.startswith(f"{install}'.[test]' && .venv/bin/pytest")
    assert f'tests="{second}"' in (ROOT / ".ci" / "run").read_text()
