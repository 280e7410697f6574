"""Records of memory to rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aios.abi import wire
from aios.ports import (
    MemoryCleared,
    MemoryEnd,
    MemoryGone,
    MemoryQuota,
    MemoryRewind,
    MemoryRow,
    VectorRow,
)

if TYPE_CHECKING:
    from aios.drivers.journal.rows import Rows

MEMORY = "INSERT INTO memories VALUES"
QUOTA = "REPLACE INTO memory_quotas VALUES"

# These are executed at once, after what came before them.
END = """
UPDATE memories SET valid_to = :valid_to, superseded_by = :superseded_by, died = :died
WHERE number = :number
"""
GONE = "DELETE FROM memories WHERE number IN (SELECT value FROM json_each(:numbers))"
CLEARED = "DELETE FROM memories WHERE owner = :owner"
QUOTA_GONE = "DELETE FROM memory_quotas WHERE owner = :owner"
VECTOR = """
REPLACE INTO vectors (number, owner, model, beside, vector)
    SELECT number, owner, :model, :beside, :vector FROM memories AS record
    WHERE number = :number AND valid_to IS NULL AND (:beside IS NULL OR EXISTS (
        SELECT 1 FROM memories AS other WHERE other.number = :beside AND other.valid_to IS NULL))
"""


WRITTEN_SINCE = """
SELECT number, owner, id FROM memories
WHERE born > :call AND (owner = 'pid:' || :pid OR writer = :pid) ORDER BY number
"""
# What a record had corrected ends as that record did: it is good again, or, if somebody who stays
# corrected that one in turn, is corrected by them.
TAKE_OVER = """
UPDATE memories SET (valid_to, superseded_by, died) =
    (SELECT valid_to, superseded_by, died FROM memories WHERE number = :number)
WHERE owner = :owner AND superseded_by = :id
"""


def memory(rows: Rows, row: MemoryRow) -> None:
    rows.add(
        MEMORY,
        (
            row.number,
            row.id,
            row.owner,
            row.writer,
            row.born,
            row.text,
            row.data,
            wire.encode(row.tags).decode(),
            row.source,
            row.time,
            row.valid_from,
            row.marks,
            row.bytes,
            row.valid_to,
            row.superseded_by,
            row.died,
        ),
    )


def end(rows: Rows, end: MemoryEnd) -> None:
    rows.execute(
        END,
        number=end.number,
        valid_to=end.valid_to,
        superseded_by=end.superseded_by,
        died=end.died,
    )


def gone(rows: Rows, gone: MemoryGone) -> None:
    rows.execute(GONE, numbers=wire.encode(gone.numbers).decode())


def cleared(rows: Rows, cleared: MemoryCleared) -> None:
    rows.execute(CLEARED, owner=cleared.owner)
    if cleared.quota:
        rows.execute(QUOTA_GONE, owner=cleared.owner)


def rewind(rows: Rows, rewind: MemoryRewind) -> None:
    rows.write()
    values = {"pid": rewind.pid, "call": rewind.call}
    gone = rows.connection.execute(WRITTEN_SINCE, values).fetchall()
    for number, owner, id in gone:  # oldest first: so a chain of corrections is gone through whole
        rows.execute(TAKE_OVER, number=number, owner=owner, id=id)
    rows.execute(GONE, numbers=wire.encode([number for number, _, _ in gone]).decode())


def quota(rows: Rows, row: MemoryQuota) -> None:
    rows.add(QUOTA, (row.owner, row.user, row.bytes))


def vector(rows: Rows, row: VectorRow) -> None:
    rows.execute(VECTOR, number=row.number, model=row.model, beside=row.beside, vector=row.vector)


TAKE: dict[type[Any], Callable[[Rows, Any], None]] = {
    MemoryRow: memory,
    MemoryEnd: end,
    MemoryGone: gone,
    MemoryCleared: cleared,
    MemoryRewind: rewind,
    MemoryQuota: quota,
    VectorRow: vector,
}
