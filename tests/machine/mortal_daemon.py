"""The real daemon on a core whose answers are written: it is killed and started again.

AIOS_HOME=... python tests/machine/mortal_daemon.py
"""

from __future__ import annotations

import asyncio
import zlib

from aios import config
from aios.config import Paths
from aios.ports import Prompt, Slice, SliceResult
from aios.server.daemon import serve
from aios.testing import ScriptedCore, ScriptedCores

SLICE_S = 0.005  # that a slice takes: a kill falls into the middle of one


def answer(prompt: Prompt) -> str:
    """Depends on all that was said: a context that lost something would show."""
    said = "|".join(f"{message.role}:{message.content}" for message in prompt.messages)
    number = zlib.crc32(said.encode())
    return " ".join(f"w{number % 1000}.{word}" for word in range(2 + number % 12))


class SlowCore(ScriptedCore):
    """Its slices take a while."""

    async def run(self, sequence: int, grant: Slice) -> SliceResult:
        await asyncio.sleep(SLICE_S)
        return await super().run(sequence, grant)


if __name__ == "__main__":
    paths = Paths.find()
    flags = {"server.tcp": "false", "scheduler.quantum": "3"}
    core = SlowCore(answer, context_tokens=100_000)
    asyncio.run(serve(config.load(paths, flags), paths, ScriptedCores(core)))
