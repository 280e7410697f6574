"""examples/tour.sh: ten agents, steered while they run; it asserts by itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.model
@pytest.mark.timeout(240)
def test_the_tour_of_the_commands(commands: dict[str, str]) -> None:
    done = subprocess.run(
        [REPOSITORY / "examples" / "tour.sh"],
        env=commands,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert done.stdout.endswith("the tour is over: everything held\n")
