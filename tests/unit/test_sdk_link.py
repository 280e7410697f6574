"""No kernel, a wrong key, a line that breaks: one sentence each, and reads are asked for again."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import aios
from aios.abi.calls import Aid, Done, Generate, GetAid, SendMessage, Sent, ToolReturn
from aios.abi.messages import Message
from aios.errors import (
    AiosError,
    ConnectionLost,
    NotRunning,
    SetupError,
    Stopping,
    Unauthenticated,
)
from aios.sdk import address
from aios.sdk.address import Address
from aios.sdk.link import Link

AID = b'{"aid":7}'


class Restart(NamedTuple):
    """The kernel dies and is started again; said is what still came of the answer."""

    said: bytes = b""


class FrailServer:
    """Answers requests with what is in ``answers``; None hangs up without a word.

    Restart hangs up as well, and from then on the kernel is another.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: list[bytes | Restart | None] = []
        self.boot = b"first"
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"GET /healthz "):
                    writer.write(ok(b'{"ok":true,"boot":"%s"}' % self.boot))
                    continue
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                self.requests.append(await reader.readexactly(length))
                answer = self.answers.pop(0)
                if isinstance(answer, Restart):
                    self.boot, answer = b"second", answer.said
                    if answer:
                        writer.write(answer)
                    break
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.close()


def ok(body: bytes, kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (
        kind,
        len(body),
        body,
    )


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FrailServer]:
    frail = FrailServer(tmp_path / "s")
    async with await asyncio.start_unix_server(frail.serve, frail.path):
        yield frail


@pytest.fixture
async def link(server: FrailServer) -> AsyncIterator[Link]:
    line = Link(Address(f"unix:{server.path}", "k", "here"))
    yield line
    await line.close()


async def test_a_lost_read_is_asked_for_again(server: FrailServer, link: Link) -> None:
    server.answers = [ok(AID), None, ok(AID)]
    assert await link.trap(GetAid(), Aid, "k") == Aid(7)
    assert await link.trap(GetAid(), Aid, "k") == Aid(7)
    assert len(server.requests) == 3


async def test_a_lost_effect_is_not_repeated(server: FrailServer, link: Link) -> None:
    server.answers = [ok(AID), None]
    await link.trap(GetAid(), Aid, "k")
    with pytest.raises(ConnectionLost, match="in the middle of a call"):
        await link.trap(SendMessage(to=1, body=1), Sent, "k")
    assert len(server.requests) == 2


# --- a kernel that is started again ---------------------------------------------------------------

SEND = SendMessage(to=1, body=1, place="3")
SENT = ok(b'{"id":"m1"}')


async def test_a_replayed_call_is_made_again_in_another_kernel(
    server: FrailServer, link: Link
) -> None:
    server.answers = [Restart(), SENT]
    assert await link.trap(SEND, Sent, "k", is_replayed=True) == Sent("m1")
    assert len(server.requests) == 2
    assert server.requests[0] == server.requests[1]


async def test_but_not_in_the_one_that_may_have_made_it(server: FrailServer, link: Link) -> None:
    server.answers = [None]
    with pytest.raises(ConnectionLost, match="in the middle of a call"):
        await link.trap(SEND, Sent, "k", is_replayed=True)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("call", "is_replayed"),
    [(SEND, False), (SendMessage(to=1, body=1), True)],
    ids=["who", "where"],
)
async def test_nor_one_that_the_next_kernel_does_not_know_again(
    server: FrailServer, link: Link, call: SendMessage, is_replayed: bool
) -> None:
    server.answers = [ok(AID), Restart()]
    await link.trap(GetAid(), Aid, "k")
    with pytest.raises(ConnectionLost):
        await link.trap(call, Sent, "k", is_replayed=is_replayed)
    assert len(server.requests) == 2


async def test_a_kernel_that_says_that_it_stops_is_waited_for(
    server: FrailServer, link: Link
) -> None:
    said = b'{"error":{"code":"stopping","message":"the daemon is stopping."}}'
    refusal = b"HTTP/1.1 503 Busy\r\nContent-Length: %d\r\n\r\n%s" % (len(said), said)
    server.answers = [Restart(refusal), SENT, Restart(refusal)]
    assert await link.trap(SEND, Sent, "k", is_replayed=True) == Sent("m1")
    with pytest.raises(Stopping, match="the daemon is stopping"):
        await link.trap(SEND, Sent, "k")
    assert len(server.requests) == 3


async def test_what_a_program_says_of_its_tools_is_said_again(
    server: FrailServer, link: Link
) -> None:
    server.answers = [Restart(), ok(b"{}"), Restart(), ok(b"{}")]
    for _ in range(2):
        server.boot = b"first"
        again = Link(link.address)
        await again.trap(ToolReturn(id="c1", content="x"), Done, "k", is_replayed=True)
        await again.close()
    assert len(server.requests) == 4


async def test_two_restarts_in_one_call(server: FrailServer, link: Link) -> None:
    server.answers = [Restart(), Restart(), SENT]
    calling = asyncio.ensure_future(link.trap(SEND, Sent, "k", is_replayed=True))
    while len(server.requests) < 2:  # noqa: ASYNC110 (another task)
        await asyncio.sleep(0)
        if server.boot == b"second" and len(server.requests) == 1:
            server.boot = b"between"
    assert await calling == Sent("m1")


def delta(text: str) -> bytes:
    return b"event: delta\ndata: %s\n\n" % json.dumps({"text": text}).encode()


def streamed(body: bytes) -> bytes:
    """The head of a stream, and what has come of it so far: not its end."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    return b"%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (head, len(body), body)


GENERATION = {
    "call": "c1",
    "model": "m",
    "message": {"role": "assistant", "content": "one two three"},
    "finish_reason": "stop",
    "usage": {},
}
REPLY = b"event: reply\ndata: %s\n\n" % json.dumps(GENERATION).encode()


async def test_a_stream_goes_on_where_it_was(server: FrailServer, link: Link) -> None:
    whole = streamed(delta("on") + delta("e two th") + delta("ree") + REPLY)
    server.answers = [Restart(streamed(delta("one ") + delta("tw"))), Restart(whole)]
    call = Generate(messages=(Message("user", "count"),), place="0")
    parts = [part async for part in link.stream(call, "k", is_replayed=True)]
    assert [part.text for part in parts[:-1]] == ["one ", "tw", "o th", "ree"]  # type: ignore[union-attr]
    assert parts[-1].message.content == "one two three"  # type: ignore[union-attr]


async def test_a_stream_that_could_not_be_sent_is_sent_later(tmp_path: Path) -> None:
    frail = FrailServer(tmp_path / "s")
    call = Generate(messages=(Message("user", "count"),))

    async def ask() -> str:
        parts = [part async for part in line.stream(call, "k")]
        return str(parts[-1].message.content)  # type: ignore[union-attr]

    line = Link(Address(f"unix:{frail.path}", "k", "here"))
    with pytest.raises(NotRunning):  # nobody has ever answered here
        await ask()
    frail.answers = [ok(AID)]
    async with await asyncio.start_unix_server(frail.serve, frail.path):
        await line.trap(GetAid(), Aid, "k")
        frail.answers = [None]
        with pytest.raises(ConnectionLost):
            await ask()
    asking = asyncio.ensure_future(ask())
    await asyncio.sleep(0)
    frail.answers = [streamed(REPLY)]
    async with await asyncio.start_unix_server(frail.serve, frail.path):
        assert await asking == "one two three"
        await line.close()


async def test_following_events_goes_on_after_the_last_one(server: FrailServer) -> None:
    """An event's number is where the next kernel is asked to go on."""
    asked: list[bytes] = []
    first = streamed(b'event: priority_changed\ndata: {"event":"priority_changed","seq":7,'
                     b'"at":1.0,"pid":2,"priority":5}\n\n')  # fmt: skip
    answers = [(b"first", first), (b"second", first.replace(b'"seq":7', b'"seq":8'))]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0]
        if line.startswith(b"GET /healthz "):
            boot = answers[min(len(asked), 1)][0]
            writer.write(ok(b'{"ok":true,"boot":"%s"}' % boot))
        else:
            asked.append(line)
            writer.write(answers[len(asked) - 1][1])
        writer.close()

    path = server.path.with_name("e")
    async with await asyncio.start_unix_server(serve, path):
        link = Link(Address(f"unix:{path}", "k", "here"))
        events = link.events("k", after=3)
        assert [(await anext(events)).seq, (await anext(events)).seq] == [7, 8]
        await events.aclose()
        await link.close()
    assert [b"after=3" in asked[0], b"after=7" in asked[1]] == [True, True]


async def test_a_stream_that_breaks_off_is_an_error(server: FrailServer, link: Link) -> None:
    server.answers = [ok(b'event: delta\ndata: {"text":"a"}\n\n', b"text/event-stream")]
    parts = link.stream(GetAid(), "k")
    assert (await anext(parts)).text == "a"  # type: ignore[union-attr]
    with pytest.raises(ConnectionLost, match="before its last event"):
        await anext(parts)


async def test_an_answer_that_is_not_a_kernels(server: FrailServer, link: Link) -> None:
    server.answers = [b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\nsorry"]
    with pytest.raises(AiosError, match="answered 502 without saying why"):
        await link.trap(GetAid(), Aid, "k")


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="start one with `aios up`"):
        async with aios.connect(f"unix:{tmp_path / 'nothing'}", "k"):
            pass


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("AIOS_HOME", str(tmp_path))
    monkeypatch.delenv("AIOS_URL", raising=False)
    monkeypatch.delenv("AIOS_KEY", raising=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "data" / "keys").mkdir(parents=True)
    return tmp_path


def test_without_a_daemon(home: Path) -> None:
    with pytest.raises(NotRunning, match=f"no kernel is running in {home}/run"):
        address.find()


def test_the_socket_is_preferred_to_the_port(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ann")
    (home / "data" / "keys" / "ann").write_text("secret\n")
    told = {"pid": os.getpid(), "url": "http://127.0.0.1:1", "socket": str(home / "run" / "s")}
    (home / "run" / "daemon.json").write_text(json.dumps(told))
    assert address.find() == Address("http://127.0.0.1:1", "secret", str(home / "run"))
    (home / "run" / "s").touch()
    assert address.find().url == f"unix:{home / 'run' / 's'}"


def test_the_environment_of_a_program_wins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_URL", "unix:/there")
    monkeypatch.setenv("AIOS_KEY", "mine")
    assert address.find() == Address("unix:/there", "mine", "unix:/there")


def test_no_key_and_no_address(home: Path) -> None:
    with pytest.raises(Unauthenticated, match="set AIOS_KEY"):
        address.find("http://127.0.0.1:1")
    with pytest.raises(SetupError, match="'localhost' is no address"):
        address.find("localhost", "k")
