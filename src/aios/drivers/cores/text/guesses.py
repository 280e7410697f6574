"""Guessing tokens that come next, so that one batch can check several.

A guess is computed in the same batch as the token before it; if sampling then chooses that token,
its logits are there already. They have the bits they would have had (``engine``), so guessing
changes when tokens come, never which. It pays only if nearly all guesses are right, so nothing is
guessed until the last few would have been; and only by whole groups of four rows, which llama.cpp
multiplies together (on two cores of a Zen 5 a batch takes 5.1 ms for 1 row, 8.7 for 2, 13 for 4, 17
for 5, 20 for 8, 31 for 16).

The guess is what followed the last time the same three tokens were seen (prompt lookup decoding):
small models repeat themselves, and agents copy from their prompts.
"""

from __future__ import annotations

from collections.abc import Iterable

GRAM = 3  # tokens that must be the same
STREAKS = ((12, 7), (4, 3))  # after so many right predictions in a row, guess so many tokens
GROUP = 4  # rows multiplied together
ROWS = 16  # of a batch with guesses, at most: beyond it a row is no cheaper


class Guesses:
    """What one sequence repeats: all its tokens, and where each three of them were last seen."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._at: int | None = None  # what came here comes next
        self._streak = 0
        for token in tokens:
            self.add(token)
        self._streak = 0

    def add(self, token: int) -> None:
        """One more token."""
        tokens, at = self._tokens, self._at
        self._streak = self._streak + 1 if at is not None and tokens[at] == token else 0
        tokens.append(token)
        if len(tokens) >= GRAM:
            gram = tuple(tokens[-GRAM:])
            self._at = self._after.get(gram)
            self._after[gram] = len(tokens)

    def next(self, most: int) -> list[int]:
        """Up to *most* tokens that are likely to come; none while predictions fail."""
        if self._at is None:
            return []
        count = next((count for streak, count in STREAKS if self._streak >= streak), 0)
        found: list[int] = []
        for place in range(self._at, self._at + min(count, most)):
            ahead = place - len(self._tokens)
            found.append(self._tokens[place] if ahead < 0 else found[ahead])
        return found


def shared_out(rows: int, wishes: list[int]) -> list[int]:
    """How much of each wish for guesses a batch grants whose own rows are *rows*."""
    total = min(rows + sum(wishes), ROWS)
    left = max(0, total - total % GROUP - rows)
    granted = []
    for wish in wishes:
        granted.append(min(wish, left))
        left -= granted[-1]
    return granted
