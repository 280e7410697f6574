"""Choosing tokens, against a naive twin that sorts everything; no model needed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from aios.abi.messages import Sampling
from aios.drivers.cores.text.sampling import Logits, check_bias, choose, logprobs, masked
from aios.errors import InvalidCall

VOCABULARY = 3000


def logits(seed: int, spread: float = 3.0) -> Logits:
    return (np.random.default_rng(seed).standard_normal(VOCABULARY) * spread).astype(np.float32)


def allowed(row: Logits, sampling: Sampling) -> tuple[list[int], list[float]]:
    """What may be chosen, best first, and how likely each is."""
    weights = np.exp((row.astype(np.float64) - row.max()) / sampling.temperature)
    order = np.argsort(-weights, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    total = weights[order].sum()
    before = weights[order].cumsum() - weights[order]
    order = order[before < sampling.top_p * total]
    order = order[weights[order] >= sampling.min_p]
    kept = weights[order] / weights[order].sum()
    return [int(token) for token in order], [float(value) for value in kept]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.8, top_p=0.9, seed=2),
        Sampling(temperature=0.8, top_p=0.3, seed=3),
        Sampling(temperature=1.5, top_k=40, seed=4),
        Sampling(temperature=0.7, top_k=20, top_p=0.8, min_p=0.02, seed=5),
        Sampling(temperature=0.7, top_p=0.95, min_p=0.05, seed=6),
    ],
    ids=str,
)
def test_tokens_come_as_often_as_they_should(sampling: Sampling) -> None:
    row = logits(1)
    tokens, shares = allowed(row, sampling)
    draws = 4000
    seen = Counter(choose(row, sampling, count) for count in range(draws))
    assert set(seen) <= set(tokens)
    for token, share in zip(tokens[:5], shares, strict=False):
        deviation = (draws * share * (1 - share)) ** 0.5
        assert abs(seen[token] - draws * share) <= 4 * deviation + 1


def test_the_choice_is_a_function_of_seed_and_count() -> None:
    row, sampling = logits(2), Sampling(temperature=1.0, top_p=0.9, seed=7)
    chosen = [choose(row, sampling, count) for count in range(50)]
    assert chosen == [choose(row, sampling, count) for count in range(50)]
    assert len(set(chosen)) > 10
    other = Sampling(temperature=1.0, top_p=0.9, seed=8)
    assert chosen != [choose(row, other, count) for count in range(50)]
    negative = Sampling(temperature=1.0, seed=-1)
    assert choose(row, negative, 3) == choose(row, negative, 3)


def test_ties_go_to_the_lower_token() -> None:
    row = np.zeros(VOCABULARY, np.float32)
    assert choose(row, Sampling(), 0) == 0
    narrow = Sampling(temperature=1.0, top_k=3, seed=1)
    assert {choose(row, narrow, count) for count in range(60)} == {0, 1, 2}


def test_what_is_masked_is_never_chosen() -> None:
    row = logits(3)
    bits = np.zeros(VOCABULARY // 8 + 1, np.uint8)
    bits[[10, 200]] = 0b100
    only = masked(row, bits.tobytes())
    assert np.isfinite(only).nonzero()[0].tolist() == [82, 1602]
    for sampling in (Sampling(), Sampling(temperature=2.0, seed=1)):
        assert {choose(only, sampling, count) for count in range(30)} <= {82, 1602}


def test_log_probabilities_are_the_models_own() -> None:
    row = logits(4)
    own, best = logprobs(row, 17, 3)
    expected = row - (row.max() + np.log(np.exp(row - row.max()).sum()))
    assert own == pytest.approx(float(expected[17]), abs=1e-4)
    assert [token for token, _ in best] == [int(token) for token in np.argsort(-row)[:3]]
    assert logprobs(row, 17, 0)[1] == []


def test_a_bias_keeps_tokens_away_and_forces_them() -> None:
    row = logits(4)
    kept = row.copy()
    first, second = (int(token) for token in np.argsort(-row)[:2])
    assert choose(row, Sampling(), 0) == first
    assert choose(row, Sampling(logit_bias=((first, -100.0),)), 0) == second
    for count in range(20):
        drawn = Sampling(temperature=1.0, seed=1, logit_bias=((second, 100.0),))
        assert choose(row, drawn, count) == second
    gap = float(row[first] - row[second])
    assert choose(row, Sampling(logit_bias=((second, gap * 0.9),)), 0) == first
    assert choose(row, Sampling(logit_bias=((second, gap * 1.1),)), 0) == second
    assert (row == kept).all()


def test_a_bias_lifts_no_masked_token() -> None:
    row = logits(5)
    bits = np.zeros(VOCABULARY // 8 + 1, np.uint8)
    bits[[10, 200]] = 0b100
    only = masked(row, bits.tobytes())
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature=temperature, seed=1, logit_bias=((7, 100.0), (82, -100.0)))
        assert choose(only, sampling, 0) == 1602


def test_a_bias_of_a_token_that_the_model_does_not_have() -> None:
    check_bias(Sampling(logit_bias=((0, 1.0), (VOCABULARY - 1, 1.0))), VOCABULARY, "m")
    for token in (-1, VOCABULARY):
        with pytest.raises(InvalidCall, match=f"names the token {token}, but those of m are 0 to"):
            check_bias(Sampling(logit_bias=((5, 1.0), (token, 1.0))), VOCABULARY, "m")
