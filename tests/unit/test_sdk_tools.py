"""A function's annotations are its contract, for the model, the kernel and Python."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import pytest

import aios
from aios.errors import InvalidCall


@aios.tool(effect="none")
async def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C") -> dict[str, Any]:
    """The weather of the next days.

    Args:
        city: where, in English
        days (int): how many, at most 7
    """
    return {"city": city, "days": days, "unit": unit}


def test_schema_from_annotations_and_docstring() -> None:
    assert weather.spec.name == "weather"
    assert weather.spec.description == "The weather of the next days."
    assert weather.spec.effect == "none"
    assert weather.spec.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "where, in English"},
            "days": {"type": "integer", "default": 1, "description": "how many, at most 7"},
            "unit": {"enum": ["C", "F"], "default": "C"},
        },
        "required": ["city"],
        "additionalProperties": False,
    }


def test_effect_is_once_unless_said() -> None:
    @aios.tool
    def pay(amount: float) -> None:
        """Pay."""

    assert pay.spec.effect == "once"


async def test_a_tool_is_still_its_function() -> None:
    assert await weather("Rome") == {"city": "Rome", "days": 1, "unit": "C"}


async def test_run_converts_arguments_and_encodes_the_result() -> None:
    assert await weather.run({"city": "Rome", "days": 2}) == '{"city":"Rome","days":2,"unit":"C"}'


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"city": 1}, "Expected `str`, got `int`"),
        ({}, "missing required field `city`"),
        ({"city": "Rome", "country": "Italy"}, "unknown field `country`"),
    ],
)
async def test_arguments_that_do_not_fit(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidCall, match=said):
        await weather.run(arguments)


async def test_structs_and_dataclasses_as_arguments() -> None:
    @dataclass
    class Point:
        x: int
        y: int

    # annotations of local classes must be real, so this one is made by hand
    def far(point: Any) -> int:
        """How far."""
        return point.x + point.y

    far.__annotations__["point"] = Point
    tool = aios.tool(far)
    assert await tool.run({"point": {"x": 1, "y": 2}}) == "3"
    assert tool.spec.parameters["$defs"]["Point"]["additionalProperties"] is False


def test_a_description_in_the_annotation_wins() -> None:
    @aios.tool
    def find(word: Annotated[str, msgspec.Meta(description="from here")]) -> str:
        """Find.

        word: from the docstring
        """
        return word

    assert find.spec.parameters["properties"]["word"]["description"] == "from here"


def test_a_parameter_without_annotation_is_refused() -> None:
    def bad(x):  # type: ignore[no-untyped-def]
        return x

    with pytest.raises(InvalidCall, match="parameter 'x' of the tool bad has no annotation"):
        aios.tool(bad)


def test_any_number_of_parameters_is_refused() -> None:
    def bad(*x: int) -> None: ...

    with pytest.raises(InvalidCall, match="stands for any number"):
        aios.tool(bad)
