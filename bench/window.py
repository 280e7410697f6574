"""A long conversation in a small window, under each strategy: what stays, what is used again.

An agent whose window is 2,048 tokens speaks 200 turns with the embedded model, with a system
prompt, pins, and tool calls with their results among the turns. Counted for each strategy, over
every prompt that went to the core: ``largest_prompt`` with its answer, in tokens; ``pins``:
whether the system prompt and the pins were there, byte for byte; ``parted``: calls without their
results, or the other way round; ``reused``: the share of prompt tokens whose KV state was there
already (a conversation that only appends has 0.9 or so); ``cuts``: how often the context was
shortened. Under ``fail`` the conversation ends where the window does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence, Set
from typing import Any

from msgspec import Struct

from aios.abi.calls import (
    ContextReport,
    Generate,
    Generation,
    GetContext,
    SpawnAgent,
    Spawned,
    Strategy,
)
from aios.abi.messages import Message, Sampling, ToolSpec
from aios.drivers.cores.llama.core import LlamaCore
from aios.errors import ContextOverflow
from aios.kernel.compaction import SUMMARISE
from aios.ports import Admitted, Core, Prompt
from aios.testing import machine
from bench.engine import SENTENCES, model

TURNS = 200
WINDOW = 2048
ANSWER = 10  # tokens
CALL = 40  # tokens of a tool call
STRATEGIES: tuple[Strategy, ...] = ("drop", "summarise", "page", "fail")
SYSTEM = Message("system", "You are a clerk in a harbour. You answer in very few words.")
PINS = {
    2: Message("user", "Keep in mind: my name is Ada, and my ship is the Heron.", pinned=True),
    60: Message("user", "Keep in mind: the Heron needs berth 7, whatever else I say.", pinned=True),
}
LOOK = ToolSpec(
    "look",
    "Look into the harbour's book.",
    {
        "type": "object",
        "properties": {"page": {"type": "integer", "minimum": 1, "maximum": 99}},
        "required": ["page"],
        "additionalProperties": False,
    },
    "none",
)
CALLS_EVERY = 6  # turns


class Told(Struct):
    """One prompt that a core was given, and what that was."""

    prompt: Prompt
    tokens: int
    cached: int


class Watched:
    """A core whose prompts are kept, but for those of summaries: they are no turn of ours."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.told: list[Told] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    async def admit(self, prompt: Prompt, made: Sequence[int] = (), text: str = "") -> Admitted:
        admitted = await self._core.admit(prompt, made, text)
        if prompt.messages[-1].content != SUMMARISE:
            self.told.append(Told(prompt, admitted.prompt_tokens, admitted.cached_tokens))
        return admitted


class Outcome(Struct):
    """What one conversation came to."""

    turns: int
    largest_prompt: int
    pins: bool
    parted: int
    breaks: int  # prompts that did not go on where the one before had ended
    reused: float
    cuts: int
    dropped: int
    seconds: float
    error: str = ""


def question(turn: int) -> str:
    return f"Turn {turn}. {SENTENCES[turn % len(SENTENCES)]} What do you say?"


async def converse(core: Core, strategy: Strategy, turns: int, window: int = WINDOW) -> Outcome:
    """A conversation of so many turns; every prompt of it is looked at."""
    watched = Watched(core)
    started = time.perf_counter()
    error, spoken, answered = "", 0, set[str]()
    async with machine(core=watched) as kernel:
        login = kernel.identify(kernel.user_key)
        spawned = await kernel.trap(
            login, SpawnAgent(program="clerk", window=window, strategy=strategy)
        )
        assert isinstance(spawned, Spawned)

        async def say(*messages: Message, choice: str = "auto") -> Generation:
            most = ANSWER if choice == "auto" else CALL
            call = Generate(
                messages=messages,
                tools=(LOOK,),
                tool_choice=choice,
                sampling=Sampling(max_tokens=most, seed=1),
            )
            reply = await kernel.trap(spawned.aid, call)
            assert isinstance(reply, Generation)
            return reply

        try:
            for turn in range(turns):
                said = [Message("user", question(turn))]
                said = [PINS[turn], *said] if turn in PINS else said
                said = [SYSTEM, *said] if turn == 0 else said
                calls = turn % CALLS_EVERY == CALLS_EVERY - 1
                reply = await say(*said, choice="look" if calls else "auto")
                if uses := reply.message.tool_calls:
                    answered |= {use.id for use in uses}
                    page = f"Page {turn}: the tide is {turn} cm."
                    await say(*(Message("tool", page, tool_call_id=use.id) for use in uses))
                spoken += 1
        except ContextOverflow as overflow:
            error = overflow.message
        report = await kernel.trap(spawned.aid, GetContext())
        assert isinstance(report, ContextReport)
    return Outcome(
        turns=spoken,
        largest_prompt=max(
            told.tokens + (told.prompt.sampling.max_tokens or 0) for told in watched.told
        ),
        pins=all(stays(told.prompt.messages) for told in watched.told),
        parted=sum(parted(told.prompt.messages, answered) for told in watched.told),
        breaks=breaks([told.prompt.messages for told in watched.told]),
        reused=sum(t.cached for t in watched.told) / sum(t.tokens for t in watched.told),
        cuts=report.compactions,
        dropped=report.dropped,
        seconds=time.perf_counter() - started,
        error=error,
    )


def stays(messages: Sequence[Message]) -> bool:
    """Whether the system prompt is first, and every pin said by now is there, in order."""
    last = next(m.content for m in reversed(messages) if m.content.startswith("Turn "))
    turn = int(last.partition(".")[0].removeprefix("Turn "))
    pins = [pin for at, pin in PINS.items() if at <= turn]
    return messages[0] == SYSTEM and [m for m in messages if m.pinned] == pins


def parted(messages: Sequence[Message], answered: Set[str]) -> int:
    """Calls without the result that they got, and results without their call."""
    calls = [call.id for message in messages for call in message.tool_calls]
    asked = [id for id in calls if id in answered]
    results = [message.tool_call_id for message in messages if message.role == "tool"]
    return abs(len(asked) - len(results)) + sum(id not in asked for id in results)


def breaks(prompts: Sequence[Sequence[Message]]) -> int:
    """How often a prompt did not begin with all of the one before."""
    pairs = zip(prompts, prompts[1:], strict=False)
    return sum(tuple(later[: len(earlier)]) != tuple(earlier) for earlier, later in pairs)


async def _each(turns: int) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for strategy in STRATEGIES:
        core = LlamaCore(model(), "bench", slots=2, cells=4 * WINDOW)
        await core.start()
        found[strategy] = await converse(core, strategy, turns)
    return found


def run() -> dict[str, Any]:
    outcomes = asyncio.run(_each(TURNS))
    ended = outcomes["fail"]
    kept = [outcome for strategy, outcome in outcomes.items() if strategy != "fail"]
    figures: dict[str, dict[str, Any]] = {}
    for name in ("turns", "largest_prompt", "pins", "parted", "cuts", "reused", "seconds"):
        values = {strategy: getattr(outcome, name) for strategy, outcome in outcomes.items()}
        figures[name] = {
            s: round(v, 2 if name == "reused" else 1) if isinstance(v, float) else v
            for s, v in values.items()
        }
    return {
        "name": "window",
        "window": WINDOW,
        **figures,
        "fail": ended.error,
        "goal": f"{TURNS} turns under drop, summarise and page, no prompt with its answer above "
        f"{WINDOW} tokens, pins identical, no call parted; fail says so",
        "met": all(outcome.turns == TURNS for outcome in kept)
        and all(
            outcome.largest_prompt <= WINDOW and outcome.pins and not outcome.parted
            for outcome in outcomes.values()
        )
        and bool(ended.error)
        and ended.turns < TURNS,
    }
