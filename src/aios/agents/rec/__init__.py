"""Rec: chooses from the list in the task, and says why."""

from __future__ import annotations

import re

import aios
from aios.agents import prompts, shapes
from aios.errors import InvalidCall


@aios.agent
async def rec(me: aios.Me, task: str) -> str:
    wish, items = parsed(task)
    said = prompts.read(__file__, "choose", wish=wish, items=", ".join(items))
    choice = shapes.one_of(*items)
    schema = shapes.record(needs=shapes.words(1, 4), choice=choice)
    answer = await me.generate(said, context=None, schema=schema, max_tokens=50)
    if answer.finish_reason == "length":  # lost in what it needs: then at once
        answer = await me.generate(said, context=None, schema=shapes.record(choice=choice))
    chosen = answer.data["choice"]

    said = prompts.read(__file__, "explain", wish=wish, choice=chosen)
    schema = shapes.record(because=shapes.words(4, 12))
    why = await me.generate(said, context=None, schema=schema, max_tokens=50)
    because = begun(why.text) if why.finish_reason == "length" else why.data["because"]
    return f"{chosen}: {because}." if because else f"{chosen}."


def begun(text: str) -> str:
    """What ``{"because": "as it was cut o`` has to say: its whole words."""
    return text.partition(": ")[2].strip(' "').rpartition(" ")[0]


def parsed(task: str) -> tuple[str, list[str]]:
    """``a wish: this, that, another`` -> the wish and the items; lines and semicolons part too."""
    wish, _, rest = task.partition(":")
    items = [item.strip(" -*.") for item in re.split(r"[,;\n]", rest)]
    items = list(dict.fromkeys(item for item in items if item))
    if len(items) < 2:
        raise InvalidCall(
            f"the task {task!r} holds no list to choose from: "
            "write it as `a wish: this, that, another`."
        )
    return wish.strip(), items
