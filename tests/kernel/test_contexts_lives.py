"""A kernel killed in the middle of making room: the next one comes to the same prompts."""

from __future__ import annotations

import pytest
from test_contexts import WINDOW, script
from test_recovery import Life, Program, World, healthy, spawn

from aios.abi import calls as abi
from aios.abi.messages import Message, Sampling
from aios.testing import TestKernel, settle

TURNS = 14
QUANTUM = 8  # an answer takes two slices, a summary several
SLICES = 60  # more than the conversation takes


def question(turn: int) -> abi.Generate:
    said = Message("user", f"turn {turn} " + "word " * 90)
    return abi.Generate(messages=(said,), sampling=Sampling(max_tokens=10))


async def talk(program: Program) -> None:
    """Turns that outgrow the window more than once; every answer depends on its whole prompt."""
    for turn in range(TURNS):
        await program.ask(question(turn))
    await program.kernel.trap(program.pid, abi.ExitAgent(result="done"))


async def talk_without_places(program: Program) -> None:
    """The same from a program that does not say where in its code it is."""
    for turn in range(TURNS):
        await program.kernel.trap(program.pid, question(turn))
    await program.kernel.trap(program.pid, abi.ExitAgent(result="done"))


async def outcome(kernel: TestKernel, pid: int) -> list[str]:
    """All that was answered and done, in order."""
    login = kernel.identify(kernel.user_key)
    calls = await kernel.trap(login, abi.GetTranscript(aid=pid))
    assert isinstance(calls, abi.Transcript)
    return [
        call.reply["message"]["content"] if call.name == "generate" else call.name
        for call in calls.calls
        if call.state == "done"
    ]


async def run(life: Life, strategy: abi.Strategy, kill_after: int | None) -> list[str]:
    world = World(life, script=script, quantum=QUANTUM)
    if kill_after is not None:
        async with world.kernel() as kernel:
            pid = await spawn(kernel, window=WINDOW, strategy=strategy)
            for _ in range(kill_after):
                world.core.step()
                await settle(200)
    async with world.kernel() as kernel:
        if kill_after is None:
            pid = await spawn(kernel, window=WINDOW, strategy=strategy)
        for _ in range(SLICES):
            world.core.step()
            await settle(200)
        process = kernel.processes.find(pid)
        assert process.exit_status == 0, process
        await healthy(kernel)
        return await outcome(kernel, pid)


@pytest.mark.parametrize("life", [talk, talk_without_places])
@pytest.mark.parametrize("strategy", ["drop", "summarise", "page"])
async def test_the_same_prompts_wherever_it_is_killed(life: Life, strategy: abi.Strategy) -> None:
    expected = await run(life, strategy, None)
    assert expected.count("compact_context") >= 2
    for kill_after in range(0, 2 * TURNS + 4, 2):
        assert await run(life, strategy, kill_after) == expected, kill_after
