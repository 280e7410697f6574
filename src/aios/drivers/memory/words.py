"""Words of a question: which count, how rare they are, and how the full-text index is asked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

from aios.drivers.ranking import quoted, rarest
from aios.ports import MemoryFilter

ASKED = """
SELECT memory_words.rowid, -rank FROM memory_words {join} WHERE memory_words MATCH :match {where}
ORDER BY rank LIMIT :limit
"""
WITH_TIME = "CROSS JOIN memories ON memories.number = memory_words.rowid"
TIME = """
AND (:after IS NULL OR memories.time >= :after) AND (:before IS NULL OR memories.time < :before)
"""
ONLY = "AND memory_words.rowid IN (SELECT value FROM json_each(:numbers))"


def mark(kind: str, value: str) -> str:
    """A word that stands for an owner (``o``), a tag (``t``) or a source (``s``) in the index.

    Digits: a stemmer leaves them alone.
    """
    return f"{kind}{int.from_bytes(blake2b(value.encode(), digest_size=7).digest(), 'big')}"


def marks(owner: str, tags: Iterable[str], source: str) -> str:
    """All of a record."""
    found = [mark("o", owner), *(mark("t", tag) for tag in tags)]
    return " ".join([*found, mark("s", source)] if source else found)


def ask(
    connection: Any,
    words: Sequence[str],
    which: MemoryFilter,
    limit: int,
    *,
    owners: Sequence[str] = (),
    numbers: Sequence[int] = (),
) -> dict[int, float]:
    """Numbers of the best records, of owners or among numbers, and their BM25 (higher is better).

    Those that have all the words, and if they are too few, those that have any of the rarest.
    """
    if not words or not (owners or numbers):
        return {}
    found = _ask(connection, words, " AND ", which, limit, owners, numbers)
    if len(found) < limit and len(words) > 1:
        some = _ask(
            connection,
            rarest(connection, words, "memory_terms"),
            " OR ",
            which,
            limit,
            owners,
            numbers,
        )
        found = {n: max(found.get(n, 0.0), some.get(n, 0.0)) for n in found.keys() | some.keys()}
    return found


def _ask(
    connection: Any,
    words: Sequence[str],
    between: str,
    which: MemoryFilter,
    limit: int,
    owners: Iterable[str],
    numbers: Sequence[int],
) -> dict[int, float]:
    if not words:
        return {}
    whose = " OR ".join(mark("o", owner) for owner in owners)
    wanted = [f"marks : ({whose})"] if whose else []
    wanted += (f"marks : {mark('t', tag)}" for tag in which.tags)
    wanted += (f"marks : {mark('s', source)}" for source in [which.source] if source)
    wanted.append(f"text : ({between.join(quoted(word) for word in words)})")
    timed = which.after is not None or which.before is not None
    sql = ASKED.format(
        join=WITH_TIME if timed else "", where=(TIME if timed else "") + (ONLY if numbers else "")
    )
    values = {
        "match": " AND ".join(wanted),
        "limit": limit,
        "after": which.after,
        "before": which.before,
        "numbers": json.dumps(numbers),
    }
    return dict(connection.execute(sql, values))


def having(connection: Any, word: str, numbers: Sequence[int]) -> set[int]:
    """Which of the records have the word."""
    sql = f"SELECT rowid FROM memory_words WHERE memory_words MATCH :match {ONLY}"
    values = {"match": f"text : {quoted(word)}", "numbers": json.dumps(numbers)}
    return {number for (number,) in connection.execute(sql, values)}
