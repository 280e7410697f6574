"""Waits for a word from its parent, writes a line and sends it; examples/team.py spawns two."""

import aios


@aios.agent
async def writer(me: aios.Me, task: str) -> None:
    order = await me.receive()
    answer = await me.generate(f"Write one sentence in {task}.", max_tokens=40)
    await me.send(order.sender, answer.text)
