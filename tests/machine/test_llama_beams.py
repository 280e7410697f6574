"""Beam search in the engine: whatever happens to it, every bit, score and word is the same."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aios.abi.messages import Message, Sampling, ToolSpec
from aios.drivers.cores.llama.engine import Engine
from aios.drivers.cores.text.beams import Search, unpack
from aios.ports import Prompt, Slice, SliceResult

pytestmark = pytest.mark.model

NEW = 40
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def prompt(text: str = "Write one line about the sea.", **fields: Any) -> Prompt:
    sampling = {"max_tokens": NEW, "seed": 1, "beams": 4} | fields.pop("sampling", {})
    return Prompt((Message("user", text),), Sampling(**sampling), **fields)


LONG = "river lamp stone agent green winter market bridge garden letter clock " * 12
ASKED = prompt(LONG)


class Rig:
    """An engine that keeps the bits of every row that a choice was made after."""

    def __init__(self, path: Path, **options: Any) -> None:
        settings = {"slots": 8, "threads": 2, "cells": 2048, "ram_bytes": 64 << 20} | options
        self.engine = Engine(path, "m", **settings)
        self.bits: dict[int, list[tuple[int, int]]] = {}
        self.made: dict[int, list[int]] = {}
        self.text: dict[int, str] = {}
        self.ended: dict[int, SliceResult] = {}
        self.engine.watch = lambda number, position, logits: self.bits.setdefault(
            number, []
        ).append((position, hash(logits.tobytes())))

    def slice(self, number: int, tokens: int) -> SliceResult:
        self.engine.run(number, Slice(tokens))
        while True:
            for who, result in self.engine.turn():
                assert isinstance(result, SliceResult), result
                assert len(result.tokens) <= tokens
                self.take(who, result)
                if who == number:
                    return result

    def take(self, who: int, result: SliceResult) -> None:
        self.made.setdefault(who, []).extend(result.tokens)
        self.text[who] = self.text.get(who, "") + result.text
        if result.finish_reason:
            self.ended[who] = result

    def finish(self, number: int, tokens: int = 64) -> str:
        while self.slice(number, tokens).finish_reason is None:
            pass
        assert self.engine.check() == []
        return self.text[number]

    def search(self, number: int) -> Search:
        branches = self.engine.residency.sequences[number].branches
        assert branches is not None
        return branches.search

    def clear(self) -> None:
        for number in [*self.engine.residency.sequences]:
            self.engine.release(number)
        self.engine.turn()
        self.bits.clear()
        self.made.clear()
        self.text.clear()
        assert self.engine.check() == []
        assert self.engine.report().cells_used == 0


class Whole:
    """A search that nothing happened to, alone."""

    def __init__(self, path: Path, asked: Prompt) -> None:
        rig = Rig(path, share=False)
        rig.engine.admit(1, asked)
        self.text, self.made = rig.finish(1), rig.made[1]
        self.search, self.bits, self.end = rig.search(1), rig.bits[1], rig.ended[1]
        rig.engine.close()


@pytest.fixture(scope="module")
def rig(model_path: Path) -> Iterator[Rig]:
    rig = Rig(model_path)
    yield rig
    rig.engine.close()


@pytest.fixture(scope="module")
def whole(model_path: Path) -> Whole:
    return Whole(model_path, ASKED)


@pytest.fixture(autouse=True)
def clean(rig: Rig) -> Iterator[None]:
    yield
    rig.clear()


def test_it_is_a_search(whole: Whole) -> None:
    assert whole.search.steps >= 20
    assert len(whole.search.living) == 4
    assert whole.end.finish_reason in ("stop", "length")
    assert unpack(whole.made)[1] == []
    assert len(whole.made) == len(whole.search.tokens)


def test_the_best_beats_greedy(rig: Rig, whole: Whole) -> None:
    rig.engine.admit(1, prompt(LONG, sampling={"beams": 1, "logprobs": 0}))
    rig.engine.run(1, Slice(NEW))
    logprobs = []
    while rig.engine.is_busy:
        for _, result in rig.engine.turn():
            assert isinstance(result, SliceResult)
            logprobs += result.logprobs
            if not result.finish_reason:
                rig.engine.run(1, Slice(NEW))
    greedy = sum(one.logprob for one in logprobs) / len(logprobs)
    assert whole.search.score(whole.search.best()) >= greedy


def test_in_slices_of_one_beside_others(rig: Rig, whole: Whole) -> None:
    rig.engine.admit(7, prompt("Count to ten.", sampling={"beams": 3}))
    rig.engine.admit(8, prompt("Name a colour.", sampling={"beams": 1, "ignore_end": True}))
    rig.slice(7, 3)
    rig.engine.admit(1, ASKED)
    rig.engine.run(7, Slice(90))
    rig.engine.run(8, Slice(90))
    assert rig.finish(1, tokens=1) == whole.text
    assert (rig.search(1), rig.bits[1], rig.made[1]) == (whole.search, whole.bits, whole.made)


def run_through(rig: Rig, interrupt: Callable[[int], int], tokens: int = 4) -> tuple[str, int]:
    """To the end in slices, interrupted after each that made something; all its text.

    *interrupt* gets its number and gives the one that it goes on under; the last comes back.
    """
    number, text = 1, ""
    while True:
        result = rig.slice(number, tokens)
        text += result.text
        if result.finish_reason:
            return text, number
        if result.tokens:
            number = interrupt(number)
        assert rig.engine.check() == []


def test_paged_out_after_every_slice(rig: Rig, whole: Whole) -> None:
    def page_out(number: int) -> int:
        moved = rig.engine.page_out(number).bytes
        assert moved > 0
        assert rig.engine.page_in(number).bytes == moved
        rig.engine.page_out(number)
        rig.engine.run(7, Slice(1))  # takes the cells that are free now
        return number

    rig.engine.admit(7, prompt("Count to ten.", sampling={"beams": 3, "ignore_end": True}))
    rig.engine.admit(1, ASKED)
    text, _ = run_through(rig, page_out)
    assert (text, rig.search(1), rig.bits[1]) == (whole.text, whole.search, whole.bits)


def test_frozen_and_thawed_elsewhere_after_every_slice(
    rig: Rig, whole: Whole, model_path: Path, tmp_path: Path
) -> None:
    """Each life is in an engine that has never seen the prompt, or has forgotten it."""
    other = Engine(model_path, "m", slots=8, threads=2, cells=2048, ram_bytes=64 << 20)
    engines = [rig.engine, other]
    length = rig.engine.measure(ASKED)

    def freeze(number: int) -> int:
        frozen = rig.engine.freeze(number, tmp_path / "frozen")
        assert frozen.tokens == length + rig.search(number).steps
        rig.engine.release(number)
        engines.reverse()
        rig.engine = engines[0]
        rig.engine.watch = engines[1].watch
        rig.engine.thaw(number + 1, tmp_path / "frozen")
        return number + 1

    rig.engine.admit(1, ASKED)
    text, last = run_through(rig, freeze)
    assert (text, rig.search(last)) == (whole.text, whole.search)
    assert [row for number in range(1, last + 1) for row in rig.bits.get(number, [])] == whole.bits
    rig.engine.release(last)
    rig.engine = next(engine for engine in engines if engine is not other)
    other.close()


@pytest.mark.parametrize("tokens", [9, 14])
def test_admitted_again_with_what_was_made_after_every_slice(
    rig: Rig, whole: Whole, tokens: int
) -> None:
    """Slices end in the middle of steps as well."""
    made: list[int] = []

    def lose(number: int) -> int:
        made.extend(rig.made.pop(number, []))
        rig.engine.release(number)
        rig.engine.admit(number + 1, ASKED, made)
        return number + 1

    rig.engine.admit(1, ASKED)
    text, last = run_through(rig, lose, tokens)
    assert (text, rig.search(last)) == (whole.text, whole.search)
    assert made + rig.made[last] == whole.made


def test_a_fork_and_its_origin_end_alike(rig: Rig, whole: Whole) -> None:
    rig.engine.admit(1, ASKED)
    while rig.engine.residency.sequences[1].branches is None or rig.search(1).steps < 9:
        rig.slice(1, 6)
    text = rig.text[1]
    rig.engine.fork(1, 2)
    rig.slice(1, 30)
    rig.engine.page_out(1)
    rig.engine.fork(1, 3)  # of what is not in the cells
    for number in (2, 1, 3):
        rig.finish(number)
        assert (rig.search(number), rig.made[number][-8:]) == (whole.search, whole.made[-8:])
    assert text + rig.text[2] == rig.text[1] == whole.text


def test_computed_once_more_when_ram_is_full(model_path: Path, whole: Whole) -> None:
    """What was put away is lost: prompt and branches are computed again, to the same bits."""
    rig = Rig(model_path, ram_bytes=1000, cells=1024)
    rig.engine.admit(1, ASKED)
    for _ in range(3):
        for _ in range(12):
            rig.slice(1, 5)
        assert rig.engine.page_out(1).bytes == 0
        rig.engine.admit(2, prompt(" ".join(map(str, range(200)))))
        rig.slice(2, 1)
        rig.engine.release(2)
        assert rig.engine.check() == []
    assert rig.finish(1) == whole.text
    assert (rig.search(1), rig.bits[1]) == (whole.search, whole.bits)
    rig.engine.close()


def test_searches_push_one_another_out(model_path: Path, whole: Whole) -> None:
    rig = Rig(model_path, cells=512)
    for number in (1, 2, 3):
        rig.engine.admit(number, ASKED)
    open_ = {1, 2, 3}
    while open_:
        for number in sorted(open_):
            if rig.slice(number, 12).finish_reason:
                open_.discard(number)
            assert rig.engine.check() == []
    for number in (1, 2, 3):
        assert (rig.text[number], rig.search(number)) == (whole.text, whole.search)
    rig.engine.close()


def test_dead_beams_release_their_cells(rig: Rig) -> None:
    """A search of 16 beams takes a few blocks beside its prompt, not one for each beam."""
    rig.engine.admit(1, prompt(sampling={"beams": 16, "max_tokens": 24, "ignore_end": True}))
    most = 0
    while not (result := rig.slice(1, 16)).finish_reason:
        most = max(most, result.cells)
    branches = rig.engine.residency.sequences[1].branches
    assert branches is not None
    assert len(branches.search.tokens) == 24 * 16
    assert len(branches.cells) < 24 * 16 / 2
    assert most <= 64 * 6
