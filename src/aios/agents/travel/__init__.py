"""Travel: names the sights of a place, then plans each day around them."""

from __future__ import annotations

import re

import aios
from aios.agents import prompts, shapes

MOST_DAYS = 3
PARTS = ("morning", "afternoon", "evening")
SPARE = ("the old town", "a quiet park", "the main market")  # where the model knows too few


@aios.agent
async def travel(me: aios.Me, task: str) -> str:
    place, days = parsed(task)
    said = prompts.read(__file__, "sights", place=place)
    sights = named((await me.generate(said, context=None, max_tokens=60)).text)

    lines = [f"{place}, {days} day{'s' * (days > 1)}"]
    for day in range(days):
        visits = [sights[(len(PARTS) * day + n) % len(sights)] for n in range(len(PARTS))]
        said = prompts.read(__file__, "day", place=place, visits=", ".join(visits))
        answer = await me.generate(said, context=None, schema=itinerary(visits), max_tokens=180)
        for part, plan in answer.data.items():
            lines.append(f"Day {day + 1}, {part}: {plan['visit']}. {plan['why']}")
    return "\n".join(lines)


def parsed(task: str) -> tuple[str, int]:
    """Where to, and for how many days: ``A weekend in Rome`` is Rome, 2."""
    place = re.split(r"\b(?:in|to|at|around)\s+", task.strip(" ."))[-1]
    number = re.search(r"(\d+)[- ]days?", task)
    wished = int(number[1]) if number else 2 if "weekend" in task.lower() else 1
    return place, min(max(wished, 1), MOST_DAYS)


def named(text: str) -> list[str]:
    """The sights of a numbered list, each once, and at least enough for a day."""
    found = re.findall(r"^\s*\d+\.\s*([^:,(\n]+)", text, flags=re.MULTILINE)
    return list(dict.fromkeys([*(name.strip() for name in found), *SPARE]))


def itinerary(visits: list[str]) -> shapes.Schema:
    """A day: where to go is settled, the model says why."""
    stops = {
        part: shapes.record(visit=shapes.one_of(visit), why=shapes.sentence(120))
        for part, visit in zip(PARTS, visits, strict=True)
    }
    return shapes.record(**stops)
