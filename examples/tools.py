"""A function as a tool, and an answer as data. Try: aios run examples/tools.py "12 and 30" """

from dataclasses import dataclass

import aios


@aios.tool(effect="none")
def add(a: int, b: int) -> int:
    """Add two numbers.

    a: the first number
    b: the second number
    """
    return a + b


@dataclass
class Sum:
    total: int


@aios.agent
async def adder(me: aios.Me, task: str) -> str:
    # the model must call add; the kernel checks the arguments, this process runs the function
    said = await me.generate(f"Add {task}.", tools=[add], tool_choice="add", max_tokens=60)
    answer = await me.generate("What is the total?", schema=Sum, max_tokens=30)
    return f"{said.text} -> {answer.data}"
