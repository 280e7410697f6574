"""Records as rows: what is read from the database, and what a request makes of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from aios.abi import wire
from aios.abi.calls import MemoryRecord
from aios.drivers.memory.words import marks
from aios.errors import InvalidCall
from aios.ports import MemoryFilter, MemoryRow, MemoryView

TAGS = 32  # of a record, at most
TAG_LENGTH = 100  # in characters, of a tag; a source may have ten times as many

TAGS_AT = 7  # among the columns
COLUMNS = """
number, id, owner, writer, born, text, data, tags, source, time, valid_from, marks, bytes,
valid_to, superseded_by, died
"""
NARROWED = """
  AND (:source IS NULL OR source = :source)
  AND (:after IS NULL OR time >= :after) AND (:before IS NULL OR time < :before)
  AND NOT EXISTS (SELECT value FROM json_each(:tags)
                  EXCEPT SELECT value FROM json_each(memories.tags))
"""
BY_ID = f"""
SELECT {COLUMNS} FROM memories
WHERE owner IN (SELECT value FROM json_each(:owners)) AND id = :id
ORDER BY number DESC
"""
CORRECTED_BY = f"""
SELECT {COLUMNS} FROM memories WHERE owner = :owner AND superseded_by = :id ORDER BY number DESC
"""
BY_NUMBER = f"""
SELECT {COLUMNS} FROM memories WHERE number IN (SELECT value FROM json_each(:numbers))
"""
# By id, not by number: a copied record is as old as the one that it was copied from.
NEWEST = f"""
SELECT {COLUMNS} FROM memories
WHERE owner = :owner AND (:history OR valid_to IS NULL) {NARROWED}
ORDER BY id DESC LIMIT :limit
"""


def row(columns: Sequence[Any]) -> MemoryRow:
    values = [*columns]
    values[TAGS_AT] = tuple(json.loads(values[TAGS_AT]))
    return MemoryRow(*values)


def rows(connection: Any, sql: str, **values: Any) -> list[MemoryRow]:
    return [row(columns) for columns in connection.execute(sql, values)]


def by_id(connection: Any, owners: Sequence[str], id: int) -> MemoryRow | None:
    """Of several with this id (a fork's copies) that of the first owner."""
    found = {one.owner: one for one in rows(connection, BY_ID, owners=json.dumps(owners), id=id)}
    return next((found[owner] for owner in owners if owner in found), None)


def current(connection: Any, owners: Sequence[str], id: int) -> MemoryRow | None:
    """The same, or what corrected it."""
    record = by_id(connection, owners, id)
    while record is not None and record.superseded_by is not None:
        record = by_id(connection, [record.owner], record.superseded_by)
    return record


def shared(connection: Any, view: MemoryView) -> dict[str, MemoryRow]:
    """The single records in view as they are now, by the ids that they are shared under."""
    found = ((id, current(connection, [owner], number_of(id))) for owner, id in view.records)
    return {id: record for id, record in found if record is not None}


def visible(connection: Any, view: MemoryView, id: str) -> MemoryRow | None:
    """A record in view, or what corrected it."""
    if record := current(connection, view.owners, number_of(id)):
        return record
    single = shared(connection, view)
    return single.get(id) or next((one for one in single.values() if name(one.id) == id), None)


def newest(connection: Any, owner: str, which: MemoryFilter, limit: int) -> list[MemoryRow]:
    values = {**narrowed(which), "owner": owner, "history": which.history, "limit": limit}
    return rows(connection, NEWEST, **values)


def narrowed(which: MemoryFilter) -> dict[str, Any]:
    """What NARROWED asks for."""
    return {
        "source": which.source,
        "after": which.after,
        "before": which.before,
        "tags": json.dumps(which.tags),
    }


def corrected_by(connection: Any, record: MemoryRow) -> list[MemoryRow]:
    """What a record took the place of, and what that did, the newest first."""
    found: list[MemoryRow] = []
    ahead = [record]
    while ahead:
        one = ahead.pop()
        before = rows(connection, CORRECTED_BY, owner=one.owner, id=one.id)
        found += before
        ahead += before
    return found


def public(record: MemoryRow) -> MemoryRecord:
    return MemoryRecord(
        id=name(record.id),
        owner=record.owner,
        text=record.text,
        data=msgspec.json.decode(record.data) if record.data else None,
        tags=record.tags,
        source=record.source,
        time=record.time,
        valid_from=record.valid_from,
        valid_to=record.valid_to,
        superseded_by=None if record.superseded_by is None else name(record.superseded_by),
    )


def name(id: int) -> str:
    return f"m{id}"


def number_of(id: str) -> int:
    """12 for m12; InvalidCall for what is no id of a record."""
    digits = id[1:]
    if not (id[:1] == "m" and digits.isascii() and digits.isdecimal() and len(digits) < 19):
        raise InvalidCall(f"{id[:40]!r} is no id of a record: mem_write returns one, such as m12.")
    return int(digits)


def checked(record: MemoryRow, most: int) -> MemoryRow:
    """The record with its marks and its size; InvalidCall says what cannot be kept."""
    if len(record.text) > most:
        raise InvalidCall(_too_long(len(record.text), most))
    if not record.text.strip() and not record.data:
        raise InvalidCall("the record is empty: give it a text, or data.")
    check_time("time", record.time)
    if len(record.tags) > TAGS:
        raise InvalidCall(f"the record has {len(record.tags)} tags: give at most {TAGS}.")
    for tag in record.tags:
        if not 0 < len(tag) <= TAG_LENGTH:
            raise InvalidCall(
                f"the tag {tag[:20]!r} has {len(tag)} characters: give 1 to {TAG_LENGTH}."
            )
    if len(record.source) > 10 * TAG_LENGTH:
        raise InvalidCall(
            f"the source has {len(record.source)} characters: give at most {10 * TAG_LENGTH}."
        )
    tags = tuple(dict.fromkeys(record.tags))
    try:
        size = len(record.text.encode()) + len(record.data) + len(record.source.encode())
        size += sum(len(tag.encode()) for tag in tags)
        found = marks(record.owner, tags, record.source)
    except UnicodeEncodeError as error:
        raise InvalidCall(
            f"the record holds {error.object[error.start : error.end]!r}, which is no character: "
            "give text that is valid as UTF-8."
        ) from error
    if size > most:
        raise InvalidCall(_too_long(size, most))
    return msgspec.structs.replace(record, tags=tags, marks=found, bytes=size)


def _too_long(size: int, most: int) -> str:
    return (
        f"the record has {size:,} bytes, and one may have {most:,}: write it in parts, or keep it "
        "as a file (sto_write)."
    )


def packed(data: Any) -> bytes:
    """Data as JSON; empty for None."""
    if data is None or data is UNSET:
        return b""
    try:
        return wire.encode(data)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidCall(f"data cannot be kept as JSON: {error}.") from error


def check_time(what: str, seconds: float | None) -> None:
    if seconds is not None and not math.isfinite(seconds):
        raise InvalidCall(f"{what} is {seconds}: give seconds since the epoch, or leave it out.")


def check_limit(limit: int) -> None:
    if not 1 <= limit <= 1000:
        raise InvalidCall(f"limit is {limit}: give 1 to 1000.")


def check_filter(which: MemoryFilter) -> None:
    check_time("after", which.after)
    check_time("before", which.before)
