"""Narrative: the opening of a story in three steps: plot, scene, revision."""

from __future__ import annotations

import re

import aios
from aios.agents import prompts


@aios.agent
async def narrative(me: aios.Me, task: str) -> str:
    async def write(step: str, max_tokens: int, **values: str) -> str:
        said = prompts.read(__file__, step, **values)
        return whole((await me.generate(said, context=None, max_tokens=max_tokens)).text)

    plot = await write("plot", 60, task=task)
    scene = await write("scene", 60, plot=plot)
    return await write("revise", 70, plot=plot, scene=scene)


def whole(text: str) -> str:
    """Its whole sentences, each once: what was cut off in the middle is left out."""
    found = re.findall(r"[^.!?]+[.!?][\"'”]?", " ".join(text.split()))
    return " ".join(dict.fromkeys(sentence.strip() for sentence in found)) or text.strip()
