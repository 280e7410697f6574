"""An agent that spawns two others and gathers what they send. Try: aios run examples/team.py tea"""

from pathlib import Path

import aios

WRITER = str(Path(__file__).with_name("writer.py"))


@aios.agent
async def team(me: aios.Me, task: str) -> str:
    children = [await me.spawn(WRITER, f"{kind} of {task}") for kind in ("praise", "criticism")]
    for child in children:
        await me.send(child, "begin")
    heard = [(await me.receive(child)).body for child in children]
    for child in children:
        await child.wait()
    return "\n".join(heard)
