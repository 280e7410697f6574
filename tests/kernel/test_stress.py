"""Anything, in any order: what must hold however calls, crashes and kills fall."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from aios.abi import calls as abi
from aios.errors import AiosError, KernelBug
from aios.kernel.trace import check_ends
from aios.testing import FakeClock, ScriptedCore, TestKernel, machine, settle, user

STEPS = 40  # random deeds of one life
SEEDS = 250


def script(prompt: object) -> str:
    """The answer depends on what was said: a mix-up of sequences would show."""
    said = prompt.messages[-1].content  # type: ignore[attr-defined]
    return " ".join(f"{said}{n}" for n in range(1 + int(said[1:]) % 13))


class Life:
    """A random user of a kernel, who makes one deed at a time and waits for none."""

    def __init__(self, kernel: TestKernel, core: ScriptedCore, seed: int, is_gated: bool) -> None:
        self.kernel, self.core, self.is_gated = kernel, core, is_gated
        self.random = random.Random(seed)
        self.login = kernel.identify(kernel.user_key)
        self.said = 0
        self.open: list[asyncio.Task[abi.Reply]] = []
        self.texts: list[tuple[str, asyncio.Task[abi.Reply]]] = []
        self.snapshots: list[str] = []

    def pids(self) -> list[int]:
        return [p.pid for p in self.kernel.processes if p.parent is not None]

    def make(self, call: abi.Call, by: int | None = None) -> asyncio.Task[abi.Reply]:
        task = asyncio.ensure_future(self.kernel.trap(by or self.login, call))
        self.open.append(task)
        return task

    def deed(self) -> None:
        pids, r = self.pids(), self.random
        if len(pids) < 2:
            self.spawn(self.login)
            return
        pid = r.choice(pids)
        match r.randrange(22):
            case 0 | 1:
                self.spawn(r.choice([self.login, pid]))
            case 2 | 3 | 4 | 5 | 6:
                self.generate(pid)
            case 7 | 8:
                self.make(abi.SuspendAgent(aid=pid))
            case 9 | 10:
                self.make(abi.ResumeAgent(aid=pid))
            case 11:
                self.make(abi.KillAgent(aid=pid), by=r.choice([self.login, pid]))
            case 12:
                self.make(abi.ForkAgent(aid=pid))
            case 13:
                self.make(abi.SetBudget(aid=pid, budget=abi.Limits(tokens=r.randrange(40))))
            case 14:
                busy = [p for p in pids if self.kernel.processes.find(p).residency]
                target = r.choice(busy or pids)
                self.make(abi.GenSnapshot(aid=target)).add_done_callback(self.took)
            case 15:
                if self.snapshots:
                    self.make(abi.GenRestore(snapshot=r.choice(self.snapshots)), by=pid)
            case 16:
                if self.open:
                    r.choice(self.open).cancel()
            case 17:
                self.core.crash()
            case 18:
                self.make(abi.SetPriority(aid=pid, priority=r.randrange(-20, 20)))
            case 19:
                policy = r.choice(["fifo", "round_robin", "priority"])
                self.make(abi.SetScheduler(policy=policy, quantum=r.randrange(1, 6)))
            case 20:
                self.make(abi.WaitAgent(aid=pid))
            case 21:
                self.make(abi.SendMessage(to=pid, body="x"), by=pid)
                self.make(abi.RecvMessage(timeout_s=3), by=pid)

    def spawn(self, by: int) -> None:
        r = self.random
        budget = abi.Limits(
            tokens=r.choice([None, None, 20, 60]), seconds=r.choice([None, None, 4.0])
        )
        on_exhausted = r.choice(["suspend", "suspend", "fail"])
        self.make(abi.SpawnAgent(program="p", budget=budget, on_exhausted=on_exhausted), by=by)

    def generate(self, pid: int) -> None:
        self.said += 1
        context = self.random.choice(["main", None])
        timeout_s = self.random.choice([None, None, None, 2.0])
        said = f"w{self.said}"
        call = abi.Generate(messages=user(said), context=context, timeout_s=timeout_s)
        self.texts.append((said, self.make(call, by=pid)))

    def took(self, task: asyncio.Task[abi.Reply]) -> None:
        if not task.cancelled() and not task.exception():
            reply = task.result()
            assert isinstance(reply, abi.Snapshot)
            self.snapshots.append(reply.snapshot)

    async def live(self, clock: FakeClock) -> None:
        for _ in range(STEPS):
            self.deed()
            if self.is_gated:
                self.core.step(self.random.randrange(3))
            for _ in range(self.random.randrange(6)):  # some way into it, not to its end
                await asyncio.sleep(0)
            if self.random.random() < 0.1:
                await clock.advance(self.random.random() * 2)
        await self.end(clock)

    async def end(self, clock: FakeClock) -> None:
        """Let all go on that can; whatever waits for mail or for an end is killed."""
        await settle()
        for pid in self.pids():
            self.make(abi.SetBudget(aid=pid, budget=abi.Limits(tokens=10**6, seconds=10**6)))
            self.make(abi.ResumeAgent(aid=pid))
        generating = [task for _, task in self.texts]
        for _ in range(100):
            if self.is_gated:
                self.core.step(20)
            await clock.advance(0.1)
            if all(task.done() for task in generating):
                break
        self.stuck = [said for said, task in self.texts if not task.done()]
        for pid in self.pids():
            self.make(abi.KillAgent(aid=pid))
        await settle()


def bugs(tasks: list[asyncio.Task[abi.Reply]]) -> list[BaseException]:
    ended = [task.exception() for task in tasks if task.done() and not task.cancelled()]
    return [e for e in ended if e and (not isinstance(e, AiosError) or isinstance(e, KernelBug))]


@pytest.mark.parametrize("is_gated", [False, True])
async def test_whatever_happens_every_start_has_one_end(is_gated: bool, tmp_path: Path) -> None:
    for seed in range(SEEDS):
        core, clock = ScriptedCore(script, slots=2, gated=is_gated), FakeClock()
        async with machine(core=core, clock=clock, snapshots=tmp_path) as kernel:
            life = Life(kernel, core, seed, is_gated)
            await life.live(clock)
            assert bugs(life.open) == [], f"seed {seed}"
            assert life.stuck == [], f"seed {seed}"
            assert [t for t in life.open if not t.done()] == [], f"seed {seed}"
            for said, task in life.texts:
                if task.cancelled() or task.exception():
                    continue
                reply = task.result()
                assert isinstance(reply, abi.Generation)
                expected = " ".join(f"{said}{n}" for n in range(1 + int(said[1:]) % 13))
                assert reply.message.content == expected, f"seed {seed}"
            assert await kernel.check() == [], f"seed {seed}"
            assert (await core.residency()).sequences == 0, f"seed {seed}"
            living = [("process", p.pid) for p in kernel.processes if p.state != "zombie"]
            events = [event async for event in kernel.events(life.login)]
            assert check_ends(events, living) == [], f"seed {seed}"
            held = [p.pid for p in kernel.processes if p.budget.held]
            assert held == [], f"seed {seed}"
