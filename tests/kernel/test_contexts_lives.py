"""A kernel killed in the middle of making room: the next one comes to the same prompts."""

from __future__ import annotations

from typing import Any

import pytest
from test_contexts import WINDOW, script
from test_recovery import Program, World, healthy, spawn

from aios.abi import calls as abi
from aios.abi.messages import Message, Sampling
from aios.testing import TestKernel, settle

TURNS = 14
QUANTUM = 8  # an answer takes two slices, a summary several
SLICES = 60  # more than the conversation takes


async def talk(program: Program) -> None:
    """Turns that outgrow the window more than once; every answer depends on its whole prompt."""
    for turn in range(TURNS):
        said = Message("user", f"turn {turn} " + "word " * 90)
        await program.ask(abi.Generate(messages=(said,), sampling=Sampling(max_tokens=10)))
    await program.kernel.trap(program.pid, abi.ExitAgent(result="done"))


async def outcome(kernel: TestKernel, pid: int) -> dict[str, Any]:
    """All that was answered, by the place of its call, and what was put into memory."""
    login = kernel.identify(kernel.user_key)
    calls = await kernel.trap(login, abi.GetTranscript(aid=pid))
    assert isinstance(calls, abi.Transcript)
    replies: dict[str, Any] = {}
    for call in calls.calls:
        path = call.request.get("path")
        if call.name == "generate" and call.state == "done":
            assert path not in replies, "nothing is answered twice"
            replies[path] = call.reply["message"]["content"]
        if call.name in ("compact_context", "mem_write"):
            assert path not in replies, "nothing is made room for twice"
            replies[path] = call.name
    return replies


async def run(strategy: abi.Strategy, kill_after: int | None) -> dict[str, Any]:
    world = World(talk, script=script, quantum=QUANTUM)
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


@pytest.mark.parametrize("strategy", ["drop", "summarise", "page"])
async def test_the_same_prompts_wherever_it_is_killed(strategy: abi.Strategy) -> None:
    expected = await run(strategy, None)
    assert sum(reply == "compact_context" for reply in expected.values()) >= 2
    for kill_after in range(2 * TURNS + 4):
        assert await run(strategy, kill_after) == expected, kill_after
