"""Spawn, wait, fork, mail, tools, programs."""

from __future__ import annotations

import asyncio

import pytest

from aios.abi import calls as abi
from aios.abi.messages import ToolSpec
from aios.errors import Conflict, InvalidCall, Killed, NotFound, Unauthenticated
from aios.testing import ScriptedPrograms, TestKernel, machine, settle, user


async def child(kernel: TestKernel, **fields: object) -> int:
    login = kernel.identify(kernel.user_key)
    spawned = await kernel.trap(login, abi.SpawnAgent(program="child", **fields))  # type: ignore[arg-type]
    assert isinstance(spawned, abi.Spawned)
    return kernel.identify(str(spawned.key))


async def test_a_program_runs_with_its_own_key_and_its_end_is_told() -> None:
    seen: dict[str, str] = {}

    async def program(pid: int, env: dict[str, str]) -> int:
        seen.update(env)
        assert kernel.identify(env["AIOS_KEY"]) == pid
        await kernel.trap(pid, abi.Generate(messages=user(env["AIOS_TASK"])))
        await kernel.trap(pid, abi.ExitAgent(exit_status=0, result="done"))
        return 0

    programs = ScriptedPrograms({"prog": program})
    async with machine(programs=programs) as kernel:
        kernel.base_url = "http://127.0.0.1:1"
        login = kernel.identify(kernel.user_key)
        spawned = await kernel.trap(
            login, abi.SpawnAgent(program="p", argv=("prog",), task="t", env={"A": "1"})
        )
        assert isinstance(spawned, abi.Spawned)
        assert spawned.key is None
        end = await kernel.trap(login, abi.WaitAgent(aid=spawned.aid))
        assert isinstance(end, abi.Exit)
        assert (end.exit_status, end.result) == (0, "done")
        assert seen["A"] == "1"
        assert seen["OPENAI_BASE_URL"] == "http://127.0.0.1:1/v1"
        assert seen["OPENAI_API_KEY"] == seen["AIOS_KEY"]
        with pytest.raises(NotFound):  # reaped by its parent
            await kernel.trap(login, abi.GetStatus(aid=spawned.aid))
        with pytest.raises(Unauthenticated):
            kernel.identify(seen["AIOS_KEY"])


async def test_a_program_that_is_not_there_or_dies() -> None:
    async def broken(pid: int, env: dict[str, str]) -> int:
        raise RuntimeError("as planned")

    async with machine(programs=ScriptedPrograms({"broken": broken})) as kernel:
        login = kernel.identify(kernel.user_key)
        with pytest.raises(InvalidCall, match="no program 'ghost'"):
            await kernel.trap(login, abi.SpawnAgent(program="g", argv=("ghost",)))
        spawned = await kernel.trap(login, abi.SpawnAgent(program="b", argv=("broken",)))
        assert isinstance(spawned, abi.Spawned)
        end = await kernel.trap(login, abi.WaitAgent(aid=spawned.aid))
        assert isinstance(end, abi.Exit)
        assert (end.exit_status, end.reason) == (1, "exited with status 1")


async def test_a_crashed_program_is_started_again_at_most_three_times() -> None:
    lives = 0

    async def flaky(pid: int, env: dict[str, str]) -> int:
        nonlocal lives
        lives += 1
        return 1

    async with machine(programs=ScriptedPrograms({"flaky": flaky})) as kernel:
        login = kernel.identify(kernel.user_key)
        spawned = await kernel.trap(
            login, abi.SpawnAgent(program="f", argv=("flaky",), restart="on-crash")
        )
        assert isinstance(spawned, abi.Spawned)
        end = await kernel.trap(login, abi.WaitAgent(aid=spawned.aid))
        assert isinstance(end, abi.Exit)
        assert (lives, end.exit_status) == (4, 1)


async def test_a_process_ends_with_the_python_that_runs_it() -> None:
    programs = ScriptedPrograms()
    async with machine(programs=programs) as kernel:
        login = kernel.identify(kernel.user_key)
        pid = await child(kernel, os_pid=4242)
        waiting = asyncio.ensure_future(kernel.trap(pid, abi.RecvMessage()))
        programs.dead.add(4242)
        end = await kernel.trap(login, abi.WaitAgent(aid=pid))
        assert isinstance(end, abi.Exit)
        assert end.reason.startswith("lost")
        with pytest.raises(Killed):
            await waiting


async def test_children_of_an_ended_parent_go_to_the_login() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        parent = await child(kernel)
        spawned = await kernel.trap(parent, abi.SpawnAgent(program="orphan"))
        assert isinstance(spawned, abi.Spawned)
        await kernel.trap(parent, abi.ExitAgent())
        status = await kernel.trap(login, abi.GetStatus(aid=spawned.aid))
        assert isinstance(status, abi.Status)
        assert status.parent == login


async def test_a_fork_has_a_copy_of_the_context() -> None:
    async with machine(script=["first", "second", "third"]) as kernel:
        login = kernel.identify(kernel.user_key)
        pid = await child(kernel)
        await kernel.trap(pid, abi.Generate(messages=user("one")))
        forked = await kernel.trap(login, abi.ForkAgent(aid=pid))
        assert isinstance(forked, abi.Spawned)
        other = kernel.identify(str(forked.key))
        await kernel.trap(pid, abi.Generate(messages=user("two")))
        mine = await kernel.trap(pid, abi.GetContext(messages=True))
        copy = await kernel.trap(other, abi.GetContext(messages=True))
        assert isinstance(mine, abi.ContextReport)
        assert isinstance(copy, abi.ContextReport)
        assert [m.content for m in copy.messages] == ["one", "first"]
        assert [m.content for m in mine.messages] == ["one", "first", "two", "second"]


async def test_mail_arrives_once_in_order_and_is_waited_for() -> None:
    async with machine() as kernel:
        one, two = await child(kernel), await child(kernel)
        waiting = asyncio.ensure_future(kernel.trap(two, abi.RecvMessage()))
        await settle()
        for body, id in (("a", "m1"), ("a", "m1"), ("b", "m2")):
            await kernel.trap(one, abi.SendMessage(to=two, body=body, id=id))
        first = await waiting
        second = await kernel.trap(two, abi.RecvMessage(sender=one))
        assert isinstance(first, abi.Mail)
        assert isinstance(second, abi.Mail)
        assert [(m.body, m.sender) for m in (first, second)] == [("a", one), ("b", one)]
        assert not kernel.processes.find(two).mailbox
        assert kernel.processes.find(two).mail_size == 0


async def test_a_message_to_an_ambiguous_name_is_refused() -> None:
    async with machine() as kernel:
        one = await child(kernel)
        await child(kernel)
        with pytest.raises(Conflict, match="names 2 processes"):
            await kernel.trap(one, abi.SendMessage(to="child", body=1))


ADD = ToolSpec(
    "add",
    "Add two numbers.",
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
    "none",
)


async def test_a_tool_is_open_for_as_long_as_it_runs() -> None:
    async with machine() as kernel:
        pid = await child(kernel)
        await kernel.trap(pid, abi.ToolRegister(tools=(ADD,)))
        calling = asyncio.ensure_future(
            kernel.trap(pid, abi.ToolCall(name="add", arguments={"a": 2, "b": 3}))
        )
        todo = await kernel.trap(pid, abi.ToolNext())
        assert isinstance(todo, abi.ToolInvocation)
        assert (todo.name, todo.arguments) == ("add", {"a": 2, "b": 3})
        assert not calling.done()
        await kernel.trap(pid, abi.ToolReturn(id=todo.id, content="5"))
        assert await calling == abi.ToolAnswer("5")


async def test_wrong_arguments_and_unknown_tools_are_refused() -> None:
    async with machine() as kernel:
        pid = await child(kernel)
        await kernel.trap(pid, abi.ToolRegister(tools=(ADD,)))
        with pytest.raises(InvalidCall, match="'b' is a required property"):
            await kernel.trap(pid, abi.ToolCall(name="add", arguments={"a": 2}))
        with pytest.raises(NotFound, match="no tool named 'sub'"):
            await kernel.trap(pid, abi.ToolCall(name="sub"))
        with pytest.raises(InvalidCall, match="same name"):
            await kernel.trap(pid, abi.ToolRegister(tools=(ADD, ADD)))


async def test_a_running_tool_finishes_while_its_process_is_suspended() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        pid = await child(kernel)
        await kernel.trap(pid, abi.ToolRegister(tools=(ADD,)))
        calling = asyncio.ensure_future(
            kernel.trap(pid, abi.ToolCall(name="add", arguments={"a": 1, "b": 1}))
        )
        todo = await kernel.trap(pid, abi.ToolNext())
        assert isinstance(todo, abi.ToolInvocation)
        await kernel.trap(login, abi.SuspendAgent(aid=pid))
        await kernel.trap(pid, abi.ToolReturn(id=todo.id, content="2"))
        await settle()
        assert not calling.done()  # told on resume
        await kernel.trap(login, abi.ResumeAgent(aid=pid))
        assert await calling == abi.ToolAnswer("2")


async def test_a_kill_reaches_a_running_tool() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        pid = await child(kernel)
        await kernel.trap(pid, abi.ToolRegister(tools=(ADD,)))
        calling = asyncio.ensure_future(
            kernel.trap(pid, abi.ToolCall(name="add", arguments={"a": 1, "b": 1}))
        )
        await kernel.trap(pid, abi.ToolNext())
        await kernel.trap(login, abi.KillAgent(aid=pid))
        with pytest.raises(Killed):
            await calling
        assert await kernel.check() == []


async def test_set_aid_renumbers_a_new_process_with_its_key() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        spawned = await kernel.trap(login, abi.SpawnAgent(program="x"))
        assert isinstance(spawned, abi.Spawned)
        assert await kernel.trap(login, abi.SetAid(aid=77, of=spawned.aid)) == abi.Aid(77)
        assert kernel.identify(str(spawned.key)) == 77
        assert await kernel.trap(77, abi.GetAid()) == abi.Aid(77)
        with pytest.raises(Conflict, match="has run already"):
            await kernel.trap(login, abi.SetAid(aid=78, of=77))


async def test_mail_of_two_senders_may_have_the_same_id() -> None:
    async with machine() as kernel:
        one, two, reader = await child(kernel), await child(kernel), await child(kernel)
        for sender in (one, two, one):  # the last is the first one's, sent again
            await kernel.trap(sender, abi.SendMessage(to=reader, body=sender, id="1"))
        assert [mail.body for _, mail in kernel.processes.find(reader).mailbox] == [one, two]


async def test_mail_is_not_lost_when_a_suspended_receiver_stops_waiting() -> None:
    async with machine() as kernel:
        login, reader = kernel.identify(kernel.user_key), await child(kernel)
        receiving = asyncio.ensure_future(kernel.trap(reader, abi.RecvMessage()))
        await settle()
        await kernel.trap(login, abi.SuspendAgent(aid=reader))
        await kernel.trap(login, abi.SendMessage(to=reader, body="kept"))
        await settle()
        receiving.cancel()
        await asyncio.wait({receiving})
        await kernel.trap(login, abi.ResumeAgent(aid=reader))
        mail = await asyncio.wait_for(kernel.trap(reader, abi.RecvMessage()), 5)
        assert isinstance(mail, abi.Mail)
        assert mail.body == "kept"


async def test_a_kill_ends_the_parent_before_it_can_make_more_children() -> None:
    dying = asyncio.Event()

    async def stubborn(pid: int, env: dict[str, str]) -> int:
        try:
            await asyncio.Event().wait()
        finally:
            await dying.wait()
        return 0

    programs = ScriptedPrograms({"prog": stubborn})
    async with machine(programs=programs) as kernel:
        login, parent = kernel.identify(kernel.user_key), await child(kernel)
        await kernel.trap(parent, abi.SpawnAgent(program="c", argv=("prog",)))
        await settle()
        killing = asyncio.ensure_future(kernel.trap(login, abi.KillAgent(aid=parent)))
        await settle()
        assert not killing.done()
        with pytest.raises(Killed):
            await kernel.trap(parent, abi.SpawnAgent(program="escaped"))
        dying.set()
        await asyncio.wait_for(killing, 5)


async def test_a_program_that_crashed_starts_again_with_a_clean_sheet() -> None:
    lives: list[int] = []

    async def program(pid: int, env: dict[str, str]) -> int:
        lives.append(pid)
        if len(lives) == 1:
            await kernel.trap(pid, abi.ExitAgent(exit_status=3, reason="bad day"))
            return 3
        return 0

    async with machine(programs=ScriptedPrograms({"prog": program})) as kernel:
        login = kernel.identify(kernel.user_key)
        spawned = await kernel.trap(
            login, abi.SpawnAgent(program="p", argv=("prog",), restart="on-crash")
        )
        assert isinstance(spawned, abi.Spawned)
        ended = await asyncio.wait_for(kernel.trap(login, abi.WaitAgent(aid=spawned.aid)), 5)
        assert isinstance(ended, abi.Exit)
        assert (len(lives), ended.exit_status) == (2, 0)


async def test_what_is_forgotten_leaves_no_task_behind() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        await settle()
        before = len(kernel._tasks)
        for _ in range(5):
            spawned = await kernel.trap(login, abi.SpawnAgent(program="p", os_pid=4_000_000))
            assert isinstance(spawned, abi.Spawned)
            await kernel.trap(login, abi.KillAgent(aid=spawned.aid))
            await kernel.trap(login, abi.WaitAgent(aid=spawned.aid))
        await settle()
        assert len(kernel._tasks) == before


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "http://127.0.0.1:9/x.json"}, "refers to"),
        ({"$ref": "#"}, "refers to itself"),
    ],
)
async def test_a_schema_fetches_nothing_and_ends(schema: dict[str, object], words: str) -> None:
    async with machine() as kernel:
        pid = await child(kernel)
        await kernel.trap(pid, abi.ToolRegister(tools=(ToolSpec("f", "", schema),)))
        with pytest.raises(InvalidCall, match=words):
            await kernel.trap(pid, abi.ToolCall(name="f", arguments={"a": 1}))


async def test_numbers_that_no_journal_holds_are_refused() -> None:
    async with machine() as kernel:
        login = kernel.identify(kernel.user_key)
        spawned = await kernel.trap(login, abi.SpawnAgent(program="x"))
        assert isinstance(spawned, abi.Spawned)
        with pytest.raises(Conflict, match="not 1 to"):
            await kernel.trap(login, abi.SetAid(aid=2**63, of=spawned.aid))
        with pytest.raises(InvalidCall, match="exit status"):
            await kernel.trap(spawned.aid, abi.ExitAgent(exit_status=2**63))
        with pytest.raises(InvalidCall, match="no call named 'generat'"):
            await kernel.trap(login, abi.SpawnAgent(program="x", rights=("generat",)))
        await kernel.trap(login, abi.KillAgent(aid=spawned.aid))
        with pytest.raises(Conflict, match="has ended"):
            await kernel.trap(login, abi.ForkAgent(aid=spawned.aid))
