"""The gate of a provider: what it learns, when it parks, how calls return, when it breaks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aios.drivers.cores.gate import (
    GAP_S,
    LONGEST_TOLD_S,
    Gate,
    Gates,
    seconds_until,
    told_wait_s,
)
from aios.errors import CoreFailed
from aios.testing import FakeClock, settle

NOW = 1_000_000.0


class World:
    """A gate, calls that enter it, and what is told of it."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock(NOW)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.gate = Gate(
            "acme",
            self.clock,
            seed=7,
            on_event=lambda kind, fields: self.events.append((kind, fields)),
            **options,
        )
        self.through: list[float] = []  # when each call went through

    async def call(
        self, status: int = 200, headers: dict[str, str] | None = None, tokens: int = 0
    ) -> None:
        with await self.gate.enter(tokens) as passage:
            self.through.append(self.clock.monotonic() - NOW)
            passage.answered(status, headers or {})

    async def fail(self) -> None:
        with await self.gate.enter() as passage:
            passage.failed()

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("1h2m3.5s", 3723.5),
        ("12", 12.0),
        ("0.25", 0.25),
        ("1000030", 1000030.0),  # too small to be a time since the epoch
        ("1970-01-12T13:46:50Z", 10.0),
        ("1970-01-12T15:46:50+02:00", 10.0),
        ("Mon, 12 Jan 1970 13:46:45 GMT", 5.0),
        ("1970-01-01T00:00:00Z", 0.0),
        ("soon", None),
        ("", None),
        ("-5", None),
        ("nan", None),
        ("inf", None),
        ("6m0", None),
    ],
)
def test_times_in_headers_are_read(text: str, seconds: float | None) -> None:
    assert seconds_until(text, NOW) == pytest.approx(seconds)


def test_times_since_the_epoch_are_read_in_seconds_and_milliseconds() -> None:
    assert seconds_until("1700000030", 1_700_000_000) == 30
    assert seconds_until("1700000030000", 1_700_000_000) == 30


def test_milliseconds_of_a_refusal_are_more_exact_than_its_seconds() -> None:
    assert told_wait_s({"retry-after": "3", "retry-after-ms": "2500"}, NOW) == 2.5
    assert told_wait_s({"retry-after": "3", "retry-after-ms": "?"}, NOW) == 3
    assert told_wait_s({}, NOW) is None


async def test_nothing_is_limited_before_it_is_known() -> None:
    world = World()
    async with asyncio.timeout(5):
        await asyncio.gather(*(world.call(tokens=10**6) for _ in range(100)))
    assert world.through == [0.0] * 100
    assert world.gate.report().budgets == {}


async def test_a_budget_of_requests_is_learnt_and_held() -> None:
    world = World()
    told = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "58s",  # one a second
    }
    await world.call(headers=told)
    assert world.gate.report().budgets["requests"].left == 2
    tasks = [asyncio.create_task(world.call()) for _ in range(4)]
    await settle()
    assert world.through[1:] == [0.0, 0.0]
    await world.clock.advance(0.9)
    assert len(world.through) == 3
    await world.clock.advance(0.2)
    assert len(world.through) == 4
    await world.clock.advance(1.0)
    assert world.through[3:] == [pytest.approx(1.0), pytest.approx(2.0)]
    await asyncio.gather(*tasks)


async def test_a_budget_of_tokens_counts_prompts_and_answers() -> None:
    world = World()
    await world.call(
        headers={
            "anthropic-ratelimit-tokens-limit": "6000",
            "anthropic-ratelimit-tokens-remaining": "1000",
            "anthropic-ratelimit-tokens-reset": "1970-01-12T13:47:30Z",  # 5000 in 50 s
        }
    )
    small = asyncio.create_task(world.call(tokens=900))
    large = asyncio.create_task(world.call(tokens=1100))
    await settle()
    assert small.done()
    assert not large.done()
    await world.clock.advance(9.9)
    assert not large.done()
    await world.clock.advance(0.2)
    await large
    # more than the whole limit is let through when all of it is left
    huge = asyncio.create_task(world.call(tokens=10**9))
    await world.clock.advance(59)
    assert not huge.done()
    await world.clock.advance(2)
    await huge


async def test_what_is_in_flight_is_taken_off_what_is_told() -> None:
    world = World()
    others = [await world.gate.enter() for _ in range(3)]
    await world.call(
        headers={"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "5"}
    )
    assert world.gate.report().budgets["requests"].left == 2
    for other in others:
        with other:
            pass


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_a_refusal_parks_all_calls_for_as_long_as_told(status: int) -> None:
    world, other = World(), World()
    await world.call(status, {"retry-after": "10"})
    assert world.gate.report().parked_until == pytest.approx(NOW + 10, abs=GAP_S)
    tasks = [asyncio.create_task(world.call()) for _ in range(5)]
    await settle()
    assert world.gate.report().waiting == 5
    await other.call()  # another gate goes on
    await world.clock.advance(9.9)
    assert len(world.through) == 1
    await world.clock.advance(5)
    await asyncio.gather(*tasks)
    returned = world.through[1:]
    gaps = [b - a for a, b in zip(returned, returned[1:], strict=False)]
    assert returned[0] >= 10
    assert all(GAP_S / 2 <= gap <= GAP_S * 1.5 for gap in gaps)
    assert len(set(gaps)) > 1  # jitter
    assert world.kinds() == ["parked", "returned"]
    assert world.events[0][1] == {
        "gate": "acme",
        "seconds": pytest.approx(10, abs=GAP_S),
        "told": True,
        "waiting": 0,
    }


async def test_the_first_to_return_goes_alone_until_it_is_answered() -> None:
    world = World()
    await world.call(429, {"retry-after": "1"})
    entering = [asyncio.create_task(world.gate.enter()) for _ in range(6)]
    await world.clock.advance(30)
    assert [task.done() for task in entering] == [True, *[False] * 5]
    with entering[0].result() as first:
        first.answered(429, {"retry-after": "1"})  # parked anew: one request was wasted, not six
    await world.clock.advance(30)
    assert sum(task.done() for task in entering) == 2
    with entering[1].result() as second:
        second.answered(200, {})
    await world.clock.advance(30)
    assert sum(task.done() for task in entering) == 4  # two at once now
    for task in entering[2:4]:
        with task.result():
            pass  # given up: others go on in their place
    await world.clock.advance(30)
    assert all(task.done() for task in entering)


async def test_parks_that_nobody_told_the_length_of_grow_with_jitter() -> None:
    world = World()
    lengths = []
    for _ in range(9):
        await world.call(429)
        lengths.append(world.events[-1][1]["seconds"])
        await world.clock.advance(61)
    most = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert all(limit / 2 <= length <= limit for length, limit in zip(lengths, most, strict=True))
    assert len({length / limit for length, limit in zip(lengths, most, strict=True)}) == 9
    await world.call()  # a good answer, and it begins from the start
    await world.call(429)
    assert world.events[-1][1]["seconds"] <= 1.0


async def test_a_burst_of_refusals_is_one_park() -> None:
    world = World()
    passages = [await world.gate.enter() for _ in range(8)]
    for passage in passages:
        with passage:
            passage.answered(429, {})
    assert world.kinds() == ["parked"]
    assert world.events[0][1]["seconds"] <= 1.0
    await world.clock.advance(1.0)
    await world.call(429)  # the second in a row, not the ninth
    assert world.events[1][1]["seconds"] <= 2.0


async def test_a_provider_that_says_tomorrow_is_asked_again_sooner() -> None:
    world = World()
    await world.call(429, {"retry-after": "86400"})
    assert world.events[0][1]["seconds"] <= LONGEST_TOLD_S + GAP_S


async def test_failures_in_a_row_open_the_breaker_and_one_probe_closes_it() -> None:
    world = World(trip=3, open_s=10)
    for _ in range(3):
        await world.fail()
    assert world.gate.report().breaker == "open"
    with pytest.raises(CoreFailed, match="acme failed 3 times in a row.*for 10 s"):
        await world.gate.enter()
    await world.clock.advance(10)
    assert world.gate.breaker == "half_open"
    with await world.gate.enter() as probe:
        with pytest.raises(CoreFailed, match="until one call has tried"):
            await world.gate.enter()
        probe.answered(200, {})
    await world.call()
    assert world.gate.report().breaker == "closed"
    assert world.kinds() == ["opened", "probed", "closed"]


async def test_a_probe_that_fails_keeps_it_open_for_longer() -> None:
    world = World(trip=1, open_s=10)
    await world.fail()
    await world.clock.advance(10)
    await world.fail()  # the probe
    await world.clock.advance(19)
    with pytest.raises(CoreFailed):
        await world.gate.enter()
    await world.clock.advance(1)
    with await world.gate.enter():
        pass  # the probe gave up: the next call may be one
    await world.call()
    assert world.gate.breaker == "closed"


async def test_a_good_answer_between_failures_keeps_it_closed() -> None:
    world = World(trip=3)
    for _ in range(5):
        await world.fail()
        await world.fail()
        await world.call()
    await world.call(500)
    await world.call(404)  # somebody is there
    assert world.gate.report().failures == 0
    assert world.gate.breaker == "closed"


async def test_calls_in_line_hear_of_a_breaker_that_opens() -> None:
    world = World(trip=1)
    going = await world.gate.enter()
    await world.call(429, {"retry-after": "100"})
    parked = asyncio.create_task(world.call())
    await settle()
    with going:
        going.failed()
    with pytest.raises(CoreFailed, match="in a row"):
        await parked
    assert world.gate.report().waiting == 0


async def test_a_call_that_gives_up_in_line_leaves_the_others_their_turn() -> None:
    world = World()
    await world.call(429, {"retry-after": "5"})
    first, second = (asyncio.create_task(world.call()) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    await world.clock.advance(6)
    await second
    assert len(world.through) == 2


async def test_headers_that_make_no_sense_limit_nothing() -> None:
    world = World()
    for limit, left in (("many", "few"), ("0", "0"), ("-1", "5"), ("nan", "1"), ("10", "?")):
        await world.call(
            headers={"x-ratelimit-limit-requests": limit, "x-ratelimit-remaining-requests": left}
        )
    assert world.gate.report().budgets == {}
    await world.call(
        headers={"x-ratelimit-limit-requests": "10", "x-ratelimit-remaining-requests": "10000"}
    )
    assert world.gate.report().budgets["requests"].left == 10


async def test_one_name_is_one_gate() -> None:
    told: list[str] = []
    clock = FakeClock(NOW)
    gates = Gates(clock, lambda kind, fields: told.append(f"{fields['gate']} {kind}"))
    with await gates.of("acme work").enter() as passage:
        passage.answered(429, {"retry-after": "5"})
    assert gates.of("acme work") is gates.of("acme work")
    reports = {report.name: report.parked_until for report in gates.report()}
    assert reports == {"acme work": pytest.approx(NOW + 5, abs=GAP_S)}
    with await gates.of("acme home").enter():
        pass  # another key, another gate
    assert told == ["acme work parked"]
    assert [report.name for report in gates.report()] == ["acme home", "acme work"]
