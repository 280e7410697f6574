"""The smallest agent. Try: aios run examples/hello.py "a ship in a storm" """

import aios


@aios.agent
async def hello(me: aios.Me, task: str) -> str:
    answer = await me.generate(f"Write one sentence about {task}.", max_tokens=40)
    return answer.text
