"""Memory's search over texts that installed packages ship: recall and speed, words, vectors, both.

A docstring's first line is the query, the rest of it the record that is to be found among all:
``recall_at_10`` is the share of queries that have it among their first ten. ``plain`` is the same
FTS5 index asked for any of the query's words; ``words`` is memory without an embedder, ``vectors``
the nearest by meaning alone, ``hybrid`` memory as it is with one. All go through the journal's
file, one query after another; the times of hybrid and vectors include the query's own embedding.

At 10,000 records all are such docstrings (or as many as are found) and have their vectors. For
100,000 the rest is other texts: docstrings, man pages, documents, at last source code. Embedding
them takes half an hour, so only what words bring among a query's first ten is embedded, and a
sample; each of the others has a mixture of two of the sample for its vector, which keeps the crowd
that vectors must tell apart. ``embedded`` counts them; --full embeds all.
"""

from __future__ import annotations

import ast
import asyncio
import gzip
import random
import re
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from aios import config
from aios.abi.calls import MemWrite
from aios.config import Paths
from aios.drivers import ranking
from aios.drivers.embedder.minilm import MiniLM
from aios.drivers.journal.sqlite import SqliteJournal
from aios.drivers.memory.matrices import Matrices, vector
from aios.drivers.memory.sqlite import SqliteMemory
from aios.drivers.memory.vectors import NEIGHBOUR, Pending, unit
from aios.models import EmbedderStore
from aios.ports import MemoryFilter, MemoryView, Record, Stamp, VectorRow

RECORDS = 10_000
MANY = 100_000
QUERIES = 500
SAMPLE = 1_000  # of the other texts, embedded at random
PIECE = 400  # characters of a record, at most: about 90 tokens
LEAST_WORDS = 4, 10  # of a first line and of a rest that say something
FIRST = 10  # places that count
OWNER = "user:bench"
VIEW = MemoryView((OWNER,))
WHEN = 1_790_000_000.0
TOGETHER = 500  # records in one append
ROOM = config.Memory(user_bytes=1 << 40)

ROFF = re.compile(r"\\f.|\\[&-]|\\\(..")


class Text(Struct):
    source: str
    query: str
    text: str


# --- texts ----------------------------------------------------------------------------------------


def folders() -> list[Path]:
    found = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    return [Path(path) for path in dict.fromkeys(found)]


def files(*endings: str) -> Iterator[tuple[str, Path]]:
    """Files of the standard library and of installed packages, each with the name of its module."""
    for number, folder in enumerate(folders()):
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            foreign = number == 0 and "site-packages" in inside.parts  # another environment's
            if path.suffix in endings and not foreign and "test" not in str(inside):
                yield ".".join(inside.with_suffix("").parts), path


def docstrings() -> Iterator[Text]:
    for module, path in files(".py"):
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):  # a template, or for another Python
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first, _, rest = (ast.get_docstring(node) or "").strip().partition("\n")
                yield Text(module, first.strip(), rest.strip())


def man_pages() -> Iterator[Text]:
    for path in sorted(Path("/usr/share/man").glob("man*/*.gz")):
        roff = gzip.decompress(path.read_bytes()).decode(errors="replace")
        plain = (line for line in roff.splitlines() if not line.startswith((".", "'")))
        yield Text(path.name, "", ROFF.sub("", " ".join(plain)))


def documents(*endings: str) -> Iterator[Text]:
    for module, path in files(*endings):
        yield Text(module, "", path.read_text(errors="replace"))


def pieces(texts: Iterator[Text]) -> Iterator[Text]:
    for one in texts:
        for start in range(0, len(one.text), PIECE):
            piece = one.text[start : start + PIECE].strip()
            if len(piece.split()) >= LEAST_WORDS[1]:
                yield Text(one.source, "", piece)


def corpus() -> tuple[list[Text], list[Text]]:
    """Those with a query, and others, no text twice."""
    asked: list[Text] = []
    left: list[Text] = []
    queries: set[str] = set()
    seen: set[str] = set()
    for one in docstrings():
        text = one.text[:PIECE]
        enough = len(one.query.split()) >= LEAST_WORDS[0] and len(text.split()) >= LEAST_WORDS[1]
        if len(asked) < RECORDS and enough and one.query not in queries and text not in seen:
            asked.append(Text(one.source, one.query, text))
            queries.add(one.query)
            seen.add(text)
        else:
            left.append(Text(one.source, "", f"{one.query}\n{one.text}"))
    others: list[Text] = []
    sources = (iter(left), man_pages(), documents(".rst", ".md", ".txt"), documents(".py", ".pyi"))
    for texts in sources:
        for one in islice(pieces(texts), 20 * MANY):
            if len(others) + len(asked) < MANY and one.text not in seen:
                seen.add(one.text)
                others.append(one)
    return asked, others


# --- records and vectors --------------------------------------------------------------------------


async def write(memory: SqliteMemory, journal: SqliteJournal, texts: Sequence[Text]) -> None:
    for first in range(0, len(texts), TOGETHER):
        records: list[Record] = []
        for one in texts[first : first + TOGETHER]:
            call = MemWrite(text=one.text, source=one.source)
            records += (await memory.write(OWNER, call, Stamp(1, 1, WHEN)))[1]
        await journal.append(records)


def units(texts: Sequence[Text]) -> list[str]:
    """What memory embeds of each: with date, source and the one before of the same source."""
    found = []
    before: Text | None = None
    for one in texts:
        beside = before.text[:NEIGHBOUR] if before and before.source == one.source else None
        found.append(unit(Pending(0, one.text, one.source, WHEN, None, beside)))
        before = one
    return found


async def embedded(embedder: MiniLM, texts: Sequence[str]) -> list[bytes]:
    """In both of its threads at once."""
    found: dict[int, bytes] = {}
    starts = iter(range(0, len(texts), 64))

    async def work(background: bool) -> None:
        for first in starts:
            batch = texts[first : first + 64]
            made = await embedder.embed(batch, background=background)
            found.update(enumerate(made.vectors, first))

    await asyncio.gather(work(False), work(True))
    return [found[number] for number in range(len(texts))]


async def keep(
    journal: SqliteJournal, model: str, numbers: Sequence[int], vectors: Sequence[bytes]
) -> None:
    rows = [
        VectorRow(number, model, None, vector)
        for number, vector in zip(numbers, vectors, strict=True)
    ]
    for first in range(0, len(rows), TOGETHER):
        await journal.append(rows[first : first + TOGETHER])


def mixtures(vectors: Sequence[bytes], count: int) -> list[bytes]:
    """Unit vectors between two of these each, nearer to the first."""
    numbers = np.random.default_rng(1)
    real = np.array([vector(packed) for packed in vectors])
    first, second = numbers.integers(0, len(real), (2, count))
    mixed = real[first] + 0.5 * real[second]
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    return [row.tobytes() for row in mixed.astype("<f4")]


# --- the four ways --------------------------------------------------------------------------------

Search = Callable[[str], Awaitable[list[int]]]


def plain(journal: SqliteJournal) -> Search:
    async def search(query: str) -> list[int]:
        any_word = " OR ".join(ranking.quoted(word) for word in ranking.WORD.findall(query.lower()))
        sql = "SELECT rowid FROM memory_words WHERE memory_words MATCH ? ORDER BY rank LIMIT ?"
        return await journal.read(
            lambda c: [row for (row,) in c.execute(sql, (f"text : ({any_word})", FIRST))]
        )

    return search


def vectors_only(journal: SqliteJournal, embedder: MiniLM) -> Search:
    matrices = Matrices(1 << 30)

    async def search(query: str) -> list[int]:
        wanted = vector((await embedder.embed([query])).vectors[0])
        model = embedder.model or ""

        def nearest(connection: Any) -> list[int]:
            with matrices.lock:
                return list(matrices.nearest(connection, [OWNER], model, wanted, FIRST))

        return await journal.read(nearest)

    return search


def by_memory(memory: SqliteMemory) -> Search:
    async def search(query: str) -> list[int]:
        found = await memory.search(VIEW, query, MemoryFilter(), FIRST)
        return [int(hit.record.id[1:]) for hit in found.hits]

    return search


async def measured(search: Search, asked: Sequence[tuple[int, str]]) -> tuple[float, float]:
    """recall@10, queries a second."""
    await search(asked[0][1])  # what is loaded once is loaded
    began = time.perf_counter()
    found = [number in await search(query) for number, query in asked]
    return sum(found) / len(asked), len(asked) / (time.perf_counter() - began)


# --- the bench ------------------------------------------------------------------------------------


@asynccontextmanager
async def ways(journal: SqliteJournal, embedder: MiniLM) -> AsyncIterator[dict[str, Search]]:
    """All four; every record has its vector by now."""
    without = SqliteMemory(journal.read, journal.append, None, ROOM)
    both = SqliteMemory(journal.read, journal.append, embedder, ROOM)
    await both.start()
    while (await both.search(VIEW, "anything", MemoryFilter(), FIRST)).note:  # noqa: ASYNC110
        await asyncio.sleep(0.1)  # it is looking whether any record has none
    yield {
        "plain": plain(journal),
        "words": by_memory(without),
        "vectors": vectors_only(journal, embedder),
        "hybrid": by_memory(both),
    }
    await both.close()


async def rivals(search: Search, asked: Sequence[tuple[int, str]], above: int) -> set[int]:
    """Numbers above this one that words bring among the first ten of a query."""
    return {number for _, query in asked for number in await search(query) if number > above}


async def compare(folder: Path, full: bool) -> dict[str, Any]:
    store = EmbedderStore(Paths.find().embedder)
    model = store.install().model
    embedder = MiniLM(store.find)
    journal = SqliteJournal(folder / "journal.db")
    memory = SqliteMemory(journal.read, journal.append, None, ROOM)
    texts, others = corpus()
    above = len(texts)
    asked = [(n + 1, texts[n].query) for n in range(0, above, max(1, above // QUERIES))][:QUERIES]
    figures: dict[str, Any] = {"records": [above, above + len(others)], "queries": len(asked)}
    recall: dict[int, dict[str, float]] = {}
    rate: dict[int, dict[str, int]] = {}

    async def measure(size: int) -> None:
        async with ways(journal, embedder) as searches:
            found = {name: await measured(search, asked) for name, search in searches.items()}
        recall[size] = {name: round(one[0], 4) for name, one in found.items()}
        rate[size] = {name: round(one[1]) for name, one in found.items()}

    await write(memory, journal, texts)
    began = time.perf_counter()
    made = await embedded(embedder, units(texts))
    figures["embedded_per_s"] = round(above / (time.perf_counter() - began), 1)
    await keep(journal, model, range(1, above + 1), made)
    await measure(above)

    await write(memory, journal, others)
    all_others = range(above + 1, above + len(others) + 1)
    real = set(all_others)
    if not full:
        sample = random.Random(1).sample(all_others, min(SAMPLE, len(others)))
        real = set(sample) | await rivals(by_memory(memory), asked, above)
    numbers, every = sorted(real), units(others)
    made = await embedded(embedder, [every[number - above - 1] for number in numbers])
    await keep(journal, model, numbers, made)
    mixed = [number for number in all_others if number not in real]
    await keep(journal, model, mixed, mixtures(made, len(mixed)))
    figures["embedded"] = {"of_text": above + len(numbers), "mixtures": len(mixed)}
    await measure(above + len(others))
    await journal.close()
    await embedder.close()
    return {**figures, "recall_at_10": recall, "queries_per_s": rate}


def run(*options: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        figures = asyncio.run(compare(Path(place), full="--full" in options))
    recall = figures["recall_at_10"].values()
    return {
        "name": "search",
        **figures,
        "goal": "recall_at_10 of hybrid at least that of words, of vectors and of plain FTS5",
        "met": all(one["hybrid"] >= max(one.values()) for one in recall),
    }
