"""aios run examples/storyteller.py "SEED TOPIC": the same seed tells the same story."""

import os

import aios

TOKENS = int(os.environ.get("STORY_TOKENS", "200"))


@aios.agent
async def storyteller(me: aios.Me, task: str) -> str:
    seed, _, topic = task.partition(" ")
    print(f"A story about {topic}, by seed {seed}:", flush=True)
    story = await me.generate(
        f"Tell a story about {topic}.",
        system="You are a storyteller. You write plain sentences.",
        temperature=0.8,
        seed=int(seed),
        max_tokens=TOKENS,
        ignore_end=True,  # all stories are of the same length, so that they can be compared
    )
    return story.text
