"""An agent that leaves marks: what it did outside and what it was told, line by line, in files.

    python -m aios.sdk.launch bench/mortal_agent.py      (AIOS_TASK names it; started by a kernel)

AIOS_MARKS is the folder of the files, AIOS_TURNS how often it does its work, AIOS_EFFECT_S how long
an effect takes before and after it happens.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import aios

FOLDER, TURNS = Path(os.environ["AIOS_MARKS"]), int(os.environ["AIOS_TURNS"])
MAX_TOKENS = 16  # of each answer: enough for a call of the tool
EFFECT_S = float(os.environ["AIOS_EFFECT_S"])

turn = 0


@aios.tool
async def count() -> str:
    """Count one more."""
    at = f"{os.environ['AIOS_TASK']} {turn}"
    await asyncio.sleep(EFFECT_S)
    mark("effects", at)
    await asyncio.sleep(EFFECT_S)
    return f"counted {turn}"


def mark(file: str, text: str) -> None:
    """A line, in one write: a process that is killed leaves all of it or nothing."""
    with (FOLDER / file).open("ab", buffering=0) as lines:
        lines.write(f"{text}\n".encode())


@aios.agent
async def mortal(me: aios.Me, task: str) -> str:
    global turn

    def told(what: str, said: object) -> None:
        mark("told", json.dumps([task, turn, what, said]))

    for turn in range(TURNS):
        answer = await me.generate(
            f"This is turn {turn} of {task}: count once more.",
            tools=[count],
            tool_choice="count",
            max_tokens=MAX_TOKENS,
            temperature=0,
        )
        told("answer", answer.text)
        told("random", await aios.random())
        await me.memory.write(f"{task} has counted to {turn}")
        kept = await me.memory.newest()
        told("memory", [record.text for record in kept])
    return f"{task} counted to {TURNS}"
