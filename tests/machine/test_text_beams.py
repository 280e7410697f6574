"""Beam search, against naive twins that keep whole sequences and sort everything; no model."""

from __future__ import annotations

import itertools
from functools import cache
from os.path import commonprefix

import msgspec
import numpy as np
import pytest

from aios.drivers.cores.text.beams import (
    MOST,
    ROOT,
    Choice,
    Row,
    Search,
    advance,
    choose,
    complete,
    log_probabilities,
    pack,
    unpack,
)

END = 0
Tokens = tuple[int, ...]


class Model:
    """Log probabilities as a function of the tokens before; *coarse* ones tie now and then."""

    def __init__(self, seed: int, vocabulary: int, *, coarse: bool = False) -> None:
        self._seed, self.vocabulary, self._coarse = seed, vocabulary, coarse

    @cache  # noqa: B019 - a model lives as long as its test
    def row(self, before: Tokens) -> Row:
        dice = np.random.default_rng([self._seed, *(token + 1 for token in before)])
        if self._coarse:
            return -dice.integers(1, 4, self.vocabulary).astype(np.float64)
        return log_probabilities(dice.standard_normal(self.vocabulary).astype(np.float32) * 2)


def ends(_: int, token: int) -> bool:
    return token == END


def rows_of(search: Search, model: Model) -> list[Row]:
    return [model.row(tuple(search.path(node))) for node in search.living]


def step(search: Search, model: Model) -> list[Choice]:
    rows = rows_of(search, model)
    choices = choose(search, rows, ends)
    advance(search, choices, rows)
    return choices


def run(model: Model, width: int, limit: int, penalty: float) -> Search:
    search = Search(width, limit, penalty)
    while not search.is_over:
        step(search, model)
    return search


def naive(model: Model, width: int, limit: int, penalty: float) -> list[tuple[float, Tokens]]:
    """The hypotheses that may be the answer, best first: transformers' rules, written out."""
    living: list[tuple[float, Tokens]] = [(0.0, ())]
    finished: list[tuple[float, Tokens]] = []
    for length in range(1, limit + 1):
        every = [
            (total + float(model.row(before)[token]), place, token, (*before, token))
            for place, (total, before) in enumerate(living)
            for token in range(model.vocabulary)
        ]
        every.sort(key=lambda one: (-one[0], one[1], one[2]))
        for total, _, token, tokens in every[:width]:
            if token == END:
                finished.append((total / length**penalty, tokens))
        finished.sort(key=lambda one: -one[0])
        finished = finished[:width]
        living = [(total, tokens) for total, _, token, tokens in every if token != END][:width]
        if len(finished) == width and living[0][0] / length**penalty <= finished[-1][0]:
            return finished
    ended = [(total / limit**penalty, tokens) for total, tokens in living]
    return sorted(finished + ended, key=lambda one: -one[0])


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_the_naive_twin_finds_the_same(width: int, penalty: float, coarse: bool) -> None:
    for seed in range(20):
        model = Model(seed, 4 + seed % 5, coarse=coarse)
        search = run(model, width, 7, penalty)
        expected = naive(model, width, 7, penalty)
        best = search.best()
        assert (search.score(best), tuple(search.path(best))) == expected[0]
        found = [tuple(search.path(node)) for node in search.finished]
        assert found == [tokens for _, tokens in expected if tokens[-1] == END]


@pytest.mark.parametrize("seed", range(10))
def test_wide_enough_it_is_exhaustive(seed: int) -> None:
    model, limit = Model(seed, 3), 4
    search = run(model, 3**limit, limit, 1.0)
    everything = []
    for length in range(1, limit + 1):
        for tokens in itertools.product(range(3), repeat=length):
            is_whole = tokens[-1] == END or length == limit
            if is_whole and END not in tokens[:-1]:
                total = sum(float(model.row(tokens[:n])[token]) for n, token in enumerate(tokens))
                everything.append((total / length, tokens))
    best = search.best()
    assert (search.score(best), tuple(search.path(best))) == max(everything)


def test_one_beam_is_greedy() -> None:
    for seed in range(20):
        model = Model(seed, 6)
        search = run(model, 1, 12, 1.0)
        greedy: Tokens = ()
        while len(greedy) < 12 and END not in greedy:
            greedy = (*greedy, int(model.row(greedy).argmax()))
        assert tuple(search.path(search.best())) == greedy


def test_ties_go_to_the_first_parent_and_then_the_lower_token() -> None:
    flat = np.full(5, -1.0)
    search = Search(2, 9)
    assert choose(search, [flat], ends) == [Choice(0, 0, True), Choice(0, 1), Choice(0, 2)]
    advance(search, [Choice(0, 1), Choice(0, 2)], [flat])
    assert choose(search, [flat, flat], ends)[1:] == [Choice(0, 1), Choice(0, 2)]


def test_what_may_not_come_is_never_chosen() -> None:
    row = np.array([-np.inf, -1.0, -np.inf, -2.0])
    search = Search(4, 9)
    assert choose(search, [row], ends) == [Choice(0, 1), Choice(0, 3)]
    assert choose(search, [np.full(4, -np.inf)], ends) == []
    advance(search, [], [row])
    assert search.is_over
    assert search.best() == ROOT


def test_many_ends_leave_room_for_those_that_live() -> None:
    """More of the best continuations end than a first look is wide."""
    row = -np.arange(1.0, 31.0)
    choices = choose(Search(2, 9), [row], lambda _, token: token < 20)
    assert choices == [Choice(0, 0, True), Choice(0, 1, True), Choice(0, 20), Choice(0, 21)]


@pytest.mark.parametrize("seed", range(5))
def test_kept_and_restored_after_every_step(seed: int) -> None:
    model = Model(seed, 12)
    expected = run(model, 4, 10, 1.0)
    search = Search(4, 10)
    while not search.is_over:
        step(search, model)
        search = msgspec.msgpack.decode(msgspec.msgpack.encode(search), type=Search)
    assert search == expected


@pytest.mark.parametrize("seed", range(3))
def test_packed_choices_repeat_the_search_wherever_they_are_cut(seed: int) -> None:
    model = Model(seed, 12)
    search = Search(4, 40)
    numbers: list[int] = []
    while not search.is_over:
        numbers += pack(step(search, model))
    assert all(0 <= number < 1 << 30 for number in numbers)
    assert search.steps > 10
    for cut in range(len(numbers)):
        again = Search(4, 40)
        steps, begun = unpack(numbers[:cut])
        for choices in steps:
            advance(again, choices, rows_of(again, model))
        rows = rows_of(again, model)
        choices = choose(again, rows, ends)
        assert pack(complete(choices, begun, 4)) == pack(choices)
        assert numbers[:cut] == [*itertools.chain(*map(pack, steps)), *pack(choices)][:cut]
        advance(again, choices, rows)
        while not again.is_over:
            step(again, model)
        assert again == search


def test_choices_that_were_handed_out_stand() -> None:
    """Elsewhere the bits may differ: what is in the journal counts, and no beam too many lives."""
    begun = [Choice(0, 7), Choice(1, 8, True)]
    now = [Choice(0, 5), Choice(0, 7), Choice(1, 8, True), Choice(1, 9)]
    assert complete(now, begun, 2) == [Choice(0, 7), Choice(1, 8, True), Choice(0, 5)]
    assert complete(now, [], 3) == now


def test_the_largest_choice_can_be_packed() -> None:
    choices = [Choice(MOST - 1, (1 << 24) - 1, True), Choice(0, 0)]
    assert unpack(pack(choices)) == ([choices], [])


@pytest.mark.parametrize("seed", range(20))
def test_what_all_agree_on_stays_and_is_of_the_answer(seed: int) -> None:
    model = Model(seed, 5)
    search = Search(3, 12)
    agreed: list[int] = []
    while not search.is_over:
        step(search, model)
        now = search.path(search.agreed())
        assert now[: len(agreed)] == agreed
        assert now == commonprefix(
            [search.path(node) for node in (*search.living, *search.finished)]
        )
        agreed = now
    assert search.path(search.best())[: len(agreed)] == agreed
