"""The time of this machine."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """ports.Clock over the system's clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
