"""The transformers engine against the library's own generate: 8 prompts at once.

On the Engine itself, without kernel and worker process, and with the workload of ``bench engine``:
chats of about 150 tokens that share no chunk, 64 new tokens, greedy, end of text ignored, prefill
included; SmolLM2-135M in float32 on the CPU. One loaded model serves all sides by turns: ``exact``
is the engine as it is by default, ``loose`` with deterministic=False, ``padded`` generate on all
prompts in one padded batch, ``one_by_one`` generate on one after another (half of them a round, to
save time: it is a rate). Ratios are medians over the rounds.

Rates are tokens a second of CPU time, of one thread: what else runs on the machine decides less.
``python -m bench hf THREADS`` takes that many, and wall time.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from aios.abi.messages import Message
from aios.drivers.cores.worker.core import ENVIRONMENT
from aios.ports import Prompt, Slice, SliceResult
from bench.engine import GREEDY, NEW_TOKENS, model, question

N = 8
ROUNDS = 2
ALONE_GOAL = 3.0  # of one prompt after another
PADDED_GOAL = 0.9  # of one padded batch, which all wait for and which nothing can join


def run(threads: str = "1") -> dict[str, Any]:
    clock = time.process_time if threads == "1" else time.perf_counter
    os.environ.update(ENVIRONMENT | os.environ)  # what the worker is started with
    from aios.drivers.cores.transformers.engine import Engine  # heavy, and needs it
    from aios.drivers.cores.transformers.start import load

    path = model()
    exact = load(
        source=str(path.parent),
        name="exact",
        threads=int(threads),
        device="cpu",
        dtype="float32",
        gguf_file=path.name,
        slots=N,
        ram_bytes=0,
        share=False,
    )
    loose = Engine(
        exact.model,
        exact.tokenizer,
        "loose",
        slots=N,
        ram_bytes=0,
        share=False,
        deterministic=False,
    )
    library = Library(exact.model, exact.tokenizer)
    sides: dict[str, Callable[[list[tuple[Message, ...]]], None]] = {
        "exact": lambda asked: answer(exact, asked),
        "loose": lambda asked: answer(loose, asked),
        "padded": library.padded,
        "one_by_one": library.one_by_one,
    }
    for side in (sides["exact"], sides["loose"], sides["padded"]):
        side([question(0)])  # warms up
    rates: dict[str, list[float]] = {name: [] for name in sides}
    asked = [question(1 + number) for number in range(N)]
    for number in range(ROUNDS):
        for name, side in sides.items():
            given = asked[number % 2 :: 2] if name == "one_by_one" else asked
            started = clock()
            side(given)
            rates[name].append(len(given) * NEW_TOKENS / (clock() - started))

    def ratio(own: str, other: str) -> float:
        pairs = zip(rates[own], rates[other], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 2)

    alone, padded = ratio("exact", "one_by_one"), ratio("exact", "padded")
    return {
        "name": "hf",
        "threads": int(threads),
        **{f"{name}_tokens_s": round(statistics.median(found), 1) for name, found in rates.items()},
        "exact_of_one_by_one": alone,
        "exact_of_padded": padded,
        "exact_of_loose": ratio("exact", "loose"),
        "loose_of_padded": ratio("loose", "padded"),
        "goal": f"exact at least {ALONE_GOAL} of one_by_one and {PADDED_GOAL} of padded",
        "met": alone >= ALONE_GOAL and padded >= PADDED_GOAL,
    }


def answer(engine: Any, asked: list[tuple[Message, ...]]) -> None:
    """All at once, through an Engine."""
    left = set(range(len(asked)))
    for number in left:
        engine.admit(number, Prompt(asked[number], GREEDY))
        engine.run(number, Slice(NEW_TOKENS))
    while left:
        for number, result in engine.turn():
            assert isinstance(result, SliceResult), result
            if result.finish_reason:
                left.discard(number)
                engine.release(number)
            else:
                engine.run(number, Slice(NEW_TOKENS))


class Library:
    """The same model through generate, with the attention that the library prefers."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        tokenizer.padding_side = "left"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def one_by_one(self, asked: list[tuple[Message, ...]]) -> None:
        for messages in asked:
            self.padded([messages])

    def padded(self, asked: list[tuple[Message, ...]]) -> None:
        texts = [
            self._tokenizer.apply_chat_template(
                [{"role": m.role, "content": m.content} for m in messages],
                tokenize=False,
                add_generation_prompt=True,
            )
            for messages in asked
        ]
        given = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        self._model.set_attn_implementation("sdpa")
        made = self._model.generate(
            **given, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
        )
        self._model.set_attn_implementation("aios")
        assert made.shape == (len(asked), given["input_ids"].shape[1] + NEW_TOKENS)
