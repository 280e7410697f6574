"""Beam search: which continuations are kept, decided without a model, a clock or a KV cell.

A search is a tree. A node is a token after its parent, with the sum of the log probabilities from
the root to it. ``living`` are the nodes that are continued, ``finished`` the best ones that nothing
follows. A step is one row of log probabilities for each living node, the choices that follow from
them (``choose``), and the tree after these (``advance``). That is all the state there is; it is
plain data, so a search is kept and restored by keeping it whole, and repeated by taking the same
choices (``pack``) again: no choice is made a second time.

The rules are those of transformers' ``generate`` with ``early_stopping=False``:
- The score of a hypothesis is the sum of its log probabilities divided by length ** length_penalty;
  its end token counts.
- Of all continuations of all living nodes the best ``width`` that do not end are the next living
  ones. One that ends is kept only if it is among the best ``width`` of all: behind those it would
  crowd out what is better.
- It is over when ``width`` are finished and the best living one, ended now, would not beat the
  worst of them; at ``limit`` steps; or when nothing may follow.
- Ties go to the parent that stands first in ``living``, then to the lower token id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

ROOT = -1
MOST = 16  # beams that a packed choice can tell apart
_PLACE, _ENDED, _LAST = 24, 1 << 28, 1 << 29  # bits of a packed choice; its token is below them

Row = NDArray[np.float64]
Ends = Callable[[int, int], bool]


class Choice(Struct, frozen=True):
    """A token after the living node at *place*; nothing follows it if it *ended*."""

    place: int
    token: int
    ended: bool = False


class Search(Struct):
    """The tree so far: node n is ``tokens[n]`` after ``parents[n]``; lengths count from the root.

    living is best first; so is finished, of which at most *width* are kept.
    """

    width: int
    limit: int
    length_penalty: float = 1.0
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    living: list[int] = field(default_factory=lambda: [ROOT])
    finished: list[int] = field(default_factory=list)
    steps: int = 0
    is_over: bool = False

    def score(self, node: int) -> float:
        """What hypotheses are compared by; the length in it is in tokens, at least 1."""
        return float(self.sums[node] / self.lengths[node] ** self.length_penalty)

    def path(self, node: int) -> list[int]:
        """The tokens from the root to a node."""
        found = []
        while node != ROOT:
            found.append(self.tokens[node])
            node = self.parents[node]
        return found[::-1]

    def best(self) -> int:
        """The node whose path is the answer, were the search over now; ROOT before a first step."""
        nodes = [*self.finished, *(node for node in self.living if node != ROOT)]
        return max(nodes, key=self.score, default=ROOT)  # of equals the first: a finished one

    def agreed(self) -> int:
        """The last node that all that may still be the answer stand on; it only ever descends."""
        first, *others = [*self.living, *self.finished]
        trunk = {ROOT}
        node = first
        while node != ROOT:
            trunk.add(node)
            node = self.parents[node]
        lowest = first
        for node in others:
            while node not in trunk:
                node = self.parents[node]
            if node == ROOT:
                return ROOT
            if self.lengths[node] < self.lengths[lowest]:
                lowest = node
        return lowest


def log_probabilities(logits: NDArray[np.float32]) -> Row:
    """The natural log probabilities of a row of logits, shape (vocabulary,)."""
    row = logits.astype(np.float64)
    row -= row.max()
    row -= np.log(np.exp(row).sum())
    return row


def choose(search: Search, rows: Sequence[Row], ends: Ends) -> list[Choice]:
    """The next step's choices, best first; none if nothing may follow.

    *rows* are the log probabilities after each living node, -inf where a token may not come;
    *ends* says whether nothing would follow a token at a place.
    """
    count = 2 * search.width  # enough when each node has one token that ends it
    while True:
        candidates = _best(search, rows, count)
        found: list[Choice] = []
        living = 0
        for rank, (_, place, token) in enumerate(candidates):
            if not ends(place, token):
                found.append(Choice(place, token))
                living += 1
            elif rank < search.width:
                found.append(Choice(place, token, True))
            if living == search.width:
                return found
        if len(candidates) < count:
            return found
        count *= 2


def _best(search: Search, rows: Sequence[Row], count: int) -> list[tuple[float, int, int]]:
    """Up to *count* continuations as (minus their sum, place, token), best first."""
    found: list[tuple[float, int, int]] = []
    for place, (node, row) in enumerate(zip(search.living, rows, strict=True)):
        before = search.sums[node] if node != ROOT else 0.0
        wanted = min(count, row.size)
        least = np.partition(row, row.size - wanted)[row.size - wanted]
        tokens = np.flatnonzero((row >= least) & (row > -np.inf))
        found += ((-(before + float(row[token])), place, int(token)) for token in tokens)
    return sorted(found)[:count]


def complete(choices: list[Choice], begun: Sequence[Choice], width: int) -> list[Choice]:
    """A step whose first choices were handed out before: these stand, whatever was chosen now.

    Where the same bits come again they are the same; elsewhere nothing shown may change.
    """
    found = [*begun, *(choice for choice in choices if choice not in begun)]
    room = width
    kept = []
    for choice in found:
        if choice.ended or room > 0:
            kept.append(choice)
            room -= not choice.ended
    return kept


def advance(search: Search, choices: Sequence[Choice], rows: Sequence[Row]) -> None:
    """Take the choices of a step, made now or before; *rows* give them their scores.

    Without any the search is over, and stays as it is.
    """
    if not choices:
        search.is_over = True
        return
    parents, search.living = search.living, []
    for choice in choices:
        parent = parents[choice.place]
        node = len(search.tokens)
        before, length = (
            (0.0, 0) if parent == ROOT else (search.sums[parent], search.lengths[parent])
        )
        search.tokens.append(choice.token)
        search.parents.append(parent)
        search.sums.append(before + float(rows[choice.place][choice.token]))
        search.lengths.append(length + 1)
        (search.finished if choice.ended else search.living).append(node)
    search.finished.sort(key=search.score, reverse=True)  # stable: of equals the one that was first
    del search.finished[search.width :]
    search.steps += 1
    search.is_over = _is_over(search)


def _is_over(search: Search) -> bool:
    if not search.living or search.steps >= search.limit:
        return True
    if len(search.finished) < search.width:
        return False
    return max(map(search.score, search.living)) <= search.score(search.finished[-1])


def pack(choices: Sequence[Choice]) -> list[int]:
    """A step as numbers below 2**30, one for each choice: what a journal keeps of a search."""
    return [
        choice.token
        | choice.place << _PLACE
        | (_ENDED if choice.ended else 0)
        | (_LAST if number == len(choices) - 1 else 0)
        for number, choice in enumerate(choices)
    ]


def unpack(numbers: Iterable[int]) -> tuple[list[list[Choice]], list[Choice]]:
    """Whole steps, and the first choices of a step that was cut off."""
    steps: list[list[Choice]] = []
    step: list[Choice] = []
    for number in numbers:
        token, place = number & (1 << _PLACE) - 1, number >> _PLACE & MOST - 1
        step.append(Choice(place, token, bool(number & _ENDED)))
        if number & _LAST:
            steps.append(step)
            step = []
    return steps, step
