"""What it costs to switch contexts, and whether a generation notices.

``ratio``: paging a context of 1,024 tokens out to RAM and in again, over prefilling it again.
``identical`` of ``points``: generations suspended at random points inside prefill and inside
decode, greedy and with seeded sampling; put back from RAM, from a file, or computed again from
their tokens; each then goes on beside neighbours that were not there before. Identical is: every
token and every bit of the logits that follow are those of the run without a suspension.
"""

from __future__ import annotations

import hashlib
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from aios.abi.messages import Message, Sampling
from aios.drivers.cores.worker.core import ENVIRONMENT
from aios.ports import Prompt, Slice, SliceResult
from bench.engine import CELLS, SENTENCES, SLOTS, THREADS, model

CONTEXT_TOKENS = 1024
SWITCHES = 15  # their median counts
POINTS = 60
NEW_TOKENS = 24
RATIO = 0.005
WORDS = " ".join(SENTENCES).split()
WAYS = ("ram", "file", "recomputed")

Trace = list[tuple[int, bytes]]  # of each choice: the position, and a hash of the logits


class Bench:
    """An engine whose logits are kept."""

    def __init__(self, *, share: bool) -> None:
        os.environ.update(ENVIRONMENT | os.environ)
        from aios.drivers.cores.llama.engine import Engine  # after the environment it reads

        self.engine = Engine(
            model(),
            "bench",
            slots=SLOTS,
            threads=THREADS,
            cells=CELLS,
            ram_bytes=1 << 29,
            share=share,
        )
        self.traces: dict[int, Trace] = {}
        self.engine.watch = self._keep

    def _keep(self, sequence: int, position: int, logits: Any) -> None:
        found = hashlib.blake2b(logits.tobytes(), digest_size=16).digest()
        self.traces.setdefault(sequence, []).append((position, found))

    def slice(self, sequence: int, tokens: int = 1) -> SliceResult:
        """Run one slice of a sequence, and of its neighbours whatever they still hold."""
        self.engine.run(sequence, Slice(tokens))
        while True:
            for number, result in self.engine.turn():
                if number == sequence:
                    assert isinstance(result, SliceResult), result
                    return result

    def finish(self, sequence: int) -> list[int]:
        """Its remaining tokens."""
        made: list[int] = []
        while True:
            result = self.slice(sequence, NEW_TOKENS)
            made += result.tokens
            if result.finish_reason:
                return made

    def forget(self, *sequences: int) -> None:
        for sequence in sequences:
            self.engine.release(sequence)
            self.traces.pop(sequence, None)


def ratio() -> tuple[float, float, float]:
    """Seconds of a switch and of a prefill, and one over the other."""
    bench = Bench(share=False)
    tokens = [100 + i % 4000 for i in range(CONTEXT_TOKENS)]
    prompt = Prompt((), Sampling(max_tokens=8, ignore_end=True))
    prefills, switches = [], []
    for number in (1, 2, 3):
        bench.engine.admit_tokens(number, prompt, tokens)
        started = time.perf_counter()
        while not bench.slice(number).tokens:
            pass
        prefills.append(time.perf_counter() - started)
        for _ in range(SWITCHES):
            started = time.perf_counter()
            out = bench.engine.page_out(number)
            back = bench.engine.page_in(number)
            switches.append(time.perf_counter() - started)
            assert out.bytes == back.bytes > CONTEXT_TOKENS
        bench.forget(number)
    bench.engine.close()
    switch, prefill = statistics.median(switches), statistics.median(prefills)
    return switch, prefill, switch / prefill


def prompts(dice: random.Random) -> list[Prompt]:
    """Some share their first chunks, some end inside a chunk, half are sampled."""
    found = []
    for number in range(6):
        shared = " ".join(WORDS[i % len(WORDS)] for i in range(90 if number < 3 else 20))
        own = " ".join(dice.choice(WORDS) for _ in range(dice.randint(10, 160)))
        seeded = Sampling(
            temperature=0.9, top_p=0.95, max_tokens=NEW_TOKENS, seed=number, ignore_end=True
        )
        sampling = (
            seeded if number % 2 else Sampling(max_tokens=NEW_TOKENS, seed=number, ignore_end=True)
        )
        found.append(Prompt((Message("system", shared), Message("user", own)), sampling))
    return found


def identical(points: int, seed: int = 7) -> int:
    """How many suspended generations went on as if nothing had happened."""
    dice = random.Random(seed)
    bench = Bench(share=True)
    engine = bench.engine
    asked = prompts(dice)
    whole: list[tuple[int, list[int], Trace]] = []
    for prompt in asked:
        admitted = engine.admit(1, prompt)
        tokens = bench.finish(1)
        whole.append((admitted.prompt_tokens, tokens, bench.traces[1]))
        bench.forget(1)
    same = 0
    with tempfile.TemporaryDirectory() as folder:
        for point in range(points):
            prompt_number = point % len(asked)
            way = WAYS[dice.randrange(len(WAYS))]
            neighbours = [100 + i for i in range(dice.randint(0, 3))]
            begun, made = suspend(bench, asked[prompt_number], dice, inside_prefill=point % 3 == 0)
            for neighbour in neighbours:
                engine.admit(neighbour, asked[dice.randrange(len(asked))])
                engine.run(neighbour, Slice(NEW_TOKENS))
            resumed = resume(bench, way, begun, made, asked[prompt_number], Path(folder) / "frozen")
            rest = bench.finish(resumed)
            trace = bench.traces.get(begun, []) + (
                bench.traces[resumed] if resumed != begun else []
            )
            _, tokens, expected = whole[prompt_number]
            same += made + rest == tokens and trace == expected and not engine.check()
            bench.forget(begun, resumed, *neighbours)
    engine.close()
    return same


def suspend(
    bench: Bench, prompt: Prompt, dice: random.Random, *, inside_prefill: bool
) -> tuple[int, list[int]]:
    """Begin it, stop at a random point, take it out of the cells; its number and tokens made."""
    length = bench.engine.admit(1, prompt).prompt_tokens
    made: list[int] = []
    if inside_prefill:
        for _ in range(dice.randrange(max(1, length // 64))):
            made += bench.slice(1).tokens
    else:
        stop = dice.randint(1, NEW_TOKENS - 2)
        while len(made) < stop:
            made += bench.slice(1).tokens
    return 1, made


def resume(bench: Bench, way: str, begun: int, made: list[int], prompt: Prompt, file: Path) -> int:
    """Put it back in one of three ways; the number under which it goes on."""
    if way == "ram":
        bench.engine.page_out(begun)
        return begun
    if way == "file":
        bench.engine.freeze(begun, file)
        bench.engine.release(begun)
        bench.engine.thaw(2, file)
        return 2
    bench.engine.release(begun)
    bench.engine.admit(2, prompt, made)
    return 2


def run() -> dict[str, Any]:
    switch, prefill, found = ratio()
    same = identical(POINTS)
    return {
        "name": "context_switch",
        "ratio": round(found, 6),
        "switch_ms": round(switch * 1e3, 2),
        "prefill_ms": round(prefill * 1e3, 1),
        "identical": same,
        "points": POINTS,
        "goal": f"ratio <= {RATIO}; identical at all points",
        "met": found <= RATIO and same == POINTS,
    }
