"""Vectors in RAM: a matrix for each owner, filled from the database, exact nearest neighbours.

Only a cache, and never told of a change: a search reads on from the last vector it has read, and
looks up those that it is about to name. Rows of it that are gone from the database leave then.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

MORE = """
SELECT made, number, vector FROM vectors WHERE owner = ? AND made > ? AND model = ? ORDER BY made
"""
ALIVE = "SELECT made FROM vectors WHERE made IN (SELECT value FROM json_each(?))"
OF_NUMBERS = """
SELECT number, vector FROM vectors WHERE model = ? AND number IN (SELECT value FROM json_each(?))
"""


def vector(packed: bytes) -> Floats:
    return np.frombuffer(packed, "<f4").astype(np.float32)  # a copy: aligned


class Matrix:
    """The vectors of one owner, in rows of a growing array."""

    def __init__(self, dimensions: int) -> None:
        self.upto = 0  # the newest that was read
        self.count = 0
        self.made = np.empty(0, np.int64)
        self.numbers = np.empty(0, np.int64)
        self.vectors = np.empty((0, dimensions), np.float32)

    @property
    def bytes(self) -> int:
        return self.vectors.nbytes + self.made.nbytes + self.numbers.nbytes

    def read(self, connection: Any, owner: str, model: str) -> None:
        """Add what was made since."""
        rows = connection.execute(MORE, (owner, self.upto, model)).fetchall()
        if not rows:
            return
        end = self.count + len(rows)
        if end > len(self.made):
            size = max(end, len(self.made) + len(self.made) // 2)
            self.made = np.resize(self.made, size)
            self.numbers = np.resize(self.numbers, size)
            grown = np.empty((size, self.vectors.shape[1]), np.float32)
            grown[: self.count] = self.vectors[: self.count]
            self.vectors = grown
        new = slice(self.count, end)
        self.made[new] = [made for made, _, _ in rows]
        self.numbers[new] = [number for _, number, _ in rows]
        packed = b"".join(packed for _, _, packed in rows)
        self.vectors[new] = np.frombuffer(packed, "<f4").reshape(len(rows), -1)
        self.count, self.upto = end, rows[-1][0]

    def drop(self, row: int) -> None:
        self.count -= 1
        for part in (self.made, self.numbers, self.vectors):
            part[row] = part[self.count]


class Matrices:
    """Those of the owners that were searched last, within so many bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[tuple[str, str], Matrix] = OrderedDict()
        # A reader must not see older data than the one before it, or it would take what is new for
        # what is gone: so this is held from before a reader's first look at the database.
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<matrices of {len(self._kept)} owners, {self.bytes:,} bytes>"

    @property
    def bytes(self) -> int:
        return sum(matrix.bytes for matrix in self._kept.values())

    def nearest(
        self,
        connection: Any,
        owners: Sequence[str],
        model: str,
        wanted: Floats,
        limit: int,
        allowed: set[int] | None = None,
    ) -> dict[int, float]:
        """Numbers of the records nearest to a unit vector, each with its cosine."""
        found: dict[int, float] = {}
        for owner in owners:
            matrix = self._matrix(connection, owner, model, len(wanted))
            found |= _nearest(connection, matrix, wanted, limit, allowed)
        self._evict()
        best = sorted(found, key=found.__getitem__, reverse=True)[:limit]
        return {number: found[number] for number in best}

    def _matrix(self, connection: Any, owner: str, model: str, dimensions: int) -> Matrix:
        matrix = self._kept.pop((owner, model), None) or Matrix(dimensions)
        self._kept[owner, model] = matrix  # the last one is the newest used
        matrix.read(connection, owner, model)
        return matrix

    def _evict(self) -> None:
        while self._kept and self.bytes > self.limit:
            self._kept.popitem(last=False)


def _nearest(
    connection: Any, matrix: Matrix, wanted: Floats, limit: int, allowed: set[int] | None
) -> dict[int, float]:
    among = None if allowed is None else np.fromiter(allowed, np.int64, len(allowed))
    while matrix.count:
        cosines = matrix.vectors[: matrix.count] @ wanted
        if among is not None:
            cosines[~np.isin(matrix.numbers[: matrix.count], among)] = -2.0
        rows = np.arange(matrix.count)
        if matrix.count > limit:
            rows = np.argpartition(cosines, -limit)[-limit:]
        named = json.dumps(matrix.made[rows].tolist())
        alive = {made for (made,) in connection.execute(ALIVE, (named,))}
        gone = [row for row in rows.tolist() if int(matrix.made[row]) not in alive]
        if not gone:
            return {int(matrix.numbers[r]): float(cosines[r]) for r in rows if cosines[r] > -2.0}
        if len(gone) > limit // 2:  # much has gone: look at all at once
            gone = _gone(connection, matrix)
        for row in sorted(gone, reverse=True):
            matrix.drop(row)
    return {}


def _gone(connection: Any, matrix: Matrix) -> list[int]:
    made = matrix.made[: matrix.count].tolist()
    alive = {found for (found,) in connection.execute(ALIVE, (json.dumps(made),))}
    return [row for row, one in enumerate(made) if one not in alive]


def cosines(
    connection: Any, model: str, wanted: Floats, numbers: Sequence[int]
) -> dict[int, float]:
    """How near each of these records is, as far as it has a vector."""
    rows = connection.execute(OF_NUMBERS, (model, json.dumps(numbers)))
    return {number: float(vector(packed) @ wanted) for number, packed in rows}
