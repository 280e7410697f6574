"""What the five agents decide by themselves, without a model."""

import ast
import re
from fractions import Fraction

import pytest

from aios import agents
from aios.agents import coding, math, narrative, prompts, rec, shapes, travel
from aios.errors import InvalidCall
from aios.sdk import programs


def test_each_agent_is_a_program_with_a_task_for_the_demo() -> None:
    assert set(agents.DEMO) == set(agents.BUILT_IN) == set(programs.BUILT_IN)
    assert agents.BUILT_IN["rec"] == programs.find("rec", "/")


def test_numbers_of_a_problem_become_the_pattern_of_its_calculation() -> None:
    pattern = re.compile(math.expressions("A bus has 50 seats and 12 are broken."))
    assert pattern.fullmatch("50 - 12")
    assert pattern.fullmatch("12 / 50")
    assert not pattern.fullmatch("50 - 50")
    assert not pattern.fullmatch("50 - 13")
    assert re.compile(math.expressions("two and two")).fullmatch("2 + 2")


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("6 * 8", Fraction(48)),
        ("20 - 2 * 5", Fraction(10)),
        ("1 / 3", Fraction(1, 3)),
        ("2.5 + 1", Fraction(7, 2)),
        ("1 / 0", None),
        ("__import__('os')", None),
        ("2 ** 9", None),
        ("six", None),
    ],
)
def test_value_of_a_calculation(expression: str, value: Fraction | None) -> None:
    assert math.value(expression) == value


def test_a_wish_and_its_list() -> None:
    assert rec.parsed("A pet: a cat, a cow,\n- a cat; a wolf.") == (
        "A pet",
        ["a cat", "a cow", "a wolf"],
    )
    with pytest.raises(InvalidCall, match="no list to choose from"):
        rec.parsed("A pet")


@pytest.mark.parametrize(
    ("task", "place", "days"),
    [
        ("A day in Paris", "Paris", 1),
        ("A weekend in New York.", "New York", 2),
        ("3 days around Lake Como", "Lake Como", 3),
        ("A 9-day trip to Peru", "Peru", 3),
        ("Rome", "Rome", 1),
    ],
)
def test_where_to_and_how_long(task: str, place: str, days: int) -> None:
    assert travel.parsed(task) == (place, days)


def test_sights_of_a_numbered_list() -> None:
    said = "Here:\n1. Eiffel Tower\n2. Louvre: a museum\n3. Louvre\n\nEnjoy."
    assert travel.named(said) == ["Eiffel Tower", "Louvre", *travel.SPARE]
    assert len(travel.named("")) == 3


def test_whole_sentences_each_once() -> None:
    assert narrative.whole("It rained. It rained.\nWhy? Nobody kn") == "It rained. Why?"
    assert narrative.whole("no end") == "no end"


def test_a_function_that_compiles_and_one_that_does_not() -> None:
    good = coding.written({"head": "def add(a, b):", "body": ["c = a + b", "return c"]})
    assert ast.parse(good)
    assert coding.complaint(good) == ""
    bad = coding.written({"head": "def add(a, a):", "body": ["return a"]})
    assert coding.complaint(bad).startswith("It does not compile: duplicate argument")


def test_shapes_are_patterns_that_end_at_a_word() -> None:
    words = re.compile(shapes.words(2, 4)["pattern"])
    assert words.fullmatch("Lena, a sailor's dog")
    assert words.fullmatch("Who goes there?")
    assert not words.fullmatch("one")
    assert not words.fullmatch("one two three four five")
    sentence = re.compile(shapes.sentence(40)["pattern"])
    assert sentence.fullmatch("The tower is a landmark.")
    assert not sentence.fullmatch("The tower. Is a landmark.")


def test_a_prompt_file_becomes_messages() -> None:
    messages = prompts.read(rec.__file__, "choose", wish="Tea {items}", items="a, b")
    assert [m["role"] for m in messages][:2] == ["system", "user"]  # type: ignore[index, union-attr]
    assert messages[-1] == {"role": "user", "content": "Tea {items}.\na, b"}  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"because": "it is warm and swe', "it is warm and"),
        ('{"because": "warm', ""),
        ('{"beca', ""),
    ],
)
def test_an_explanation_that_was_cut_ends_at_a_word(text: str, words: str) -> None:
    assert rec.begun(text) == words
