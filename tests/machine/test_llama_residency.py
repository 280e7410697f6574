"""Who lies in which cells: random work on a small pool, every invariant asked after each step."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from aios.abi.messages import Message, Sampling
from aios.drivers.cores.llama.cells import BLOCK
from aios.drivers.cores.llama.engine import Engine
from aios.ports import Prompt, Slice, SliceResult

pytestmark = pytest.mark.model

STEPS = 160
MOST = 12  # sequences at once: more than the cells hold


def asked(dice: random.Random) -> Prompt:
    shared = "the same beginning of every prompt " * dice.choice((2, 12, 30))
    own = " ".join(str(dice.randrange(1000)) for _ in range(dice.choice((1, 30, 60))))
    beams = dice.choice((1, 1, 3))
    sampling = Sampling(max_tokens=dice.choice((2, 90)), seed=1, ignore_end=True, beams=beams)
    return Prompt((Message("user", shared + own),), sampling)


@pytest.mark.parametrize(
    ("seed", "ram_mb", "disk_mb"), [(1, 64, 0), (2, 3, 0), (3, 0, 0), (4, 3, 64), (5, 0, 4)]
)
def test_random_work_keeps_the_books(
    model_path: Path, tmp_path: Path, seed: int, ram_mb: int, disk_mb: int
) -> None:
    dice = random.Random(seed)
    engine = Engine(
        model_path,
        "m",
        slots=8,
        threads=2,
        cells=1024,
        ram_bytes=ram_mb << 20,
        disk=tmp_path,
        disk_bytes=disk_mb << 20,
    )
    sequences, last = engine.residency.sequences, 0
    for _ in range(STEPS):
        idle = [number for number, s in sequences.items() if s.grant is None]
        does = dice.choice(("admit", "run", "run", "turn", "turn", "out", "in", "fork", "release"))
        if does in ("admit", "fork") and len(sequences) < MOST:
            last += 1
            if does == "fork" and idle:
                engine.fork(dice.choice(idle), last)
            else:
                engine.admit(last, asked(dice))
        elif does == "run" and idle:
            engine.run(dice.choice(idle), Slice(dice.choice((1, 20))))
        elif does == "turn":
            for number, result in engine.turn():
                assert isinstance(result, SliceResult), result
                if result.finish_reason:
                    engine.release(number)
        elif does == "out" and idle:
            engine.page_out(dice.choice(idle))
        elif does == "in" and idle:
            engine.page_in(dice.choice(idle))
        elif does == "release" and sequences and dice.random() < 0.3:
            engine.release(dice.choice([*sequences]))
        assert engine.check() == []
        on_disk = sum(file.stat().st_size for file in tmp_path.iterdir())
        assert on_disk == engine.residency.disk.used <= disk_mb << 20
    for number in [*sequences]:
        engine.release(number)
    engine.turn()
    report = engine.report()
    assert (report.sequences, report.cells_used, report.ram_used, report.disk_used) == (0, 0, 0, 0)
    assert engine.check() == []
    engine.close()
    assert [*tmp_path.iterdir()] == []


def test_the_mark_follows_what_runs(model_path: Path) -> None:
    engine = Engine(model_path, "m", slots=8, threads=2, cells=4096, ram_bytes=64 << 20)
    dice = random.Random(5)
    for number in range(6):
        engine.admit(number, asked(dice))
        engine.run(number, Slice(4))
    while engine.is_busy:
        for number, result in engine.turn():
            assert isinstance(result, SliceResult), result
            if not result.tokens:
                engine.run(number, Slice(4))
    high = engine.residency.cells.mark
    for number in range(5):
        engine.release(number)
    engine.run(5, Slice(4))
    while not engine.turn():
        pass
    mark, own = engine.residency.cells.mark, sequences_cells(engine, 5)
    assert mark <= own + BLOCK < high
    assert engine.check() == []
    engine.close()


def sequences_cells(engine: Engine, number: int) -> int:
    s = engine.residency.sequences[number]
    return (len(s.nodes) + len(s.blocks)) * BLOCK


def test_check_says_what_is_wrong(model_path: Path) -> None:
    engine = Engine(model_path, "m", slots=8, threads=2, cells=1024, ram_bytes=64 << 20)
    engine.admit(1, asked(random.Random(1)))
    engine.run(1, Slice(4))
    while not engine.turn():
        pass
    assert engine.check() == []
    engine.residency.ram_used += 5
    assert engine.check() == [f"images take 0 bytes, counted 5 of {64 << 20}"]
    engine.residency.ram_used -= 5
    engine.residency.cells.keep([2], [])
    assert any("block 2" in line for line in engine.check())
    engine.close()
