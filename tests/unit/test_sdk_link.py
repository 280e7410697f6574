"""No kernel, a wrong key, a line that breaks: one sentence each, and reads are asked for again."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import aios
from aios.abi.calls import Aid, GetAid, SendMessage, Sent
from aios.errors import AiosError, ConnectionLost, NotRunning, SetupError, Unauthenticated
from aios.sdk import address
from aios.sdk.address import Address
from aios.sdk.link import Link

AID = b'{"aid":7}'


class FrailServer:
    """Answers requests with what is in ``answers``; None hangs up without a word."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: list[bytes | None] = []
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                self.requests.append(await reader.readexactly(length))
                answer = self.answers.pop(0)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        except asyncio.IncompleteReadError:
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
