"""Coding: writes a Python function, repairs it once if it does not compile, and describes it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import aios
from aios.agents import prompts, shapes

PARAMETER = "[a-z][a-z_]{0,12}"
FUNCTION = shapes.record(
    head=shapes.matching(rf"def [a-z][a-z_]{{1,24}}\(({PARAMETER}(, {PARAMETER}){{0,3}})?\):"),
    body=shapes.listed({"type": "string", "minLength": 3, "maxLength": 72}, 1, 8),
)
DESCRIPTION = shapes.record(description=shapes.words(3, 12))


@aios.agent
async def coding(me: aios.Me, task: str) -> str:
    said = prompts.read(__file__, "write", task=task)
    answer = await me.generate(said, context=None, schema=FUNCTION, max_tokens=150)
    source = written(answer.data)
    error = complaint(source)
    if error:
        said = prompts.read(__file__, "repair", task=task, broken=answer.text, error=error)
        answer = await me.generate(said, context=None, schema=FUNCTION, max_tokens=150)
        source = written(answer.data)
        error = complaint(source)

    said = prompts.read(__file__, "describe", source=source)
    answer = await me.generate(said, context=None, schema=DESCRIPTION, max_tokens=40)
    verdict = error or "It compiles; it was not run"
    return f"{source}\n\n{answer.data['description']}. {verdict}."


def written(function: Mapping[str, Any]) -> str:
    """The parts of a function as source text."""
    return "\n".join([function["head"], *(f"    {line}" for line in function["body"])])


def complaint(source: str) -> str:
    """Why a source text does not compile; empty if it does."""
    try:
        compile(ast.parse(source), "<function>", "exec")
    except (SyntaxError, ValueError) as error:
        return f"It does not compile: {error}"
    return ""
