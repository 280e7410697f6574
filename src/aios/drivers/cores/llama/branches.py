"""A sequence that is a beam search: the branches that grow from its prompt.

The prompt lies where every sequence's does (``sequences``), under the sequence's own id. Below it
each node of the search lies in one cell, whoever stands on it: a living beam has an id in llama.cpp
that marks the prompt and the nodes of its path. A step appends one cell for each living beam, so
every path ascends in the cells, which is all that its bits ask of them. The KV of the living nodes
themselves is not computed yet: they are what the next step feeds to the model.

To keep branches elsewhere is to keep their *runs*: nodes in a row that the same beams stand on.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

from aios.drivers.cores.text.beams import ROOT, Search
from aios.drivers.cores.text.searches import Hypotheses, Said


class Run(NamedTuple):
    """Nodes in a row, and the places (in the living set) of the beams that stand on them."""

    nodes: tuple[int, ...]
    places: tuple[int, ...]


class Branches(Hypotheses):
    """A search, and the cells that it is in while it is resident."""

    def __init__(self, search: Search, said: Said) -> None:
        super().__init__(search, said)
        self.ids: list[int] = []  # in llama.cpp, by place, and spare ones after them; or none yet
        self.cells: dict[int, int] = {}  # of the nodes whose KV is computed

    def __repr__(self) -> str:
        return (
            f"<branches: {len(self.search.living)} living, {len(self.search.finished)} finished "
            f"after {self.search.steps} steps, {len(self.cells)} cells>"
        )

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
