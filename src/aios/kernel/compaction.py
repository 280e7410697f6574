"""Keeping a context within its window: ``window`` says what has to go, here it goes.

    drop       it is gone from the context (the transcript keeps it)
    summarise  the model itself puts it in its own words, in an inner generation
    page       it becomes a record in memory, and a pointer names that
    fail       ContextOverflow, always

What a strategy puts in the place of turns has a bounded size, and the next time goes with them: a
summary of a summary takes its place, a new pointer's record names the one before. Inner calls go
through the door as the same process, so they are journaled, and a second life finds them again.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.abi import wire
from aios.abi.calls import Strategy
from aios.abi.messages import Message, Sampling
from aios.errors import ContextOverflow, CoreFailed
from aios.kernel import window
from aios.kernel.context import Context, Turn
from aios.kernel.process import OpenCall, Process
from aios.kernel.window import Cut
from aios.ports import ContextCut, Prompt

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel
    from aios.kernel.scheduler import Scheduler

TRIES = 4  # sizes of turns are estimates: a cut is measured, and made again if it is too small
SUMMARY_TOKENS = 256  # of a summary, at most: what is said of thousands of turns stays as short
FEWEST_TOKENS = 32  # below this a summary says nothing
HEAD_TOKENS = 64  # what a summary's heading, or a whole pointer, takes beside
SUMMARY = "Summary of the conversation so far:"
SUMMARISE = (
    "Summarise our conversation so far in a few sentences: what was asked, what was found out and "
    "decided, names and numbers that matter, and what is still to do. Write only the summary."
)
POINTER = re.compile(r"^\[(\d+) earlier messages? .*? in the memory record (\S+):")
NO_RETRIEVAL = abi.Retrieval(memory=(), files=())


class Work(NamedTuple):
    """A context to be shortened, by whom, with which core."""

    kernel: Kernel
    call: OpenCall
    process: Process
    context: Context
    scheduler: Scheduler

    async def length(self, turns: Sequence[Turn]) -> int:
        """What these turns alone take as a prompt, in tokens."""
        return await length(self.kernel, self.scheduler, [turn.message for turn in turns])

    @property
    def window(self) -> int:
        """Tokens of prompt and answer: as was set, else as its process was spawned, else all."""
        most = self.scheduler.core.abilities.context_tokens
        wished = self.context.setting.window or self.process.spawned.window
        return most if wished is None else min(wished, most)

    @property
    def strategy(self) -> Strategy:
        return self.context.setting.strategy or self.process.spawned.strategy


async def measure(kernel: Kernel, scheduler: Scheduler, prompt: Prompt) -> int:
    """A prompt's length in tokens; a core that dies over it is asked again."""
    lost = 0
    while True:
        life = scheduler.life
        try:
            return await scheduler.core.measure(prompt)
        except CoreFailed as error:
            lost = kernel.core_lost(scheduler, life, error, lost)


async def length(kernel: Kernel, scheduler: Scheduler, messages: Sequence[Message]) -> int:
    """What messages alone take as a prompt, in tokens."""
    if not messages:
        return 0
    return await measure(kernel, scheduler, Prompt(tuple(messages), Sampling()))


async def fit(
    work: Work, after: Callable[[Sequence[Turn]], Prompt], *, is_last: bool
) -> Prompt | int:
    """The prompt after a context's turns if it fits its window; else what to cut the context to.

    The lock is held. is_last takes what fits without all the room that the answer wants.
    ContextOverflow if nothing helps.
    """
    context, size = work.context, work.window
    prompt = after(context.turns)
    tokens = await measure(work.kernel, work.scheduler, prompt)
    wanted = window.wanted(prompt.sampling.max_tokens, size)
    if tokens + wanted <= size:
        return _held(work, prompt, size - tokens)
    if work.strategy == "fail":
        raise ContextOverflow(
            f"the prompt has {tokens} tokens and its answer may need {wanted}, but the window of "
            f"the context {context.name!r} is {size}, and its strategy is fail: clear or compact "
            "it, or widen its window with exp_context."
        )
    stays = window.staying(context.turns)
    may_go = len(stays) < len(context.turns) and not is_last
    least = await measure(work.kernel, work.scheduler, after(stays)) if may_go else tokens
    if least >= size:
        raise ContextOverflow(
            f"what stays of the context {context.name!r} and what is new take {least} tokens, but "
            f"its window is {size}: shorten it, or widen the window with exp_context."
        )
    if not may_go:
        return _held(work, prompt, size - tokens)
    own = await work.length(context.turns)
    return window.goal(least - (tokens - own), size - wanted - least)


def _held(work: Work, prompt: Prompt, room: int) -> Prompt:
    """With an answer of at most so many tokens, where the window is narrower than the model's."""
    asked = prompt.sampling.max_tokens
    if work.window == work.scheduler.core.abilities.context_tokens or (asked or room + 1) <= room:
        return prompt
    sampling = msgspec.structs.replace(prompt.sampling, max_tokens=room)
    return msgspec.structs.replace(prompt, sampling=sampling)


async def compact(work: Work, goal: int, strategy: Strategy) -> int:
    """Shorten a context, whose lock is held, to *goal* tokens, or as near to that as can be.

    How many it has then. ContextOverflow if nothing may go. Journaled with the call's end.
    """
    context = work.context
    before = await work.length(context.turns)
    if before <= goal:
        return before
    staying = window.staying(context.turns)
    stays = await work.length(staying)
    if strategy == "fail" or len(staying) == len(context.turns):
        why = "its strategy is fail" if strategy == "fail" else "all that is in it stays"
        raise ContextOverflow(
            f"the context {context.name!r} of process {work.process.pid} has {before} tokens and "
            f"cannot be cut to {goal}, for {why}: clear it, or widen its window with exp_context."
        )
    room = min(SUMMARY_TOKENS, (goal - stays) // 4)
    if strategy == "summarise" and room < FEWEST_TOKENS:
        strategy = "drop"
    cut = await _plan(work, before, goal - ROOM[strategy](room), strategy)
    made = await MAKE[strategy](work, cut, room)
    gone = cut.gone
    if strategy == "summarise" and made is None:  # an older summary says more than none
        gone = tuple(turn for turn in gone if not turn.is_made) or gone
    if strategy == "page" and goal - stays < HEAD_TOKENS:
        made = None  # no room for a pointer: the record is found by its tag
    new = [Turn(cut.place, made)] if made else []
    left = {turn.position for turn in context.turns} - {turn.position for turn in gone}
    after = await work.length([t for t in context.turns if t.position in left] + new)
    _replace(work, gone, new, after)
    work.kernel.trace.emit(
        ev.ContextCompacted,
        work.process.pid,
        context=context.name,
        strategy=strategy,
        before=before,
        after=after,
        dropped=len(gone),
    )
    return after


async def _plan(work: Work, size: int, goal: int, strategy: Strategy) -> Cut:
    turns = work.context.turns
    parts = window.units(turns, window.weigh(work.context.messages, size))
    aim, cut = goal, None
    for left in reversed(range(TRIES)):
        cut = window.shorten(parts, aim if left else 0, keeps_first=strategy == "drop")
        gone = {turn.position for turn in cut.gone} if cut else set()
        size = await work.length([turn for turn in turns if turn.position not in gone])
        if size <= goal:
            break
        aim = max(0, aim - (size - goal))
    assert cut is not None, "something may go, and it is too long"
    return cut


def _replace(work: Work, gone: Sequence[Turn], new: Sequence[Turn], tokens: int) -> None:
    """Take turns out and put what was made of them in: in RAM now, on disk with the call's end.

    Nothing may be awaited from here to there: a call that is cancelled has changed nothing.
    """
    call, process, context = work.call, work.process, work.context
    was = context.setting
    change(call, process, context, gone, new)
    context.setting = msgspec.structs.replace(
        was,
        compactions=was.compactions + 1,
        dropped=was.dropped + sum(not turn.is_made for turn in gone),
    )
    context.tokens = tokens
    call.effects.append(context.kept(process.pid))
    call.undo.append(lambda: setattr(context, "setting", was))


def change(
    call: OpenCall, process: Process, context: Context, gone: Sequence[Turn], new: Sequence[Turn]
) -> None:
    """Turns out of a context and others in."""
    positions, places = [turn.position for turn in gone], [turn.position for turn in new]
    context.take(positions)
    context.put(new)

    def undo() -> None:
        context.take(places)
        context.put(gone)

    call.undo.append(undo)
    if gone:
        call.effects.append(ContextCut(process.pid, context.name, tuple(positions), call.id))
    call.effects += context.rows(process.pid, call.id, new)


# --- what is put in the place of turns ------------------------------------------------------------


async def _nothing(work: Work, cut: Cut, room: int) -> Message | None:
    return None


async def _summary(work: Work, cut: Cut, room: int) -> Message | None:
    """What the model says of the turns; None if it says nothing.

    It is shown the conversation as it stands, up to the cut: the KV state of that is there already.
    """
    last = cut.gone[-1].position
    ask = Message("user", SUMMARISE)
    turns = [turn for turn in work.context.turns if turn.position <= last]
    most = work.scheduler.core.abilities.context_tokens - room
    while (size := await work.length([*turns, Turn(last + 1, ask)])) > most:
        parts = window.units(turns, window.weigh([turn.message for turn in turns], size))
        oldest = next((unit for unit in parts if not unit.stays), None)
        if oldest is None:
            return None
        turns = [turn for turn in turns if turn not in oldest.turns]
    inner = abi.Generate(
        context=None,
        model=work.scheduler.name,
        messages=(*(turn.message for turn in turns), ask),
        sampling=Sampling(max_tokens=room, seed=0),
        retrieve=NO_RETRIEVAL,
        place=work.call.inner("summary"),
    )
    told = await work.kernel.trap(work.process.pid, inner)
    assert isinstance(told, abi.Generation)
    text = told.message.content.strip()
    return Message("user", f"{SUMMARY}\n{text}") if text else None


async def _pointer(work: Work, cut: Cut, room: int) -> Message:
    """A pointer to the record that the turns have become; it names the record before it."""
    found = [(turn, turn.is_made and POINTER.match(turn.message.content)) for turn in cut.gone]
    earlier = [pointer for _, pointer in found if pointer]
    messages = [turn.message for turn, pointer in found if not pointer]
    count = len(messages) + sum(int(pointer[1]) for pointer in earlier)
    before = earlier[-1][2] if earlier else None
    if not messages:  # nothing but an older pointer
        return cut.gone[-1].message
    inner = abi.MemWrite(
        text="\n".join(map(as_text, messages)),
        data={"context": work.context.name, "before": before, "messages": wire.plain(messages)},
        tags=("paged",),
        source=f"context {work.context.name}",
        place=work.call.inner("page"),
    )
    kept = await work.kernel.trap(work.process.pid, inner)
    assert isinstance(kept, abi.Remembered)
    return Message(
        "user",
        f"[{count} earlier message{'s are' if count > 1 else ' is'} in the memory record "
        f"{kept.id}: mem_read gives the newest of them back, and names the record before.]",
    )


def as_text(message: Message) -> str:
    """A turn as a person would read it."""
    calls = (f"{call.name}({call.arguments})" for call in message.tool_calls)
    return f"{message.role}: {' '.join(filter(None, (message.content, *calls)))}"


ROOM: dict[Strategy, Callable[[int], int]] = {
    "drop": lambda room: 0,
    "summarise": lambda room: room + HEAD_TOKENS // 2,
    "page": lambda room: HEAD_TOKENS,
}
MAKE: dict[Strategy, Callable[[Work, Cut, int], Awaitable[Message | None]]] = {
    "drop": _nothing,
    "summarise": _summary,
    "page": _pointer,
}
