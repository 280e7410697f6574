"""The bits of a generation do not depend on what happens to it or beside it: logits compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aios.abi.messages import Message, Sampling
from aios.drivers.cores.llama.engine import Engine
from aios.ports import Prompt, Slice, SliceResult

pytestmark = pytest.mark.model

NEW = 10
CELLS = 1024  # small: sequences of these tests push one another out
TEXT = "river lamp stone agent green winter market bridge garden letter clock copper window"
WORDS = TEXT.split()
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}

Bits = list[tuple[int, bytes]]  # of each choice: the position and the logits


def prompt(number: int, words: int, *, temperature: float = 0.0, **fields: Any) -> Prompt:
    """Prompts of the same number of words share all but their end."""
    dice = random.Random(words)
    text = " ".join(dice.choice(WORDS) for _ in range(words))
    sampling = Sampling(
        temperature=temperature, top_p=0.95, max_tokens=NEW, seed=number, ignore_end=True
    )
    return Prompt((Message("user", f"{text} {number}"),), sampling, **fields)


PROMPTS = {
    "short": prompt(1, 8),
    "three chunks and a tail": prompt(2, 150),
    "likewise, sampled": prompt(3, 150, temperature=0.9),
    "past 512 cells": prompt(4, 520),
    "under a grammar": prompt(5, 40, schema=SCHEMA),
}


class Rig:
    """An engine that keeps the bits of every choice."""

    def __init__(self, path: Path, **options: Any) -> None:
        settings = {"slots": 8, "threads": 2, "cells": CELLS, "ram_bytes": 64 << 20} | options
        self.engine = Engine(path, "m", **settings)
        self.bits: dict[int, Bits] = {}
        self.made: dict[int, list[int]] = {}
        self.engine.watch = lambda number, position, logits: self.bits.setdefault(
            number, []
        ).append((position, logits.tobytes()))

    def slice(self, number: int, tokens: int) -> SliceResult:
        self.engine.run(number, Slice(tokens))
        while True:
            for who, result in self.engine.turn():
                assert isinstance(result, SliceResult), result
                self.made.setdefault(who, []).extend(result.tokens)
                if who == number:
                    return result

    def finish(self, number: int, tokens: int = 64) -> Bits:
        while self.slice(number, tokens).finish_reason is None:
            pass
        assert self.engine.check() == []
        return self.bits[number]

    def advance(self, number: int, made: int) -> None:
        """Until that many tokens are made; 0 stops inside the prompt."""
        while True:
            self.slice(number, 1)
            if len(self.made[number]) >= made:
                return

    def clear(self) -> None:
        for number in [*self.engine.residency.sequences]:
            self.engine.release(number)
        self.engine.turn()
        self.bits.clear()
        self.made.clear()
        assert self.engine.check() == []
        assert self.engine.report().cells_used == 0


@pytest.fixture(scope="module")
def rig(model_path: Path) -> Iterator[Rig]:
    rig = Rig(model_path)
    yield rig
    rig.engine.close()


@pytest.fixture(scope="module")
def alone(model_path: Path) -> dict[str, Bits]:
    """Every prompt by itself, in an engine that shares nothing."""
    found = {}
    for name, asked in PROMPTS.items():
        rig = Rig(model_path, share=False)
        rig.engine.admit(1, asked)
        found[name] = rig.finish(1)
        rig.engine.close()
    return found


@pytest.fixture(autouse=True)
def clean(rig: Rig) -> Iterator[None]:
    yield
    rig.clear()


def test_batched(rig: Rig, alone: dict[str, Bits]) -> None:
    names = list(PROMPTS)
    for number, name in enumerate(names):
        rig.engine.admit(number, PROMPTS[name])
        rig.engine.run(number, Slice(100))
    open_ = set(range(len(names)))
    while open_:
        for number, result in rig.engine.turn():
            assert isinstance(result, SliceResult), result
            if result.finish_reason:
                open_.discard(number)
            else:
                rig.engine.run(number, Slice(100))
    assert {name: rig.bits[number] for number, name in enumerate(names)} == alone


@pytest.mark.parametrize("name", PROMPTS)
def test_in_slices_of_one_beside_a_stranger(rig: Rig, alone: dict[str, Bits], name: str) -> None:
    rig.engine.admit(7, prompt(99, 33))
    rig.advance(7, 2)
    rig.engine.admit(1, PROMPTS[name])
    rig.engine.run(7, Slice(5))
    assert rig.finish(1, tokens=1) == alone[name]


def page_out(rig: Rig, _: Prompt, __: Path) -> int:
    assert rig.engine.page_out(1).bytes >= 0
    return 1


def freeze(rig: Rig, _: Prompt, folder: Path) -> int:
    rig.engine.freeze(1, folder / "frozen")
    rig.engine.release(1)
    rig.engine.thaw(2, folder / "frozen")
    return 2


def lose(rig: Rig, asked: Prompt, _: Path) -> int:
    rig.engine.release(1)
    rig.engine.admit(2, asked, rig.made[1])
    return 2


def fork(rig: Rig, _: Prompt, __: Path) -> int:
    rig.engine.fork(1, 2)
    return 2


@pytest.mark.parametrize("made", [0, 1, 6])
@pytest.mark.parametrize(
    "name", ["three chunks and a tail", "likewise, sampled", "under a grammar"]
)
@pytest.mark.parametrize("interrupt", [page_out, freeze, lose, fork])
def test_interrupted(
    rig: Rig,
    alone: dict[str, Bits],
    tmp_path: Path,
    interrupt: Callable[[Rig, Prompt, Path], int],
    name: str,
    made: int,
) -> None:
    asked = PROMPTS[name]
    rig.engine.admit(1, asked)
    rig.advance(1, made)
    number = interrupt(rig, asked, tmp_path)
    rig.engine.admit(7, prompt(99, 70))  # takes the cells that are free now
    rig.advance(7, 3)
    rig.engine.run(7, Slice(3))
    before = [] if number == 1 else rig.bits.get(1, [])
    assert before + rig.finish(number) == alone[name]
    if interrupt is fork:
        assert rig.finish(1) == alone[name]


def test_pushed_out_by_others_again_and_again(rig: Rig, alone: dict[str, Bits]) -> None:
    """Together they need twice the cells there are, so each turn somebody is paged out."""
    names = ["past 512 cells", "three chunks and a tail", "past 512 cells", "likewise, sampled"]
    for number, name in enumerate(names):
        rig.engine.admit(number, PROMPTS[name])
    rig.engine.admit(9, prompt(9, 600))
    open_ = {0, 1, 2, 3, 9}
    while open_:
        for number in sorted(open_):
            if rig.slice(number, 2).finish_reason:
                open_.discard(number)
            assert rig.engine.check() == []
    for number, name in enumerate(names):
        assert rig.bits[number] == alone[name]


def test_recomputed_when_ram_is_full(model_path: Path, alone: dict[str, Bits]) -> None:
    rig = Rig(model_path, ram_bytes=1000)
    rig.engine.admit(1, PROMPTS["likewise, sampled"])
    rig.advance(1, 4)
    assert rig.engine.page_out(1).bytes == 0
    rig.engine.admit(2, prompt(9, 700))
    rig.advance(2, 1)  # takes the cells of the first one's prompt too
    assert rig.finish(1) == alone["likewise, sampled"]
    rig.engine.close()


def test_a_shared_prompt_is_computed_once(rig: Rig) -> None:
    asked = prompt(6, 149)
    computed = 0
    for number in (1, 2, 3):
        rig.engine.admit(number, asked)
        rig.engine.run(number, Slice(1))
    open_ = {1, 2, 3}
    while open_:
        for number, result in rig.engine.turn():
            assert isinstance(result, SliceResult), result
            computed += result.prefilled
            if result.tokens:
                open_.discard(number)
            else:
                rig.engine.run(number, Slice(1))
    length = rig.engine.admit(4, asked).prompt_tokens
    tail = length % 64
    assert computed == length + 2 * tail
    assert rig.engine.admit(5, asked).cached_tokens == length - tail
    assert rig.bits[1] == rig.bits[2] == rig.bits[3]


def test_one_thread_gives_the_bits_of_two(model_path: Path, alone: dict[str, Bits]) -> None:
    rig = Rig(model_path, threads=1)
    rig.engine.admit(1, PROMPTS["past 512 cells"])
    assert rig.finish(1) == alone["past 512 cells"]
    rig.engine.close()
