"""Agents in their caller's own Python, and a kernel that is killed under them and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

import aios
from aios.abi import events as ev
from aios.abi.events import Event
from aios.errors import ConnectionLost
from aios.sdk.connection import Connection

SCRIPT = Path(__file__).parents[1] / "unit" / "scripted_daemon.py"
TEXT = " ".join(f"w{number}" for number in range(60))  # more than one slice long


class Machine:
    """A home in which a kernel on the scripted core is started, killed, and started again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.told = home / "run" / "daemon.json"
        self.daemon: subprocess.Popen[bytes]

    async def start(self) -> None:
        self.told.unlink(missing_ok=True)
        environment = {**os.environ, "AIOS_HOME": str(self.home)}
        self.daemon = subprocess.Popen(  # noqa: ASYNC220 (fork and exec)
            [sys.executable, str(SCRIPT), "--durable"], env=environment, stdout=subprocess.DEVNULL
        )
        while not self.told.exists() and self.daemon.poll() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # another process: there is nothing else to wait on
        assert self.daemon.poll() is None

    def kill(self) -> None:
        self.daemon.kill()
        self.daemon.wait()

    async def restart(self) -> None:
        self.kill()
        await self.start()

    def step(self) -> None:
        """Let the core run one slice."""
        self.daemon.send_signal(signal.SIGUSR1)

    def run_free(self) -> None:
        """Let it run all that will come."""
        self.daemon.send_signal(signal.SIGUSR2)

    def connect(self, **options: object) -> Connection:
        told = json.loads(self.told.read_text())
        [key] = [file for file in (self.home / "data" / "keys").iterdir() if not file.suffix]
        return aios.connect(f"unix:{told['socket']}", key.read_text(), **options)


@pytest.fixture
async def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("h"))  # short: a socket's path has an end
    await made.start()
    yield made
    made.kill()


async def until(events: AsyncGenerator[Event, None], kind: type[Event]) -> Event:
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError(f"the events ended before a {kind.__name__}")


async def test_a_generation_goes_on_in_the_next_kernel(machine: Machine) -> None:
    async with machine.connect(program="teller") as me:
        events = me.events()
        talking = asyncio.ensure_future(me.generate(TEXT))
        await until(events, ev.SliceGranted)
        machine.step()
        ended = await until(events, ev.SliceEnded)
        assert isinstance(ended, ev.SliceEnded)
        assert ended.decoded == 32
        await machine.restart()
        machine.run_free()
        answer = await talking
        resumed = await until(events, ev.CallResumed)
        completed = await until(events, ev.CallCompleted)
        assert resumed.call == completed.call == ended.call  # type: ignore[attr-defined]
        await events.aclose()
        assert answer.text == f"You said: {TEXT}"
        assert answer.usage.completion_tokens == 62
        made = [(call.name, call.state) for call in await me.transcript()]
        assert made.count(("generate", "done")) == 1
        assert [m.content for m in (await me.context()).messages] == [TEXT, answer.text]
        assert (await me.generate("and on")).text == "You said: and on"


async def test_a_stream_says_everything_once(machine: Machine) -> None:
    async with machine.connect(program="teller") as me:
        events = me.events()
        stream = me.stream(TEXT)
        said: list[str] = []

        async def listen() -> None:
            said.extend([piece async for piece in stream])

        listening = asyncio.ensure_future(listen())
        await until(events, ev.SliceGranted)
        machine.step()
        await until(events, ev.SliceEnded)
        await events.aclose()
        await machine.restart()
        machine.run_free()
        await listening
        assert "".join(said) == f"You said: {TEXT}"
        assert stream.answer
        assert stream.answer.text == "".join(said)


async def test_a_tool_that_runs_meanwhile_runs_once(machine: Machine) -> None:
    began, go = asyncio.Event(), asyncio.Event()
    runs: list[int] = []

    @aios.tool
    async def pay(amount: int) -> str:
        """Pay."""
        runs.append(amount)
        began.set()
        await go.wait()
        return f"paid {amount}"

    machine.run_free()
    async with machine.connect(program="payer") as me:
        working = asyncio.ensure_future(me.generate("pay", tools=[pay], tool_choice="pay"))
        await began.wait()
        await machine.restart()
        machine.run_free()
        go.set()
        assert (await working).text == "You said: paid 1"
        again = await me.generate("again", tools=[pay], tool_choice="pay")
        assert again.text == "You said: paid 1"
    assert runs == [1, 1]


async def test_who_waits_for_mail_waits_on(machine: Machine) -> None:
    async with machine.connect(program="waiter") as me:
        waiting = asyncio.ensure_future(me.receive())
        await until(me.events(), ev.CallStarted)
        await machine.restart()
        async with machine.connect() as login:
            await login.send(me.aid, "hello")
        assert (await waiting).body == "hello"


async def test_what_a_user_asks_by_hand_is_not_made_twice(machine: Machine) -> None:
    """A login is many connections at once: the next kernel could not tell whose call it was."""
    async with machine.connect() as login:
        waiting = asyncio.ensure_future(login.receive())
        async for event in login.watch():
            if isinstance(event, ev.CallStarted) and event.name == "recv_message":
                break
        await machine.restart()
        with pytest.raises(ConnectionLost, match="see `aios status`"):
            await waiting
