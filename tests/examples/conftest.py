"""What examples and blocks of the docs run with: `aios` and `python3` of this environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios.config import Paths

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose PATH has both, and in which the models of this user are found."""
    folder = tmp_path_factory.mktemp("bin")
    for name, words in (
        ("aios", f"{sys.executable} -m aios.cli.main"),
        ("python3", sys.executable),
    ):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        script.chmod(0o755)
    mine = {name: value for name, value in os.environ.items() if not name.startswith("AIOS_")}
    return {
        **mine,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY / "src"),
        "AIOS_MODELS": str(Paths.find().models),
        "AIOS_SERVER_PORT": "0",  # another kernel may have the usual one
        "COLUMNS": "200",
    }


@pytest.fixture
def home(
    commands: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The same with an AIOS_HOME; a kernel that was started in it is stopped."""
    environment = {**commands, "AIOS_HOME": str(tmp_path_factory.mktemp("h"))}
    yield environment
    subprocess.run(["aios", "down"], env=environment, capture_output=True, check=True, timeout=60)
