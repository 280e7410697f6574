"""The kernel over servers that die, come back, or do not want us: configured as users do it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from aios import boot
from aios.abi import calls as abi
from aios.abi import events as ev
from aios.abi.calls import CoreSpec
from aios.abi.messages import Sampling
from aios.config import Config, Paths, Scheduler
from aios.errors import AiosError, CoreFailed, CoreRefused
from aios.kernel.kernel import Kernel
from aios.testing import Fault, FaultyServer, settle, user

TEXT = "Once upon a time a robot learned to paint and everybody came to look at it."
WORDS = len(TEXT.split())
CALLS = 20


@asynccontextmanager
async def kernel(tmp_path: Path, **cores: CoreSpec) -> AsyncIterator[Kernel]:
    paths = Paths(*(tmp_path / name for name in "cdxr"), Paths.find().models)
    config = Config(cores=cores, scheduler=Scheduler(outage_s=20.0))
    async with boot.machine(config, paths) as made:
        yield made
        assert await made.check() == []


def box(server: FaultyServer, **fields: object) -> CoreSpec:
    return CoreSpec(url=server.url, model="scripted", classes=("crowd",), **fields)  # type: ignore[arg-type]


async def ask(kernel: Kernel, model: str = "crowd") -> abi.Generation:
    login = kernel.identify(kernel.ensure_user_key(kernel.user, renew=True) or "")
    call = abi.Generate(
        messages=user("Tell."), model=model, context=None, sampling=Sampling(max_tokens=40)
    )
    reply = await kernel.trap(login, call)
    assert isinstance(reply, abi.Generation)
    return reply


async def moves(kernel: Kernel) -> list[ev.CallMoved]:
    login = kernel.identify(kernel.ensure_user_key(kernel.user, renew=True) or "")
    return [event async for event in kernel.events(login) if isinstance(event, ev.CallMoved)]


async def test_a_server_dies_with_twenty_calls_on_it_and_all_finish_elsewhere(
    tmp_path: Path,
) -> None:
    async with FaultyServer([TEXT], token_s=0.005) as one, FaultyServer([TEXT]) as other:
        cores = {"one": box(one, slots=10), "other": box(other, slots=4)}
        async with kernel(tmp_path, **cores) as machine:
            await machine.scheduler("one")
            asked = [asyncio.ensure_future(ask(machine, "one, other")) for _ in range(CALLS)]
            async with asyncio.timeout(20):
                while one.tokens < 40:
                    await settle(1)
            whole = [task.result() for task in asked if task.done()]
            one.kill()
            made = await asyncio.gather(*asked)
            assert [reply.message.content for reply in made] == [TEXT] * CALLS
            assert {reply.model for reply in made} <= {"one", "other"}
            moved = await moves(machine)
            assert len(moved) == len({move.call for move in moved})  # one event for each
            assert {(move.before, move.core) for move in moved} == {("one", "other")}
            assert len(moved) == sum(reply.model == "other" for reply in made)
            # what had arrived whole is not asked for again
            assert other.requests == len(moved) <= CALLS - len(whole)
            # what the broken streams had made is spent, and not made again
            assert sum(reply.usage.completion_tokens for reply in made) == CALLS * WORDS


async def test_without_another_they_wait_until_the_server_is_back(tmp_path: Path) -> None:
    async with FaultyServer([TEXT]) as server:
        server.faults += [Fault(then="die", after=3)] * 5
        async with kernel(tmp_path, one=box(server)) as machine:
            made = await asyncio.gather(*(ask(machine, "one") for _ in range(CALLS)))
            assert [reply.message.content for reply in made] == [TEXT] * CALLS
            assert await moves(machine) == []
            assert server.requests <= CALLS + 2 * 5  # not in a storm


async def test_a_wrong_key_is_no_reason_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "wrong-and-secret")
    async with FaultyServer([TEXT], key="right") as server:
        spec = box(server, key_env="THE_KEY")
        async with kernel(tmp_path, one=spec) as machine:
            with pytest.raises(CoreRefused, match="refused the key") as refused:
                await ask(machine, "one")
            assert "secret" not in str(refused.value)
            monkeypatch.delenv("THE_KEY")
            with pytest.raises(CoreRefused, match="THE_KEY"):
                await ask(machine, "one")
            assert server.requests == 0


async def test_an_answer_that_has_begun_is_not_begun_again_by_one_that_cannot_go_on(
    tmp_path: Path,
) -> None:
    async with (
        FaultyServer([TEXT], kind="unknown") as one,
        FaultyServer([TEXT], kind="unknown") as other,
    ):
        one.faults.append(Fault(then="die", after=3))
        async with kernel(tmp_path, one=box(one), other=box(other)) as machine:
            await machine.scheduler("one")
            await machine.scheduler("other")
            with pytest.raises(CoreFailed):
                await ask(machine, "one, other")
            assert other.requests == 0
            assert (await ask(machine, "one, other")).message.content == TEXT


async def test_a_parked_provider_is_in_the_trace_and_others_go_on(tmp_path: Path) -> None:
    async with FaultyServer([TEXT]) as one, FaultyServer([TEXT]) as other:
        one.faults.append(Fault(status=429, headers={"retry-after-ms": "200"}))
        async with kernel(tmp_path, one=box(one), other=box(other)) as machine:
            parked = asyncio.ensure_future(ask(machine, "one"))
            assert (await ask(machine, "other")).message.content == TEXT
            assert (await parked).message.content == TEXT
            login = machine.identify(machine.ensure_user_key(machine.user, renew=True) or "")
            seen = [e async for e in machine.events(login) if isinstance(e, ev.GateChanged)]
            assert [event.what for event in seen][:1] == ["parked"]
            assert seen[0].told


async def test_a_suspended_process_holds_no_stream(tmp_path: Path) -> None:
    long = " ".join(f"w{number}" for number in range(400))
    async with (
        FaultyServer([long], token_s=0.005) as server,
        kernel(tmp_path, one=box(server, slots=1)) as machine,
    ):
        login = machine.identify(machine.ensure_user_key(machine.user, renew=True) or "")
        spawned = await machine.trap(login, abi.SpawnAgent(program="p"))
        assert isinstance(spawned, abi.Spawned)
        call = abi.Generate(messages=user("Tell."), model="one", context=None)
        asked = asyncio.ensure_future(machine.trap(spawned.aid, call))
        async with asyncio.timeout(20):
            while server.tokens < 20:
                await settle(1)
            await machine.trap(login, abi.SuspendAgent(aid=spawned.aid))
            await server.quiet()  # its stream is closed
        assert not asked.done()
        await machine.trap(login, abi.ResumeAgent(aid=spawned.aid))
        reply = await asked
        assert isinstance(reply, abi.Generation)
        assert reply.message.content == long


async def test_cores_are_added_and_removed_while_it_runs(tmp_path: Path) -> None:
    async with FaultyServer([TEXT]) as server, kernel(tmp_path) as machine:
        login = machine.identify(machine.ensure_user_key(machine.user, renew=True) or "")
        await machine.trap(login, abi.CoreAdd(name="late", spec=box(server)))
        assert (await ask(machine, "crowd")).model == "late"
        with pytest.raises(AiosError, match="already"):
            await machine.trap(login, abi.CoreAdd(name="late", spec=box(server)))
        bad = msgspec.structs.replace(box(server), url="nonsense")
        with pytest.raises(AiosError, match="'nonsense'"):
            await machine.trap(login, abi.CoreAdd(name="bad", spec=bad))
        await machine.trap(login, abi.CoreRemove(name="late"))
        with pytest.raises(AiosError, match="'crowd'"):
            await ask(machine, "crowd")
