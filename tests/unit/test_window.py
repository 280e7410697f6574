"""What leaves a context, over random conversations; the rules are asked again in other words."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from aios.abi.messages import Message, ToolUse
from aios.kernel import window
from aios.kernel.context import Turn


def use(name: str) -> ToolUse:
    return ToolUse(name, "look", "{}")


def turns_of(*messages: Message) -> list[Turn]:
    return [Turn(position, message) for position, message in enumerate(messages)]


@st.composite
def conversations(draw: st.DrawFn) -> list[Turn]:
    """Turns with tool calls (ids used again and again), pins, and what a strategy made."""
    messages: list[Message] = []
    if draw(st.booleans()):
        messages.append(Message("system", "You are a test."))
    for _ in range(draw(st.integers(0, 25))):
        match draw(st.sampled_from(["say", "say", "call", "pin", "system", "stray"])):
            case "say":
                messages += [Message("user", "question"), Message("assistant", "answer")]
            case "pin":
                messages.append(Message("user", "keep this", pinned=True))
            case "system":
                messages.append(Message("system", "by the way"))
            case "stray":
                messages.append(Message("tool", "nobody asked", tool_call_id="unknown"))
            case "call":
                ids = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True))
                messages.append(Message("assistant", tool_calls=tuple(map(use, ids))))
                answered = draw(st.lists(st.sampled_from(ids), unique=True))
                for name in answered:
                    if draw(st.booleans()):
                        messages.append(Message("user", "meanwhile"))
                    pinned = draw(st.integers(0, 9)) == 0
                    messages.append(Message("tool", "result", tool_call_id=name, pinned=pinned))
    turns = turns_of(*messages)
    made = draw(st.integers(0, len(turns)))
    if made and not turns[made - 1].message.tool_calls and turns[made:]:
        turns.insert(made, Turn(made - 0.5, Message("user", "Summary of all that")))
    return turns


def calls_of(turns: list[Turn]) -> list[tuple[float, float]]:
    """The positions of each call and of each result that answers it."""
    asked: dict[str, float] = {}
    pairs = []
    for turn in turns:
        id = turn.message.tool_call_id
        if turn.message.role == "tool" and id in asked:
            pairs.append((asked[id], turn.position))
        asked |= {call.id: turn.position for call in turn.message.tool_calls}
    return pairs


@settings(deadline=None)
@given(conversations(), st.data(), st.integers(0, 2_000), st.booleans())
def test_whatever_is_cut_the_rules_hold(
    turns: list[Turn], data: st.DataObject, goal: int, keeps_first: bool
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 120), min_size=len(turns), max_size=len(turns)))
    parts = window.units(turns, sizes)
    assert [turn for unit in parts for turn in unit.turns] == turns
    assert sum(unit.size for unit in parts) == sum(sizes)
    size_of = {turn.position: size for turn, size in zip(turns, sizes, strict=True)}
    cut = window.shorten(parts, goal, keeps_first=keeps_first)
    if cut is None:
        loose = [unit for unit in parts if not unit.stays]
        assert sum(sizes) <= goal or not loose
        return
    assert sum(sizes) > goal, "what fits is left alone"
    gone = {turn.position for turn in cut.gone}
    left = [turn for turn in turns if turn.position not in gone]
    # what is left fits, or nothing but what stays is left
    assert sum(size_of[t.position] for t in left) <= goal or left == list(window.staying(turns))
    # the system prompt and pins stay, byte for byte and in their order
    head = 0
    while head < len(turns) and turns[head].message.role == "system":
        head += 1
    assert left[:head] == turns[:head]
    assert not any(turn.message.pinned for turn in cut.gone)
    # a call and its result are never parted
    assert all((call in gone) == (result in gone) for call, result in calls_of(turns))
    # the newest stay: nothing older than what is left went after it, but for the first and pins
    loose = [unit for unit in parts if not unit.stays]
    stayed = [n for n, unit in enumerate(loose) if unit.turns[0].position not in gone]
    assert stayed in (
        list(range(len(loose) - len(stayed), len(loose))),
        [0, *range(len(loose) - len(stayed) + 1, len(loose))],
    )
    # what takes its place stands between, at a place of its own
    assert cut.place > cut.gone[-1].position
    assert Turn(cut.place, Message("user")).is_made
    assert not any(cut.gone[-1].position < turn.position <= cut.place for turn in turns)
    assert window.check(turns, left) == []
    # and a second time nothing more goes
    rest = [size_of[turn.position] for turn in left]
    again = window.shorten(window.units(left, rest), max(goal, sum(rest)), keeps_first=keeps_first)
    assert again is None


@given(
    st.lists(st.text(max_size=50), min_size=1, max_size=30),
    st.integers(0, 10_000),
)
@example(["", ""], 1)
def test_weights_add_up_to_no_less(texts: list[str], tokens: int) -> None:
    sizes = window.weigh([Message("user", text) for text in texts], tokens)
    assert len(sizes) == len(texts)
    assert tokens <= sum(sizes) <= tokens + len(texts)


def test_an_unanswered_call_waits_for_its_answer() -> None:
    turns = turns_of(
        Message("user", "go"),
        Message("assistant", tool_calls=(use("a"), use("b"))),
        Message("tool", "first", tool_call_id="a"),
    )
    cut = window.shorten(window.units(turns, [10, 10, 10]), 0, keeps_first=False)
    assert cut is not None
    assert cut.gone == (turns[0],)


def test_an_abandoned_call_goes_like_the_rest() -> None:
    turns = turns_of(Message("assistant", tool_calls=(use("a"),)), Message("user", "never mind"))
    cut = window.shorten(window.units(turns, [10, 10]), 10, keeps_first=False)
    assert cut is not None
    assert cut.gone == (turns[0],)


def test_what_is_left_begins_with_a_user() -> None:
    turns = turns_of(*[Message(role, "x") for role in ("user", "assistant") * 4])  # type: ignore[arg-type]
    cut = window.shorten(window.units(turns, [10] * 8), 50, keeps_first=False)
    assert cut is not None
    assert len(cut.gone) == 4


def test_drop_comes_out_of_the_middle() -> None:
    turns = turns_of(*[Message(role, "x") for role in ("user", "assistant") * 4])  # type: ignore[arg-type]
    cut = window.shorten(window.units(turns, [10] * 8), 45, keeps_first=True)
    assert cut is not None
    assert [turn.position for turn in cut.gone] == [1, 2, 3, 4, 5]


def test_a_made_turn_goes_with_the_first_that_goes() -> None:
    turns = [
        Turn(0, Message("user", "pinned", pinned=True)),
        Turn(4.5, Message("user", "Summary")),
        *(Turn(5 + n, Message("user", "x")) for n in range(4)),
    ]
    cut = window.shorten(window.units(turns, [10] * 6), 40, keeps_first=False)
    assert cut is not None
    assert [turn.position for turn in cut.gone] == [4.5, 5]
    assert 5 < cut.place < 6


def test_check_says_what_a_cut_broke() -> None:
    turns = turns_of(
        Message("system", "s"),
        Message("assistant", tool_calls=(use("a"),)),
        Message("tool", "r", tool_call_id="a"),
        Message("user", "u"),
    )
    assert window.check(turns, turns[1:]) == ["the turn at 0 should have stayed"]
    assert window.check(turns, [turns[0], turns[2], turns[3]]) == ["the unit at 1 was parted"]
    assert window.check(turns, [turns[0], turns[3], turns[2], turns[1]])
