"""Words and meaning made into one score. Pure.

Convex: half the BM25 as a part of the best one's, half the cosine as a part of the best one's. By
reciprocal ranks it found less in every set that was tried; with the pool's lowest cosine as zero it
found the same, but then the last of two good ones had a score of nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

WORDS = 0.5  # the share of words in a score; the rest is meaning
NEAR = 0.25  # cosine: what has none of the words and is not even this near was not meant


class Score(Struct, frozen=True):
    """score, words and meaning are 0 to 1; cosine is None for a record without a vector."""

    score: float
    words: float
    meaning: float
    cosine: float | None


def fuse(
    by_words: Mapping[int, float], by_meaning: Mapping[int, float], *, meant: bool
) -> dict[int, Score]:
    """Scores by record, the best first. *meant* says whether meaning was asked at all."""
    most = max(by_words.values(), default=0.0)
    nearest = max(by_meaning.values(), default=0.0)
    found = {}
    for number in by_words.keys() | by_meaning.keys():
        words = by_words.get(number, 0.0) / most if most > 0 else float(number in by_words)
        cosine = by_meaning.get(number)
        if number not in by_words and (cosine is None or cosine < NEAR):
            continue
        meaning = max(0.0, cosine) / nearest if cosine is not None and nearest > 0 else 0.0
        score = WORDS * words + (1 - WORDS) * meaning if meant else words
        found[number] = Score(score, words, meaning, cosine)
    order = sorted(found, key=lambda number: (-found[number].score, -number))
    return {number: found[number] for number in order}
