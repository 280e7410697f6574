"""What ``generate`` is given becomes one system call, or one sentence."""

from dataclasses import dataclass
from typing import Any

import msgspec
import pydantic
import pytest

from aios.abi.calls import Generate, Generation
from aios.abi.messages import Message, Sampling, Usage
from aios.errors import CoreFailed, InvalidCall
from aios.sdk import schema
from aios.sdk.answer import Answer
from aios.sdk.request import build


class Struct(msgspec.Struct):
    city: str
    days: int


@dataclass
class Data:
    city: str
    days: int


class Model(pydantic.BaseModel):
    city: str
    days: int


def test_text_options_and_sampling() -> None:
    request = build("Hi", (), {"system": "Be brief.", "max_tokens": 8, "stop": "\n", "seed": 3})
    assert request.convert is None
    assert request.call == Generate(
        messages=(
            Message(role="system", content="Be brief."),
            Message(role="user", content="Hi"),
        ),
        sampling=Sampling(max_tokens=8, stop=("\n",), seed=3),
    )


def test_a_beam_search_is_asked_for_by_two_options() -> None:
    call = build("Hi", (), {"beams": 4, "length_penalty": 0.5}).call
    assert call.sampling == Sampling(beams=4, length_penalty=0.5)


def test_messages_as_dicts() -> None:
    said = [{"role": "user", "content": "a"}, Message(role="assistant", content="b")]
    assert build(said, (), {}).call.messages == (
        Message(role="user", content="a"),
        Message(role="assistant", content="b"),
    )
    assert build({"role": "user", "content": "a"}, (), {}).call.messages[0].content == "a"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_token": 8}, "no option 'max_token'"),
        ({"temperature": "hot"}, "Expected `float`, got `str`"),
        ({"tool_choice": 3}, "tool_choice"),
    ],
)
def test_options_that_do_not_fit(options: Any, said: str) -> None:
    with pytest.raises(InvalidCall, match=said):
        build("Hi", (), options)


def test_a_role_that_there_is_not() -> None:
    with pytest.raises(InvalidCall, match="a message does not fit"):
        build([{"role": "wizard", "content": "x"}], (), {})


@pytest.mark.parametrize("kind", [Struct, Data, Model])
def test_schema_of_a_type_and_back(kind: Any) -> None:
    request = build("Hi", (), {"schema": kind})
    assert request.call.schema
    assert request.call.schema["additionalProperties"] is False
    assert list(request.call.schema["properties"]) == ["city", "days"]
    assert "$ref" not in request.call.schema
    assert request.convert
    assert request.convert('{"city":"Rome","days":2}') == kind(city="Rome", days=2)


def test_plain_types_and_dicts_as_schema() -> None:
    assert schema.of_type(list[int]) == {"type": "array", "items": {"type": "integer"}}
    given = {"type": "object", "properties": {}}
    assert schema.target(given)[0] is given
    with pytest.raises(InvalidCall, match="has no JSON Schema"):
        schema.of_type(object())


def test_a_type_that_holds_itself_keeps_its_definition() -> None:
    made = schema.of_type(Tree)
    assert {"$ref": "#/$defs/Tree"} in made["properties"]["left"]["anyOf"]
    assert "Tree" in made["$defs"]


class Tree(msgspec.Struct):
    left: "Tree | None" = None


def _answer(text: str, finish: Any) -> Answer:
    generation = Generation(
        call="c1",
        model="m",
        message=Message(role="assistant", content=text),
        finish_reason=finish,
        usage=Usage(),
    )
    return Answer(generation, convert=schema.target(Struct)[1])


def test_data_of_a_cut_answer_says_so() -> None:
    with pytest.raises(CoreFailed, match="it was cut, so raise max_tokens"):
        _ = _answer('{"city":"Ro', "length").data
    assert _answer('{"city":"Rome","days":1}', "stop").data == Struct("Rome", 1)
