"""One search, in one read of the database: by meaning, by words, and both made into one order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from aios.abi.calls import MemoryHit
from aios.drivers.memory import rows, words
from aios.drivers.ranking import fuse, terms
from aios.ports import MemoryFilter, MemoryView

if TYPE_CHECKING:
    from aios.drivers.memory.matrices import Matrices

POOL = 50  # best by words and best by meaning that are looked at; more, if more are asked for

ALLOWED = f"""
SELECT number FROM memories
WHERE owner IN (SELECT value FROM json_each(:owners)) AND valid_to IS NULL {rows.NARROWED}
"""
AMONG = f"""
SELECT number FROM memories
WHERE number IN (SELECT value FROM json_each(:numbers)) {rows.NARROWED}
"""


class Meaning(Struct, frozen=True):
    """What is meant: a unit vector (little-endian float32) of a model, and where others are."""

    model: str
    vector: bytes
    matrices: Matrices


def search(
    connection: Any,
    view: MemoryView,
    query: str,
    meaning: Meaning | None,
    which: MemoryFilter,
    limit: int,
) -> tuple[MemoryHit, ...]:
    pool = max(POOL, 2 * limit)
    near: dict[int, float] = {}
    if meaning is not None:
        with meaning.matrices.lock:  # before the first look at the database, see there
            near = _near(connection, view, meaning, which, pool)
    asked = terms(query)
    by_words = words.ask(connection, asked, which, pool, owners=view.owners)
    singles = _singles(connection, view, which)
    by_words |= words.ask(connection, asked, which, pool, numbers=singles)
    if meaning is not None:
        near |= _cosines(connection, meaning, [*by_words.keys() - near.keys(), *singles])
    scores = fuse(by_words, near, meant=meaning is not None)
    found = {
        one.number: one
        for one in rows.rows(connection, rows.BY_NUMBER, numbers=json.dumps(list(scores)[:limit]))
        if one.owner in view.owners or one.number in singles  # whatever an index has said
    }
    best = [number for number in scores if number in found]
    why = _matched(connection, asked, [number for number in best if number in by_words])
    return tuple(
        MemoryHit(
            record=rows.public(found[number]),
            score=round(scores[number].score, 4),
            words=round(scores[number].words, 4),
            meaning=round(scores[number].meaning, 4),
            why=scores[number].why(why.get(number, ())),
        )
        for number in best
    )


def _near(
    connection: Any, view: MemoryView, meaning: Meaning, which: MemoryFilter, pool: int
) -> dict[int, float]:
    from aios.drivers.memory.matrices import vector  # numpy, once there are vectors

    wanted = vector(meaning.vector)
    allowed = None
    if which != MemoryFilter():
        allowed = _numbers(connection, ALLOWED, which, owners=json.dumps(view.owners))
    return meaning.matrices.nearest(connection, view.owners, meaning.model, wanted, pool, allowed)


def _cosines(connection: Any, meaning: Meaning, numbers: Sequence[int]) -> dict[int, float]:
    from aios.drivers.memory.matrices import cosines, vector

    return cosines(connection, meaning.model, vector(meaning.vector), numbers)


def _singles(connection: Any, view: MemoryView, which: MemoryFilter) -> list[int]:
    """The numbers of single records in view."""
    numbers = [record.number for record in rows.shared(connection, view).values()]
    if not numbers:
        return []
    return sorted(_numbers(connection, AMONG, which, numbers=json.dumps(numbers)))


def _numbers(connection: Any, sql: str, which: MemoryFilter, **values: str) -> set[int]:
    found = connection.execute(sql, {**rows.narrowed(which), **values})
    return {number for (number,) in found}


def _matched(
    connection: Any, asked: Sequence[str], numbers: Sequence[int]
) -> Mapping[int, list[str]]:
    """Which of the words each record has."""
    found: dict[int, list[str]] = {number: [] for number in numbers}
    for word in asked if numbers else ():
        for number in words.having(connection, word, numbers):
            found[number].append(word)
    return found
