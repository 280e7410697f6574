"""Content, written once: blobs by their hash, conversations as a tree of turns.

A conversation of n messages that is said again with one more costs one row, not n + 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import zstandard
from blake3 import blake3

# Against a second text for a hash that somebody else's text has: 128 bits. Who looks for two texts
# of one hash needs 2**64 tries, and can only confuse their own transcript with it.
HASH_BYTES = 16
PACKED_FROM = 512  # bytes; below, a zstd frame is hardly smaller and every reader pays for it
KNOWN = 50_000  # ids of blobs, and of turns, that are remembered: about 5 MB each
LEVEL = 3  # zstd's default: 6 has 3 % less for twice the time

NEXT_BLOB = "SELECT coalesce(max(id), 0) + 1 FROM blobs"
NEXT_TURN = "SELECT coalesce(max(id), 0) + 1 FROM turns"
BLOB = "INSERT INTO blobs VALUES"
TURN = "INSERT INTO turns VALUES"
FIND_BLOB = "SELECT id FROM blobs WHERE hash = ?"
FIND_TURN = "SELECT id FROM turns WHERE parent = ? AND message = ?"


def hash_of(data: bytes) -> bytes:
    return blake3(data).digest(HASH_BYTES)


def pack(data: bytes) -> tuple[int, bytes]:
    """(1, a zstd frame) where that is smaller by a tenth, else (0, the data)."""
    if len(data) >= PACKED_FROM:
        frame = zstandard.compress(data, LEVEL)
        if len(frame) < 0.9 * len(data):
            return 1, frame
    return 0, data


def unpack(packed: int, body: bytes) -> bytes:
    return zstandard.decompress(body) if packed else body


class Content:
    """Gives content its number, old or new, and gathers the rows that new content needs.

    One writer has it. What it remembers holds until ``forget``: after a transaction that was rolled
    back, and after something was pruned.
    """

    def __init__(self, connection: Any, known: int = KNOWN) -> None:
        self._connection, self._known = connection, known
        self._used: dict[str, set[int]] | None = None
        self.forget()

    def forget(self) -> None:
        self._blobs: dict[bytes, int] = {}
        self._turns: dict[tuple[int, int], int] = {}
        self._next_blob: int = self._connection.execute(NEXT_BLOB).get
        self._next_turn: int = self._connection.execute(NEXT_TURN).get
        self._new_blobs: list[tuple[Any, ...]] = []
        self._new_turns: list[tuple[Any, ...]] = []

    def watch(self) -> None:
        """From here on, note what is used."""
        self._used = {"blobs": set(), "turns": set()}

    def unwatch(self) -> None:
        self._used = None

    def unused(self, table: str, numbers: Sequence[int]) -> list[int]:
        """Those that nobody has used since ``watch``."""
        assert self._used is not None
        used = self._used[table]
        return [number for number in numbers if number not in used]

    def blob(self, data: bytes) -> int:
        """The number of this content."""
        digest = hash_of(data)
        known = self._blobs.get(digest)
        if known is None:
            known = self._find(FIND_BLOB, digest)
            if known is None:
                known, self._next_blob = self._next_blob, self._next_blob + 1
                self._new_blobs.append((known, digest, *pack(data)))
            if len(self._blobs) > self._known:
                self._blobs.clear()
                self._blobs.update((row[1], row[0]) for row in self._new_blobs)
            self._blobs[digest] = known
        if self._used is not None:
            self._used["blobs"].add(known)
        return known

    def turn(self, said: Sequence[bytes]) -> int:
        """The number of the last turn of a conversation (messages as JSON); 0 if there is none."""
        turn = 0
        for message in said:
            place = turn, self.blob(message)
            known = self._turns.get(place)
            if known is None:
                known = self._find(FIND_TURN, *place)
                if known is None:
                    known, self._next_turn = self._next_turn, self._next_turn + 1
                    self._new_turns.append((known, *place))
                if len(self._turns) > self._known:
                    self._turns.clear()
                    self._turns.update(((row[1], row[2]), row[0]) for row in self._new_turns)
                self._turns[place] = known
            if self._used is not None:
                self._used["turns"].add(known)
            turn = known
        return turn

    def _find(self, query: str, *values: Any) -> int | None:
        found: int | None = self._connection.execute(query, values).get
        return found

    def rows(self) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
        """The statements and rows of what is new, once."""
        if self._new_blobs:
            yield BLOB, self._new_blobs
            self._new_blobs = []
        if self._new_turns:
            yield TURN, self._new_turns
            self._new_turns = []
