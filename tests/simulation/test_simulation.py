"""The kernel in simulated worlds: crashes between any two steps, and nothing lost or done twice.

A seed that fails is run again, and shown, by ``python tests/simulation/world.py SEED``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulated import LyingDisk
from world import run

HERE = Path(__file__).parent
SEEDS, LONG_SEEDS, AT_ONCE = 1_000, 10_000, 100


def wrong(seeds: range) -> list[str]:
    """What is wrong in worlds, each sentence with the command that shows it again."""
    return [
        f"{sentence} (run it again: python tests/simulation/world.py {seed})"
        for seed in seeds
        for sentence in run(seed).wrong
    ]


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_nothing_is_lost_or_done_twice(first: int) -> None:
    assert wrong(range(first, first + AT_ONCE)) == []


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(SEEDS, LONG_SEEDS, 10 * AT_ONCE))
def test_nothing_is_lost_or_done_twice_in_many_worlds(first: int) -> None:
    assert wrong(range(first, first + 10 * AT_ONCE)) == []


def test_the_same_seed_has_the_same_trace() -> None:
    seeds = range(24)
    first = {seed: run(seed).hash for seed in seeds}
    assert {seed: run(seed).hash for seed in seeds} == first
    assert len(set(first.values())) == len(seeds)


def test_the_same_seed_has_the_same_trace_in_another_python() -> None:
    code = "import world; print(*(world.run(seed).hash for seed in range(8)))"
    hashes = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=HERE,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert hashes[0] == hashes[1]


def test_a_disk_that_lies_is_found_out() -> None:
    found = [sentence for seed in range(40) for sentence in run(seed, LyingDisk).wrong]
    assert any("is lost" in sentence for sentence in found)
    assert any("heard" in sentence for sentence in found)
