"""Makes vectors of records that have none of the embedder's model, in the background, in batches.

What was written while there was no embedder, or by another one, gets its vector here as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from aios.drivers.chore import Chore
from aios.ports import Embedder, Record, VectorRow

BATCH = 16  # records; about a third of a second on one core, after which others may append
TEXT = 8_000  # characters of a record that go into its vector: of a longer one its beginning
NEIGHBOUR = 300  # characters of the record before it: what "it" and "there" in this one refer to

# The neighbour is the record before it of the same owner and source, if it is still good.
PENDING = f"""
SELECT record.number, substr(record.text, 1, {TEXT}), record.source, record.time,
       beside.number, substr(beside.text, 1, {NEIGHBOUR})
FROM memories AS record
LEFT JOIN memories AS beside ON beside.owner = record.owner AND beside.source = record.source
    AND beside.valid_to IS NULL AND beside.id = (
        SELECT max(id) FROM memories WHERE owner = record.owner AND id < record.id)
WHERE record.number > :after AND record.valid_to IS NULL
  AND NOT EXISTS (SELECT 1 FROM vectors WHERE number = record.number AND model = :model)
ORDER BY record.number LIMIT {BATCH}
"""


COUNT = """
SELECT count(*) FROM memories AS record WHERE record.number > :after AND record.valid_to IS NULL
  AND NOT EXISTS (SELECT 1 FROM vectors WHERE number = record.number AND model = :model)
"""


class Pending(Struct, frozen=True):
    number: int
    text: str
    source: str
    time: float
    beside: int | None
    before: str | None


def unit(record: Pending) -> str:
    """What is embedded: a record in its surroundings, its own words first (the rest may be cut)."""
    try:
        day = f"{datetime.fromtimestamp(record.time, UTC):%d %B %Y}"
    except (ValueError, OverflowError, OSError):
        day = ""  # before the year 1 or after 9999
    about = " ".join(part for part in (day, record.source) if part)
    return "\n".join(part for part in (record.text, about, record.before) if part)


class Vectors:
    """The background task. It is ``behind`` until there is nothing left to do."""

    def __init__(
        self,
        embedder: Embedder,
        load: Callable[[Callable[[Any], Any]], Awaitable[Any]],
        append: Callable[[Sequence[Record]], Awaitable[None]],
    ) -> None:
        self._embedder, self._load, self._append = embedder, load, append
        self._chore = Chore(self._batch)
        self._model: str | None = None  # whose vectors it has been making
        self._after = 0  # up to this number all have one
        self._times = 0  # that this was said to be so no more
        self._left = 0  # to be made, as far as they were counted
        self.behind = True

    @property
    def note(self) -> str:
        """What a search has to say about vectors: nothing, once all are made."""
        if not self.behind:
            return ""
        how_many = f" ({self._left:,})" if self._left else ""
        why = f": {self._chore.trouble}" if self._chore.trouble else "."
        return f"records without a vector yet{how_many} are found by words only{why}"

    def start(self) -> None:
        self._chore.start()

    async def close(self) -> None:
        await self._chore.close()

    def look_again(self) -> None:
        """Wake up if the embedder is another one now, or if there was trouble."""
        if self._embedder.model != self._model or self._chore.trouble:
            self.wake()

    def wake(self, *, again: bool = False) -> None:
        """Something was written; *again*: records that had a vector may have none now."""
        if again:
            self._after, self._times = 0, self._times + 1
        self.behind = True
        self._chore.wake()

    async def _batch(self) -> bool:
        """Make some; whether there may be more."""
        model = self._embedder.model
        if model is None:
            return False
        if model != self._model:
            self._model, self._after = model, 0
        after, times = self._after, self._times
        where = {"after": after, "model": model}
        left, rows = await self._load(
            lambda connection: (
                self._left or connection.execute(COUNT, where).get,
                connection.execute(PENDING, where).fetchall(),
            )
        )
        self._left = left
        if not rows:
            if not self._chore.has_news:
                self.behind = False
            return False
        pending = [Pending(*row) for row in rows]
        made = await self._embedder.embed([unit(one) for one in pending], background=True)
        await self._append(
            [
                VectorRow(one.number, model, one.beside, vector)
                for one, vector in zip(pending, made.vectors, strict=True)
            ]
        )
        self._left = max(0, left - len(rows))
        if self._times == times:
            self._after = pending[-1].number
        return True
