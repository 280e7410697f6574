"""Which core a generation goes to, and where it goes on."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import structs

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.abi.calls import CoreSpec, Price
from aios.abi.messages import Sampling
from aios.config import Config, Server
from aios.drivers.journal.memory import MemoryJournal
from aios.errors import Conflict, CoreFailed, CoreRefused, InvalidCall, NotFound
from aios.kernel.routing import CoreNow, parts, rank, unknown_in
from aios.ports import CoreFacts, Slice, SliceResult
from aios.testing import (
    FakeClock,
    ScriptedCore,
    ScriptedCores,
    ScriptedPrograms,
    TestKernel,
    machine,
    settle,
    user,
)

TEXT = "a b c d e f g h i j"


# --- rank: plain code -----------------------------------------------------------------------------


def now(name: str, kind: abi.CoreKind = "openai", **fields: object) -> CoreNow:
    facts = {key: fields.pop(key) for key in ("model", "classes", "price") if key in fields}
    model = facts.pop("model", name)
    return CoreNow(CoreFacts(name, kind, model, **facts), **fields)  # type: ignore[arg-type]


CORES = [
    now("tiny", "embedded", classes=("small",), load=2.0, speed=10.0, context_tokens=2000),
    now("box1", model="llama", classes=("small",), price=Price(1, 2), load=0.5, speed=40.0),
    now("box2", model="llama", price=Price(0.5, 1), load=0.0),
    now("cloud", model="gpt", classes=("big",), price=Price(5, 15), context_tokens=100_000),
]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("tiny", ["tiny"]),
        ("llama", ["box2", "box1"]),  # the shortest line first
        ("small", ["box1", "tiny"]),
        ("cheapest:small", ["tiny", "box1"]),  # our own costs nothing
        ("cheapest", ["tiny", "box2", "box1", "cloud"]),
        ("local", ["tiny", "box2", "cloud", "box1"]),
        ("fastest:small", ["box1", "tiny"]),
        ("cloud, small", ["cloud", "box1", "tiny"]),
        ("box1,box1, llama", ["box1", "box2"]),
        ("nothing", []),
    ],
)
def test_what_is_asked_for_is_ranked(asked: str, expected: list[str]) -> None:
    assert [choice.core for choice in rank(asked, CORES)] == expected


def test_one_that_was_never_seen_is_given_a_try() -> None:
    assert rank("fastest:llama", CORES)[0].core == "box2"


def test_what_is_down_comes_last_and_what_is_drained_not_at_all() -> None:
    cores = [now("a", classes=("x",), is_down=True), now("b", classes=("x",), load=9.0)]
    assert [choice.core for choice in rank("x", cores)] == ["b", "a"]
    cores = [now("a", classes=("x",), is_draining=True), now("b", classes=("x",))]
    assert [choice.core for choice in rank("x", cores)] == ["b"]


def test_a_window_that_is_too_small_is_left_out_if_another_is_not() -> None:
    assert [choice.core for choice in rank("tiny, cloud", CORES, tokens=5000)] == ["tiny", "cloud"]
    cores = [
        now("a", classes=("x",), context_tokens=10),
        now("b", classes=("x",), context_tokens=99, load=1.0),
    ]
    assert [choice.core for choice in rank("x", cores, tokens=50)] == ["b"]
    assert [choice.core for choice in rank("x", cores, tokens=500)] == ["a", "b"]


def test_the_reason_says_how_it_was_chosen() -> None:
    assert rank("tiny", CORES)[0].reason == "the only one"
    assert rank("cheapest:llama", CORES)[0].reason == "the cheapest of llama"
    assert rank("tiny, small", CORES)[1].reason == "the shortest line of the class small, choice 2"


def test_parts_of_a_wish() -> None:
    assert parts(" a, cheapest:b ,local") == [("", "a"), ("cheapest", "b"), ("local", "")]
    assert parts("qwen:0.5b") == [("", "qwen:0.5b")]  # a colon is part of many a name
    assert unknown_in("tiny, nope", CORES) == "nope"
    assert unknown_in("cheapest, small", CORES) is None
    assert unknown_in("", CORES) == ""


# --- the kernel -----------------------------------------------------------------------------------

SPECS = {
    "one": CoreSpec(model="m", url="http://127.0.0.1:1/v1"),
    "two": CoreSpec(model="m", url="http://127.0.0.1:2/v1"),
}


class Failing(ScriptedCore):
    """Fails at its next slices: as often as ``fails``, after so many good ones."""

    fails = 0
    good = 0

    async def run(self, sequence: int, grant: Slice) -> SliceResult:
        if self.good:
            self.good -= 1
        elif self.fails:
            self.fails -= 1
            self._sequences.clear()
            raise CoreFailed("its server hung up; look whether it runs.")
        return await super().run(sequence, grant)


class Continuing(Failing):
    """Goes on from a text, as a server does that is sent an answer to be continued."""

    texts: tuple[str, ...] = ()

    async def admit(self, prompt, made=(), text=""):  # type: ignore[no-untyped-def]
        self.texts += (text,)
        admitted = await super().admit(prompt)
        self._sequences[admitted.sequence].made = len(text.split())
        return admitted


def two(kind: type[Failing] = Continuing, **options: object) -> tuple[Failing, Failing]:
    return (
        kind([TEXT], model="one", **options),  # type: ignore[arg-type]
        kind([TEXT], model="two", **options),  # type: ignore[arg-type]
    )


async def generate(kernel: TestKernel, model: str | None = "m", **fields: object) -> abi.Generation:
    pid = kernel.identify(kernel.user_key)
    reply = await kernel.trap(pid, abi.Generate(messages=user("go"), model=model, **fields))  # type: ignore[arg-type]
    assert isinstance(reply, abi.Generation)
    return reply


async def events(kernel: TestKernel, *kinds: type[ev.Event]) -> list[ev.Event]:
    pid = kernel.identify(kernel.user_key)
    return [event async for event in kernel.events(pid) if isinstance(event, kinds)]


async def test_a_choice_is_in_the_trace_with_its_reason() -> None:
    one, another = two()
    async with machine(cores=ScriptedCores(one, another, specs=SPECS)) as kernel:
        assert (await generate(kernel, "m")).model == "one"
        assert (await generate(kernel, "two")).model == "two"  # no choice, nothing to tell
        (chosen,) = await events(kernel, ev.CoreChosen)
        assert isinstance(chosen, ev.CoreChosen)
        assert (chosen.core, chosen.asked) == ("one", "m")
        assert chosen.reason == "the shortest line of m"
        with pytest.raises(NotFound, match="'nope'"):
            await generate(kernel, "m, nope")


@pytest.mark.parametrize("context", [None, "main"])
@pytest.mark.parametrize("good", [0, 2])
async def test_a_generation_goes_on_elsewhere_from_where_it_was(
    good: int, context: str | None
) -> None:
    one, another = two()
    one.good, one.fails = good, 1
    async with machine(cores=ScriptedCores(one, another, specs=SPECS)) as kernel:
        kernel.quantum = 3
        shown: list[str] = []
        pid = kernel.identify(kernel.user_key)
        call = abi.Generate(messages=user("go"), model="m", context=context)
        reply = await kernel.trap(pid, call, lambda delta: shown.append(delta.text))
        assert isinstance(reply, abi.Generation)
        assert (reply.message.content, reply.model) == (TEXT, "two")
        assert "".join(shown) == TEXT  # nothing was shown twice
        assert isinstance(another, Continuing)
        assert another.texts == ("" if not good else "a b c d e f",)
        (moved,) = await events(kernel, ev.CallMoved)
        assert isinstance(moved, ev.CallMoved)
        assert (moved.before, moved.core, moved.tokens) == ("one", "two", 3 * good)
        assert moved.reason == "its server hung up; look whether it runs."
        assert reply.usage.completion_tokens == 10
        assert reply.usage.calls == 1
        assert kernel.processes.find(pid).usage.completion_tokens == 10
        assert await kernel.check() == []
        if context:
            report = await kernel.trap(pid, abi.GetContext(messages=True))
            assert isinstance(report, abi.ContextReport)
            assert [message.content for message in report.messages] == ["go", TEXT]


async def test_without_another_it_waits_until_the_server_is_back() -> None:
    one, _ = two()
    one.fails = 3
    clock = FakeClock()
    cores = ScriptedCores(one, specs={"one": SPECS["one"]})
    async with machine(cores=cores, clock=clock) as kernel:
        task = asyncio.ensure_future(generate(kernel, "one"))
        await settle()
        assert not task.done()
        await clock.advance(0.6)
        assert not task.done()
        infos = await kernel.trap(kernel.identify(kernel.user_key), abi.CoreList())
        assert isinstance(infos, abi.CoreInfos)
        assert (infos.cores[0].state, infos.cores[0].message[:10]) == ("down", "its server")
        await clock.advance(5)
        assert (await asyncio.wait_for(task, 5)).message.content == TEXT
        assert await events(kernel, ev.CallMoved) == []


class Refusing(ScriptedCore):
    """Has another key."""

    async def run(self, sequence: int, grant: Slice) -> SliceResult:
        raise CoreRefused("its server refused the key; set the right one.")


async def test_it_waits_for_the_one_that_may_come_back() -> None:
    one, _ = two()
    one.fails = 1
    clock = FakeClock()
    cores = ScriptedCores(one, Refusing(model="two"), specs=SPECS)
    async with machine(cores=cores, clock=clock) as kernel:
        task = asyncio.ensure_future(generate(kernel, "one, two"))
        await settle()
        assert not task.done()
        await clock.advance(5)
        assert (await asyncio.wait_for(task, 5)).model == "one"
        with pytest.raises(CoreRefused, match="refused the key"):
            await generate(kernel, "two")  # nothing to wait for


async def test_it_does_not_wait_for_ever() -> None:
    one, _ = two()
    one.fails = 10_000
    clock = FakeClock()
    spec = structs.replace(SPECS["one"], price=Price(1e6, 1e6))
    cores = ScriptedCores(one, specs={"one": spec})
    async with machine(cores=cores, clock=clock) as kernel:
        task = asyncio.ensure_future(generate(kernel, "one"))
        await settle()
        await clock.advance(kernel.config.scheduler.outage_s + 60)
        with pytest.raises(CoreFailed, match="hung up"):
            await asyncio.wait_for(task, 5)
        assert one.fails > 9_900  # asked a few dozen times, not in a storm
        usage = kernel.processes.find(kernel.identify(kernel.user_key)).usage
        assert (usage.tokens, usage.usd) == (0, 0.0)  # nothing came of it


async def test_a_drained_core_ends_what_it_has_begun_and_sends_the_rest_away() -> None:
    one, another = two(gated=True, slots=1)
    async with machine(cores=ScriptedCores(one, another, specs=SPECS)) as kernel:
        login = kernel.identify(kernel.user_key)
        begun = asyncio.ensure_future(generate(kernel, "one, two", context=None))
        await settle()
        waiting = asyncio.ensure_future(generate(kernel, "one, two", context=None))
        bound = asyncio.ensure_future(generate(kernel, "one", context=None))
        await settle()
        infos = await kernel.trap(login, abi.CoreDrain(name="one"))
        assert isinstance(infos, abi.CoreInfos)
        assert [core.state for core in infos.cores] == ["draining", "cold"]
        await settle()
        (moved,) = await events(kernel, ev.CallMoved)
        assert isinstance(moved, ev.CallMoved)
        assert (moved.before, moved.core) == ("one", "two")
        with pytest.raises(Conflict, match="being drained"):
            await generate(kernel, "one")
        another.step(9)
        assert (await asyncio.wait_for(waiting, 5)).model == "two"
        one.step(9)
        assert (await asyncio.wait_for(begun, 5)).model == "one"
        assert (await asyncio.wait_for(bound, 5)).model == "one"  # it could go nowhere else
        await kernel.trap(login, abi.CoreDrain(name="one", undo=True))
        one.step(9)
        assert (await generate(kernel, "one")).model == "one"
        assert await kernel.check() == []


async def test_a_core_that_is_removed_ends_what_it_has_first() -> None:
    one, another = two(gated=True)
    async with machine(cores=ScriptedCores(one, another, specs=SPECS)) as kernel:
        login = kernel.identify(kernel.user_key)
        with pytest.raises(InvalidCall, match="default"):
            await kernel.trap(login, abi.CoreRemove(name="one"))
        begun = asyncio.ensure_future(generate(kernel, "two"))
        await settle()
        removing = asyncio.ensure_future(kernel.trap(login, abi.CoreRemove(name="two")))
        await settle()
        assert not removing.done()
        another.step(9)
        assert (await asyncio.wait_for(begun, 5)).message.content == TEXT
        await asyncio.wait_for(removing, 5)
        with pytest.raises(NotFound, match="'two'"):
            await generate(kernel, "two")
        with pytest.raises(NotFound, match="no core 'two'"):
            await kernel.trap(login, abi.CoreDrain(name="two"))


async def test_a_removal_that_is_cut_off_leaves_the_core_as_it_was() -> None:
    one, another = two(gated=True)
    async with machine(cores=ScriptedCores(one, another, specs=SPECS)) as kernel:
        login = kernel.identify(kernel.user_key)
        begun = asyncio.ensure_future(generate(kernel, "two"))
        await settle()
        removing = asyncio.ensure_future(kernel.trap(login, abi.CoreRemove(name="two")))
        await settle()
        removing.cancel()
        await asyncio.wait([removing])
        another.step(18)
        assert (await asyncio.wait_for(begun, 5)).message.content == TEXT
        assert (await generate(kernel, "two")).model == "two"
        assert await kernel.check() == []


async def test_a_context_goes_where_it_fits_before_it_is_shortened() -> None:
    small, large = two(context_tokens=60)[0], two()[1]
    async with machine(cores=ScriptedCores(small, large, specs=SPECS)) as kernel:
        pid = kernel.identify(kernel.user_key)
        for turn in range(8):
            call = abi.Generate(messages=user(f"turn {turn} a b c d"), model="one, two")
            await kernel.trap(pid, call)
        report = await kernel.trap(pid, abi.GetContext(messages=True))
        assert isinstance(report, abi.ContextReport)
        assert (report.compactions, len(report.messages)) == (0, 16)
        moved = await events(kernel, ev.CallMoved)
        assert moved
        assert all("window of one is 60" in move.reason for move in moved)  # type: ignore[attr-defined]


async def test_a_beam_search_goes_to_a_core_that_does_one() -> None:
    one, another = two()
    one.abilities = structs.replace(one.abilities, beams=1)
    async with machine(cores=ScriptedCores(one, another, specs=SPECS)) as kernel:
        searched = await generate(kernel, "one, two", sampling=Sampling(beams=2))
        assert searched.model == "two"
        with pytest.raises(InvalidCall, match="does no beam search"):
            await generate(kernel, "one", sampling=Sampling(beams=2))


async def test_an_alias_of_nothing_is_named() -> None:
    aliases = {"gpt": "nowhere", "loop": "loop2", "loop2": "loop", "good": "one"}
    config = Config(server=Server(aliases=aliases))
    one, another = two()
    async with machine(cores=ScriptedCores(one, another, specs=SPECS), config=config) as kernel:
        assert (await generate(kernel, "good")).model == "one"
        with pytest.raises(NotFound, match="'nowhere'"):
            await generate(kernel, "gpt")
        with pytest.raises(NotFound, match="'loop2'"):
            await generate(kernel, "loop")


async def test_a_sequence_that_cannot_stop_keeps_its_slot() -> None:
    core = ScriptedCore([TEXT], slots=1)
    core.abilities = type(core.abilities)("scripted", 1, 8192, preemptible=False)
    async with machine(core=core) as kernel:
        kernel.quantum = 2
        await asyncio.gather(generate(kernel, None), generate(kernel, None))
        assert core.ran == [1] * 5 + [2] * 5


# --- money ----------------------------------------------------------------------------------------

DEAR = {"one": CoreSpec(kind="embedded", price=Price(prompt=1e6, answer=2e6))}  # $1 and $2 a token


async def test_a_budget_in_dollars_holds() -> None:
    one, _ = two()
    async with machine(cores=ScriptedCores(one, specs=DEAR)) as kernel:
        login = kernel.identify(kernel.user_key)
        spawned = await kernel.trap(
            login, abi.SpawnAgent(program="poor", budget=abi.Limits(usd=9.0))
        )
        assert isinstance(spawned, abi.Spawned)
        pid = kernel.identify(str(spawned.key))
        task = asyncio.ensure_future(
            kernel.trap(pid, abi.Generate(messages=user("go"), context=None))
        )
        await settle()
        process = kernel.processes.find(pid)
        assert process.reasons == {"budget"}
        assert process.usage.usd == 2 + 2 * 3  # a prompt of two tokens, three of the answer
        await kernel.trap(login, abi.SetBudget(aid=pid, budget=abi.Limits(usd=100.0)))
        reply = await asyncio.wait_for(task, 5)
        assert isinstance(reply, abi.Generation)
        assert reply.usage.usd == 2 + 2 * 10
        assert process.usage.usd == 2 + 2 * 10
        assert process.left().usd == 100 - 2 * 7
        assert await kernel.check() == []


async def test_what_the_server_counted_is_what_is_paid() -> None:
    class Counting(Continuing):
        async def run(self, sequence: int, grant: Slice) -> SliceResult:
            result = await super().run(sequence, grant)
            if result.finish_reason is None:
                return result
            from aios.ports import Spent

            return structs.replace(result, spent=Spent(5, 12, 1))

    one, _ = two(Counting)
    specs = {"one": CoreSpec(kind="embedded", price=Price(1e6, 2e6, cached=0.5e6))}
    async with machine(cores=ScriptedCores(one, specs=specs)) as kernel:
        pid = kernel.identify(kernel.user_key)
        usage = (await generate(kernel, None)).usage
        assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (5, 12, 1)
        assert usage.usd == 4 * 1 + 1 * 0.5 + 12 * 2
        assert kernel.processes.find(pid).usage.usd == usage.usd
        assert kernel.processes.find(pid).usage.tokens == 17


# --- a second life --------------------------------------------------------------------------------


@pytest.mark.parametrize("moves", [False, True])
async def test_a_second_life_goes_on_where_its_tokens_were_made(moves: bool) -> None:
    """Its core knows them; where that one is gone, another goes on from the text."""
    journal = MemoryJournal()
    replies: list[abi.Generation] = []
    cores: dict[str, Continuing] = {}

    def fresh() -> ScriptedCores:
        for name in ("one", "two"):
            cores[name] = Continuing([TEXT], model=name, gated=True, slots=1)
        return ScriptedCores(*cores.values(), specs=SPECS)

    async def program(pid: int, env: dict[str, str]) -> int:
        call = abi.Generate(messages=user("go"), model="m", context=None, place="0")
        reply = await running[0].trap(pid, call)
        assert isinstance(reply, abi.Generation)
        replies.append(reply)
        return 0

    running: list[TestKernel] = []
    programs = {"program": program}
    async with machine(
        cores=fresh(), journal=journal, programs=ScriptedPrograms(programs)
    ) as kernel:
        running.append(kernel)
        kernel.quantum = 3
        other = asyncio.ensure_future(generate(kernel, "one"))  # its line is longer now
        await settle()
        login = kernel.identify(kernel.user_key)
        await kernel.trap(login, abi.SpawnAgent(program="p", argv=("program",)))
        await settle()
        cores["two"].step(2)
        await settle(200)
        journal = journal.copy()  # what is on disk when it is killed
        other.cancel()
    async with machine(
        cores=fresh(), journal=journal, programs=ScriptedPrograms(programs)
    ) as kernel:
        running[0] = kernel
        kernel.quantum = 3
        if moves:
            kernel.draining.add("two")
        await settle(200)
        name = "one" if moves else "two"
        assert cores[name].texts == ("a b c d e f",)
        cores[name].step(2)
        await settle(200)
        (reply,) = replies
        assert (reply.model, reply.message.content) == (name, TEXT)
        assert reply.usage.completion_tokens == 10
        assert await kernel.check() == []
