"""The programs of a simulated world: lists of steps, the same in every life, run as the SDK would.

What a program asks never depends on who was faster, so its transcript without any crash is the
only right one. Steps whose reply does depend on time (``LOOSE``) are compared between lives only.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from aios.abi import calls as abi
from aios.abi.messages import Delta, Sampling, ToolSpec
from aios.errors import AiosError, Killed, NotFound, StoreFailed
from aios.ports import Prompt
from aios.testing import user

if TYPE_CHECKING:
    from world import Life

TOOLS = (ToolSpec("count", effect="once"), ToolSpec("look", effect="idempotent"))
LOOSE = ("glimpse", "hurried")


class Step(NamedTuple):
    kind: str
    what: Any = None


class Script(NamedTuple):
    """A program: its steps, who runs it (``kernel``, ``parent``, ``outside``), and its limits."""

    name: str
    steps: tuple[Step, ...]
    run_by: str = "kernel"
    budget: abi.Limits = abi.Limits()
    restart: str = "never"
    window: int | None = None
    strategy: str = "drop"
    crashes: tuple[int, ...] = ()  # in each life that it has, the step at which it crashes


def answer(prompt: Prompt) -> str:
    """Depends on all that was said: a context that lost something would show."""
    said = "|".join(f"{message.role}:{message.content}" for message in prompt.messages)
    number = zlib.crc32(said.encode())
    return " ".join(f"w{number % 1000}.{word}" for word in range(1 + number % 9))


# --- drawing --------------------------------------------------------------------------------------

ALONE = (
    *("say", "say", "aside", "both", "count", "count", "look", "read", "note", "log"),
    *("myself", "silence", "glimpse", "hurried", "clear", "mark"),
    *("remember", "remember", "recollect", "correct", "forget", "write", "write", "append", "open"),
)


def alone(chance: random.Random, least: int, most: int) -> list[Step]:
    return [
        Step(chance.choice(ALONE), chance.choice(("main", "main", "side")))
        for _ in range(chance.randint(least, most))
    ]


def solo(chance: random.Random, name: str) -> Script:
    budget, restart, crashes = abi.Limits(), "never", ()
    window, strategy = None, "drop"
    steps = alone(chance, 3, 7)
    match chance.randrange(6):
        case 0:
            budget = abi.Limits(tokens=chance.randint(10, 60))
        case 1:
            budget = abi.Limits(calls=chance.randint(1, 4))
        case 2:
            budget = abi.Limits(seconds=chance.choice((0.3, 2.0)))
        case 3:
            restart = "on-crash"
            crashes = tuple(chance.randrange(6) for _ in range(chance.randint(1, 2)))
        case 4:
            window, strategy = 40, chance.choice(("drop", "summarise", "page"))
            steps += [Step("say", "main") for _ in range(chance.randint(2, 6))]
    run_by = "outside" if restart == "never" and chance.random() < 0.25 else "kernel"
    return Script(name, tuple(steps), run_by, budget, restart, window, strategy, crashes)


def family(chance: random.Random, name: str) -> list[Script]:
    """A parent, and children to which it speaks."""
    steps = [Step("say", "main")]
    scripts = []
    for number in range(chance.randint(1, 2)):
        child = f"{name}.{number}"
        turns = chance.randint(0, 2)
        run_by = chance.choice(("kernel", "kernel", "parent"))
        inner = alone(chance, 1, 3)
        for turn in range(turns):
            inner += [Step("receive"), Step("reply", f"{child} says {turn}"), Step("say", "main")]
        scripts.append(Script(child, tuple(inner), run_by))
        steps.append(Step("spawn", child))
        for turn in range(turns):
            steps += [Step("send", (child, f"hear {turn}")), Step("answer", child)]
        steps += alone(chance, 0, 2)
        steps.append(Step("wait", child))
    steps.append(Step("say", "main"))
    budget = abi.Limits(tokens=60) if chance.random() < 0.2 else abi.Limits()
    parent = Script(name, tuple(steps), budget=budget)
    if chance.random() < 0.3:
        crashes = (chance.randrange(len(steps)),)
        parent = parent._replace(restart="on-crash", crashes=crashes)
    return [parent, *scripts]


def draw(seed: int) -> dict[str, Script]:
    """The programs of a world, by name."""
    chance = random.Random(f"programs {seed}")
    scripts = [solo(chance, f"solo{number}") for number in range(chance.randint(1, 2))]
    scripts += family(chance, "family")
    return {script.name: script for script in scripts}


# --- running --------------------------------------------------------------------------------------


class Broken(Exception):
    """A program has a bug, as its script says."""


class Actor:
    """One life of a program: its place in its steps, its tools, its children."""

    def __init__(
        self, life: Life, script: Script, pid: int, number: int, os_pid: int, parent: int | None
    ) -> None:
        self.life, self.script, self.pid = life, script, pid
        self.number, self.os_pid, self.parent = number, os_pid, parent
        self.key: str | None = None
        self.children: dict[str, int] = {}
        self.ids: dict[str, str] = {}  # of records, by their text
        self.inner: dict[str, asyncio.Task[None]] = {}
        self.service: asyncio.Task[None] | None = None
        self.busy: set[str] = set()  # tool calls that it works on

    async def run(self, prefix: str = "") -> None:
        """All steps, and the end."""
        heard = []
        try:
            for number, step in enumerate(self.script.steps):
                crashes = self.script.crashes[self.number - 1 : self.number]
                if number in crashes:
                    raise Broken(f"{self.script.name} crashes at step {number}")
                outcome = await getattr(self, step.kind)(f"{prefix}{number}", step.what)
                if step.kind not in LOOSE:
                    heard.append(outcome)
            result = f"{zlib.crc32(repr(heard).encode()):08x}"
            await self.trap(abi.ExitAgent(result=result))
        finally:
            for task in (self.service, *self.inner.values()):
                if task is not None:
                    task.cancel()

    async def trap(self, call: abi.Call, on_delta: Any = None) -> Any:
        return await self.life.trap(self.pid, call, on_delta)

    async def ask(self, place: str, call: abi.Call) -> Any:
        """What a program hears of a call: of a reply what its transcript will say."""
        shown: list[str] = []

        def show(delta: Delta) -> None:
            shown.append(delta.text)

        call = type(call)(**_fields(call), place=place)
        outcome: Any
        try:
            outcome = await self.trap(call, show)
        except (Killed, StoreFailed):
            raise  # it is over; what was not kept was not told
        except AiosError as error:
            outcome = error
        self.life.world.hear(self, place, call, outcome, "".join(shown))
        if isinstance(outcome, abi.MemoryRecords):  # which are other ones in each world
            self.ids |= {record.text: record.id for record in outcome.records}
        return self.life.world.gist(outcome)

    # --- steps ------------------------------------------------------------------------------------

    async def say(self, place: str, context: str) -> Any:
        return await self.ask(place, self._generate(place, context))

    async def aside(self, place: str, context: str) -> Any:
        sampling = Sampling(temperature=1.0)
        call = abi.Generate(messages=user(f"aside {place}"), context=None, sampling=sampling)
        return await self.ask(place, call)

    def _generate(self, place: str, context: str) -> abi.Generate:
        return abi.Generate(messages=user(f"{self.script.name} at {place}"), context=context)

    async def both(self, place: str, context: str) -> Any:
        return await asyncio.gather(
            *(self.say(f"{place}.say.{n}/0", f"{context}{n}") for n in range(2))
        )

    async def count(self, place: str, context: str) -> Any:
        return await self._use("count", place)

    async def look(self, place: str, context: str) -> Any:
        return await self._use("look", place)

    async def read(self, place: str, context: str) -> Any:
        if self.number > 1:
            call = abi.Record(kind="step", key="read", place=place, recall=True)
            try:
                found = await self.trap(call)
            except AiosError as error:
                if isinstance(error, (Killed, StoreFailed)):
                    raise
            else:
                if found.known:
                    self.life.world.hear(self, place, call, found)
                    return "read"
        value = self.life.world.chance.random()  # another in each life
        await self.ask(place, abi.Record(kind="step", key="read", value=value))
        return "read"

    async def note(self, place: str, context: str) -> Any:
        await self.ask(place, abi.SetStatus(note=f"at {place}"))

    async def log(self, place: str, context: str) -> Any:
        return await self.ask(place, abi.LogEvent(name="step", data=place))

    async def myself(self, place: str, context: str) -> Any:
        body = f"to myself at {place}"
        await self.ask(f"{place}a", abi.SendMessage(to=self.pid, body=body, id=place))
        return await self.ask(place, abi.RecvMessage(sender=self.pid))

    async def silence(self, place: str, context: str) -> Any:
        return await self.ask(place, abi.RecvMessage(sender=999_999, timeout_s=0.4))

    async def glimpse(self, place: str, context: str) -> Any:
        await self.ask(place, abi.GetStatus())

    async def hurried(self, place: str, context: str) -> Any:
        call = abi.Generate(messages=user("be quick"), context=None, timeout_s=0.02)
        await self.ask(place, call)

    async def clear(self, place: str, context: str) -> Any:
        return await self.ask(place, abi.ClrContext(context=context))

    async def mark(self, place: str, context: str) -> Any:
        await self.ask(place, abi.SnapshotAgent(label=place))

    async def remember(self, place: str, context: str) -> Any:
        await self.ask(place, abi.MemWrite(text=f"{context} at {place}", tags=(context,)))

    async def recollect(self, place: str, context: str) -> Any:
        return await self.ask(place, abi.MemRead(tags=(context,), history=True))

    async def correct(self, place: str, context: str) -> Any:
        """The newest of what it remembers, if there is any."""
        found = await self.ask(f"{place}a", abi.MemRead(limit=1))
        if found and (id := self.ids.get(found[0])):
            found = await self.ask(place, abi.MemUpdate(id=id, text=f"corrected at {place}"))
        return found

    async def forget(self, place: str, context: str) -> Any:
        found = await self.ask(f"{place}a", abi.MemRead(limit=1))
        if found and (id := self.ids.get(found[0])):
            found = await self.ask(place, abi.MemClear(id=id))
        return found

    async def write(self, place: str, context: str) -> Any:
        call = abi.StoWrite(path=f"/{context}.txt", text=f"written at {place}", expect=-1)
        return await self.ask(place, call)

    async def append(self, place: str, context: str) -> Any:
        text = f"and more at {place}"
        call = abi.StoWrite(path=f"/{context}.txt", text=text, append=True, expect=-1)
        return await self.ask(place, call)

    async def open(self, place: str, context: str) -> Any:
        return await self.ask(place, abi.StoRead(path=f"/{context}.txt"))

    async def spawn(self, place: str, child: str) -> Any:
        script = self.life.world.scripts[child]
        argv = ("program",) if script.run_by == "kernel" else ()
        os_pid = None if argv else self.os_pid
        call = abi.SpawnAgent(program=child, argv=argv, task=child, os_pid=os_pid, place=place)
        spawned = await self.trap(call)
        self.life.world.hear(self, place, call, spawned)
        self.children[child] = spawned.aid
        if not argv:
            pid = self.life.kernel.identify(spawned.key) if spawned.key else self.pid
            inner = Actor(self.life, script, pid, self.number, self.os_pid, self.pid)
            self.inner[child] = asyncio.ensure_future(self._run_inner(inner, f"{place}.{child}.0/"))

    async def _run_inner(self, inner: Actor, prefix: str) -> None:
        with suppress(AiosError):
            await inner.run(prefix)

    async def send(self, place: str, what: tuple[str, str]) -> Any:
        child, body = what
        await self.ask(place, abi.SendMessage(to=self.children[child], body=body))

    async def answer(self, place: str, child: str) -> Any:
        return await self.ask(place, abi.RecvMessage(sender=self.children[child]))

    async def receive(self, place: str, context: Any) -> Any:
        return await self.ask(place, abi.RecvMessage(sender=self.parent))

    async def reply(self, place: str, body: str) -> Any:
        assert self.parent is not None
        await self.ask(place, abi.SendMessage(to=self.parent, body=body))

    async def wait(self, place: str, child: str) -> Any:
        return await self.ask(place, abi.WaitAgent(aid=self.children[child], reap=False))

    # --- tools ------------------------------------------------------------------------------------

    async def _use(self, tool: str, place: str) -> Any:
        if self.service is None:
            await self.trap(abi.ToolRegister(tools=TOOLS, place=f"{place}r"))
            self.service = asyncio.ensure_future(self._serve())
        return await self.ask(place, abi.ToolCall(name=tool, arguments={"at": place}))

    async def _serve(self) -> None:
        with suppress(AiosError):
            while True:
                invocation = await self.trap(abi.ToolNext(busy=tuple(self.busy)))
                self.busy.add(invocation.id)
                working = asyncio.ensure_future(self._carry_out(invocation))
                self.inner[invocation.id] = working

    async def _carry_out(self, invocation: abi.ToolInvocation) -> None:
        world, at = self.life.world, invocation.arguments["at"]
        await asyncio.sleep(world.chance.random() * 0.03)
        self.life.happen(self.pid, invocation.name, at)
        await asyncio.sleep(world.chance.random() * 0.03)
        with suppress(NotFound, Killed, StoreFailed):  # nobody waits for it any more
            await self.trap(abi.ToolReturn(id=invocation.id, content=result_of(at)))
        self.busy.discard(invocation.id)


def result_of(at: str) -> str:
    """What a tool answers."""
    return f"done at {at}"


def _fields(call: abi.Call) -> dict[str, Any]:
    return {name: getattr(call, name) for name in call.__struct_fields__ if name != "place"}
