"""The gate in front of one provider and key: all cores that share these share it.

A call enters before it is sent and says afterwards what came of it:

    with await gate.enter(prompt_tokens=900, max_tokens=200) as passage:
        response = await send()
        passage.answered(response.status, response.headers)

Three things are decided here, over a clock that is passed in:

- **The budget.** Providers tell in headers what they allow a minute and what is left of it. Until
  one has, nothing is limited. What is in flight and not yet in their count is taken off it.
- **The park.** A 429, 503 or 529 parks every call until the time told (else ever longer, with
  jitter). Then they go back: first one, and only when it was answered well the next ones, each a
  moment after the other, so that there is never a storm.
- **The breaker.** After some failures in a row (no connection, 5xx) calls are refused at once for a
  while; then a single one may probe, and its answer opens or closes the way for all.

A gate never sends anything again: its callers do, by entering again.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from msgspec import Struct

from aios.errors import CoreFailed
from aios.ports import Clock

PARKING = frozenset({429, 503, 529})  # 529: overloaded, as Anthropic says it
WINDOW_S = 60.0  # budgets are a minute's, where no reset is told
FIRST_PARK_S, LONGEST_PARK_S = 1.0, 60.0  # of parks that nobody told the length of
LONGEST_TOLD_S = 3600.0  # a provider that says "tomorrow" is asked again sooner
GAP_S = 0.1  # between two calls that return from a park, on average
LONGEST_OPEN_S = 120.0

OnEvent = Callable[[str, dict[str, Any]], None]
Breaker = Literal["closed", "open", "half_open"]


class Left(Struct, frozen=True):
    """What is left now of one resource, and how much of it a provider allows."""

    limit: int
    left: int


class GateReport(Struct, frozen=True):
    """A gate for people and machines; parked_until is seconds since the epoch."""

    name: str
    budgets: dict[str, Left]
    parked_until: float | None
    waiting: int
    breaker: Breaker
    failures: int


# --- what headers say -----------------------------------------------------------------------------

_SPAN = re.compile(r"(?:(\d+(?:\.\d+)?)(ms|h|m|s))")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_until(text: str, now: float) -> float | None:
    """Seconds from *now* (since the epoch) until what a header tells; None if it tells nothing.

    A number is seconds, or a time if it is too large for that (seconds or milliseconds since the
    epoch); ``6m0s`` and ``20ms`` are spans; an RFC 3339 or HTTP date is a time.
    """
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        pass
    else:
        if not math.isfinite(number) or number < 0:
            return None
        if number > 1e11:
            number /= 1000
        return max(0.0, number - now) if number > 1e9 else number
    if "".join(m.group() for m in _SPAN.finditer(text)) == text != "":
        return sum(float(m[1]) * _UNITS[m[2]] for m in _SPAN.finditer(text))
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            when = read(text)
        except (ValueError, TypeError):
            continue
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        return max(0.0, when.timestamp() - now)
    return None


def told_wait_s(headers: Mapping[str, str], now: float) -> float | None:
    """How long a refusal says to wait, in seconds."""
    milliseconds = headers.get("retry-after-ms")
    if milliseconds is not None:
        try:
            wait = float(milliseconds) / 1000
        except ValueError:
            wait = -1.0
        if math.isfinite(wait) and wait >= 0:
            return wait
    told = headers.get("retry-after")
    return seconds_until(told, now) if told is not None else None


_STYLES = (
    ("x-ratelimit-limit-{}", "x-ratelimit-remaining-{}", "x-ratelimit-reset-{}"),
    (
        "anthropic-ratelimit-{}-limit",
        "anthropic-ratelimit-{}-remaining",
        "anthropic-ratelimit-{}-reset",
    ),
)
RESOURCES = ("requests", "tokens", "input-tokens", "output-tokens")


def _count(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


class Budget:
    """What is left of one resource: it fills evenly up to its limit, as the provider told last."""

    def __init__(self, limit: float, left: float, rate: float, now: float) -> None:
        self.limit, self._left, self._rate, self._at = limit, left, rate, now

    def left(self, now: float) -> float:
        return min(self.limit, self._left + (now - self._at) * self._rate)

    def wait_s(self, wanted: float, now: float) -> float:
        """Until so much is left; more than the limit is never asked for at once."""
        missing = min(wanted, self.limit) - self.left(now)
        return missing / self._rate if missing > 1e-6 else 0.0

    def take(self, wanted: float, now: float) -> None:
        self._left, self._at = self.left(now) - min(wanted, self.limit), now


# --- the gate -------------------------------------------------------------------------------------


class Passage:
    """One call through a gate; a context manager, and what it was told last counts."""

    def __init__(
        self, gate: Gate, wants: dict[str, float], *, returning: bool, probe: bool
    ) -> None:
        self._gate, self.wants = gate, wants
        self.is_returning, self.is_probe = returning, probe
        self.is_open = True

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The provider answered: with this status, and these headers (names in lower case)."""
        if self.is_open:
            self.is_open = False
            self._gate._answered(self, status, headers)

    def failed(self) -> None:
        """It could not be reached, or went away."""
        if self.is_open:
            self.is_open = False
            self._gate._failed(self)

    def __enter__(self) -> Passage:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_open:  # given up before an answer
            self.is_open = False
            self._gate._abandoned(self)


class Gate:
    """*trip* failures in a row open the breaker for *open_s* seconds, then twice as long, up to two
    minutes. *seed* fixes the jitter. ``on_event(kind, fields)`` hears of parked, returned, opened,
    probed and closed."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        *,
        trip: int = 5,
        open_s: float = 10.0,
        seed: int | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        self.name = name
        self._clock, self._trip, self._first_open_s = clock, trip, open_s
        self._random = random.Random(seed)
        self._on_event = on_event
        self._line = asyncio.Lock()  # first come, first served
        self._changed = asyncio.Event()
        self._waiting = 0
        self._budgets: dict[str, Budget] = {}
        self._unseen: dict[str, float] = dict.fromkeys(RESOURCES, 0.0)  # sent, not yet answered
        self._parked_until = 0.0
        self._parks = 0  # without a good answer between
        self._is_returning = False
        self._window = self._out = 0  # of those who return: may be out at once; are out
        self._next_at = 0.0
        self._failures = 0
        self._open_until: float | None = None
        self._open_s = open_s
        self._is_probing = False

    def __repr__(self) -> str:
        return f"<gate {self.name}: {self.breaker}, {self._waiting} wait>"

    @property
    def breaker(self) -> Breaker:
        if self._open_until is None:
            return "closed"
        return "open" if self._clock.monotonic() < self._open_until else "half_open"

    def report(self) -> GateReport:
        now = self._clock.monotonic()
        parked = self._parked_until - now
        return GateReport(
            name=self.name,
            budgets={
                name: Left(int(budget.limit), max(0, int(budget.left(now))))
                for name, budget in self._budgets.items()
            },
            parked_until=self._clock.now() + parked if parked > 0 else None,
            waiting=self._waiting,
            breaker=self.breaker,
            failures=self._failures,
        )

    async def enter(self, prompt_tokens: int = 0, max_tokens: int = 0) -> Passage:
        """Wait until a call may be sent; CoreFailed at once while the breaker is open."""
        wants = {
            "requests": 1.0,
            "tokens": float(prompt_tokens + max_tokens),
            "input-tokens": float(prompt_tokens),
            "output-tokens": float(max_tokens),
        }
        self._waiting += 1
        try:
            async with self._line:
                while True:
                    probe = self._probe()
                    wait_s = self._wait_s(wants)
                    if wait_s <= 0:
                        break
                    await self._pause(wait_s)
                return self._pass(wants, probe)
        finally:
            self._waiting -= 1

    def _probe(self) -> bool:
        """Whether this call is the one that tries if the provider is back."""
        if self._open_until is None:
            return False
        left = self._open_until - self._clock.monotonic()
        if left > 0 or self._is_probing:
            raise CoreFailed(
                f"{self.name} failed {self._failures} times in a row, so nothing is sent to it "
                f"{f'for {left:.0f} s' if left > 0 else 'until one call has tried it'}; "
                "see whether it runs."
            )
        return True

    def _wait_s(self, wants: dict[str, float]) -> float:
        now = self._clock.monotonic()
        if now < self._parked_until:
            return self._parked_until - now
        waits = [budget.wait_s(wants[name], now) for name, budget in self._budgets.items()]
        if self._is_returning:
            waits.append(math.inf if self._out >= self._window else self._next_at - now)
        return max(waits, default=0.0)

    async def _pause(self, seconds: float) -> None:
        """Until then, or until something has changed."""
        self._changed.clear()
        waits: set[asyncio.Future[Any]] = {asyncio.ensure_future(self._changed.wait())}
        if seconds < math.inf:
            waits.add(asyncio.ensure_future(self._clock.sleep(seconds)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _pass(self, wants: dict[str, float], probe: bool) -> Passage:
        now = self._clock.monotonic()
        for name, budget in self._budgets.items():
            budget.take(wants[name], now)
        for name, wanted in wants.items():
            self._unseen[name] += wanted
        if probe:
            self._is_probing = True
            self._tell("probed")
        if self._is_returning:
            self._out += 1
            self._next_at = now + GAP_S * self._random.uniform(0.5, 1.5)
        return Passage(self, wants, returning=self._is_returning, probe=probe)

    # --- what came of it --------------------------------------------------------------------------

    def _over(self, passage: Passage) -> None:
        for name, wanted in passage.wants.items():
            self._unseen[name] = max(0.0, self._unseen[name] - wanted)
        if passage.is_returning:
            self._out = max(0, self._out - 1)
        if passage.is_probe:
            self._is_probing = False
        self._changed.set()

    def _answered(self, passage: Passage, status: int, headers: Mapping[str, str]) -> None:
        self._over(passage)
        self._learn(headers)
        if status in PARKING:
            self._park(told_wait_s(headers, self._clock.now()), passage)
        elif status >= 500:
            self._count_failure(passage)
        elif passage.is_returning:
            self._parks = 0
            self._window += 1
            if self._is_returning and not self._waiting:
                self._is_returning = False
                self._tell("returned")
        if status < 500 or status in PARKING:  # somebody is there
            self._failures = 0
            if self._open_until is not None:
                self._open_until, self._open_s = None, self._first_open_s
                self._tell("closed")

    def _failed(self, passage: Passage) -> None:
        self._over(passage)
        self._count_failure(passage)

    def _abandoned(self, passage: Passage) -> None:
        self._over(passage)
        if self._is_returning and not self._waiting and not self._out:
            self._is_returning = False
            self._tell("returned")

    def _learn(self, headers: Mapping[str, str]) -> None:
        now = self._clock.monotonic()
        for resource in RESOURCES:
            for style in _STYLES:
                limit, left, reset = (headers.get(name.format(resource)) for name in style)
                allowed, remaining = _count(limit), _count(left)
                if not allowed or remaining is None:
                    continue
                remaining = min(remaining, allowed)
                full_s = seconds_until(reset, self._clock.now()) if reset else None
                rate = allowed / WINDOW_S
                if full_s and remaining < allowed:
                    rate = (allowed - remaining) / full_s
                self._budgets[resource] = Budget(
                    allowed, remaining - self._unseen[resource], rate, now
                )

    def _park(self, told_s: float | None, passage: Passage) -> None:
        now = self._clock.monotonic()
        if now >= self._parked_until:  # others of the same burst add nothing to it
            self._parks += 1
        if told_s is None:
            most = min(LONGEST_PARK_S, FIRST_PARK_S * 2 ** (self._parks - 1))
            wait_s = most * self._random.uniform(0.5, 1.0)
            if now < self._parked_until:
                return
        else:
            wait_s = min(told_s, LONGEST_TOLD_S) + GAP_S * self._random.random()
        until = now + wait_s
        if until <= self._parked_until:
            return
        self._parked_until = until
        self._is_returning, self._window, self._next_at = True, 1, until
        self._tell("parked", seconds=wait_s, told=told_s is not None, waiting=self._waiting)

    def _count_failure(self, passage: Passage) -> None:
        self._failures += 1
        now = self._clock.monotonic()
        if passage.is_probe:
            self._open_s = min(LONGEST_OPEN_S, self._open_s * 2)
        elif self._failures < self._trip or self._open_until is not None:
            return
        self._open_until = now + self._open_s
        self._tell("opened", failures=self._failures, seconds=self._open_s)

    def _tell(self, kind: str, **fields: Any) -> None:
        if self._on_event is not None:
            self._on_event(kind, {"gate": self.name, **fields})


class Gates:
    """All gates of a machine by name: one for each provider and key, whoever asks for it first."""

    def __init__(self, clock: Clock, on_event: OnEvent | None = None) -> None:
        self._clock, self._on_event = clock, on_event
        self._gates: dict[str, Gate] = {}

    def of(self, name: str) -> Gate:
        """*name* is of a provider and of its key (``api.example.com work``), never the key."""
        if name not in self._gates:
            self._gates[name] = Gate(name, self._clock, on_event=self._on_event)
        return self._gates[name]

    def report(self) -> list[GateReport]:
        return [gate.report() for _, gate in sorted(self._gates.items())]
