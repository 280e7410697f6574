"""Choosing the next token from a row of logits.

Deterministic: the random number of a token is a function of the seed and of how many tokens came
before it (Philox, counter-based), so a sampler's state is those two numbers, and equal logits give
equal tokens. Ties go to the lower token id. The order is: mask, temperature, top_k, top_p, min_p.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from aios.abi.messages import Sampling

Logits = NDArray[np.float32]
Float = TypeVar("Float", Logits, NDArray[np.float64])

WIDE = 0.5  # a top_p from here on is drawn for, a smaller one sorted for
CUTS = (1e-3, 1e-5, 1e-8, 0.0)  # of the best token's weight: shortlists, shortest first
GROUP = 256  # tokens that are added up before it is known which of them is wanted


def uniform(seed: int, count: int) -> Iterator[float]:
    """The random numbers in [0, 1) for the token after *count* made ones."""
    source = np.random.Philox(key=seed & (2**64 - 1), counter=count)
    while True:
        yield float(int(source.random_raw()) >> 11) * 2.0**-53


def choose(logits: Logits, sampling: Sampling, count: int) -> int:
    """The token after *count* made ones; *logits* has shape (vocabulary,), -inf where masked."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    weights = logits - logits.max()
    weights *= np.float32(1 / sampling.temperature)
    np.exp(weights, out=weights)  # the best token weighs 1
    numbers = uniform(sampling.seed or 0, count)
    if sampling.top_k or sampling.top_p < WIDE:
        order = _order(weights, sampling)
        return int(order[_pick(weights[order], next(numbers))])
    return _pick_in_nucleus(weights, sampling, numbers)


def _pick_in_nucleus(weights: Logits, sampling: Sampling, numbers: Iterator[float]) -> int:
    """Draw until a token is in the nucleus, which takes 1 / top_p draws and no sorting: a small
    model's nucleus has thousands of tokens."""
    limit = sampling.top_p * float(weights.sum())
    if sampling.min_p:
        weights[weights < sampling.min_p] = 0
    starts = np.arange(0, weights.size, GROUP)
    totals = np.add.reduceat(weights, starts).cumsum(dtype=np.float64)
    for number in numbers:
        target = number * float(totals[-1])
        if target >= totals[-1]:
            continue  # rounded up
        group = int(np.searchsorted(totals, target, side="right"))
        start = int(starts[group])
        before = float(totals[group - 1]) if group else 0.0
        part = weights[start : start + GROUP]
        index = int(np.searchsorted(part.cumsum(dtype=np.float64), target - before, side="right"))
        token = start + min(index, int(np.flatnonzero(part)[-1]))
        if sampling.top_p >= 1 or _heavier(weights, token) < limit:
            return token
    raise AssertionError("random numbers do not end")


def _heavier(weights: Logits, token: int) -> float:
    """The weight of all tokens that come before this one, best first, ties by their id."""
    own = weights[token]
    ties = int((weights[:token] == own).sum())
    return float(weights[weights > own].sum(dtype=np.float64)) + ties * float(own)


def _order(weights: Logits, sampling: Sampling) -> NDArray[np.intp]:
    """The tokens that may be chosen, best first."""
    wanted = sampling.top_p * float(weights.sum())
    for cut in CUTS:
        found = np.flatnonzero(weights > cut)
        order = found[np.argsort(-weights[found], kind="stable")]
        totals = weights[order].cumsum(dtype=np.float64)
        if 0 < sampling.top_k <= order.size or totals[-1] >= wanted:
            break
    if sampling.top_k:
        order, totals = order[: sampling.top_k], totals[: sampling.top_k]
        wanted = sampling.top_p * float(totals[-1])
    order = order[: int(np.searchsorted(totals, wanted)) + 1]
    kept: NDArray[np.intp] = order[weights[order] >= sampling.min_p]
    return kept


def _pick(weights: Logits, point: float) -> int:
    """The index that *point*, in [0, 1), falls on."""
    totals = weights.cumsum(dtype=np.float64)
    return min(int(np.searchsorted(totals, point * totals[-1], side="right")), weights.size - 1)


def logprobs(logits: Logits, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """Natural log probabilities of *token* and of the *top* likeliest, by the model itself."""
    high = float(logits.max())
    total = high + float(np.log(np.exp(logits - high).sum(dtype=np.float64)))
    best = np.empty(0, np.intp)
    if top:
        least = np.partition(logits, -top)[-top]
        found = np.flatnonzero(logits >= least)
        best = found[np.argsort(-logits[found], kind="stable")][:top]
    return float(logits[token]) - total, [(int(t), float(logits[t]) - total) for t in best]


def masked(logits: Float, bits: bytes) -> Float:
    """A copy of logits or log probabilities, -inf where a token's bit is 0 (little-endian bits)."""
    allowed = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[: logits.size]
    found = np.full_like(logits, -np.inf)
    index = np.flatnonzero(allowed)
    found[index] = logits[index]
    return found
