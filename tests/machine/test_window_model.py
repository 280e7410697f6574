"""A conversation that outgrows its window, with the real model: what stays, what is used again."""

from __future__ import annotations

from pathlib import Path

import pytest

from aios.abi.calls import Strategy
from aios.drivers.cores.llama.core import LlamaCore
from bench import window as bench

pytestmark = [pytest.mark.model, pytest.mark.timeout(120)]

TURNS = 10
WINDOW = 480


@pytest.mark.parametrize("strategy", ["summarise", "page"])
async def test_a_short_conversation_in_a_small_window(model_path: Path, strategy: Strategy) -> None:
    core = LlamaCore(model_path, "m", slots=2, threads=2, cells=2048)
    await core.start()
    found = await bench.converse(core, strategy, TURNS, WINDOW)
    assert found.turns == TURNS
    assert found.largest_prompt <= WINDOW
    assert found.pins
    assert found.parted == 0
    assert found.breaks == found.cuts >= 1
    assert found.reused > 0.5  # what only appends is not computed again


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_hundred_turns_under_each_strategy() -> None:
    figures = bench.run()
    assert figures["met"], figures
