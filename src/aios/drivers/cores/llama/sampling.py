"""Choosing the next token from a row of logits.

Deterministic: the random number of a token is a function of the seed and of how many tokens came
before it (Philox, counter-based), so a sampler's state is those two numbers, and equal logits give
equal tokens. Ties go to the lower token id. The order is: mask, temperature, top_k, top_p, min_p.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aios.abi.messages import Sampling

Logits = NDArray[np.float32]

SHORTLIST = 256  # tokens that are sorted first; nearly always enough


def uniform(seed: int, count: int) -> float:
    """The *count*-th random number of a seed, in [0, 1)."""
    raw = np.random.Philox(key=seed & (2**64 - 1), counter=count).random_raw()
    return float(int(raw) >> 11) * 2.0**-53


def choose(logits: Logits, sampling: Sampling, count: int) -> int:
    """The token after *count* made ones; *logits* has shape (vocabulary,), -inf where masked."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    weights = np.exp((logits - logits.max()) * np.float32(1 / sampling.temperature))
    point = uniform(sampling.seed or 0, count)
    if not sampling.top_k and sampling.top_p >= 1 and sampling.min_p <= 0:
        return _pick(weights, point)
    order = _order(weights, sampling)
    return int(order[_pick(weights[order], point)])


def _order(weights: Logits, sampling: Sampling) -> NDArray[np.intp]:
    """The tokens that may be chosen, best first."""
    wanted = float(weights.sum(dtype=np.float64)) * sampling.top_p
    size = min(SHORTLIST, weights.size)
    while True:
        order = _best(weights, size)
        if sampling.top_k and sampling.top_k <= size:
            order = order[: sampling.top_k]
            wanted = float(weights[order].sum(dtype=np.float64)) * sampling.top_p
        totals = weights[order].cumsum(dtype=np.float64)
        enough = int(np.searchsorted(totals, wanted)) + 1
        complete = enough <= order.size or order.size == weights.size
        if complete or 0 < sampling.top_k <= size:
            break
        size = min(size * 8, weights.size)
    order = order[:enough]
    kept: NDArray[np.intp] = order[weights[order] >= sampling.min_p * weights[order[0]]]
    return kept


def _best(weights: Logits, size: int) -> NDArray[np.intp]:
    """The *size* heaviest tokens (and those as heavy as the last of them), best first."""
    if size >= weights.size:
        return np.argsort(-weights, kind="stable")
    least = np.partition(weights, weights.size - size)[weights.size - size]
    found = np.flatnonzero(weights >= least)
    return found[np.argsort(-weights[found], kind="stable")]


def _pick(weights: Logits, point: float) -> int:
    """The index that *point*, in [0, 1), falls on."""
    totals = weights.cumsum(dtype=np.float64)
    found = int(np.searchsorted(totals, point * totals[-1], side="right"))
    return min(found, int(np.flatnonzero(weights)[-1]) if found >= weights.size else found)


def logprobs(logits: Logits, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """Natural log probabilities of *token* and of the *top* likeliest, by the model itself."""
    high = float(logits.max())
    total = high + float(np.log(np.exp(logits - high).sum(dtype=np.float64)))
    best = _best(logits, top)[:top] if top else np.empty(0, np.intp)
    return float(logits[token]) - total, [(int(t), float(logits[t]) - total) for t in best]


def masked(logits: Logits, bits: bytes) -> Logits:
    """A copy of the logits, -inf where the bit of a token is 0 (little-endian bits)."""
    allowed = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[: logits.size]
    found = np.full(logits.size, -np.inf, np.float32)
    index = np.flatnonzero(allowed)
    found[index] = logits[index]
    return found
