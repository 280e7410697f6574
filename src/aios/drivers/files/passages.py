"""A text cut into passages: the parts that are found as a whole, each with its first line.

Text, markdown, code and csv are cut at blank lines, headings, or where they get long; of html only
what a reader sees is left. What is not UTF-8 has no passages. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser

from aios.ports import Passage

FEW = 200  # characters, after which a heading begins the next passage
ENOUGH = 600  # likewise a blank line
MOST = 1_500  # characters of one

HTML = (".html", ".htm", ".xhtml")
CSV = (".csv", ".tsv")
UNSEEN = frozenset({"script", "style", "template"})
HEADING = re.compile(r"#{1,6} |(async )?def |class |func |fn |function ")
CAMEL = re.compile(r"[a-z0-9](?=[A-Z])")
WORD = re.compile(r"\w+")

Line = tuple[int, str]  # its number, from 1


def texts(path: str, data: bytes, limit: int) -> list[tuple[int, str]]:
    """The passages of a file, each with the number of its first line; none if it is no text."""
    if len(data) > limit or b"\0" in data:
        return []
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return []
    name = path.lower()
    lines = _seen(text) if name.endswith(HTML) else enumerate(text.split("\n"), 1)
    return list(_passages(lines, by_line=name.endswith(CSV)))


def passages(path: str, data: bytes, limit: int) -> tuple[Passage, ...]:
    """The same as the index takes them: a csv's rows with the names of its columns."""
    found = texts(path, data, limit)
    head = ""
    if found and path.lower().endswith(CSV):
        head = found[0][1].partition("\n")[0][:MOST]
    return tuple(
        Passage(line, words(text if not place else f"{head}\n{text}"))
        for place, (line, text) in enumerate(found)
    )


def words(text: str) -> str:
    """A text, and the parts of names likeThis."""
    if not CAMEL.search(text):
        return text
    names = [name for name in WORD.findall(text) if CAMEL.search(name)]
    return f"{text}\n{CAMEL.sub(lambda sign: f'{sign[0]} ', ' '.join(names))}"


def _passages(lines: Iterable[Line], *, by_line: bool) -> Iterator[Line]:
    first, size, held = 0, 0, list[str]()
    for number, text in _short(lines):
        enough = FEW if HEADING.match(text) else ENOUGH
        ends = enough == FEW or by_line or not text.strip()
        if held and (size + len(text) > MOST or (ends and size >= enough)):
            yield first, "\n".join(held).strip("\n")
            held, size = [], 0
        if not held:
            if not text.strip():
                continue
            first = number
        held.append(text.rstrip("\r"))
        size += len(text) + 1
    if held:
        yield first, "\n".join(held).strip("\n")


def _short(lines: Iterable[Line]) -> Iterator[Line]:
    """Lines, the long ones cut between words where there are any."""
    for number, text in lines:
        start = 0
        while len(text) - start > MOST:
            end = text.rfind(" ", start + MOST // 2, start + MOST)
            end = start + MOST if end < 0 else end + 1
            yield number, text[start:end]
            start = end
        yield number, text[start:]


class _Page(HTMLParser):
    """What a reader sees of a page, by line."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[Line] = []
        self._hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in UNSEEN:
            self._hidden.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            first = self.getpos()[0]
            self.lines += (
                (number, text)
                for number, text in enumerate(data.split("\n"), first)
                if text.strip()
            )


def _seen(text: str) -> list[Line]:
    page = _Page()
    page.feed(text)
    page.close()
    return page.lines
