"""Math: solves a word problem, then checks it by solving it again from other examples."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from itertools import permutations

import aios
from aios.agents import prompts, shapes

OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
MOST_NUMBERS = 4  # in one problem; the orders of more make a pattern too long to be worth it


@aios.agent
async def math(me: aios.Me, task: str) -> str:
    schema = shapes.record(expression=shapes.matching(expressions(task)))
    found: list[str] = []
    for prompt in ("solve", "check"):
        said = prompts.read(__file__, prompt, task=task)
        answer = await me.generate(said, context=None, schema=schema, max_tokens=40)
        found.append(answer.data["expression"])
    (solution, result), (second, checked) = ((text, value(text)) for text in found)
    if checked != result:
        return f"Not sure: {solution} = {shown(result)}, but {second} = {shown(checked)}."
    return f"{shown(result)}, because {solution} = {shown(result)} (checked: {second} agrees)."


def expressions(task: str) -> str:
    """The pattern of a calculation with the numbers of the problem, each used once at most."""
    numbers = re.findall(r"\d+(?:\.\d+)?", task)[:MOST_NUMBERS]
    if len(numbers) < 2:
        return r"\d{1,6}( [-+*/] \d{1,6}){1,3}"
    orders = (order for n in range(2, len(numbers) + 1) for order in permutations(numbers, n))
    return "|".join(" [-+*/] ".join(map(re.escape, order)) for order in dict.fromkeys(orders))


def value(expression: str) -> Fraction | None:
    """What it comes to, exactly; None if it comes to nothing (1 / 0) or is no calculation."""
    try:
        return _value(ast.parse(expression, mode="eval").body)
    except (ZeroDivisionError, SyntaxError, ValueError, KeyError):
        return None


def shown(number: Fraction | None) -> str:
    return "nothing" if number is None else f"{float(number):.10g}"


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    return Fraction(ast.unparse(node))
