"""An agent whose window is small: it speaks for long, and its model reads back what went out.

aios run examples/long_talk.py "Tell me about the harbour."
"""

import aios


@aios.agent
async def long_talk(me, task):
    # however long it gets: the system prompt and what is pinned stay, a call keeps its result
    context = me.context()
    await context.expand(1024)
    await context.set(strategy="page")
    pin = aios.Message("user", f"The task is: {task}", pinned=True)
    await me.generate([pin], system="You answer in one short sentence.", max_tokens=24)
    turns = 1
    while (await context.report(messages=False)).compactions == 0:
        await me.generate(f"Note {turns}: {'go on with the next detail. ' * 8}", max_tokens=24)
        turns += 1
    report = await context
    print(f"{turns} turns; {report.used} of {report.window} tokens; {report.dropped} in memory")
    paged = await context.paged()
    answer = await me.generate("What was the task?", tools=[aios.recall], max_tokens=24)
    return f"{len(paged)} messages could be read back. {answer.text}"
