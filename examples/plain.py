"""Plain, synchronous Python: no async, no agent. Try: python examples/plain.py"""

import aios

with aios.connect_sync(program="plain") as me:
    for piece in me.stream("Tell me about the sea.", max_tokens=40):
        print(piece, end="", flush=True)
    print()
    print(me.usage().usage.completion_tokens, "tokens")
