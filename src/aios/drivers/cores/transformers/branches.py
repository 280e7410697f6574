"""A sequence that is a beam search: the branches that grow from its prompt.

The prompt's KV is the sequence's own. Each living beam has a KV of its own too, which begins with
the prompt's and goes on with the beam's path up to, but not with, its living node: that is what the
next step feeds to the model. Beams that come from one share its tensors until the second of them
writes (``cells``), so a step copies as often as beams part.

What is paged out or frozen is the prompt's KV and each beam's own positions. What is lost of them
is computed again, token by token as it was the first time, and so to the same bits.
"""

from __future__ import annotations

from itertools import takewhile

from aios.drivers.cores.text.beams import ROOT, Search
from aios.drivers.cores.text.searches import Hypotheses, Said
from aios.drivers.cores.transformers.cells import Cells, Kv


class Branches(Hypotheses):
    """A search, and while it is resident the KV of its living beams, by place; or of the first."""

    def __init__(self, search: Search, said: Said) -> None:
        super().__init__(search, said)
        self.kvs: list[Kv] = []

    def __repr__(self) -> str:
        return (
            f"<branches: {len(self.search.living)} living, {len(self.search.finished)} finished "
            f"after {self.search.steps} steps, {len(self.kvs)} resident>"
        )

    def before(self, place: int) -> list[int]:
        """The nodes of a beam that the model was fed, from the root on."""
        node, found = self.search.living[place], []
        while node != ROOT:
            found.append(node)
            node = self.search.parents[node]
        return found[:0:-1]

    def missing(self, cells: Cells, prompt: Kv) -> tuple[Kv, list[int]] | None:
        """The first beam whose KV is not all there, and the tokens that it lacks.

        It begins with the most that an earlier one has in common with it.
        """
        for place in range(len(self.search.living)):
            path = self.before(place)
            if place == len(self.kvs):
                best, shared = prompt, 0
                for other in range(place):
                    both = zip(path, self.before(other), strict=False)
                    common = len([*takewhile(lambda pair: pair[0] == pair[1], both)])
                    if common > shared:
                        best, shared = self.kvs[other], common
                kv = cells.share(best)
                kv.length = prompt.length + shared
                self.kvs.append(kv)
            kv = self.kvs[place]
            if lacking := path[kv.length - prompt.length :]:
                return kv, [self.search.tokens[node] for node in lacking]
        return None

    def regroup(self, cells: Cells, places: list[int]) -> None:
        """After a step: of each living beam the place that it comes from."""
        old, self.kvs = self.kvs, [cells.share(self.kvs[place]) for place in places]
        for kv in old:
            cells.drop(kv)

    def leave(self, cells: Cells) -> None:
        """Out of the cells."""
        for kv in self.kvs:
            cells.drop(kv)
        self.kvs.clear()
