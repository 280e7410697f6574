"""Beam search in the engine: whatever happens to it, every bit, score and word is the same."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aios.abi.messages import Message, Sampling, ToolSpec
from aios.drivers.cores.llama.engine import Engine
from aios.drivers.cores.text.beams import Search, unpack
from aios.errors import InvalidCall
from aios.ports import Prompt, Slice, SliceResult

pytestmark = [pytest.mark.model, pytest.mark.timeout(240)]

NEW = 40
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "maximum": 150},
    },
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
    assert whole.search.steps == NEW
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


def run_through(
    rig: Rig, interrupt: Callable[[int], int], tokens: int = 4, *, number: int = 1
) -> tuple[str, int]:
    """To the end in slices, interrupted after each that made something; all its text.

    *interrupt* gets its number and gives the one that it goes on under; the last comes back.
    """
    text = ""
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


def test_admitted_again_with_what_was_made(rig: Rig, whole: Whole) -> None:
    """Slices end at every place in a step; at every step is what test_text_beams asks."""
    made: list[int] = []

    def lose(number: int) -> int:
        made.extend(rig.made.pop(number, []))
        rig.engine.release(number)
        rig.engine.admit(number + 1, ASKED, made)
        return number + 1

    rig.engine.admit(1, ASKED)
    text, last = run_through(rig, lose, 29)
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
    assert most <= 64 * 5  # six were decoded into, beside one for the prompt


def test_a_beam_has_the_bits_of_a_plain_sequence_that_made_its_tokens(rig: Rig) -> None:
    """Also after it was moved in the cells, as a search of 16 beams is again and again."""
    rig.engine.admit(1, prompt(sampling={"beams": 16, "max_tokens": 24, "ignore_end": True}))
    rig.finish(1)
    search = rig.search(1)
    for number, leaf in enumerate(search.living[:3], start=2):
        path = search.path(leaf)
        plain = prompt(sampling={"beams": 1, "max_tokens": 24, "ignore_end": True})
        rig.engine.admit(number, plain, path[:-1])
        rig.finish(number)
        (row,) = rig.bits[number]
        assert row in rig.bits[1]


def test_what_follows_a_schema_fits_it(rig: Rig) -> None:
    asked = prompt("Invent a person, as JSON.", schema=SCHEMA)
    rig.engine.admit(1, asked)
    value = json.loads(rig.finish(1))
    assert set(value) == {"name", "age"}
    assert rig.ended[1].finish_reason == "stop"
    for node in rig.search(1).finished:  # every hypothesis fits, not only the best
        text = b"".join(rig.engine.model.piece(token) for token in rig.search(1).path(node))
        assert set(json.loads(text)) == {"name", "age"}
    rig.engine.admit(2, asked)
    text, last = run_through(rig, freezer(rig), 7, number=2)
    assert (text, rig.search(last)) == (rig.text[1], rig.search(1))


def test_a_whole_value_beats_a_likelier_half(rig: Rig) -> None:
    """A number that has no end becomes the likeliest: its digits repeat."""
    age = {"type": "integer"}
    schema = SCHEMA | {"properties": {"name": {"type": "string", "maxLength": 12}, "age": age}}
    rig.engine.admit(1, prompt("Invent a person, as JSON.", schema=schema))
    assert isinstance(json.loads(rig.finish(1))["age"], int)
    search = rig.search(1)
    assert search.best() not in search.finished


def freezer(rig: Rig) -> Callable[[int], int]:
    """Takes it out of the engine and back by a file."""

    def freeze(number: int) -> int:
        with tempfile.TemporaryDirectory() as folder:
            rig.engine.freeze(number, Path(folder) / "frozen")
            rig.engine.release(number)
            rig.engine.thaw(number + 1, Path(folder) / "frozen")
        return number + 1

    return freeze


def test_a_stop_text_ends_each_hypothesis(rig: Rig) -> None:
    asked = prompt(sampling={"stop": (",", "."), "length_penalty": 0.0})
    rig.engine.admit(1, asked)
    text, last = run_through(rig, freezer(rig), 6)
    search = rig.search(last)

    def said(node: int) -> str:
        return b"".join(map(rig.engine.model.piece, search.path(node))).decode()

    stopped = [said(node) for node in search.finished if {",", "."} & {*said(node)}]
    assert len(stopped) >= 2
    for node in search.finished:  # by its last token, not by one before
        assert not {",", "."} & {*said(search.parents[node])}
    assert rig.ended[last].finish_reason == "stop"
    assert text == said(search.finished[0]).split(",")[0].split(".")[0]


def test_a_forced_tool_is_called(rig: Rig) -> None:
    tool = ToolSpec("set_light", "Switch a light.", SCHEMA)
    rig.engine.admit(1, prompt("Switch it on.", tools=(tool,), tool_choice="required"))
    assert rig.finish(1) == ""
    (call,) = rig.ended[1].tool_calls
    assert rig.ended[1].finish_reason == "tool_calls"
    assert call.name == "set_light"
    assert set(json.loads(call.arguments)) == {"name", "age"}


def test_max_tokens_is_the_length_of_each(rig: Rig) -> None:
    asked = prompt(sampling={"max_tokens": 6, "ignore_end": True})
    rig.engine.admit(1, asked)
    rig.finish(1)
    assert rig.ended[1].finish_reason == "length"
    assert (rig.search(1).steps, len(rig.made[1])) == (6, 24)


def test_a_longer_answer_is_liked_by_a_higher_penalty(rig: Rig) -> None:
    lengths = []
    for number, penalty in ((1, 0.0), (2, 3.0)):
        asked = prompt("Say hello.", sampling={"length_penalty": penalty})
        rig.engine.admit(number, asked)
        rig.finish(number)
        search = rig.search(number)
        lengths.append(search.lengths[search.best()])
    assert lengths[0] < lengths[1]


def test_one_beam_is_no_search(rig: Rig) -> None:
    greedy = Prompt(ASKED.messages, Sampling(max_tokens=8, seed=1))
    for number, asked in ((1, greedy), (2, prompt(LONG, sampling={"max_tokens": 8, "beams": 1}))):
        rig.engine.admit(number, asked)
        rig.finish(number)
    assert rig.engine.residency.sequences[2].branches is None
    assert (rig.text[1], rig.bits[1]) == (rig.text[2], rig.bits[2])


def test_a_cancelled_search_keeps_what_was_shown(rig: Rig, whole: Whole) -> None:
    rig.engine.admit(1, ASKED)
    while len(rig.made.get(1, ())) < 30:
        rig.slice(1, 5)
    rig.engine.cancel(1)
    assert rig.finish(1) == whole.text[: len(rig.text[1])]
    assert rig.ended[1].finish_reason == "cancelled"


def test_too_many_beams_are_refused(rig: Rig) -> None:
    with pytest.raises(InvalidCall, match="at most 16, not 17"):
        rig.engine.admit(1, prompt(sampling={"beams": 17}))


def test_a_prompt_of_whole_chunks_and_a_single_token(rig: Rig) -> None:
    """The first step then follows a chunk, and all branches stand on shared ones."""
    words = next(n for n in range(1, 200) if rig.engine.measure(prompt("a " * n)) % 64 == 0)
    asked = prompt("a " * words, sampling={"max_tokens": 12, "ignore_end": True})
    rig.engine.admit(1, asked)
    text = rig.finish(1)
    rig.engine.admit(2, asked)
    while not rig.slice(2, 3).finish_reason:
        rig.engine.page_out(2)
        assert rig.engine.check() == []
    assert (rig.text[2], rig.search(2)) == (text, rig.search(1))
    rig.engine.admit(3, prompt("a " * words, sampling={"max_tokens": 1, "ignore_end": True}))
    rig.finish(3, tokens=1)
    assert (rig.search(3).steps, len(rig.made[3])) == (1, 4)
    assert rig.text[3] == rig.engine.model.piece(rig.made[3][0] & 0xFFFFFF).decode()
