"""A kernel that starts on the journal of one that was killed: nothing lost, nothing done twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aios.abi import calls as abi
from aios.abi.messages import ToolSpec
from aios.config import Config, Scheduler
from aios.drivers.journal.memory import MemoryJournal
from aios.errors import OutcomeUnknown, ReplayDiverged
from aios.kernel.trace import check_ends
from aios.testing import (
    FakeClock,
    Script,
    ScriptedCore,
    ScriptedPrograms,
    TestKernel,
    echo,
    machine,
    settle,
    user,
)

Life = Callable[["Program"], Awaitable[Any]]


class Program:
    """What a program sees: the door, and its place in its own code."""

    def __init__(self, kernel: TestKernel, pid: int, env: dict[str, str]) -> None:
        self.kernel, self.pid, self.life = kernel, pid, int(env["AIOS_LIFE"])
        self._calls = 0

    async def ask(self, call: Any) -> Any:
        """Make a call at the next path."""
        path, self._calls = str(self._calls), self._calls + 1
        return await self.kernel.trap(self.pid, type(call)(**_fields(call), place=path))

    async def say(self, text: str) -> str:
        reply = await self.ask(abi.Generate(messages=user(text)))
        return str(reply.message.content)


def _fields(call: Any) -> dict[str, Any]:
    return {name: getattr(call, name) for name in call.__struct_fields__ if name != "place"}


class World:
    """A machine that can be killed: each kernel starts on what the one before left on disk."""

    def __init__(
        self, life: Life, *, gated: bool = True, quantum: int = 32, script: Script = echo
    ) -> None:
        self.config = Config(scheduler=Scheduler(quantum=quantum))
        self.life, self.script = life, script
        self.journal = MemoryJournal()
        self.core = ScriptedCore(script, gated=gated)
        self.gated = gated
        self.lives: list[int] = []
        self.programs: Callable[[Any], ScriptedPrograms] = ScriptedPrograms

    @asynccontextmanager
    async def kernel(self) -> AsyncIterator[TestKernel]:
        self.core = ScriptedCore(self.script, gated=self.gated)
        running: list[TestKernel] = []

        async def program(pid: int, env: dict[str, str]) -> int:
            self.lives.append(int(env["AIOS_LIFE"]))
            await self.life(Program(running[0], pid, env))
            return 0

        programs = self.programs({"program": program})
        clock = FakeClock()
        async with machine(
            core=self.core,
            journal=self.journal,
            programs=programs,
            clock=clock,
            config=self.config,
        ) as kernel:
            running.append(kernel)
            self.running = kernel
            await settle()
            yield kernel
            self.journal = self.journal.copy()  # what is on disk when it is killed
        # the rest of that kernel's life is written to the copy that nobody reads


async def spawn(kernel: TestKernel, **options: Any) -> int:
    login = kernel.identify(kernel.user_key)
    call = abi.SpawnAgent(program="p", argv=("program",), **options)
    reply = await kernel.trap(login, call)
    assert isinstance(reply, abi.Spawned)
    await settle(200)
    return reply.aid


async def said(kernel: TestKernel, pid: int) -> list[tuple[str, str]]:
    login = kernel.identify(kernel.user_key)
    report = await kernel.trap(login, abi.GetContext(aid=pid, messages=True))
    return [(message.role, message.content) for message in report.messages]  # type: ignore[attr-defined]


async def healthy(kernel: TestKernel) -> None:
    login = kernel.identify(kernel.user_key)
    events = [event async for event in kernel.events(login)]
    open_now: list[tuple[str, Any]] = [
        ("process", process.pid) for process in kernel.processes if process.state != "zombie"
    ]
    open_now += [("call", id) for p in kernel.processes for id in (*p.calls, *p.pending)]
    tickets = {ticket for s in kernel.schedulers.values() for ticket in s.tickets}
    open_now += [("slice", ticket.call.id) for ticket in tickets if ticket.is_running]
    assert check_ends(events, open_now) == []
    assert await kernel.check() == []


async def three_turns(program: Program) -> None:
    texts = [await program.say(f"turn {turn} of a talk") for turn in range(3)]
    exit = abi.ExitAgent(result=" ".join(texts))
    await program.kernel.trap(program.pid, exit)


async def uninterrupted() -> list[tuple[str, str]]:
    world = World(three_turns, gated=False)
    async with world.kernel() as kernel:
        login = kernel.identify(kernel.user_key)
        gate = await spawn(kernel)
        process = kernel.processes.find(gate)
        await settle(200)
        assert process.exit_status == 0
        calls = await kernel.trap(login, abi.GetTranscript(aid=gate))
        return transcript(calls)


def transcript(calls: Any) -> list[tuple[str, str]]:
    """Role and content of all that was said and answered, as the calls have it."""
    turns = []
    for call in calls.calls:
        if call.name == "generate":
            turns += [(m["role"], m["content"]) for m in call.request["messages"]]
            turns.append((call.reply["message"]["role"], call.reply["message"]["content"]))
    return turns


@pytest.mark.parametrize("slices", range(0, 8))
async def test_an_agent_goes_on_where_its_kernel_died(slices: int) -> None:
    world = World(three_turns)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        for _ in range(slices):
            world.core.step()
            await settle()
    async with world.kernel() as kernel:
        assert await kernel.check() == []
        for _ in range(40):
            world.core.step()
            await settle()
        login = kernel.identify(kernel.user_key)
        status = await kernel.trap(login, abi.GetStatus(aid=pid))
        assert isinstance(status, abi.Status)
        assert status.state == "zombie"
        assert status.exit_status == 0
        assert status.lives == (2 if slices < 3 else 1)
        calls = await kernel.trap(login, abi.GetTranscript(aid=pid))
        assert transcript(calls) == await uninterrupted()
        await healthy(kernel)


async def test_tokens_made_before_the_crash_are_not_paid_for_again() -> None:
    world = World(three_turns)
    async with world.kernel() as kernel:
        pid = await spawn(kernel, budget=abi.Limits(tokens=1000))
        world.core.step()
        await settle()
        spent = kernel.processes.find(pid).left().tokens
        assert spent is not None
        assert spent < 1000
    async with world.kernel() as kernel:
        assert kernel.processes.find(pid).left().tokens == spent


async def test_a_generation_goes_on_with_the_tokens_that_it_had() -> None:
    deltas: list[str] = []

    async def live(program: Program) -> None:
        call = abi.Generate(messages=user("a b c d e f g h"), place="0")
        await program.kernel.trap(program.pid, call, lambda delta: deltas.append(delta.text))

    world = World(live, quantum=2)
    async with world.kernel() as kernel:
        pid = await spawn(kernel, budget=abi.Limits(tokens=1000))
        for _ in range(3):
            world.core.step()
            await settle()
        assert deltas == ["You said:", " a b", " c d"]
    deltas.clear()
    async with world.kernel() as kernel:
        assert deltas == ["You said: a b c d"]  # who asks again is told it all
        world.core.step(2)
        await settle(100)
        assert len(world.core.ran) == 2
        assert deltas[1:] == [" e f", " g h"]
        process = kernel.processes.find(pid)
        assert process.state == "zombie"
        assert (process.usage.prompt_tokens, process.usage.completion_tokens) == (9, 10)
        assert process.left().tokens == 1000 - 9 - 10


class Counter:
    """An effect outside: how often it happened."""

    def __init__(self) -> None:
        self.done = 0


def tooled(counter: Counter, stop_at: str, effect: str = "once") -> Life:
    """A program with one tool, which stops (as if the machine were cut) at a stage of its call."""

    async def live(program: Program) -> None:
        kernel, pid = program.kernel, program.pid
        spec = ToolSpec("count", effect=effect)  # type: ignore[arg-type]
        await program.ask(abi.ToolRegister(tools=(spec,)))
        calling = asyncio.ensure_future(program.ask(abi.ToolCall(name="count")))
        calling.add_done_callback(lambda call: call.cancelled() or call.exception())  # seen
        await settle()
        if program.life == 1 and stop_at == "before it is taken":
            await asyncio.Event().wait()
        if not calling.done():
            serving = asyncio.ensure_future(kernel.trap(pid, abi.ToolNext()))
            await asyncio.wait({calling, serving}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                counter.done += 1
                if program.life == 1 and stop_at == "before it returned":
                    await asyncio.Event().wait()
                taken = serving.result()
                await kernel.trap(pid, abi.ToolReturn(id=taken.id, content=str(counter.done)))
            serving.cancel()
        try:
            answer = (await calling).content
        except OutcomeUnknown:
            answer = "nobody knows"
        await kernel.trap(pid, abi.ExitAgent(result=answer))

    return live


async def test_a_tool_that_nobody_took_runs_once() -> None:
    counter = Counter()
    world = World(tooled(counter, "before it is taken"))
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
    assert counter.done == 0
    async with world.kernel() as kernel:
        await settle(200)
        assert kernel.processes.find(pid).result == "1"
        assert counter.done == 1
        await healthy(kernel)


@pytest.mark.parametrize(
    ("outcome", "done", "result"),
    [("done", 1, "as the log says"), ("retry", 2, "2"), ("fail", 1, "nobody knows")],
)
async def test_an_effect_that_may_have_happened_waits_to_be_settled(
    outcome: Any, done: int, result: str
) -> None:
    counter = Counter()
    world = World(tooled(counter, "before it returned"))
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        assert counter.done == 1
    for _ in range(2):  # a second crash changes nothing
        async with world.kernel() as kernel:
            login = kernel.identify(kernel.user_key)
            status = await kernel.trap(login, abi.GetStatus(aid=pid))
            assert isinstance(status, abi.Status)
            assert status.reasons == ("unknown_outcome",)
            (shown,) = status.open_calls
            call, name, state = shown.split()
            assert (name, state) == ("tool_call", "unknown")
    async with world.kernel() as kernel:
        login = kernel.identify(kernel.user_key)
        await kernel.trap(
            login,
            abi.SettleCall(aid=pid, target=call, outcome=outcome, value="as the log says"),
        )
        await settle(200)
        assert kernel.processes.find(pid).result == result
        assert counter.done == done
        await healthy(kernel)


async def test_an_idempotent_tool_runs_again_by_itself() -> None:
    counter = Counter()
    world = World(tooled(counter, "before it returned", "idempotent"))
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
    async with world.kernel() as kernel:
        await settle(200)
        assert kernel.processes.find(pid).result == "2"


async def test_another_question_at_the_same_place_diverges() -> None:
    errors: list[Exception] = []

    async def live(program: Program) -> None:
        await program.say("the same")
        try:
            await program.say(f"life {program.life}")
        except ReplayDiverged as error:
            errors.append(error)
            await asyncio.Event().wait()  # stopped, as a suspended process's program is
        await program.say("more")

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        for _ in range(2):
            world.core.step()
            await settle()
    async with world.kernel() as kernel:
        process = kernel.processes.find(pid)
        await settle(100)
        assert process.reasons == {"diverged"}
        (error,) = errors
        assert "life 1" in str(error)
        assert "life 2" in str(error)
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.ResumeAgent(aid=pid))  # its program goes on, and was told
        assert process.state == "live"


async def test_a_program_without_paths_is_told_again_by_what_it_asks() -> None:
    asked: list[str] = []

    async def live(program: Program) -> None:
        for text in ("one", "two", "one"):
            call = abi.Generate(messages=user(text), context=None)
            reply = await program.kernel.trap(program.pid, call)
            asked.append(reply.message.content)  # type: ignore[attr-defined]

    world = World(live)
    async with world.kernel() as kernel:
        await spawn(kernel)
        for _ in range(2):
            world.core.step()
            await settle()
        assert len(asked) == 2
    asked.clear()
    async with world.kernel() as kernel:
        await settle()
        assert asked == ["You said: one", "You said: two"]  # without a step of the core
        world.core.step()
        await settle()
        assert len(asked) == 3


async def test_mail_arrives_once_across_a_crash() -> None:
    got: list[Any] = []

    async def live(program: Program) -> None:
        for _ in range(2):
            got.append((await program.ask(abi.RecvMessage())).body)
        await program.say("and then")

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SendMessage(to=pid, body="first", id="m"))
        await settle()
        assert got == ["first"]
        process = kernel.processes.find(pid)
        kernel.processes.suspend(process, "user")
        await kernel.trap(login, abi.SendMessage(to=pid, body="second"))
    got.clear()
    async with world.kernel() as kernel:
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SendMessage(to=pid, body="first", id="m"))  # sent again
        assert got == []
        await kernel.trap(login, abi.ResumeAgent(aid=pid))
        await settle(100)
        assert got == ["first", "second"]
        assert not kernel.processes.find(pid).mailbox


async def test_a_child_that_was_made_is_not_made_again() -> None:
    async def live(program: Program) -> None:
        child = await program.ask(abi.SpawnAgent(program="child", task="t"))
        await program.ask(abi.SendMessage(to=child.aid, body="hello"))
        await program.say("wait here")

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        children = list(kernel.processes.find(pid).children)
    async with world.kernel() as kernel:
        await settle(100)
        assert list(kernel.processes.find(pid).children) == children
        assert len(kernel.processes.find(children[0]).mailbox) == 1


async def test_a_program_that_crashes_replays_in_the_same_kernel() -> None:
    asked: list[tuple[int, str]] = []

    async def live(program: Program) -> None:
        asked.append((program.life, await program.say("once is enough")))
        if program.life == 1:
            raise RuntimeError("a bug")
        await program.say("more")

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel, restart="on-crash")
        world.core.step()
        await settle(100)
        assert [life for life, _ in asked] == [1, 2]  # one step of the core was enough
        assert asked[0][1] == asked[1][1]
        assert kernel.processes.find(pid).lives == 2


async def test_a_fork_at_a_call_replays_to_there_and_goes_its_own_way() -> None:
    world = World(three_turns)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        for _ in range(2):
            world.core.step()
            await settle()
        login = kernel.identify(kernel.user_key)
        calls = await kernel.trap(login, abi.GetTranscript(aid=pid, names=("generate",)))
        first = calls.calls[0].id  # type: ignore[attr-defined]
        forked = await kernel.trap(login, abi.ForkAgent(aid=pid, at=first))
        assert isinstance(forked, abi.Spawned)
        await settle(100)
        assert await said(kernel, forked.aid) == (await said(kernel, pid))[:2]
        for _ in range(20):
            world.core.step()
            await settle()
        ends = [kernel.processes.find(each) for each in (pid, forked.aid)]
        assert [end.exit_status for end in ends] == [0, 0]
        assert ends[0].result == ends[1].result
        await healthy(kernel)


async def test_a_rollback_takes_the_process_back_and_names_what_it_cannot_undo() -> None:
    async def live(program: Program) -> None:
        await program.say("before")
        await program.ask(abi.SnapshotAgent(label="here"))
        await program.say("after")
        await program.ask(abi.SendMessage(to=program.pid, body="to myself"))
        await program.say("wait")

    world = World(live)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        for _ in range(2):
            world.core.step()
            await settle()
        login = kernel.identify(kernel.user_key)
        listed = await kernel.trap(login, abi.ListSnapshots(aid=pid))
        (mark,) = listed.snapshots  # type: ignore[attr-defined]
        assert mark.label == "here"
        assert len(await said(kernel, pid)) == 4
        back = await kernel.trap(login, abi.RollbackAgent(aid=pid, snapshot=mark.snapshot))
        assert [effect.name for effect in back.effects] == ["send_message"]  # type: ignore[attr-defined]
        await settle(100)
        assert len(await said(kernel, pid)) == 2
        assert kernel.processes.find(pid).lives == 2
        world.core.step()
        await settle(100)
        assert len(await said(kernel, pid)) == 4
        await healthy(kernel)


async def idle(program: Program) -> None:
    await program.say("wait here")


async def test_what_had_ended_stays_ended_and_can_be_asked_about() -> None:
    world = World(idle)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.KillAgent(aid=pid, reason="enough"))
    for _ in range(2):
        async with world.kernel() as kernel:
            login = kernel.identify(kernel.user_key)
            status = await kernel.trap(login, abi.GetStatus(aid=pid))
            assert isinstance(status, abi.Status)
            assert (status.state, status.exit_reason) == ("zombie", "enough")
            await healthy(kernel)
    assert world.lives == [1]


async def test_an_agent_in_somebodys_python_may_come_back_with_its_key() -> None:
    world = World(idle)
    async with world.kernel() as kernel:
        login = kernel.identify(kernel.user_key)
        keys = []
        for name in ("back", "lost"):
            spawned = await kernel.trap(login, abi.SpawnAgent(program=name))
            assert isinstance(spawned, abi.Spawned)
            keys.append(str(spawned.key))
            pid = kernel.identify(keys[-1])
            answering = asyncio.ensure_future(
                kernel.trap(pid, abi.Generate(messages=user("hello there"), place="0"))
            )
            answering.add_done_callback(lambda call: call.cancelled() or call.exception())
            await settle()
    async with world.kernel() as kernel:
        clock = kernel.clock
        assert isinstance(clock, FakeClock)
        back, lost = (kernel.identify(key) for key in keys)
        asking = asyncio.ensure_future(
            kernel.trap(back, abi.Generate(messages=user("hello there"), place="0"))
        )
        await settle()
        world.core.step()
        assert (await asking).message.content == "You said: hello there"
        await clock.advance(31)
        assert kernel.processes.find(back).state == "live"
        ended = kernel.processes.find(lost)
        assert ended.state == "zombie"
        assert ended.exit_reason.startswith("lost")
        await healthy(kernel)


async def test_a_suspended_program_starts_again_when_it_goes_on() -> None:
    world = World(idle)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SuspendAgent(aid=pid))
    async with world.kernel() as kernel:
        await settle(100)
        assert world.lives == [1]
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.ResumeAgent(aid=pid))
        await settle(100)
        assert world.lives == [1, 2]
        world.core.step()
        await settle(100)
        assert kernel.processes.find(pid).exit_status == 0


async def test_many_programs_start_a_few_at_a_time_those_with_open_calls_first() -> None:
    async def live(program: Program) -> None:
        if program.pid % 2:
            await program.say("wait here")
        await asyncio.Event().wait()

    world = World(live)
    async with world.kernel() as kernel:
        pids = [await spawn(kernel) for _ in range(10)]
    world.lives.clear()
    async with world.kernel() as kernel:
        clock = kernel.clock
        assert isinstance(clock, FakeClock)
        await settle(200)
        started = {pid for pid in pids if kernel.processes.find(pid).lives == 2}
        odd = {pid for pid in pids if pid % 2}
        assert odd <= started  # they called at once, and made room
        assert len(started) == len(odd) + kernel.config.kernel.restart_concurrency
        await clock.advance(60)
        assert all(kernel.processes.find(pid).lives == 2 for pid in pids)
