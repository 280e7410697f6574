"""Contexts that RAM does not hold go to disk, and go on with the same bits."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aios.abi.messages import Message, Sampling
from aios.drivers.cores.kept.disk import SUFFIX
from aios.drivers.cores.llama.core import LlamaCore
from aios.drivers.cores.llama.engine import Engine
from aios.errors import CoreFailed
from aios.ports import Prompt, Slice, SliceResult

pytestmark = pytest.mark.model

NEW = 12  # tokens
PROMPT = Prompt(
    (Message("user", "Once upon a time in the harbour " * 14),),
    Sampling(max_tokens=NEW, seed=3, temperature=0.8, ignore_end=True),
)


class Machine:
    """An engine without RAM for contexts, and what it computed for each token."""

    def __init__(self, model: Path, folder: Path, disk_bytes: int) -> None:
        self.engine = Engine(
            model,
            "m",
            slots=4,
            threads=2,
            cells=1024,
            ram_bytes=0,
            disk=folder,
            disk_bytes=disk_bytes,
        )
        self.bits: dict[int, list[tuple[int, str]]] = {}
        self.engine.watch = self._keep

    def _keep(self, sequence: int, position: int, logits: Any) -> None:
        digest = hashlib.blake2b(logits.tobytes(), digest_size=8).hexdigest()
        self.bits.setdefault(sequence, []).append((position, digest))

    def run(self, number: int, tokens: int) -> list[int]:
        """So many more tokens of a sequence."""
        made: list[int] = []
        reason = None
        while len(made) < tokens and reason is None:
            self.engine.run(number, Slice(tokens - len(made)))
            while not (done := self.engine.turn()):
                pass
            ((_, result),) = done
            assert isinstance(result, SliceResult), result
            made += result.tokens
            reason = result.finish_reason
        assert self.engine.check() == []
        return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "contexts" / "m"


@pytest.fixture
def machine(model_path: Path, folder: Path) -> Iterator[Machine]:
    machine = Machine(model_path, folder, 64 << 20)
    yield machine
    machine.engine.close()
    assert files(folder) == []


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def whole(machine: Machine) -> tuple[list[int], list[tuple[int, str]]]:
    """An uninterrupted run; nothing of it is kept."""
    machine.engine.admit(1, PROMPT)
    tokens = machine.run(1, NEW)
    machine.engine.release(1)
    machine.engine.turn()
    return tokens, machine.bits.pop(1)


def test_from_disk_it_goes_on_with_the_same_bits(machine: Machine, folder: Path) -> None:
    expected = whole(machine)
    machine.engine.admit(2, PROMPT)
    made = machine.run(2, 5)
    out = machine.engine.page_out(2)
    assert out.bytes > 0
    assert sum(file.stat().st_size for file in files(folder)) == out.bytes
    report = machine.engine.report()
    assert (report.ram_used, report.disk_used) == (0, out.bytes)
    assert machine.engine.page_in(2).bytes == out.bytes
    assert files(folder) == []
    machine.engine.page_out(2)
    assert (made + machine.run(2, NEW), machine.bits[2]) == expected


def test_forks_share_a_file(machine: Machine, folder: Path) -> None:
    expected, _ = whole(machine)
    machine.engine.admit(2, PROMPT)
    made = machine.run(2, 5)
    machine.engine.page_out(2)
    machine.engine.fork(2, 3)
    assert len(files(folder)) == 1
    for number in (3, 2):
        assert made + machine.run(number, NEW) == expected
        machine.engine.release(number)


@pytest.mark.parametrize("harm", ["deleted", "damaged", "cut"])
def test_a_file_that_is_gone_costs_a_recompute(machine: Machine, folder: Path, harm: str) -> None:
    expected = whole(machine)
    machine.engine.admit(2, PROMPT)
    made = machine.run(2, 5)
    machine.engine.page_out(2)
    (file,) = files(folder)
    size = file.stat().st_size
    if harm == "deleted":
        file.unlink()
    elif harm == "damaged":
        file.write_bytes(b"x" * size)
    else:
        os.truncate(file, size // 2)
    rest = machine.run(2, NEW)
    assert made + rest == expected[0]
    assert machine.bits[2][-len(rest) :] == expected[1][-len(rest) :]


def test_no_room_on_disk_costs_a_recompute(model_path: Path, folder: Path) -> None:
    machine = Machine(model_path, folder, 1000)
    expected, _ = whole(machine)
    machine.engine.admit(2, PROMPT)
    made = machine.run(2, 5)
    assert machine.engine.page_out(2).bytes == 0
    assert files(folder) == []
    assert made + machine.run(2, NEW) == expected
    machine.engine.close()


def test_a_disk_that_says_no_costs_a_recompute(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "contexts").write_text("a file where a folder should be")
    machine = Machine(model_path, tmp_path / "contexts" / "m", 64 << 20)
    expected, _ = whole(machine)
    machine.engine.admit(2, PROMPT)
    made = machine.run(2, 5)
    assert machine.engine.page_out(2).bytes == 0
    assert made + machine.run(2, NEW) == expected
    machine.engine.close()


def test_what_a_dead_worker_left_is_removed(model_path: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / f"7{SUFFIX}").write_bytes(b"old")
    (folder / "other").write_text("not ours")
    machine = Machine(model_path, folder, 64 << 20)
    assert [file.name for file in folder.iterdir()] == ["other"]
    machine.engine.admit(1, PROMPT)
    machine.run(1, 5)
    machine.engine.page_out(1)
    assert len(files(folder)) == 1
    machine.engine.release(1)
    assert files(folder) == []
    machine.engine.close()


async def test_a_worker_that_is_killed_leaves_nothing_for_long(
    model_path: Path, folder: Path
) -> None:
    core = LlamaCore(
        model_path, "m", slots=2, cells=1024, ram_bytes=0, disk=folder, disk_bytes=64 << 20
    )
    await core.start()
    admitted = await core.admit(PROMPT)
    while not (await core.run(admitted.sequence, Slice(4))).tokens:
        pass
    out = await core.page_out(admitted.sequence)
    report = await core.residency()
    assert (report.disk_used, report.disk_limit) == (out.bytes, 64 << 20)
    assert len(files(folder)) == 1
    assert core.os_pid is not None
    os.kill(core.os_pid, signal.SIGKILL)
    with pytest.raises(CoreFailed):
        await core.run(admitted.sequence, Slice(4))
    await core.admit(PROMPT)
    assert files(folder) == []
    await core.close()
