"""What leaves a context that has outgrown its window. Pure: turns and their sizes in, turns out.

Some turns stay whatever happens: the system prompt (the system turns at the head) and pins. An
assistant's turn that calls tools and the results that answer it are one unit: they stay or go
together, and a call that is not answered yet stays for its answer. Of the rest the newest stay.

A cut goes well below the window: to half of what is free beside what stays. So the next many turns
only append, and between two cuts the prompt's prefix is the same, byte for byte: its KV state is
used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from aios.abi.messages import Message
from aios.errors import InvalidCall
from aios.kernel.context import Turn

SMALLEST = 16  # tokens of a window: a few words and a few for the answer
TURN_BYTES = 24  # what a template adds to a turn weighs about as much as so many bytes of text
ANSWER = 8  # an answer without a max_tokens is left one part in so many of the window


class Unit(NamedTuple):
    """Turns that stay or go together; size is in tokens."""

    turns: tuple[Turn, ...]
    size: int
    stays: bool

    @property
    def begins(self) -> bool:
        """Whether it can begin a conversation."""
        return self.turns[0].message.role == "user"


class Cut(NamedTuple):
    """Turns that leave, oldest first, and the position for what takes their place."""

    gone: tuple[Turn, ...]
    place: float


def check_size(tokens: int | None, most: int | None = None) -> None:
    """InvalidCall for a window that is too small, or wider than the model's."""
    if tokens is not None and (tokens < SMALLEST or (most is not None and tokens > most)):
        range_of = f"{SMALLEST} tokens or more" if most is None else f"{SMALLEST} to {most} tokens"
        raise InvalidCall(f"a window is {range_of}, not {tokens}.")


def wanted(max_tokens: int | None, window: int) -> int:
    """Tokens to leave for an answer: what it may have, but at most half the window."""
    return min(window // ANSWER if max_tokens is None else max_tokens, window // 2)


def goal(stays: int, room: int) -> int:
    """Down to how many tokens to cut: half the *room* beside the tokens that stay."""
    return stays + max(room, 0) // 2


def weigh(messages: Sequence[Message], tokens: int) -> list[int]:
    """How many of all these messages' tokens each has, about; no fewer than all together."""
    bytes_of = [TURN_BYTES + _bytes(message) for message in messages]
    whole = sum(bytes_of)
    return [-(-tokens * size // whole) for size in bytes_of]


def _bytes(message: Message) -> int:
    calls = (len(call.name) + len(call.arguments.encode()) for call in message.tool_calls)
    return len(message.content.encode(errors="replace")) + sum(calls)


def units(turns: Sequence[Turn], sizes: Sequence[int]) -> list[Unit]:
    """The turns, in order, as what stays or goes together."""
    groups: list[list[int]] = []
    asked: dict[str, int] = {}  # a tool call's id -> the group that made it
    unanswered: dict[str, int] = {}
    for index, turn in enumerate(turns):
        message = turn.message
        group = asked.get(message.tool_call_id or "") if message.role == "tool" else None
        if group is None:
            groups.append([index])
        else:  # the call's group, with all that stands between
            groups[group] = [i for part in groups[group:] for i in part] + [index]
            del groups[group + 1 :]
            asked = {id: min(at, group) for id, at in asked.items()}
            unanswered = {id: min(at, group) for id, at in unanswered.items()}
            unanswered.pop(message.tool_call_id or "", None)
        for call in message.tool_calls:
            asked[call.id] = unanswered[call.id] = len(groups) - 1
    head = 0
    while head < len(turns) and turns[head].message.role == "system":
        head += 1
    last = len(groups) - 1
    return [
        Unit(
            tuple(turns[i] for i in group),
            sum(sizes[i] for i in group),
            group[0] < head
            or any(turns[i].message.pinned for i in group)
            or (number == last and last in unanswered.values()),
        )
        for number, group in enumerate(groups)
    ]


def staying(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns that no strategy takes out."""
    return tuple(
        turn for unit in units(turns, [0] * len(turns)) if unit.stays for turn in unit.turns
    )


def shorten(parts: Sequence[Unit], goal: int, *, keeps_first: bool) -> Cut | None:
    """What to take out so that at most *goal* tokens are left, or as near to that as can be.

    The oldest go first. keeps_first spares the first thing that was said, unless it is large: what
    goes then comes out of the middle. What a strategy made before goes with the first that goes, so
    that what takes its place now stands alone. None: nothing has to go.
    """
    size = sum(unit.size for unit in parts)
    if size <= goal:
        return None
    loose = [number for number, unit in enumerate(parts) if not unit.stays]
    order = loose
    if keeps_first and len(loose) > 2 and parts[loose[0]].size <= goal // 4:
        order = [*loose[1:-1], loose[0], loose[-1]]
    gone: set[int] = set()
    for number in order:
        if size <= goal:
            break
        gone.add(number)
        size -= parts[number].size
    if not gone:
        return None
    made = [n for n in loose if parts[n].turns[0].is_made]
    spared = {loose[0]} - gone if keeps_first else set()
    gone |= {n for n in loose if made and n <= made[-1]} - spared
    gone |= _up_to_a_beginning(parts, [n for n in loose if n > max(gone)], goal // 4)
    turns = tuple(turn for number in sorted(gone) for turn in parts[number].turns)
    return Cut(turns, _place(turns[-1].position))


def _up_to_a_beginning(parts: Sequence[Unit], rest: Sequence[int], most: int) -> set[int]:
    """What else to take so that the rest begins with a user's turn, if that is at most so many."""
    skipped = 0
    for place, number in enumerate(rest):
        if parts[number].begins:
            return set(rest[:place])
        skipped += parts[number].size
        if skipped > most:
            break
    return set()


def _place(last: float) -> float:
    """Between a turn's position and the next whole one, never at one of them."""
    return (last + int(last) + 1) / 2


def check(before: Sequence[Turn], after: Sequence[Turn]) -> list[str]:
    """What a cut broke of the rules above, in words."""
    found = []
    left = {turn.position for turn in after}
    kept = [turn for turn in before if turn.position in left]
    if [turn for turn in after if not turn.is_made] != [turn for turn in kept if not turn.is_made]:
        found.append("turns that were not there, or in another order")
    for unit in units(before, [0] * len(before)):
        here = [turn.position in left for turn in unit.turns]
        if unit.stays and not all(here):
            found.append(f"the turn at {unit.turns[0].position:g} should have stayed")
        if any(here) and not all(here):
            found.append(f"the unit at {unit.turns[0].position:g} was parted")
    return found
