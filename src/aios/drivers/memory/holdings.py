"""What owners hold and may hold, in bytes. Quotas are hard: who asks is told what is left."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct

from aios import config
from aios.errors import InvalidCall, QuotaExceeded

KEPT = 10_000  # owners whose holdings are remembered

HELD = """
SELECT count(*), coalesce(sum(bytes), 0),
       (SELECT bytes FROM memory_quotas WHERE memory_quotas.owner = :owner)
FROM memories WHERE owner = :owner
"""
RESERVED = """
SELECT coalesce(sum(bytes), 0) FROM memory_quotas WHERE user = :user AND owner <> :owner
"""


class Holding(Struct):
    """Of one owner: its records, their bytes, and how many bytes they may take."""

    records: int
    bytes: int
    quota: int

    @property
    def left(self) -> int:
        return max(0, self.quota - self.bytes)


class Holdings:
    """Those of the owners used last. They count what was planned, so two writers at once cannot
    both have the last byte; *load* reads what is in the database after all that was appended."""

    def __init__(
        self, load: Callable[[Callable[[Any], Any]], Awaitable[Any]], settings: config.Memory
    ) -> None:
        self._load, self._settings = load, settings
        self._kept: OrderedDict[str, Holding] = OrderedDict()
        self._times = 0  # that all was forgotten

    async def of(self, owner: str) -> Holding:
        """Where it is known this does not wait: nothing happens between asking and using."""
        while (known := self._kept.get(owner)) is None:
            times = self._times
            records, held, quota = await self._load(
                lambda connection: connection.execute(HELD, {"owner": owner}).fetchone()
            )
            if times == self._times and owner not in self._kept:
                self._kept[owner] = Holding(
                    records, held, self._usual(owner) if quota is None else quota
                )
        self._kept.move_to_end(owner)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return known

    def _usual(self, owner: str) -> int:
        settings = self._settings
        of_kind = {"pid": settings.process_bytes, "program": settings.program_bytes}
        return of_kind.get(owner.partition(":")[0], settings.user_bytes)

    def forget(self, owner: str | None = None) -> None:
        """Read again when asked next: what was planned was not kept, or was planned in SQL."""
        self._times += 1
        if owner is None:
            self._kept.clear()
        else:
            self._kept.pop(owner, None)

    async def check_reserve(self, owner: str, user: str, size: int) -> None:
        """QuotaExceeded if all quotas of a user came to more than there is."""
        if size < 1:
            raise InvalidCall(f"a quota of {size} bytes holds nothing: give at least 1.")
        others = await self._load(
            lambda connection: connection.execute(RESERVED, {"user": user, "owner": owner}).get
        )
        most = self._settings.reserve_bytes
        if others + size > most:
            raise QuotaExceeded(
                f"{size:,} bytes cannot be set aside for {owner}: of {most:,} for the user {user} "
                f"{max(0, most - others):,} are left; ask for less, or raise memory.reserve_bytes."
            )


def take(holding: Holding, owner: str, size: int) -> None:
    """Count one more record; QuotaExceeded says what is left."""
    if size > holding.left:
        raise QuotaExceeded(
            f"this takes {size:,} bytes, and {owner} has {holding.left:,} left of "
            f"{holding.quota:,}: delete some with mem_clear, or set more aside with mem_alloc."
        )
    holding.records += 1
    holding.bytes += size
