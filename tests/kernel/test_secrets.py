"""encrypt_data and decrypt_data: the secret is with its owner and in no file."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios.abi import calls as abi
from aios.abi import wire
from aios.drivers.journal.memory import MemoryJournal
from aios.drivers.journal.sqlite import SqliteJournal
from aios.errors import InvalidCall
from aios.testing import ScriptedPrograms, TestKernel, machine, settle

SECRET = b"the launch code is 0000"
TRACES = (SECRET, base64.b64encode(SECRET), SECRET.hex().encode(), b"launch code")


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        yield caplog


def holders(folder: Path) -> list[str]:
    """The files in which the secret can be found."""
    return [
        f"{file.name}: {trace!r}"
        for file in folder.rglob("*")
        if file.is_file()
        for trace in TRACES
        if trace in file.read_bytes()
    ]


async def seal(kernel: TestKernel, pid: int, path: str | None = None) -> str:
    reply = await kernel.trap(pid, abi.EncryptData(data=SECRET, place=path))
    assert isinstance(reply, abi.Sealed)
    return reply.token


async def test_the_secret_is_in_no_file_event_or_error(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    async with machine(journal=SqliteJournal(tmp_path / "journal.db")) as kernel:
        login = kernel.identify(kernel.user_key)
        child = await kernel.trap(login, abi.SpawnAgent(program="keeper"))
        token = await seal(kernel, child.aid)  # type: ignore[attr-defined]
        opened = await kernel.trap(child.aid, abi.DecryptData(token=f" {token}\n"))  # type: ignore[attr-defined]
        assert opened == abi.Opened(SECRET)
        with pytest.raises(InvalidCall) as refused:
            await kernel.trap(child.aid, abi.DecryptData(token=token[:-9]))  # type: ignore[attr-defined]
        said = [wire.encode(event) async for event in kernel.events(login)]
        calls = await kernel.trap(login, abi.GetTranscript(aid=child.aid))  # type: ignore[attr-defined]
        told = b"".join([*said, wire.encode(calls), refused.value.message.encode()])
        assert token.encode() in told  # the token is for keeping; so this looks in the right place
        assert not [trace for trace in TRACES if trace in told]
        assert {"journal.db", "journal.db-wal"} <= set(os.listdir(tmp_path))
        assert holders(tmp_path) == []
    assert holders(tmp_path) == []
    assert token.encode() in (tmp_path / "journal.db").read_bytes()
    assert "launch code" not in logged.text


async def test_a_users_processes_share_a_key() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        child = await kernel.trap(login, abi.SpawnAgent(program="keeper"))
        token = await seal(kernel, child.aid)  # type: ignore[attr-defined]
        assert await kernel.trap(login, abi.DecryptData(token=token)) == abi.Opened(SECRET)


@pytest.mark.parametrize("token", ["", "no token", "gAAAAA", "ünïcode", "gAAAAA" * 1000])
async def test_what_is_no_token_is_one_sentence(token: str) -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        with pytest.raises(InvalidCall, match="give") as refused:
            await kernel.trap(login, abi.DecryptData(token=token))
        assert refused.value.message.endswith(".")


async def test_a_second_life_gets_the_same_token_and_opens_it_again() -> None:
    found: list[tuple[str, bytes]] = []

    async def keeper(pid: int, env: dict[str, str]) -> int:
        kernel = kernels[-1]
        token = await seal(kernel, pid, "0")
        opened = await kernel.trap(pid, abi.DecryptData(token=token, place="1"))
        assert isinstance(opened, abi.Opened)
        found.append((token, opened.data))
        await kernel.trap(pid, abi.RecvMessage(place="2"))  # waits for ever
        return 0

    kernels: list[TestKernel] = []
    journal = MemoryJournal()
    for _ in range(2):
        programs = ScriptedPrograms({"keeper": keeper})
        async with machine(journal=journal, programs=programs) as kernel:
            kernels.append(kernel)
            if len(kernels) == 1:
                login = kernel.identify(kernel.user_key)
                await kernel.trap(login, abi.SpawnAgent(program="keeper", argv=("keeper",)))
            while len(found) < len(kernels):
                await settle(1)
            journal = journal.copy()  # the machine is killed
    first, second = found
    assert first == second
    assert first[1] == SECRET
