"""The SDK against a real kernel and server, with a core that says what the test wrote."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from served import Served, serving

import aios
from aios.abi.calls import Generate, Limits
from aios.abi.messages import ToolUse
from aios.errors import InvalidCall, Killed, NotFound, Unauthenticated
from aios.sdk import paper
from aios.testing import ScriptedCore


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, core=ScriptedCore()) as found:
        yield found


@pytest.fixture
def core() -> ScriptedCore:
    """The core of ``gated``: it runs a slice when the test says ``step``."""
    return ScriptedCore(gated=True)


@pytest.fixture
async def gated(tmp_path: Path, core: ScriptedCore) -> AsyncIterator[Served]:
    async with serving(tmp_path, core=core) as found:
        yield found


async def _until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 (the kernel is here; it has no event for each state)
            await asyncio.sleep(0)


async def test_generate_keeps_the_conversation_and_says_the_system_prompt_once(
    served: Served,
) -> None:
    async with served.connect(program="talker") as me:
        first = await me.generate("one two", system="Be brief.")
        assert first.text == "You said: one two"
        assert first.usage.completion_tokens == 4
        await me.generate("three", system="Be brief.")
        said = (await me.context()).messages
        assert [(m.role, m.content) for m in said] == [
            ("system", "Be brief."),
            ("user", "one two"),
            ("assistant", "You said: one two"),
            ("user", "three"),
            ("assistant", "You said: three"),
        ]


async def test_a_context_of_none_leaves_no_trace(served: Served) -> None:
    async with served.connect(program="talker") as me:
        await me.generate("one", context=None)
        assert (await me.status()).contexts == ()


async def test_stream(served: Served) -> None:
    async with served.connect(program="talker") as me:
        stream = me.stream("a b c")
        pieces = [piece async for piece in stream]
        assert "".join(pieces) == "You said: a b c"
        assert stream.answer
        assert stream.answer.text == "You said: a b c"
        assert stream.answer.finish_reason == "stop"


async def test_leaving_a_stream_cancels_its_call(gated: Served) -> None:
    async with gated.connect(program="talker") as me:
        process = gated.kernel.processes.get(me.aid)
        async with me.stream("hello") as stream:
            reading = asyncio.ensure_future(anext(aiter(stream)))
            await _until(lambda: process.calls)
            reading.cancel()
            await asyncio.wait([reading])
        await _until(lambda: not process.calls)


async def test_structured_output(served: Served) -> None:
    async with served.connect(program="talker") as me:
        answer = await me.generate("numbers", schema=list[int])
        assert answer.data == [1]


def asking(prompt: Any) -> str:
    """A model that asks for the tool once, then says what came back."""
    last = prompt.messages[-1]
    return f"It is {last.content}." if last.role == "tool" else "unused"


@aios.tool(effect="none")
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@aios.tool(effect="none")
async def fail(a: int) -> int:
    """Always fails."""
    raise ValueError(f"{a} is unlucky")


async def test_tools_are_called_through_the_kernel(tmp_path: Path) -> None:
    core = ScriptedCore(asking)
    async with serving(tmp_path, core=core) as served, served.connect(program="adder") as me:
        answer = await me.generate("add", tools=[add], tool_choice="add")
        assert answer.text == "It is 2."
        assert answer.usage.calls == 2
        names = [call.name for call in await me.transcript()]
        assert names.count("tool_call") == 1
        assert names.count("generate") == 2
        answer = await me.generate("again", tools=[add], tool_choice="add", context=None)
        assert answer.text == "It is 2."


async def test_a_failing_tool_is_an_answer(tmp_path: Path) -> None:
    core = ScriptedCore(asking)
    async with serving(tmp_path, core=core) as served, served.connect(program="adder") as me:
        answer = await me.generate("x", tools=[fail], tool_choice="fail")
        assert answer.text == "It is ValueError: 1 is unlucky."


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (ToolUse("1", "add", '{"a": 1, "b":'), "the arguments are not a JSON object"),
        (ToolUse("1", "add", '{"a": "x", "b": 1}'), "do not fit"),
        (ToolUse("1", "subtract", "{}"), "there is no tool named 'subtract'"),
    ],
)
async def test_mistakes_of_the_model_are_told_to_it(
    use: ToolUse, said: str, served: Served
) -> None:
    async with served.connect(program="adder") as me:
        await me._workshop.offer([add])
        message = await me._workshop.answer(use)
        assert message.role == "tool"
        assert said in message.content


async def test_a_program_is_spawned_waited_for_and_its_result_is_there(
    served: Served, tmp_path: Path
) -> None:
    (tmp_path / "shout.py").write_text(
        "import aios\n\n\n@aios.agent\nasync def shout(me, task):\n"
        "    return (await me.generate(task)).text.upper()\n"
    )
    async with served.connect() as me:
        child = await me.spawn(str(tmp_path / "shout.py"), "hello", cwd=str(tmp_path))
        ended = await child.wait()
        assert (ended.exit_status, ended.result) == (0, "YOU SAID: HELLO")
        assert ended.usage.completion_tokens == 3


async def test_an_agent_that_fails_says_why(served: Served, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "import aios\n\n\n@aios.agent\ndef bad(me, task):\n    raise ValueError('no ' + task)\n"
    )
    async with served.connect() as me:
        child = await me.spawn(str(tmp_path / "bad.py"), "luck")
        ended = await child.wait()
        assert (ended.exit_status, ended.reason) == (1, "ValueError: no luck")


async def test_an_agent_runs_in_our_own_python(served: Served) -> None:
    @aios.agent
    async def asker(me: aios.Me, task: str) -> str:
        moment = await aios.now()
        chance = await aios.random()
        data = await aios.step(json.loads, '{"a": [1]}')
        assert moment > 1e9
        assert 0 <= chance < 1
        assert data == {"a": [1]}
        return (await me.generate(task)).text

    assert await asker.run("hi", url=served.url, key=served.key) == "You said: hi"
    async with served.connect() as me:
        ended = [p for p in await me.processes(all=True) if p.program == "asker"]
        assert [(p.state, p.exit_status, p.result) for p in ended] == [
            ("zombie", 0, "You said: hi")
        ]


async def test_a_plain_function_is_an_agent_too(served: Served) -> None:
    @aios.agent
    def asker(me: Any, task: str) -> str:
        pieces = "".join(me.stream("one two"))
        return f"{me.generate(task).text}; {pieces}; {me.step(len, 'four')}"

    expected = "You said: hi; You said: one two; 4"
    assert await asker.run("hi", url=served.url, key=served.key) == expected


async def test_paths_of_calls_do_not_depend_on_who_is_faster(served: Served) -> None:
    @aios.agent
    async def gatherer(me: aios.Me, task: str) -> str:
        async def part(name: str, turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await me.generate(name, context=None)

        await me.generate("first", context=None)
        await asyncio.gather(part("slow", 20), part("fast", 0))
        return ""

    await gatherer.run("", url=served.url, key=served.key)
    async with served.connect() as me:
        [process] = [p for p in await me.processes(all=True) if p.program == "gatherer"]
        calls = await me.process(process.aid).transcript()
        requests = [call.request for call in calls if call.name == "generate"]
        assert {r["messages"][0]["content"]: r["place"] for r in requests} == {
            "first": "0",
            "slow": "1.part.0/0",
            "fast": "1.part.1/0",
        }


async def test_messages_between_agents(served: Served) -> None:
    async with served.connect(program="left") as left, served.connect(program="right") as right:
        await left.send("right", {"n": 1})
        await left.send(right.aid, [2])
        first = await right.receive()
        second = await right.receive(left)
        assert (first.sender, first.body, second.body) == (left.aid, {"n": 1}, [2])


async def test_suspend_resume_kill(gated: Served) -> None:
    async with gated.connect() as boss, gated.connect(program="worker") as me:
        work = asyncio.ensure_future(me.generate("hello"))
        worker = boss.process(me.aid)
        process = gated.kernel.processes.get(me.aid)
        await _until(lambda: process.calls)
        assert (await worker.suspend()).state == "suspended"
        assert (await worker.resume()).state == "live"
        ended = await worker.kill("enough")
        assert ended.reason == "enough"
        with pytest.raises(Killed):
            await work
        me.ended = True


async def test_snapshot_and_restore(gated: Served, core: ScriptedCore) -> None:
    async with gated.connect(program="teller") as me:
        text = " ".join(f"w{n}" for n in range(60))  # more than one slice long
        work = asyncio.ensure_future(me.generate(text, context=None))
        process = gated.kernel.processes.get(me.aid)
        await _until(lambda: process.calls)
        freezing = asyncio.ensure_future(me.snapshot())
        await _until(lambda: len(process.calls) == 2)
        core.step(8)
        answer = await work
        frozen = await freezing
        again = asyncio.ensure_future(me.restore(frozen.snapshot))
        core.step(8)
        assert (await again).text == answer.text == f"You said: {text}"


async def test_fork_carries_the_conversation_on(served: Served) -> None:
    async with served.connect(program="teller") as me:
        await me.generate("one")
        fork = await me.fork()
        assert fork.aid != me.aid
        await fork.generate("two")
        assert len((await fork.context()).messages) == 4
        assert len((await me.context()).messages) == 2
        await fork.exit("done")


async def test_the_functions_of_the_paper(served: Served) -> None:
    async with served.connect() as me:
        program = paper.initialize_agent("math")
        assert program.name == "math"
        agent = await paper.register_agent(me, "planner", "plan", budget=Limits(tokens=500))
        assert await paper.generate_plan(agent, "cook") == ["text"]
        status = await paper.update_agent_config(agent, priority=5, note="hi")
        assert (status.priority, status.note) == (5, "hi")
        assert await paper.authenticate_agent(agent.key, url=served.url) == agent.aid
        used = await paper.monitor_resource_usage(agent)
        assert used.usage.tokens > 1
        assert used.budget.tokens is not None
        assert used.budget.tokens < 500
        assert agent.aid in [p.aid for p in await paper.list_active_agents(me)]
        assert (await paper.terminate_agent(agent)).aid == agent.aid
        assert agent.aid not in [p.aid for p in await paper.list_active_agents(me)]


async def test_what_the_kernel_refuses_is_raised_as_it_names_it(served: Served) -> None:
    async with served.connect() as me:
        with pytest.raises(NotFound, match="no process 9999"):
            await me.process(9999).status()
        with pytest.raises(NotFound, match="no model"):
            await me.generate("hi", model="nothing")
        with pytest.raises(InvalidCall):
            await me.call(Generate(messages=()))
    with pytest.raises(Unauthenticated):
        async with aios.connect(served.url, "aios-wrong"):
            pass


async def test_plain_python_from_a_thread(served: Served) -> None:
    def work() -> list[str]:
        with aios.connect_sync(served.url, served.key, program="plain") as me:
            me.generate("one")
            child = me.register("helper")
            child.send(me, "hello")
            heard = me.receive(child).body
            child.exit("bye")
            return [me.generate("two").text, heard, me.process(child.aid).wait().result]

    assert await asyncio.to_thread(work) == ["You said: two", "hello", "bye"]


async def test_a_sync_agent_is_called_from_plain_python(served: Served) -> None:
    @aios.agent(name="caller")
    def asker(me: Any, task: str) -> str:
        return str(me.generate(task).text)

    def work() -> str:
        return asker("hi", url=served.url, key=served.key)

    assert await asyncio.to_thread(work) == "You said: hi"
    with pytest.raises(InvalidCall, match=r"await caller\.run"):
        asker("hi")


async def test_ctrl_c_in_plain_python_ends_the_call_and_the_process(served: Served) -> None:
    script = (
        "import aios\n"
        f"with aios.connect_sync({served.url!r}, {served.key!r}, program='waiter') as me:\n"
        "    me.receive()\n"
    )
    python = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stderr=asyncio.subprocess.PIPE
    )

    def waiting() -> bool:
        found = [p for p in served.kernel.processes if p.program == "waiter"]
        return any(call.name == "recv_message" for p in found for call in p.calls.values())

    await _until(waiting)
    python.send_signal(signal.SIGINT)
    _, said = await python.communicate()
    assert said.endswith(b"KeyboardInterrupt\n")
    async with served.connect() as me:
        [ended] = [p for p in await me.processes(all=True) if p.program == "waiter"]
        assert (ended.state, ended.exit_status) == ("zombie", 1)
        assert ended.open_calls == ()


async def test_an_agent_killed_while_it_generates_ends_with_it(
    gated: Served, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(
        "import aios\n\n\n@aios.agent\nasync def slow(me, task):\n    await me.generate(task)\n"
    )
    async with gated.connect() as me:
        child = await me.spawn(str(tmp_path / "slow.py"), "hi")
        process = gated.kernel.processes.get(child.aid)
        await _until(lambda: any(call.name == "generate" for call in process.calls.values()))
        ended = await child.kill("enough")
        assert ended.reason == "enough"
        assert (await child.status()).open_calls == ()
