"""Paths, chunks and passages by themselves."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.drivers.files import chunks, paths
from aios.drivers.files.passages import ENOUGH, MOST, passages, texts
from aios.errors import InvalidCall


@given(st.lists(st.sampled_from(["a", "b", ".", "", "ü"]), min_size=1))
def test_a_clean_path_is_clean(parts: list[str]) -> None:
    given = "/".join(parts) or "/"
    path = paths.clean(given, 1_000)
    assert path.startswith("/")
    assert paths.clean(path, 1_000) == path
    assert path == "/" or not path.endswith("/")
    assert paths.is_within(path, "/")


def test_what_lies_where() -> None:
    assert list(paths.parents("/a/b/c")) == ["/a/b", "/a"]
    assert paths.is_within("/a/b", "/a")
    assert not paths.is_within("/ab", "/a")
    assert paths.under("/a/b", "/a") == paths.under("/b", "/") == "b"


def test_half_a_character_is_no_path() -> None:
    with pytest.raises(InvalidCall, match="control character"):
        paths.clean("/\ud800", 100)


def test_chunks_make_the_whole_and_an_edit_leaves_most_alone() -> None:
    chance = random.Random(5)
    data = chance.randbytes(300_000)
    edited = data[:100_000] + b"inserted" + data[100_100:]
    before, after = chunks.cut(data), chunks.cut(edited)
    assert b"".join(before) == data
    assert b"".join(after) == edited
    assert len(set(after) - set(before)) <= 4
    assert all(len(one) <= chunks.MOST for one in before)
    assert chunks.cut(b"") == []


def test_a_chunk_is_packed_where_that_is_smaller() -> None:
    text, noise = b"ferry " * 1_000, random.Random(6).randbytes(5_000)
    for data, packed in ((text, True), (noise, False), (b"short", False)):
        row = chunks.row(chunks.digest(data), data)
        assert (row.packed, row.size) == (packed, len(data))
        assert chunks.unpacked(row.packed, row.body) == data


def test_passages_hold_every_line_once_with_its_number() -> None:
    lines = [f"line {n} {'x' * (n % 90)}" if n % 7 else "" for n in range(500)]
    found = texts("/a.txt", "\n".join(lines).encode(), 10**6)
    assert [line for _, text in found for line in text.split("\n") if line] == [
        line for line in lines if line
    ]
    assert all(len(text) <= MOST for _, text in found)
    for number, text in found:
        assert lines[number - 1] == text.split("\n")[0]


def test_a_long_line_is_cut_between_words() -> None:
    words = [f"word{n}" for n in range(2_000)]
    found = texts("/a.txt", " ".join(words).encode(), 10**6)
    assert [word for _, text in found for word in text.split()] == words
    assert len(texts("/a.txt", b"x" * 10_000, 10**6)) == -(-10_000 // MOST)


def test_a_heading_begins_a_passage() -> None:
    body = "word " * (ENOUGH // 10)
    found = texts("/a.md", f"# One\n{body}\n# Two\n{body}".encode(), 10**6)
    assert [(line, text.split("\n")[0]) for line, text in found] == [(1, "# One"), (3, "# Two")]


def test_what_a_reader_sees_of_a_page() -> None:
    page = (
        b"<html><head><title>Ferries</title><style>p {}</style></head>\n"
        b"<body><p>At &lt;nine&gt;<script>if (a < b) {}</script></p>\n<p>or ten</body>"
    )
    assert texts("/a.html", page, 10**6) == [(1, "Ferries\nAt <nine>\nor ten")]
    assert texts("/broken.html", b"<p>open <b>never <!-- closed", 10**6)[0][0] == 1


def test_names_are_found_by_their_parts() -> None:
    (found,) = passages("/a.js", b"getUserName(HTTPServer)", 10**6)
    assert found.words.split() == ["getUserName(HTTPServer)", "get", "User", "Name"]


def test_rows_are_found_with_the_names_of_their_columns() -> None:
    rows = "\n".join(f"town{n},{n}" for n in range(400))
    found = passages("/a.csv", f"town,hour\n{rows}".encode(), 10**6)
    assert len(found) > 3
    assert all("town,hour" in one.words for one in found)


def test_what_is_no_text_has_no_passages() -> None:
    assert texts("/a", b"\xff\xfe", 10**6) == []
    assert texts("/a", b"a\0b", 10**6) == []
    assert texts("/a", b"x" * 100, 99) == []
    assert texts("/a", b"\n \n", 10**6) == []
