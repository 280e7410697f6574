"""Math, Narrative and Rec, alone and together: the same words, however they were interleaved.

The paper's consistency experiment (arXiv 2403.16971v1), sharper: instead of final answers by BLEU,
every message of every model call is compared (role, content and tool calls), at temperature 0, on
a real daemon with the embedded model. Each of 12 requests runs alone, with two others, and with
eleven others; two slots, a quantum of 4 tokens and few cells make the kernel preempt and page out.

With ``--core transformers`` the same on the same weights run by transformers, on the CPU.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import aios
from aios import agents
from aios.config import Core, Paths
from aios.models import ModelStore
from bench.daemon import daemon

REQUESTS = {
    "math": (
        "A ticket costs 8 dollars. How much do 6 tickets cost?",
        "A train travels 60 km in one hour. How far does it travel in 3 hours?",
        "Lea reads 15 pages on Monday and 20 on Tuesday. How many pages does she read?",
        "There are 24 eggs in 4 equal nests. How many eggs are in each nest?",
    ),
    "narrative": (
        "a robot that is afraid of the dark",
        "a lighthouse keeper who finds a letter in a bottle",
        "a king who lost his crown",
        "a clockmaker and a broken clock",
    ),
    "rec": (
        "Something warm to drink: ice cream, cold water, hot tea, bread",
        "A pet for a small flat: a horse, a cat, a cow, a wolf",
        "A gift for a child who loves music: a chess set, a toy piano, a scarf, a lamp",
        "A place to see wild animals: the bank, the zoo, the cinema, the gym",
    ),
}
RUNS = [(name, REQUESTS[name][n]) for n in range(4) for name in REQUESTS]
Said = list[tuple[Any, Any]]


TRANSFORMERS = """
[core]
model = "transformers"
[cores.transformers]
kind = "transformers"
model = "{folder}"
gguf_file = "{file}"
device = "cpu"
"""


def run(*options: str) -> dict[str, Any]:
    file = ModelStore(Paths.find().models).ensure(Core().model).path
    config, core = "", "embedded"
    if options:
        if options != ("--core", "transformers"):
            raise SystemExit(f"{' '.join(options)}: the one option is --core transformers")
        config, core = TRANSFORMERS.format(folder=file.parent, file=file.name), "transformers"
    # so few that the kernel must preempt and page out
    with daemon(config, core_slots=2, core_cells=1024, scheduler_quantum=4) as started:
        return {"core": core, **asyncio.run(_measure(started.socket, started.key))}


async def _measure(url: str, key: str) -> dict[str, Any]:
    async with aios.connect(url, key) as me:
        seconds: dict[str, float] = {}
        said: dict[str, list[Said]] = {}
        for name, together in (("alone", 1), ("three", 3), ("twelve", 12)):
            started = time.perf_counter()
            said[name] = []
            for first in range(0, len(RUNS), together):
                group = RUNS[first : first + together]
                said[name] += await asyncio.gather(*(_transcript(me, *one) for one in group))
            seconds[name] = round(time.perf_counter() - started, 1)
        happened = Counter(
            [str(event.__struct_config__.tag) async for event in me.watch(follow=False)]
        )
    pairs = [
        pair for name in ("three", "twelve") for pair in zip(said["alone"], said[name], strict=True)
    ]
    identical = sum(alone == other for alone, other in pairs)
    preemptions = happened["ticket_preempted"]
    return {
        "name": "consistency",
        "identical": identical,
        "runs": len(pairs),
        "calls_compared": 2 * sum(map(len, said["alone"])),
        "preemptions": preemptions,
        "paged_out": happened["paged_out"],
        **{f"{name}_s": value for name, value in seconds.items()},
        "goal": "identical == runs, with preemptions",
        "met": identical == len(pairs) and preemptions > 0,
    }


async def _transcript(me: aios.Me, name: str, task: str) -> Said:
    """What one agent said to the model and what it answered, call by call."""
    child = await me.spawn(agents.BUILT_IN[name], task)
    ended = await child.wait(reap=False)
    if ended.exit_status != 0:
        raise RuntimeError(f"{name} ended with {ended.exit_status}: {ended.reason}")
    calls = [call for call in await child.transcript() if call.name == "generate"]
    return [(call.request["messages"], call.reply["message"]) for call in calls]
