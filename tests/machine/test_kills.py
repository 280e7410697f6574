"""kill -9 at any instant, up again, and on: nothing told is lost, no effect happens twice."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aios.config import Paths
from bench.mortal import DAEMON, Machine

SCRIPTED = (sys.executable, str(Path(__file__).with_name("mortal_daemon.py")))
AGENTS = ("ann", "bob", "cid")
KILLS, LONG_KILLS, MODEL_KILLS = 50, 1_000, 3
LATEST_S = 0.6  # of the instant of a kill, after the machine has answered

Said = dict[str, list[Any]]


class Trial:
    """Agents on one machine after another, each killed at random until its agents have ended."""

    def __init__(
        self, folder: Path, daemon: Sequence[str], turns: int, seed: int, **settings: str
    ) -> None:
        self.folder, self.daemon, self.turns = folder, daemon, turns
        self.settings, self.chance = settings, random.Random(seed)
        with self._machine("0") as machine:
            machine.finish()
            self.right = said(machine)  # when nothing happens to them

    @contextmanager
    def _machine(self, name: str) -> Iterator[Machine]:
        machine = Machine(self.folder / name, self.daemon, **self.settings)
        machine.up()
        try:
            machine.begin(AGENTS, self.turns)
            yield machine
        finally:
            machine.close()

    def run(self, kills: int) -> None:
        number = 0
        while kills:
            number += 1
            with self._machine(str(number)) as machine:
                while kills and not machine.have_ended(self.chance.random() * LATEST_S):
                    machine.kill(only_the_kernel=self.chance.random() < 0.3)
                    kills -= 1
                    machine.up()
                    machine.settle()
                machine.finish()
                self._examine(machine)

    def _examine(self, machine: Machine) -> None:
        """All is as if nobody had killed anything."""
        ends = {name: status.exit_status for name, status in machine.agents().items()}
        assert ends == dict.fromkeys(AGENTS, 0)
        found = said(machine)
        assert found == self.right
        assert machine.twice() == []
        assert machine.torn() == []
        assert len(machine.marks("effects")) == len(AGENTS) * self.turns
        for line in machine.marks("told"):
            name, turn, what, told = json.loads(line)
            if what == "answer":
                assert told in [said[1] for said in found[name] if said[0] == "assistant"]
            if what == "memory":
                assert set(told) == {f"{name} has counted to {n}" for n in range(turn + 1)}
                assert len(told) == turn + 1
        assert machine.page("/api/doctor") == {"problems": []}


def said(machine: Machine) -> Said:
    return {name: machine.said(status.aid) for name, status in machine.agents().items()}


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("k")  # short: a socket's path has an end


@pytest.mark.timeout(240)
def test_fifty_kills(folder: Path) -> None:
    Trial(folder, SCRIPTED, turns=6, seed=1).run(KILLS)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_thousand_kills(folder: Path) -> None:
    Trial(folder, SCRIPTED, turns=12, seed=2).run(LONG_KILLS)


@pytest.mark.model
@pytest.mark.timeout(240)
def test_kills_while_the_real_model_answers(folder: Path, model_path: Path) -> None:
    models = str(Paths.find().models)
    Trial(folder, DAEMON, turns=2, seed=3, AIOS_MODELS=models).run(MODEL_KILLS)
