"""What finds and orders texts for memory and for files: a question's words, and one score of two.

Convex: half the BM25 as a part of the best one's, half the cosine as a part of the best one's. By
reciprocal ranks it found less in every set that was tried; with the pool's lowest cosine as zero it
found the same, but then the last of two good ones had a score of nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

WORDS = 0.5  # the share of words in a score; the rest is meaning
NEAR = 0.25  # cosine: what has none of the words and is not even this near was not meant
MOST = 64  # words of a question that are looked at
RAREST = 8  # of them, in the question that asks for any: the others cost more than they find
WORD = re.compile(r"[^\W_]+")

COMMON = """
a about after all also an and any are as at be because been before being between both but by can
could did do does doing done down each few for from had has have having he her here hers him his
how i if in into is it its itself just like me more most my no nor not now of off on once only or
other our out over own same she should so some such than that the their them then there these they
this those through to too under until up us very was we were what when where which while who whom
whose why will with would you your
"""
STOP_WORDS = frozenset(COMMON.split())


class Score(Struct, frozen=True):
    """score, words and meaning are 0 to 1; cosine is None for a record without a vector."""

    score: float
    words: float
    meaning: float
    cosine: float | None

    def why(self, matched: Sequence[str]) -> str:
        """``words: ferry, timetable; meaning: 0.71``."""
        parts = [f"words: {', '.join(matched)}"] if matched else []
        if self.cosine is not None:
            parts.append(f"meaning: {self.cosine:.2f}")
        return "; ".join(parts)


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


def terms(question: str) -> list[str]:
    """Its words, each once; without stop words, unless it has no others."""
    found = list(dict.fromkeys(WORD.findall(question.lower())))
    return ([word for word in found if word not in STOP_WORDS] or found)[:MOST]


def rarest(connection: Any, words: Sequence[str], vocabulary: str) -> list[str]:
    """Those of the words that few texts have, as far as any has them, by an fts5vocab table."""
    if len(words) <= RAREST:
        return list(words)
    frequency = f"SELECT coalesce(sum(doc), 0) FROM {vocabulary} WHERE term = ?"
    stem = connection.fts5_tokenizer("porter", ["unicode61"])
    counts: dict[str, int] = {}
    for word in words:
        stems = [term for (term,) in stem(word.encode(), 1, None, include_offsets=False)]
        counts[word] = min((connection.execute(frequency, (s,)).get for s in stems), default=0)
    return sorted((word for word in words if counts[word]), key=counts.__getitem__)[:RAREST]


def quoted(word: str) -> str:
    """A word as the full-text index takes it."""
    return '"' + word.replace('"', '""') + '"'
