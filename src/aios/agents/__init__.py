"""The five agents of the paper: real programs over the SDK, each on one screen.

Their prompts are files beside them. Each puts the same words first (system prompt and examples) and
the task last, so agents of one program share that part of the KV state: it is computed once. They
are short, and most answers have a schema, because the embedded model is very small; a better model
does better with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from aios.sdk import programs
from aios.sdk.programs import Program

# what `aios demo` asks of each
DEMO: Mapping[str, str] = MappingProxyType(
    {
        "travel": "A day in Paris",
        "rec": "Something warm to drink: ice cream, cold water, hot tea, bread",
        "coding": "A function that tells whether a number is even",
        "math": "A ticket costs 8 dollars. How much do 6 tickets cost?",
        "narrative": "a robot that is afraid of the dark",
    }
)

BUILT_IN: Mapping[str, Program] = MappingProxyType(
    {name: programs.built_in(name) for name in programs.BUILT_IN}
)
