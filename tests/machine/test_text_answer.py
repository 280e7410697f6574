"""From tokens to text: characters, stop strings, tool calls; guesses. No model needed."""

from __future__ import annotations

import json
import random

import pytest

from aios.drivers.cores.text.answer import Answer
from aios.drivers.cores.text.guesses import Guesses, shared_out


def say(answer: Answer, data: bytes, cuts: random.Random) -> list[str]:
    """Feed it in random pieces, taking after each; what was shown, and the rest at the end."""
    shown = []
    while data and not answer.is_stopped:
        size = cuts.randint(1, 5)
        answer.feed(data[:size])
        data = data[size:]
        shown.append(answer.take())
    answer.end()
    return shown


@pytest.mark.parametrize("seed", range(20))
def test_characters_are_never_split(seed: int) -> None:
    text = "naïve — 漢字 🙂🙃 e\u0301nd"
    answer = Answer()
    shown = say(answer, text.encode(), random.Random(seed))
    rest, calls = answer.finish("x")
    assert "".join(shown) + rest == text
    assert calls == ()
    assert not any("\ufffd" in piece for piece in shown)


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    answer = Answer()
    answer.feed("é".encode()[:1])
    assert answer.take() == ""
    answer.end()
    assert answer.finish("x")[0] == "\ufffd"


@pytest.mark.parametrize("seed", range(20))
def test_a_stop_string_and_what_may_become_one_are_held_back(seed: int) -> None:
    answer = Answer(stop=("END", "\n\n"))
    shown = say(answer, b"One EN two\nthree EEND and more", random.Random(seed))
    assert answer.is_stopped
    assert "".join(shown) + answer.finish("x")[0] == "One EN two\nthree E"


def test_what_was_held_back_for_nothing_comes_at_the_end() -> None:
    answer = Answer(stop=("STOP",))
    answer.feed(b"ST")
    assert answer.take() == ""
    assert answer.finish("x")[0] == "ST"


CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": "é"}}</tool_call>'


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("said", "text", "names"),
    [
        (f"Let me see. {CALL}", "Let me see.", ["add"]),
        (CALL + CALL, "", ["add", "add"]),
        ('{"name": "add", "arguments": {"a": 1, "b": "é"}}', "", ["add"]),
        ('<tool_call>[{"name": "add", "arguments": {}}]</tool_call>', "", ["add"]),
        ('{"name": "unknown", "arguments": {}}', '{"name": "unknown", "arguments": {}}', []),
        ("<tool_call>{broken", "<tool_call>{broken", []),
        ("1 < 2 and <tool", "1 < 2 and <tool", []),
    ],
)
def test_tool_calls_are_kept_apart(seed: int, said: str, text: str, names: list[str]) -> None:
    answer = Answer(tools=("add",))
    shown = "".join(say(answer, said.encode(), random.Random(seed)))
    rest, calls = answer.finish("x")
    assert (shown + rest).strip() == text
    assert [call.name for call in calls] == names
    assert len({call.id for call in calls}) == len(calls)
    for call in calls:
        assert json.loads(call.arguments) in ({"a": 1, "b": "é"}, {})


def test_a_forced_call_shows_no_text() -> None:
    answer = Answer(tools=("add",), forced=True)
    answer.feed(b'{"name": "add", "arguments": {"a": 1}}')
    assert answer.take() == ""
    rest, (call,) = answer.finish("x")
    assert (rest, call.name, json.loads(call.arguments)) == ("", "add", {"a": 1})


def test_a_copy_goes_its_own_way() -> None:
    answer = Answer()
    answer.feed("ab🙂".encode()[:4])
    twin = answer.copy()
    answer.feed("🙂".encode()[2:])
    twin.feed("🙃".encode()[2:])
    assert (answer.take(), twin.take()) == ("ab🙂", "ab🙃")


def test_nothing_is_guessed_until_predictions_come_true() -> None:
    guesses = Guesses([1, 2, 3, 4, 5, 6, 7, 8, 9])
    for token in (1, 2, 3):
        guesses.add(token)
        assert guesses.next(8) == []
    for token in (4, 5, 6, 7):
        guesses.add(token)
    assert guesses.next(8) == [8, 9, 1]
    assert guesses.next(2) == [8, 9]
    guesses.add(99)
    assert guesses.next(8) == []


def test_a_guess_may_reach_into_itself() -> None:
    guesses = Guesses([])
    for token in [1, 2, 3] * 6:
        guesses.add(token)
    assert guesses.next(7) == [1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize(
    ("rows", "wishes", "granted"),
    [
        (1, [3], [3]),
        (1, [7], [7]),
        (4, [0, 3, 0, 0], [0, 0, 0, 0]),
        (3, [3, 0, 0], [1, 0, 0]),
        (5, [3, 3, 0, 0, 0], [3, 0, 0, 0, 0]),
        (8, [7, 7], [7, 1]),
        (20, [3], [0]),
    ],
)
def test_guesses_fill_whole_groups_of_rows(
    rows: int, wishes: list[int], granted: list[int]
) -> None:
    assert shared_out(rows, wishes) == granted
