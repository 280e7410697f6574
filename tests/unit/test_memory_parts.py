"""The parts of memory that decide: scores, words, what is embedded, what is typed."""

from __future__ import annotations

import math
from datetime import datetime

import apsw
import pytest

from aios.cli import memory as cli
from aios.drivers import ranking
from aios.drivers.memory import words
from aios.drivers.memory.vectors import Pending, unit
from aios.drivers.ranking import NEAR, fuse
from aios.errors import InvalidCall
from aios.sdk.process import Process


def test_half_of_a_score_is_words_and_half_is_meaning() -> None:
    scores = fuse({1: 4.0, 2: 2.0}, {1: 0.2, 2: 0.8, 3: 0.4}, meant=True)
    assert list(scores) == [2, 1, 3]
    assert scores[1].score == pytest.approx(0.5 * 1.0 + 0.5 * 0.25)
    assert scores[2].score == pytest.approx(0.5 * 0.5 + 0.5 * 1.0)
    assert (scores[3].words, scores[3].meaning) == (0.0, pytest.approx(0.5))


def test_what_has_no_word_and_is_not_near_was_not_meant() -> None:
    scores = fuse({1: 1.0}, {1: -0.1, 2: NEAR - 0.01, 3: NEAR}, meant=True)
    assert scores.keys() == {1, 3}
    assert scores[1].meaning == 0.0
    assert fuse({}, {}, meant=True) == {}


def test_without_an_embedder_words_are_all_of_a_score() -> None:
    scores = fuse({1: 0.0, 2: 0.0}, {}, meant=False)
    assert [(n, s.score, s.cosine) for n, s in scores.items()] == [(2, 1.0, None), (1, 1.0, None)]
    assert fuse({1: 3.0, 2: 1.5}, {}, meant=False)[2].score == 0.5


def test_of_a_question_the_words_that_say_something_are_looked_for() -> None:
    assert ranking.terms("When does the TRAIN leave, the train?") == ["train", "leave"]
    assert ranking.terms("to be or not to be") == ["to", "be", "or", "not"]
    assert ranking.terms("foo_bar ++ 7") == ["foo", "bar", "7"]
    assert ranking.terms("?!") == []
    assert len(ranking.terms(" ".join(f"w{n}" for n in range(1000)))) == ranking.MOST


def test_the_rarest_words_are_those_that_fewest_records_have() -> None:
    connection = apsw.Connection(":memory:")
    connection.execute("CREATE VIRTUAL TABLE w USING fts5 (text, tokenize = 'porter unicode61')")
    connection.execute("CREATE VIRTUAL TABLE memory_terms USING fts5vocab (w, 'row')")
    for number in range(1, 21):
        text = " ".join(f"word{n}ing" for n in range(number))
        connection.execute("INSERT INTO w VALUES (?)", (text,))
    asked = [f"word{n}ing" for n in range(20)] + ["unknown"]
    assert ranking.rarest(connection, asked, "memory_terms") == [
        f"word{n}ing" for n in range(19, 11, -1)
    ]


def test_a_mark_is_a_word_that_no_stemmer_changes() -> None:
    stem = apsw.Connection(":memory:").fts5_tokenizer("porter", ["unicode61"])
    for owner in ("pid:7", "user:ann", "program:ann/a b/ünï"):
        mark = words.mark("o", owner)
        assert stem(mark.encode(), 1, None, include_offsets=False) == [(mark,)]
    assert words.mark("o", "x") != words.mark("t", "x")


def test_a_date_that_no_calendar_has_is_left_out() -> None:
    for time in (1e18, -1e18):
        assert unit(Pending(1, "text", "", time, None, None)) == "text"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22", datetime(2026, 11, 22)),
        ("2026-11-22T09:30", datetime(2026, 11, 22, 9, 30)),
        ("9:05", datetime.now().replace(hour=9, minute=5, second=0, microsecond=0)),
    ],
)
def test_times_as_they_are_typed(text: str, expected: datetime) -> None:
    assert cli._time(text) == expected.timestamp()


def test_what_is_mistyped() -> None:
    with pytest.raises(InvalidCall, match="'soon' is no time: write 2026-11-22"):
        cli._time("soon")
    with pytest.raises(InvalidCall, match="there is no scope 'mine'; there are process, program"):
        cli._scope("mine", None)
    with pytest.raises(InvalidCall, match="--data is '{', which is not JSON"):
        cli._data("{")
    with pytest.raises(InvalidCall, match="say what to delete"):
        cli.clear()


def test_a_person_writes_for_the_user_and_a_process_for_itself() -> None:
    assert [cli._scope(None, None), cli._scope(None, 7)] == ["user", "process"]


async def test_a_time_that_is_none_does_not_arrive_as_no_time() -> None:
    memory = Process(None, "", 7).memory  # type: ignore[arg-type]  # refused before it is asked
    for time in (math.nan, math.inf):
        with pytest.raises(InvalidCall, match="a time is (nan|inf): give seconds since the epoch"):
            await memory.write("x", time=time)
