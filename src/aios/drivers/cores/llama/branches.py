"""A sequence that is a beam search: the branches that grow from its prompt.

The prompt lies where every sequence's does (``sequences``), under the sequence's own id. Below it
each node of the search lies in one cell, whoever stands on it: a living beam has an id in llama.cpp
that marks the prompt and the nodes of its path. A step appends one cell for each living beam, so
every path ascends in the cells, which is all that its bits ask of them. The KV of the living nodes
themselves is not computed yet: they are what the next step feeds to the model.

To keep branches elsewhere is to keep their *runs*: nodes in a row that the same beams stand on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from typing import Any, NamedTuple

import msgspec

from aios.drivers.cores.text.answer import Answer
from aios.drivers.cores.text.beams import ROOT, Choice, Search


class Run(NamedTuple):
    """Nodes in a row, and the places (in the living set) of the beams that stand on them."""

    nodes: tuple[int, ...]
    places: tuple[int, ...]


class Said(NamedTuple):
    """What one beam has said: looked at for stop strings, and for what the schema lets follow."""

    answer: Answer | None
    matcher: Any

    def copy(self) -> Said:
        return Said(
            self.answer.copy() if self.answer else None,
            self.matcher.deep_copy() if self.matcher else None,
        )


class Branches:
    """One search, and where it is.

    said is parallel to the living set. ``queue`` holds choices, packed, that were made and not yet
    handed out; ``again`` the steps, and ``begun`` the first choices of one more, that were handed
    out in an earlier life and are taken again. ``fed`` counts the agreed tokens that the answer
    has been fed.
    """

    def __init__(self, search: Search, said: Said) -> None:
        self.search = search
        self.said = [said]
        self.queue: list[int] = []
        self.again: deque[list[Choice]] = deque()
        self.begun: list[Choice] = []
        self.fed = 0
        # while resident
        self.ids: list[int] = []  # in llama.cpp, by place, and spare ones after them; or none yet
        self.cells: dict[int, int] = {}  # of the nodes whose KV is computed

    def __repr__(self) -> str:
        return (
            f"<branches: {len(self.search.living)} living, {len(self.search.finished)} finished "
            f"after {self.search.steps} steps, {len(self.cells)} cells>"
        )

    def copy(self) -> Branches:
        """The same search, nowhere."""
        twin = Branches(_copy(self.search), self.said[0])
        twin.said = [said.copy() for said in self.said]
        twin.queue, twin.fed = [*self.queue], self.fed
        twin.again, twin.begun = self.again.copy(), [*self.begun]
        return twin

    def standing(self) -> dict[int, list[int]]:
        """The nodes that living beams stand on, each with these beams' places."""
        found: dict[int, list[int]] = {}
        for place, node in enumerate(self._fed()):
            while node != ROOT:
                found.setdefault(node, []).append(place)
                node = self.search.parents[node]
        return found

    def _fed(self) -> list[int]:
        """Of each living node the one before it, the last that was fed to the model."""
        return [ROOT if node == ROOT else self.search.parents[node] for node in self.search.living]

    def runs(self) -> list[Run]:
        """What is computed, so that each run comes after those that it stands on."""
        return self._runs(self.cells)

    def missing(self, most: int) -> Run | None:
        """The first of what must be computed (again) before the next step, *most* nodes of it."""
        if all(node == ROOT or node in self.cells for node in self._fed()):
            return None  # what is computed has all that it stands on
        first = self._runs(self.standing().keys() - self.cells.keys())[0]
        return Run(first.nodes[:most], first.places)

    def _runs(self, nodes: Container[int]) -> list[Run]:
        found: list[tuple[list[int], list[int]]] = []
        end_of: dict[int, tuple[list[int], list[int]]] = {}
        for node, places in sorted(self.standing().items()):  # a parent's number is the lower one
            if node not in nodes:
                continue
            run = end_of.pop(self.search.parents[node], None)
            if run is None or run[1] != places:
                run = [], places
                found.append(run)
            run[0].append(node)
            end_of[node] = run
        return [Run(tuple(nodes), tuple(places)) for nodes, places in found]

    def dead(self) -> list[int]:
        """Computed nodes that no living beam stands on any more."""
        standing = {ROOT}
        for node in self._fed():
            while node not in standing:
                standing.add(node)
                node = self.search.parents[node]
        return [node for node in self.cells if node not in standing]

    def news(self, node: int) -> list[int]:
        """The tokens of a node's path that the answer has not been fed."""
        path = self.search.path(node)[self.fed :]
        self.fed += len(path)
        return path


def _copy(search: Search) -> Search:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(search), type=Search)
