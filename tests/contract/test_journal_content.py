"""Content is written once: what is said again, and what is large."""

from __future__ import annotations

import json
import random
from pathlib import Path

import apsw
import pytest
from journals import Disk, call, started

from aios.drivers.journal.content import Content, pack, unpack
from aios.drivers.journal.migrations import migrate
from aios.drivers.journal.rows import Rows
from aios.errors import StoreFailed
from aios.ports import CallEnd, CallFilter, CallRow, ContextRow, Record

WORDS = Path(__file__).read_text().split()


def message(number: int, words: int = 40) -> bytes:
    """What nobody said before."""
    text = " ".join(random.Random(number).choices(WORDS, k=words))
    return json.dumps({"role": "user", "content": f"{number} {text}"}).encode()


def said(number: int, messages: list[bytes], tools: tuple[bytes, ...] = ()) -> CallRow:
    request = b'{"call":"generate","model":"m"}'
    return CallRow(f"c{number}", 1, "generate", float(number), request, tuple(messages), tools)


async def test_a_request_comes_back_whole(disk: Disk) -> None:
    journal = await disk.open()
    messages, tools = [message(1), message(2), message(1)], (b'{"name":"t"}', b'{"name":"u"}')
    bare = CallRow("c3", 1, "generate", 3.0, b"{}", (message(1),))
    await journal.append([said(1, messages, tools), said(2, messages[:1]), bare])
    whole = [json.loads(row.request) for row in journal.load().open_calls]
    asked = [json.loads(part) for part in messages]
    assert whole == [
        {
            "call": "generate",
            "model": "m",
            "messages": asked,
            "tools": [{"name": "t"}, {"name": "u"}],
        },
        {"call": "generate", "model": "m", "messages": asked[:1]},
        {"messages": asked[:1]},
    ]
    assert [json.loads(h.start.request) for h in await journal.calls(1)] == whole
    found = await journal.calls(1, CallFilter(text=asked[1]["content"][:30]))
    assert [history.start.id for history in found] == ["c1"]


async def test_what_is_said_again_is_not_written_again(disk: Disk) -> None:
    journal = await disk.open()
    conversation = [message(n) for n in range(10)]
    for number in range(1, 10):
        await journal.append([said(number, conversation[:number], (b"{}",))])
    other = [*conversation[:5], message(100), *conversation[6:]]
    await journal.append([said(10, other, (b"{}",))])
    rows = (await journal.report()).rows
    assert rows["blobs"] == 10 + 1 + 1  # messages, the other one, the tools
    assert rows["turns"] == 9 + 5  # of the other branch, those from where it leaves the first
    journal = await disk.open()  # remembers nothing
    await journal.append([said(11, conversation[:9]), said(12, other)])
    assert (await journal.report()).rows["turns"] == rows["turns"]
    past = await journal.calls(1)
    assert past[-1].start.request.count(b'"role"') == 10


def size(path: Path) -> int:
    """What is in the file, in bytes, without its free pages."""
    with apsw.Connection(str(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages = connection.pragma("page_count") - connection.pragma("freelist_count")
        return int(pages * connection.pragma("page_size"))


async def test_a_long_conversation_grows_by_what_is_new(file: Disk) -> None:
    journal = await file.open()
    conversation: list[bytes] = []
    sizes, new = [size(file.path)], 0
    for number in range(1, 301):
        question, answer = message(2 * number), message(2 * number + 1)
        conversation.append(question)
        reply = b'{"message":' + answer + b"}"
        place = float(len(conversation))
        turns: list[Record] = [
            ContextRow(1, "main", place - 1, f"c{number}", question),
            ContextRow(1, "main", place, f"c{number}", answer),
        ]
        await journal.append([said(number, conversation), started(number)])
        await journal.append([*turns, CallEnd(f"c{number}", "done", 1.0, reply)])
        conversation.append(answer)
        new += len(question) + 2 * len(answer)  # the reply is kept as it was given
        if number % 100 == 0:
            sizes.append(size(file.path))
    first, second, third = (b - a for a, b in zip(sizes, sizes[1:], strict=False))
    assert max(first, second, third) < 1.25 * min(first, second, third)
    assert sizes[-1] - sizes[0] < 1.6 * new
    (last,) = await journal.calls(1, CallFilter(limit=1))
    assert json.loads(last.start.request)["messages"] == [json.loads(m) for m in conversation[:-1]]


async def test_what_is_large_is_kept_once_and_packed(disk: Disk) -> None:
    journal = await disk.open()
    large = json.dumps({"data": "x y z " * 20_000}).encode()
    before = (await journal.report()).bytes
    for number in range(1, 21):
        await journal.append(
            [call(number, request=large), CallEnd(f"c{number}", "done", 1.0, large)]
        )
    report = await journal.report()
    assert report.rows["blobs"] == 1
    assert report.bytes - before < len(large) / 2
    for history in await journal.calls(1):
        assert history.end is not None
        assert (history.start.request, history.end.reply) == (large, large)


async def test_content_of_an_append_that_failed_is_not_taken_for_kept(disk: Disk) -> None:
    journal = await disk.open()
    await journal.append([started(5), said(1, [message(1)])])
    with pytest.raises(StoreFailed, match="did not take"):
        await journal.append([said(2, [message(1), message(2)]), started(4)])
    await journal.append([said(3, [message(3)]), said(4, [message(1), message(2)])])
    past = {h.start.id: json.loads(h.start.request)["messages"] for h in await journal.calls(1)}
    assert past == {
        "c1": [json.loads(message(1))],
        "c3": [json.loads(message(3))],
        "c4": [json.loads(message(1)), json.loads(message(2))],
    }


def test_what_is_no_longer_remembered_is_found() -> None:
    connection = apsw.Connection(":memory:")
    migrate(connection, None)
    content = Content(connection, known=2)
    conversation = [message(n) for n in range(6)]
    for _ in range(2):
        for length in range(7):
            rows = Rows(connection, content, 0)
            rows.take([said(length + 1, conversation[:length])])
            rows.write()
    assert connection.execute("SELECT count(*) FROM turns").get == 6
    assert connection.execute("SELECT count(*) FROM blobs").get == 6


def test_only_what_gets_smaller_is_packed() -> None:
    assert pack(b"a" * 100) == (0, b"a" * 100)
    noise = random.Random(1).randbytes(5_000)
    assert pack(noise) == (0, noise)
    packed, body = pack(b"a" * 5_000)
    assert packed == 1
    assert len(body) < 50
    assert unpack(packed, body) == b"a" * 5_000
