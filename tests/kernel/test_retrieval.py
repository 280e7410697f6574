"""What memory and files know goes into the prompt, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
from test_contexts import ask, child, report, say
from test_recovery import Program, World, spawn

from aios.abi import calls as abi
from aios.abi.messages import Message, Sampling
from aios.errors import InvalidCall, PermissionDenied
from aios.kernel import retrieval
from aios.kernel.retrieval import HEAD, Finding
from aios.ports import Prompt
from aios.testing import ScriptedCore, machine, settle, user

ON = abi.Retrieval()


class Kept:
    """A script that keeps the prompts it is given."""

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []

    def __call__(self, prompt: Prompt) -> str:
        self.prompts.append(prompt)
        return "Very well."

    @property
    def last(self) -> list[tuple[str, str]]:
        return [(message.role, message.content) for message in self.prompts[-1].messages]


async def remember(kernel: Any, pid: int, *texts: str) -> None:
    for text in texts:
        await kernel.trap(pid, abi.MemWrite(text=text, source="diary", time=86400.0))


async def test_what_is_found_stands_before_the_question_in_the_prompt_only() -> None:
    script = Kept()
    async with machine(core=ScriptedCore(script)) as kernel:
        pid = await child(kernel, retrieve=ON)
        await remember(kernel, pid, "The Heron lies at berth seven.", "Lemons are at the market.")
        await say(kernel, pid, Message("system", "You are a clerk."), "Where does the Heron lie?")
        (system, found, asked) = script.last
        assert system == ("system", "You are a clerk.")
        assert asked == ("user", "Where does the Heron lie?")
        lines = found[1].splitlines()
        assert (found[0], lines[0]) == ("user", HEAD)
        assert lines[1] == "- (memory m1, 1970-01-02, diary) The Heron lies at berth seven."
        assert [m.role for m in (await report(kernel, pid)).messages] == [
            "system",
            "user",
            "assistant",
        ]
        await say(kernel, pid, "Thank you, and the lemons?")
        assert [role for role, _ in script.last] == ["system", "user", "assistant", "user", "user"]
        assert "market" in script.last[3][1]


async def test_files_are_looked_up_too() -> None:
    script = Kept()
    async with machine(core=ScriptedCore(script)) as kernel:
        pid = await child(kernel, retrieve=abi.Retrieval(files=("process",)))
        await remember(kernel, pid, "The Heron lies at berth seven.")
        text = "# Ships\n\nThe Heron carries lemons.\n"
        await kernel.trap(pid, abi.StoWrite(path="/ships.md", text=text))
        await say(kernel, pid, "What of the Heron?")
        lines = script.last[0][1].splitlines()
        assert len(lines) == 3
        assert any("(memory m1," in line for line in lines)
        assert any("/ships.md" in line and "lemons" in line for line in lines)


async def test_it_is_off_until_it_is_asked_for() -> None:
    script = Kept()
    async with machine(core=ScriptedCore(script)) as kernel:
        pid = await child(kernel)
        await remember(kernel, pid, "The Heron lies at berth seven.")
        await say(kernel, pid, "Where does the Heron lie?", context=None)
        assert len(script.last) == 1
        await say(kernel, pid, "Where does the Heron lie?", context=None, retrieve=ON)
        assert len(script.last) == 2
        asking = await child(kernel, retrieve=ON)
        await remember(kernel, asking, "The Heron lies at berth seven.")
        # what carries its own messages (a request on /v1) is looked up for as well
        await say(kernel, asking, "Where does the Heron lie?", context=None)
        assert len(script.last) == 2
        off = abi.Retrieval(memory=())
        await say(kernel, asking, "Where does the Heron lie?", context=None, retrieve=off)
        assert len(script.last) == 1


async def test_nothing_found_adds_nothing() -> None:
    script = Kept()
    async with machine(core=ScriptedCore(script)) as kernel:
        pid = await child(kernel, retrieve=ON)
        await say(kernel, pid, "Where does the Heron lie?")
        assert script.last == [("user", "Where does the Heron lie?")]
        await say(kernel, pid, Message("system", "nobody asks"), context=None)
        assert script.last == [("system", "nobody asks")]


@pytest.mark.parametrize("tokens", [12, 30, 60, 200])
async def test_findings_keep_to_their_tokens(tokens: int) -> None:
    script = Kept()
    core = ScriptedCore(script)
    async with machine(core=core) as kernel:
        pid = await child(kernel)
        heron = "The Heron " + "of the long story " * 40
        await remember(kernel, pid, *(f"{heron} number {n}" for n in range(4)))
        wish = abi.Retrieval(tokens=tokens, limit=3)
        await say(kernel, pid, "Tell me of the Heron.", retrieve=wish)
        found = Message("user", script.last[0][1] if len(script.last) > 1 else "")
        taken = await core.measure(Prompt((found,), Sampling())) - 1
        assert taken <= tokens
        assert (taken > 0) == (tokens > 12)
        assert len(found.content.splitlines()) <= 4
        with pytest.raises(InvalidCall, match="tokens=0"):
            await say(kernel, pid, "x", retrieve=abi.Retrieval(tokens=0))


async def test_room_is_made_for_what_is_found() -> None:
    script = Kept()
    async with machine(core=ScriptedCore(script)) as kernel:
        pid = await child(kernel, window=300, retrieve=abi.Retrieval(tokens=100))
        await remember(kernel, pid, "The Heron " + "word " * 60)
        for turn in range(30):
            await say(kernel, pid, f"turn {turn} about the Heron and her long way home again")
            size = sum(len(text.split()) + 1 for _, text in script.last)
            assert size + 10 <= 300
            assert sum(text.startswith(HEAD) for _, text in script.last) == 1
        assert (await report(kernel, pid)).compactions > 0


async def test_a_search_takes_the_right_to_search() -> None:
    async with machine() as kernel:
        pid = await child(kernel, rights=("generate",), retrieve=ON)
        with pytest.raises(PermissionDenied, match="mem_search"):
            await say(kernel, pid, "hello")


async def test_a_second_life_finds_the_same() -> None:
    prompts = Kept()

    async def live(program: Program) -> None:
        await program.ask(abi.MemWrite(text="The Heron lies at berth seven."))
        await program.ask(abi.Generate(messages=user("Where is the Heron?"), retrieve=ON))

    world = World(live, script=prompts)
    async with world.kernel() as kernel:
        pid = await spawn(kernel)
        first = prompts.last
        assert len(first) == 2
    async with world.kernel() as kernel:
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.MemWrite(aid=pid, text="The Heron, the Heron, the Heron!"))
        world.core.step()
        await settle(200)
        assert kernel.processes.find(pid).exit_status == 0
        assert prompts.last == first
        calls = await kernel.trap(login, abi.GetTranscript(aid=pid))
        assert isinstance(calls, abi.Transcript)
        assert [call.name for call in calls.calls].count("mem_search") == 1


async def test_a_summary_is_asked_without_looking_anything_up() -> None:
    script = Kept()
    async with machine(core=ScriptedCore(script)) as kernel:
        pid = await child(kernel, retrieve=ON)
        await remember(kernel, pid, "The conversation is about names and numbers.")
        talk = (Message("user", "word " * 100), Message("assistant", "yes")) * 6
        await ask(kernel, pid, abi.SetContext(messages=talk))
        script.prompts.clear()
        await ask(kernel, pid, abi.CompactContext(tokens=400, strategy="summarise"))
        assert not any(text.startswith(HEAD) for _, text in script.last)


def test_a_long_question_is_looked_up_by_its_ends() -> None:
    text = "begin " + "x" * 5000 + " end"
    query = retrieval._query(text)
    assert len(query) <= retrieval.QUERY + 1
    assert query.startswith("begin")
    assert query.endswith("end")


def test_a_finding_is_cut_rather_than_left_out() -> None:
    one = Finding(1.0, "memory m1", "word " * 500)
    text = retrieval._text([one, one], 200)
    assert text is not None
    assert len(text) <= 200
    assert text.endswith("…")
    assert retrieval._text([one], 70) is None
