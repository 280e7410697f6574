"""Memory's contract: what is written, corrected, deleted and found, on both journals."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, TypeVar

import apsw
import msgspec
import pytest
from journals import Disk

from aios import config
from aios.abi.calls import (
    MemoryHits,
    MemoryRecord,
    MemUpdate,
    MemWrite,
    Remembered,
)
from aios.drivers.memory.sqlite import SqliteMemory
from aios.errors import Conflict, InvalidCall, NotFound, QuotaExceeded, StoreFailed
from aios.ports import MemoryFilter, MemoryView, Record, Stamp
from aios.testing import ScriptedEmbedder

T = TypeVar("T")
ANN = "user:ann"
HERS = MemoryView((ANN,))
MEANT = ("car automobile vehicle", "ship boat ferry")
SMALL = config.Memory(record_bytes=1_000, process_bytes=100, user_bytes=5_000, reserve_bytes=9_000)


class Store:
    """Memory on a journal, whose plans are carried out; it can be closed and opened again."""

    def __init__(self, disk: Disk, embedder: ScriptedEmbedder | None = None) -> None:
        self.disk, self.embedder = disk, embedder
        self.call = 0

    async def open(self, settings: config.Memory = SMALL) -> Store:
        await self.close()
        self.journal = await self.disk.open()
        self.memory = SqliteMemory(self.journal.read, self.journal.append, self.embedder, settings)
        await self.memory.start()
        return self

    async def close(self) -> None:
        if hasattr(self, "memory"):
            await self.memory.close()

    async def do(self, plan: Awaitable[tuple[T, list[Record]]]) -> T:
        reply, records = await plan
        await self.journal.append(records)
        return reply

    def stamp(self, writer: int = 1) -> Stamp:
        self.call += 1
        return Stamp(writer, self.call, 1_000.0 + self.call)

    async def write(self, text: str, owner: str = ANN, writer: int = 1, **said: Any) -> str:
        call = MemWrite(text=text, **said)
        return (await self.do(self.memory.write(owner, call, self.stamp(writer)))).id

    async def update(self, id: str, writer: int = 1, owner: str = ANN, **said: Any) -> str:
        call = MemUpdate(id=id, **said)
        return (await self.do(self.memory.update([owner], call, self.stamp(writer)))).id

    async def rewind(self, pid: int, call: int) -> None:
        await self.journal.append(await self.memory.rewind(pid, call))
        self.memory.recount()

    async def search(
        self, query: str, view: MemoryView = HERS, limit: int = 10, **which: Any
    ) -> MemoryHits:
        return await self.memory.search(view, query, MemoryFilter(**which), limit)

    async def found(self, query: str, view: MemoryView = HERS, **which: Any) -> list[str]:
        return [hit.record.id for hit in (await self.search(query, view, **which)).hits]

    async def texts(self, owner: str = ANN, **which: Any) -> list[str]:
        found = await self.memory.newest(owner, MemoryFilter(**which), 100)
        return [record.text for record in found]

    async def vectors(self) -> int:
        return await self.journal.read(lambda c: c.execute("SELECT count(*) FROM vectors").get)

    async def until_embedded(self) -> None:
        assert self.memory._vectors is not None
        async with asyncio.timeout(10):
            while self.memory._vectors.behind:  # noqa: ASYNC110 (a flag, not an event)
                await asyncio.sleep(0)


@pytest.fixture
async def store(disk: Disk) -> AsyncIterator[Store]:
    store = await Store(disk).open()
    yield store
    await store.close()


@pytest.fixture
async def meaning(disk: Disk) -> AsyncIterator[Store]:
    """With an embedder that knows what means the same as a car and a ship."""
    store = await Store(disk, ScriptedEmbedder(*MEANT)).open()
    yield store
    await store.close()


# --- writing and reading --------------------------------------------------------------------------


async def test_a_record_comes_back_as_it_was_written(store: Store) -> None:
    id = await store.write(
        "Ann's bag is blué\0.", data={"colour": ["blue"]}, tags=("bag", "ann"), source="mail 7",
        time=5.5,
    )  # fmt: skip
    assert id == "m1"
    kept = MemoryRecord(
        "m1", ANN, "Ann's bag is blué\0.", {"colour": ["blue"]}, ("bag", "ann"), "mail 7", 5.5, 1001
    )
    assert await store.memory.find(HERS, "m1") == [kept]
    await store.open()
    assert await store.memory.find(HERS, "m1") == [kept]
    assert await store.write("another") == "m2"


async def test_the_newest_come_first_and_are_narrowed(store: Store) -> None:
    for number in range(6):
        await store.write(f"r{number}", tags=("odd",) if number % 2 else ("even", "x"), time=number)
    assert await store.texts() == ["r5", "r4", "r3", "r2", "r1", "r0"]
    assert await store.texts(tags=("even", "x")) == ["r4", "r2", "r0"]
    assert await store.texts(tags=("even", "odd")) == []
    assert await store.texts(after=2, before=5) == ["r4", "r3", "r2"]
    assert await store.texts("user:bob") == []
    found = await store.memory.newest(ANN, MemoryFilter(), 2)
    assert [record.text for record in found] == ["r5", "r4"]


async def test_a_correction_takes_the_place_and_leaves_the_old_one_as_history(
    store: Store,
) -> None:
    first = await store.write("Ann lives in Paris.", tags=("home",), time=7.0)
    second = await store.update(first, text="Ann lives in Rome.")
    third = await store.update(second, tags=("home", "new"))
    assert await store.texts() == ["Ann lives in Rome."]
    assert await store.found("Paris") == []
    assert await store.found("Rome") == [third]
    now, before, long_before = await store.memory.find(HERS, first, history=True)
    assert [r.id for r in (now, before, long_before)] == [third, second, first]
    assert (now.valid_to, now.tags, now.time) == (None, ("home", "new"), 7.0)
    assert (before.superseded_by, before.valid_to) == (third, now.valid_from)
    assert (long_before.text, long_before.superseded_by) == ("Ann lives in Paris.", second)
    assert await store.texts(history=True) == ["Ann lives in Rome."] * 2 + ["Ann lives in Paris."]
    with pytest.raises(Conflict, match="m1 was corrected by m2 before"):
        await store.update(first, text="Ann lives in Oslo.")


async def test_what_is_deleted_is_gone_with_all_that_it_corrected(store: Store) -> None:
    first = await store.write("the zanzibar plan")
    second = await store.update(first, text="the yokohama plan")
    await store.write("another plan")
    cleared = await store.do(store.memory.clear([ANN], second))
    assert (cleared.count, cleared.bytes) == (2, len("the zanzibar planthe yokohama plan"))
    assert await store.texts(history=True) == ["another plan"]
    assert await store.found("zanzibar yokohama") == []
    for id in (first, second):
        with pytest.raises(NotFound, match=f"no record {id} that you may see"):
            await store.memory.find(HERS, id)
    await store.open()
    assert await store.write("new") == "m4"  # no number is given twice


async def test_clearing_a_scope_leaves_others_alone(store: Store) -> None:
    await store.write("mine one")
    await store.write("mine two")
    await store.write("his", owner="user:bob")
    cleared = await store.do(store.memory.clear_all(ANN))
    assert (cleared.count, cleared.bytes) == (2, 16)
    assert (await store.texts(), await store.texts("user:bob")) == ([], ["his"])
    assert (await store.memory.size(ANN), await store.memory.size("user:bob")) == (0, 3)


async def test_the_words_of_what_is_deleted_are_nowhere_in_the_file(file: Disk) -> None:
    store = await Store(file, ScriptedEmbedder(*MEANT)).open()
    kept = await store.write("an ordinary sentence about gardens")
    secret = await store.write("the combination is xylophonequartz " + "xylophonequartz " * 50)
    await store.write("it must be changed on Monday")  # its vector has the secret's words in it
    corrected = await store.update(secret, text="xylophonequartz is over")
    await store.until_embedded()
    assert await store.vectors() == 3
    await store.do(store.memory.clear([ANN], corrected))
    await store.until_embedded()
    await store.close()
    await file.close()
    assert b"xylophonequartz" not in file.path.read_bytes()
    connection = apsw.Connection(str(file.path))
    connection.execute(
        "INSERT INTO memory_words (memory_words, rank) VALUES ('integrity-check', 1)"
    )
    terms = {term for (term,) in connection.execute("SELECT term FROM memory_terms")}
    assert "ordinari" in terms
    assert not any(term.startswith("xylophone") for term in terms)
    assert kept == "m1"


# --- searching ------------------------------------------------------------------------------------


async def test_a_search_in_an_empty_store_finds_nothing(store: Store) -> None:
    assert await store.found("anything at all") == []


async def test_words_are_found_by_their_stems_and_the_reply_says_why(store: Store) -> None:
    await store.write("The trains were leaving the station.")
    await store.write("The station is old.")
    await store.write("Nothing of the kind.")
    found = await store.search("When does the train leave the station?")
    assert [hit.record.id for hit in found.hits] == ["m1", "m2"]
    assert found.hits[0].score == found.hits[0].words == 1.0
    assert found.hits[0].why == "words: train, leave, station"
    assert found.hits[1].why == "words: station"
    assert found.note == "found by words only: there is no embedder here."


@pytest.mark.parametrize(
    "query",
    ['"', "*", "a AND b", "NEAR(x y)", "text : x", "marks : o1", "-x", "^x", "x'y", "\0", "???"],
)
async def test_a_query_is_words_never_syntax(store: Store, query: str) -> None:
    await store.write("plain")
    assert await store.found(query) == []


async def test_a_query_of_stop_words_looks_for_those(store: Store) -> None:
    await store.write("to be or not to be")
    await store.write("a question")
    assert await store.found("to be or not to be") == ["m1"]


async def test_those_with_all_words_come_before_those_with_some(store: Store) -> None:
    await store.write("red lanterns " * 20)
    await store.write("red lanterns over the river")
    await store.write("red paint")
    ids = await store.found("red lanterns river")
    assert ids[0] == "m2"
    assert set(ids) == {"m1", "m2", "m3"}


async def test_a_search_is_narrowed_by_tag_source_and_time(store: Store) -> None:
    for number in range(4):
        await store.write(
            f"tea number {number}",
            tags=("green",) if number % 2 else ("black", "hot"),
            source="shop" if number < 2 else "mail",
            time=float(number),
        )
    assert set(await store.found("tea", tags=("green",))) == {"m2", "m4"}
    assert await store.found("tea", tags=("black", "hot"), source="shop") == ["m1"]
    assert set(await store.found("tea", after=1.0, before=3.0)) == {"m2", "m3"}
    assert await store.found("tea", tags=("shop",)) == []  # a source is no tag


async def test_only_what_is_in_view_is_found(store: Store) -> None:
    await store.write("the plan of ann")
    his = await store.write("the plan of bob", owner="user:bob")
    await store.write("another plan of bob", owner="user:bob")
    assert await store.found("plan") == ["m1"]
    assert set(await store.found("plan", MemoryView((ANN, "user:bob")))) == {"m1", "m2", "m3"}
    one = MemoryView((ANN,), (("user:bob", his),))
    assert set(await store.found("plan", one)) == {"m1", "m2"}
    assert (await store.memory.find(one, his))[0].text == "the plan of bob"
    with pytest.raises(NotFound):
        await store.memory.find(one, "m3")
    with pytest.raises(NotFound):
        await store.memory.find(HERS, his)
    assert await store.found("plan", MemoryView(())) == []
    assert await store.found("plan", MemoryView(()), after=0.0) == []


async def test_what_is_shared_singly_is_shared_as_it_is_now(store: Store) -> None:
    old = await store.write("the old plan", owner="user:bob", tags=("x",))
    new = await store.update(old, owner="user:bob", text="the new plan")
    view = MemoryView((ANN,), (("user:bob", old),))
    assert await store.found("plan", view) == [new]
    assert await store.found("plan", view, tags=("y",)) == []
    for id in (old, new):
        assert (await store.memory.find(view, id))[0].text == "the new plan"
    await store.do(store.memory.clear(["user:bob"], new))
    assert await store.found("plan", view) == []
    with pytest.raises(NotFound):
        await store.memory.find(view, old)


async def test_what_means_the_same_is_found(meaning: Store) -> None:
    await meaning.write("The automobile is in the garage.")
    await meaning.write("The boat lies in the harbour.")
    await meaning.until_embedded()
    found = await meaning.search("my car")
    assert found.hits[0].record.id == "m1"
    assert found.hits[0].meaning == 1.0
    assert found.hits[0].why.startswith("meaning: 0.9")
    assert found.note == ""
    assert await meaning.found("ferry", tags=("x",)) == []
    view = MemoryView((), ((ANN, "m2"),))
    assert await meaning.found("ferry", view) == ["m2"]  # a single one that is shared


async def test_until_there_are_vectors_words_are_found_and_the_note_says_so(
    meaning: Store,
) -> None:
    assert meaning.embedder is not None
    meaning.embedder.trouble = "the embedder is being repaired."
    await meaning.write("The automobile is red.")
    found = await meaning.search("automobile")
    assert [hit.record.id for hit in found.hits] == ["m1"]
    assert found.note == "found by words only: the embedder is being repaired."
    meaning.embedder.trouble = ""
    found = await meaning.search("automobile")
    # how many, and what the trouble was, it says as soon as the background has come to it
    assert re.match(r"records without a vector yet( \(1\))? are found by words only", found.note)
    await meaning.until_embedded()
    assert (await meaning.search("car")).note == ""


async def test_an_embedder_that_comes_later_or_is_changed_embeds_all_again(
    meaning: Store,
) -> None:
    assert meaning.embedder is not None
    meaning.embedder.model = None
    await meaning.write("The automobile is red.")
    assert (await meaning.search("car")).hits == ()
    meaning.embedder.model = "scripted/2"
    assert (await meaning.search("car")).note  # it says so, and wakes up
    await meaning.until_embedded()
    assert await meaning.found("car") == ["m1"]
    meaning.embedder.model = "scripted/3"
    await meaning.search("car")
    await meaning.until_embedded()
    assert await meaning.found("car") == ["m1"]
    models = await meaning.journal.read(
        lambda c: c.execute("SELECT DISTINCT model FROM vectors").fetchall()
    )
    assert models == [("scripted/3",)]


async def test_a_record_is_embedded_with_its_date_its_source_and_the_one_before(
    meaning: Store,
) -> None:
    assert meaning.embedder is not None
    await meaning.write("Which boat?", source="chat", time=0.0)
    await meaning.write("The blue one.", source="chat", time=86_400.0)
    await meaning.write("Unrelated.", source="mail", time=1e18)
    await meaning.until_embedded()
    assert meaning.embedder.embedded == [
        "Which boat?\n01 January 1970 chat",
        "The blue one.\n02 January 1970 chat\nWhich boat?",
        "Unrelated.\nmail",
    ]
    assert "m2" in await meaning.found("ferry")
    await meaning.do(meaning.memory.clear([ANN], "m1"))
    await meaning.until_embedded()
    assert meaning.embedder.embedded[-1] == "The blue one.\n02 January 1970 chat"
    assert await meaning.found("ferry") == []


async def test_vectors_of_what_is_corrected_or_deleted_are_not_found(meaning: Store) -> None:
    for number in range(60):
        await meaning.write(f"car {number}", source=str(number))
    await meaning.until_embedded()
    assert len(await meaning.found("vehicle", limit=100)) == 60
    for number in range(1, 59):
        await meaning.do(meaning.memory.clear([ANN], f"m{number}"))
    await meaning.update("m59", text="nothing of the kind")
    await meaning.until_embedded()
    assert await meaning.found("vehicle", limit=10) == ["m60"]


async def test_the_matrices_are_only_a_cache(disk: Disk) -> None:
    settings = msgspec.structs.replace(SMALL, cache_mb=0)
    store = await Store(disk, ScriptedEmbedder(*MEANT)).open(settings)
    await store.write("a ship")
    await store.write("an automobile", owner="user:bob")
    await store.until_embedded()
    both = MemoryView((ANN, "user:bob"))
    for _ in range(3):
        assert (await store.found("boat", both))[0] == "m1"
        assert (await store.found("vehicle", both))[0] == "m2"
    assert store.memory._matrices is not None
    assert store.memory._matrices.bytes == 0
    await store.close()


# --- quotas ---------------------------------------------------------------------------------------


async def test_a_quota_is_hard_and_says_what_is_left(store: Store) -> None:
    await store.write("x" * 90, owner="pid:7")
    with pytest.raises(QuotaExceeded, match="takes 11 bytes, and pid:7 has 10 left of 100"):
        await store.write("y" * 11, owner="pid:7")
    assert await store.write("y" * 10, owner="pid:7") == "m2"
    assert await store.memory.size("pid:7") == 100
    allotment = await store.do(store.memory.alloc("pid:7", "ann", 150))
    assert (allotment.size, allotment.used) == (150, 100)
    await store.open()
    await store.write("z" * 50, owner="pid:7")
    with pytest.raises(QuotaExceeded):
        await store.update("m1", owner="pid:7", text="w")
    with pytest.raises(Conflict, match="holds 150 bytes, more than the 120"):
        await store.memory.alloc("pid:7", "ann", 120)
    await store.do(store.memory.clear(["pid:7"], "m1"))
    reply, _ = await store.memory.write("pid:7", MemWrite(text="w"), store.stamp())
    assert reply == Remembered("m4", "pid:7", 89)


async def test_quotas_that_are_set_come_out_of_the_users_reserve(store: Store) -> None:
    await store.do(store.memory.alloc("pid:7", "ann", 6_000))
    with pytest.raises(QuotaExceeded, match="of 9,000 for the user ann 3,000 are left"):
        await store.memory.alloc("pid:8", "ann", 3_001)
    await store.do(store.memory.alloc("pid:8", "bob", 9_000))
    await store.do(store.memory.alloc("pid:7", "ann", 9_000))  # the same one, changed
    await store.journal.append(store.memory.ended(7))
    await store.do(store.memory.alloc("pid:9", "ann", 9_000))
    with pytest.raises(InvalidCall, match="a quota of 0 bytes"):
        await store.memory.alloc("pid:7", "ann", 0)


async def test_two_writers_at_once_cannot_both_have_the_last_bytes(store: Store) -> None:
    async def write() -> bool:
        try:
            await store.write("x" * 60, owner="pid:7")
        except QuotaExceeded:
            return False
        return True

    assert sorted(await asyncio.gather(*(write() for _ in range(5)))) == [False] * 4 + [True]
    assert await store.memory.size("pid:7") == 60


async def test_two_corrections_at_once_are_one_and_a_conflict(store: Store) -> None:
    await store.write("first")
    results = await asyncio.gather(
        *(store.update("m1", text=f"by {n}") for n in range(4)), return_exceptions=True
    )
    assert [type(r) for r in results].count(Conflict) == 3
    assert len(await store.texts()) == 1
    assert len(await store.texts(history=True)) == 2


async def test_clearing_and_correcting_at_once_leave_nothing_or_one(store: Store) -> None:
    for _ in range(10):
        id = await store.write("first")
        await asyncio.gather(
            store.update(id, text="second"),
            store.do(store.memory.clear_all(ANN)),
            return_exceptions=True,
        )
        assert await store.texts(history=True) == []


# --- what cannot be kept --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"text": ""}, "the record is empty: give it a text, or data."),
        ({"text": " \n"}, "the record is empty"),
        ({"text": "x" * 1_001}, "the record has 1,001 bytes, and one may have 1,000: write it in"),
        ({"text": "é" * 501}, "the record has 1,002 bytes"),
        ({"text": "x", "data": ["y" * 1_000]}, "the record has 1,005 bytes"),
        ({"text": "half a pair \ud800"}, r"holds '\\ud800', which is no character"),
        ({"text": "x", "tags": ("\udfff",)}, "which is no character"),
        ({"text": "x", "source": "\udfff"}, "which is no character"),
        ({"text": "x", "data": "\udfff"}, "data cannot be kept as JSON"),
        ({"text": "x", "data": object()}, "data cannot be kept as JSON"),
        ({"text": "x", "time": float("nan")}, "time is nan: give seconds since the epoch"),
        ({"text": "x", "time": float("inf")}, "time is inf"),
        ({"text": "x", "tags": ("",)}, "the tag '' has 0 characters: give 1 to 100."),
        ({"text": "x", "tags": ("t" * 101,)}, "has 101 characters"),
        (
            {"text": "x", "tags": tuple("abcdefghijklmnopqrstuvwxyz0123456")},
            "the record has 33 tags",
        ),
        ({"text": "x", "source": "s" * 1_001}, "the source has 1001 characters"),
    ],
)
async def test_what_cannot_be_kept_is_told_in_a_sentence(
    store: Store, said: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidCall, match=sentence):
        await store.write(**said)
    assert await store.texts() == []
    assert await store.memory.size(ANN) == 0


async def test_a_record_of_a_gigabyte_is_refused_before_it_is_looked_at(tmp_path: Path) -> None:
    store = await Store(Disk("memory", tmp_path)).open()
    with pytest.raises(InvalidCall, match="the record has 1,073,741,824 bytes, and one may have"):
        await store.write("x" * 2**30)


async def test_questions_that_mean_nothing(store: Store) -> None:
    for query in ("", " \t"):
        with pytest.raises(InvalidCall, match="the query is empty: say what to look for"):
            await store.search(query)
    with pytest.raises(InvalidCall, match="the query has 1,001 characters"):
        await store.search("x" * 1_001)
    for limit in (0, -1, 1_001):
        with pytest.raises(InvalidCall, match=f"limit is {limit}: give 1 to 1000"):
            await store.search("x", limit=limit)
    with pytest.raises(InvalidCall, match="after is nan"):
        await store.search("x", after=float("nan"))
    for id in ("12", "m", "mx", "m1x", "m" + "9" * 19, "m²"):
        with pytest.raises(InvalidCall, match="is no id of a record"):
            await store.memory.find(HERS, id)


async def test_data_alone_can_be_remembered(store: Store) -> None:
    await store.write("", data={"a": 1})
    assert (await store.memory.find(HERS, "m1"))[0].data == {"a": 1}


# --- when the journal does not take it ------------------------------------------------------------


async def test_what_was_not_kept_is_not_counted_either(tmp_path: Path) -> None:
    store = await Store(Disk("memory", tmp_path)).open()
    await store.write("x" * 40, owner="pid:7")
    store.journal.trouble = "the disk is full: free some space."  # type: ignore[union-attr]
    with pytest.raises(StoreFailed):
        await store.write("y" * 60, owner="pid:7")
    store.journal.trouble = None  # type: ignore[union-attr]
    store.memory.recount()
    await store.write("z" * 60, owner="pid:7")
    assert await store.memory.size("pid:7") == 100


# --- processes: their end, copies, and back in time -----------------------------------------------


async def test_the_short_term_records_of_a_process_end_with_it(store: Store) -> None:
    await store.write("short", owner="pid:7", writer=7)
    await store.write("long", writer=7)
    await store.journal.append(store.memory.ended(7))
    assert (await store.texts("pid:7"), await store.texts()) == ([], ["long"])


async def test_a_copy_is_as_things_were_after_a_call_and_keeps_the_ids(meaning: Store) -> None:
    first = await meaning.write("a boat", owner="pid:7")  # call 1
    await meaning.update(first, owner="pid:7", text="a car")  # call 2
    await meaning.write("later", owner="pid:7")  # call 3
    await meaning.until_embedded()
    for to, upto, texts in ((8, 1, ["a boat"]), (9, 2, ["a car"]), (10, None, ["later", "a car"])):
        await meaning.journal.append(await meaning.memory.copy(7, to, upto))
        assert await meaning.texts(f"pid:{to}") == texts
        assert await meaning.memory.size(f"pid:{to}") == await meaning.journal.read(
            lambda c, to=to: (
                c.execute("SELECT sum(bytes) FROM memories WHERE owner = ?", (f"pid:{to}",)).get
            )
        )
    view = MemoryView(("pid:9",))
    assert [r.text for r in await meaning.memory.find(view, first, True)] == ["a car", "a boat"]
    await meaning.until_embedded()
    assert await meaning.found("vehicle", view) == ["m2"]
    assert await meaning.found("ferry", MemoryView(("pid:8",))) == ["m1"]
    again = await meaning.update("m2", owner="pid:9", text="a ferry")
    assert await meaning.texts("pid:7") == ["later", "a car"]
    assert (await meaning.memory.find(view, first))[0].id == again


async def test_back_in_time_a_process_has_what_it_had(store: Store) -> None:
    await store.write("kept", owner="pid:7", writer=7)  # call 1
    first = await store.write("old text", owner="pid:7", writer=7)  # call 2
    await store.write("shared", writer=7)  # call 3
    mark = store.call
    second = await store.update(first, owner="pid:7", writer=7, text="new text")
    await store.update(second, owner="pid:7", writer=7, text="newest text")
    await store.write("never was", owner="pid:7", writer=7)
    await store.write("never was shared", writer=7)
    await store.write("somebody else's", writer=8)
    await store.rewind(7, mark)
    assert await store.texts("pid:7", history=True) == ["old text", "kept"]
    assert await store.texts() == ["somebody else's", "shared"]
    assert await store.found("text", MemoryView(("pid:7",))) == [first]
    assert await store.memory.size("pid:7") == len("keptold text")
    assert (await store.memory.find(MemoryView(("pid:7",)), first))[0].valid_to is None


async def test_back_in_time_what_others_corrected_stays_corrected(store: Store) -> None:
    original = await store.write("the original", writer=8)
    mark = store.call
    wrong = await store.update(original, writer=7, text="what 7 said")
    right = await store.update(wrong, writer=8, text="what 8 made of it")
    await store.rewind(7, mark)
    assert await store.texts(history=True) == ["what 8 made of it", "the original"]
    assert [r.id for r in await store.memory.find(HERS, original, True)] == [right, original]


async def test_back_in_time_what_was_deleted_stays_deleted(store: Store) -> None:
    id = await store.write("gone", owner="pid:7", writer=7)
    mark = store.call
    await store.do(store.memory.clear(["pid:7"], id))
    await store.rewind(7, mark)
    assert await store.texts("pid:7") == []
