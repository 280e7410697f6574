"""Contexts, recall and retrieval from the SDK, against a real kernel and server."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from served import Served, serving

import aios
from aios.abi.calls import MemWrite, Retrieval
from aios.abi.messages import Message
from aios.errors import InvalidCall
from aios.ports import Prompt
from aios.sdk import contexts, programs
from aios.testing import ScriptedCore

REPOSITORY = Path(__file__).parents[2]
HEARD: list[Prompt] = []


def script(prompt: Prompt) -> str:
    HEARD.append(prompt)
    return f"You said: {prompt.messages[-1].content}"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    HEARD.clear()
    async with serving(tmp_path, core=ScriptedCore(script)) as found:
        yield found


async def talk(me: aios.Me, turns: int) -> None:
    for turn in range(turns):
        await me.generate(f"turn {turn} of a long talk", max_tokens=10)


async def test_a_context_is_an_object(served: Served) -> None:
    async with served.connect(program="talker", window=200, strategy="page") as me:
        await me.generate("hello", system="Be brief.")
        await talk(me, 3)
        context = me.context()
        report = await context
        assert (report.window, report.strategy, report.pinned) == (200, "page", 1)
        assert len(report.messages) == 9
        assert (await context.report(messages=False)).messages == ()
        assert (await context.compact(60)).used <= 60 + 64
        assert (await context.expand()).window == 8192
        assert (await context.clear()).used == 0
        await me.generate("again", system="Be brief.")  # it was forgotten, so it is said again
        assert (await context).messages[0] == Message("system", "Be brief.")
        kept = await context.set([{"role": "user", "content": "new"}], strategy="fail")
        assert (kept.strategy, kept.used) == ("fail", 2)


async def test_what_was_paged_out_is_read_back(served: Served) -> None:
    async with served.connect(program="talker", window=200, strategy="page") as me:
        await talk(me, 30)
        report = await me.context()
        assert report.compactions >= 2
        paged = await me.context().paged()
        whole = [*paged, *report.messages[1:]]
        assert [m.content.split()[1] for m in whole if m.role == "user"] == list(
            map(str, range(30))
        )
        assert await me.context("other").paged() == ()
        record = report.messages[0].content.partition("memory record ")[2].partition(":")[0]
        answer = await me.generate(
            "What did I say?",
            tools=[aios.recall],
            tool_choice="recall",
            rounds=0,
            max_tokens=30,
        )
        assert [use.name for use in answer.tool_calls] == ["recall"]
        text = await aios.recall(record)
        assert paged[-1].content in text
        before = text.rpartition("the memory record ")[2].partition(".")[0]
        first = await aios.recall(before)
        assert paged[0].content in first
        fork = await me.fork()
        try:
            assert await fork.context().paged() == await me.context().paged()
            pages = await contexts.pages(fork)
            found = [contexts.page_of(pages, id) for id in (record, before)]
            assert [page.text for page in found if page] == [text.rpartition("\n")[0], first]
        finally:
            await fork.exit()
        assert contexts.page_of((), record) is None


async def test_a_generation_may_look_things_up(served: Served) -> None:
    async with served.connect(program="clerk", retrieve=Retrieval()) as me:
        await me.call(MemWrite(text="The Heron lies at berth seven."))
        await me.generate("Where does the Heron lie?")
        assert "berth seven" in HEARD[-1].messages[0].content
        await me.generate("Where does the Heron lie?", retrieve=False, context=None)
        assert len(HEARD[-1].messages) == 1
    async with served.connect(program="clerk") as me:
        await me.call(MemWrite(text="The Heron lies at berth seven."))
        await me.generate("Where does the Heron lie?", retrieve=True)
        assert len(HEARD[-1].messages) == 2
        with pytest.raises(InvalidCall, match="retrieve"):
            await me.generate("Where?", retrieve="yes")  # type: ignore[arg-type]


def test_a_manifest_says_how_contexts_are_kept(tmp_path: Path) -> None:
    (tmp_path / "trip.py").write_text("print('hello')\n")
    manifest = tmp_path / "agent.toml"
    text = 'name = "trip"\nentry = "trip.py"\nwindow = 2048\nstrategy = "summarise"\n'
    manifest.write_text(f"{text}retrieve = true\n")
    program = programs.of_manifest(manifest)
    assert (program.window, program.strategy) == (2048, "summarise")
    assert program.retrieve == Retrieval()
    manifest.write_text(f'{text}[retrieve]\nmemory = ["program"]\ntokens = 100\n')
    assert programs.of_manifest(manifest).retrieve == Retrieval(memory=("program",), tokens=100)
    manifest.write_text(f"{text}retrieve = false\n")
    wish = programs.of_manifest(manifest).retrieve
    assert wish is not None
    assert msgspec.structs.asdict(wish)["memory"] == ()
    manifest.write_text(text.replace("summarise", "forget"))
    with pytest.raises(InvalidCall, match="strategy"):
        programs.of_manifest(manifest)


async def test_a_manifest_reaches_the_process_and_its_requests(
    served: Served, tmp_path: Path
) -> None:
    (tmp_path / "trip.py").write_text(
        "import aios\n\n@aios.agent\nasync def trip(me, task):\n"
        "    return (await me.generate(task, context=None)).text\n"
    )
    (tmp_path / "agent.toml").write_text(
        'name = "trip"\nentry = "trip.py"\nwindow = 100\nretrieve = true\n'
    )
    async with served.connect() as user:
        await user.call(MemWrite(text="The Heron lies at berth seven.", scope="user"))
        trip = await user.spawn(str(tmp_path), "Where does the Heron lie?")
        assert (await trip.wait()).exit_status == 0
        assert "berth seven" in HEARD[-1].messages[0].content


async def test_the_page_about_contexts_runs(served: Served, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs/howto/context.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    environment = {**os.environ, "AIOS_URL": served.url, "AIOS_KEY": served.key}
    for block in blocks:
        running = await asyncio.create_subprocess_exec(
            sys.executable, "-c", block, env=environment, cwd=tmp_path, stdout=subprocess.PIPE
        )
        out, _ = await running.communicate()
        assert running.returncode == 0, block
    assert b"You said: Where does the Heron lie?" in out
    for text in re.findall(r"```toml\n(.*?)```", page, re.DOTALL):
        (tmp_path / "notes.py").write_text("")
        (tmp_path / "clerk.py").write_text("")
        (tmp_path / "agent.toml").write_text(text)
        assert programs.of_manifest(tmp_path / "agent.toml").name in text


async def test_the_example_talks_for_long(served: Served) -> None:
    async with served.connect() as user:
        talk = await user.spawn(str(REPOSITORY / "examples/long_talk.py"), "Tell me a story.")
        end = await talk.wait()
        assert (end.exit_status, end.reason) == (0, "exited with status 0")
        assert end.result is not None
        assert "messages could be read back" in end.result
        assert not end.result.startswith("0 ")
