"""Passages of files, found by words and by meaning, in one read of the database."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from aios.abi.calls import FileHit
from aios.drivers.files import chunks, paths
from aios.drivers.files.passages import texts
from aios.drivers.ranking import Score, fuse, quoted, rarest, terms
from aios.ports import FileContent

if TYPE_CHECKING:
    from aios.drivers.files.vectors import Matrices

POOL = 50  # best by words and best by meaning that are looked at; more, if more are asked for

VOLUMES = "SELECT id, owner FROM volumes WHERE owner IN (SELECT value FROM json_each(?))"
WITHIN = "(path = :path OR path >= :base || '/' AND path < :base || '0')"
# What is mounted over is not there.
SHOWING = """
NOT EXISTS (SELECT 1 FROM mounts WHERE mounts.volume = passages.volume AND mode <> 'cow'
    AND (passages.path = mounts.path
        OR passages.path >= mounts.path || '/' AND passages.path < mounts.path || '0'))
"""
ASKED = f"""
SELECT passages.id, -rank FROM file_words
CROSS JOIN passages ON passages.id = file_words.rowid
WHERE file_words MATCH :match AND {WITHIN} AND {SHOWING} ORDER BY rank LIMIT :limit
"""
HAVING = """
SELECT rowid FROM file_words
WHERE file_words MATCH :match AND rowid IN (SELECT value FROM json_each(:numbers))
"""
IN_VIEW = f"""
SELECT id FROM passages
WHERE id IN (SELECT value FROM json_each(:numbers)) AND {WITHIN} AND {SHOWING}
"""
FOUND = """
SELECT passages.id, passages.volume, passages.path, ordinal, line, version,
       contents.hash, bytes
FROM passages JOIN heads ON heads.volume = passages.volume AND heads.path = passages.path
JOIN contents ON contents.id = heads.content
WHERE passages.id IN (SELECT value FROM json_each(:numbers))
"""
WITHOUT_VECTOR = """
SELECT count(*) FROM passages WHERE volume IN (SELECT value FROM json_each(:volumes))
    AND id NOT IN (SELECT passage FROM passage_vectors WHERE model = :model)
"""
MOUNTED = """
SELECT count(*) FROM mounts WHERE volume IN (SELECT value FROM json_each(:volumes))
"""


class Meaning(Struct, frozen=True):
    """What is meant: a unit vector (little-endian float32) of a model, and where others are."""

    model: str
    vector: bytes
    matrices: Matrices


class Found(Struct, frozen=True):
    """without is how many passages have no vector yet, mounted how many directories were left."""

    hits: tuple[FileHit, ...]
    without: int = 0
    mounted: int = 0


def search(
    connection: Any,
    owners: Sequence[str],
    query: str,
    path: str,
    meaning: Meaning | None,
    limit: int,
    indexed: int,
) -> Found:
    volumes = dict(connection.execute(VOLUMES, (json.dumps(owners),)))
    if not volumes:
        return Found(())
    pool = max(POOL, 2 * limit)
    place = {"path": path, "base": paths.base(path)}
    asked = _asked(connection, query)
    by_words = _by_words(connection, asked, list(volumes), place, pool)
    near: dict[int, float] = {}
    without = 0
    which = json.dumps(list(volumes))
    if meaning is not None:
        near = _near(connection, meaning, list(volumes), place, pool, by_words)
        values = {"volumes": which, "model": meaning.model}
        without = connection.execute(WITHOUT_VECTOR, values).get
    scores = fuse(by_words, near, meant=meaning is not None)
    best = {number: scores[number] for number in list(scores)[:limit]}
    matched = _matched(connection, asked, [number for number in best if number in by_words])
    hits = _hits(connection, best, matched, volumes, indexed)
    return Found(hits, without, connection.execute(MOUNTED, {"volumes": which}).get)


def _asked(connection: Any, query: str) -> list[str]:
    """The words of a query as the index has them: each is one word there, too."""
    fold = connection.fts5_tokenizer("unicode61", [])
    folded = (fold(word.encode(), 1, None, include_offsets=False) for word in terms(query))
    return list(dict.fromkeys(word for found in folded for (word,) in found))


def _by_words(
    connection: Any,
    asked: Sequence[str],
    volumes: Sequence[int],
    place: Mapping[str, str],
    limit: int,
) -> dict[int, float]:
    """Passages that have all the words; if they are too few, those with any of the rarest."""
    if not asked:
        return {}

    def ask(words: Sequence[str], between: str) -> dict[int, float]:
        if not words:
            return {}
        text = between.join(map(quoted, words))
        whose = " OR ".join(quoted(f"v{volume}") for volume in volumes)
        match = f"marks : ({whose}) AND text : ({text})"
        values = {**place, "match": match, "limit": limit}
        return dict(connection.execute(ASKED, values))

    found = ask(asked, " AND ")
    if len(found) < limit and len(asked) > 1:
        some = ask(rarest(connection, asked, "file_terms"), " OR ")
        found = {n: max(found.get(n, 0.0), some.get(n, 0.0)) for n in found.keys() | some.keys()}
    return found


def _near(
    connection: Any,
    meaning: Meaning,
    volumes: Sequence[int],
    place: Mapping[str, str],
    limit: int,
    by_words: Mapping[int, float],
) -> dict[int, float]:
    cosines = meaning.matrices.cosines(connection, volumes, meaning.model, meaning.vector)
    best = sorted(cosines, key=cosines.__getitem__, reverse=True)
    found = {number: cosines[number] for number in by_words if number in cosines}
    left = limit
    for first in range(0, len(best), limit):  # most often the first of them will do
        some = best[first : first + limit]
        values = {**place, "numbers": json.dumps(some)}
        shown = {number for (number,) in connection.execute(IN_VIEW, values)}
        found |= {number: cosines[number] for number in some if number in shown}
        left -= len(shown)
        if left <= 0:
            break
    return found


def _matched(
    connection: Any, asked: Sequence[str], numbers: Sequence[int]
) -> Mapping[int, list[str]]:
    """Which of the words each passage has."""
    found: dict[int, list[str]] = {number: [] for number in numbers}
    for word in asked if numbers else ():
        values = {"match": f"text : {quoted(word)}", "numbers": json.dumps(numbers)}
        for (number,) in connection.execute(HAVING, values):
            found[number].append(word)
    return found


def _hits(
    connection: Any,
    best: Mapping[int, Score],
    matched: Mapping[int, Sequence[str]],
    volumes: Mapping[int, str],
    indexed: int,
) -> tuple[FileHit, ...]:
    """Best first, each with its text: cut out of its file again, as it was for the index."""
    rows = connection.execute(FOUND, {"numbers": json.dumps(list(best))}).fetchall()
    hits = {}
    cut: dict[tuple[int, str], list[tuple[int, str]]] = {}
    for number, volume, path, ordinal, line, version, hash, size in rows:
        if (volume, path) not in cut:
            data = chunks.read(connection, FileContent(hash, size))
            cut[volume, path] = texts(path, data, indexed)
        text = cut[volume, path][ordinal][1] if ordinal < len(cut[volume, path]) else ""
        score = best[number]
        hits[number] = FileHit(
            path=path,
            volume=volumes[volume],
            version=version,
            text=text,
            score=round(score.score, 4),
            line=line,
            words=round(score.words, 4),
            meaning=round(score.meaning, 4),
            why=score.why(matched.get(number, ())),
        )
    return tuple(hits[number] for number in best if number in hits)
