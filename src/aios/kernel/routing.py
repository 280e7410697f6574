"""Which core a generation goes to, and where it goes on when that one fails.

What is asked for is a list, first choice first: ``small, cheapest:big, local``. A part names a
core, a model, or a class of cores; before a colon, or alone for all cores, stands how to choose
among them: ``cheapest`` by price, ``fastest`` by the speed that was seen, ``local`` those of this
machine first. Without one the core with the shortest line is taken. That is decided in ``rank``, in
plain code; ``Route`` is one generation's way through it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from aios.abi import events as ev
from aios.abi import wire
from aios.abi.calls import Price
from aios.errors import (
    AiosError,
    Conflict,
    ContextOverflow,
    CoreFailed,
    CoreRefused,
    CoreTimeout,
    NotFound,
    SetupError,
)
from aios.kernel.generation import Made
from aios.kernel.process import OpenCall
from aios.kernel.scheduler import LineClosed, Scheduler
from aios.ports import CallHistory, CoreFacts

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel

T = TypeVar("T")

SHORTEST_PAUSE_S = 0.5  # before a core that failed is asked again, while there is no other
LONGEST_PAUSE_S = 30.0
ONLY = "the only one"
LONGEST_TOKEN = 12  # characters, on average: a prompt of more is surely too long for a window


class CoreNow(NamedTuple):
    """A core as it is at this moment. load is generations for each slot, speed tokens a second."""

    facts: CoreFacts
    load: float = 0.0
    speed: float = 0.0  # 0: not known yet
    is_draining: bool = False
    is_down: bool = False  # it failed a moment ago
    context_tokens: int = 0  # its window; 0: not known yet


class Choice(NamedTuple):
    core: str
    reason: str


def _cost(price: Price | None, facts: CoreFacts) -> float:
    """Dollars for a million tokens each way; what has no price is dear, unless it is our own."""
    if price is not None:
        return price.prompt + price.answer
    return 0.0 if facts.is_here else float("inf")


Rank = Callable[[CoreNow], tuple[float, ...]]

POLICIES: dict[str, tuple[str, Rank]] = {
    "cheapest": ("the cheapest", lambda core: (_cost(core.facts.price, core.facts), core.load)),
    "fastest": (
        "the fastest",  # one that was never seen is given a try
        lambda core: ((core.load + 1) / core.speed if core.speed else 0.0, core.load),
    ),
    "local": ("on this machine", lambda core: (not core.facts.is_here, core.load)),
}
SHORTEST: tuple[str, Rank] = ("the shortest line", lambda core: (core.load,))


def parts(asked: str) -> list[tuple[str, str]]:
    """(policy or "", name or "") of each part of what was asked for."""
    found = []
    for part in (piece.strip() for piece in asked.split(",")):
        policy, colon, name = part.partition(":")
        if colon and policy in POLICIES:
            found.append((policy, name.strip()))
        elif part in POLICIES:
            found.append((part, ""))
        elif part:
            found.append(("", part))
    return found


def _named(name: str, cores: Sequence[CoreNow]) -> tuple[list[CoreNow], str]:
    """The cores that a name means, and as what they have it: the nearest meaning counts."""
    if not name:
        return list(cores), ""
    for said, means in (
        ("", lambda facts: facts.name == name),
        (f"of {name}", lambda facts: facts.model == name),
        (f"of the class {name}", lambda facts: name in facts.classes),
    ):
        if found := [core for core in cores if means(core.facts)]:
            return found, said
    return [], ""


def unknown_in(asked: str, cores: Sequence[CoreNow]) -> str | None:
    """The first part of what was asked for that means no core; None if all mean some."""
    wanted = parts(asked)
    if not wanted:
        return asked
    return next((name for _, name in wanted if not _named(name, cores)[0]), None)


def rank(asked: str, cores: Sequence[CoreNow], tokens: int = 0) -> list[Choice]:
    """The cores for what was asked, best first, each once; *tokens* has to fit its window."""
    choices: dict[str, str] = {}
    for number, (policy, name) in enumerate(parts(asked)):
        found, of = _named(name, cores)
        open_ones = [core for core in found if not core.is_draining]
        fitting = [
            core for core in open_ones if not core.context_tokens or tokens < core.context_tokens
        ]
        found = fitting or open_ones
        word, order = POLICIES.get(policy, SHORTEST)
        chosen_by = f"{word} {of}".strip() if len(found) > 1 else ""
        if number:
            chosen_by = f"{chosen_by}, choice {number + 1}".strip(", ")
        for core in sorted(found, key=lambda core: (core.is_down, *order(core))):
            choices.setdefault(core.facts.name, chosen_by or ONLY)
    return [Choice(core, reason) for core, reason in choices.items()]


class Route:
    """One generation's way: the core that it is on, and those it may go to."""

    def __init__(self, kernel: Kernel, call: OpenCall, asked: str, characters: int = 0) -> None:
        self._kernel, self._call, self._asked = kernel, call, asked
        self._tokens = characters // LONGEST_TOKEN
        self._here = ""  # the core that it is on
        self._failed: dict[str, AiosError] = {}
        self._pause_s = 0.0
        self._stuck_since: float | None = None
        self._cause: AiosError | None = None  # of being stuck
        self._made = 0  # tokens, when it failed last

    def __repr__(self) -> str:
        return f"<route of {self._call.id} by {self._asked!r}: on {self._here or 'none'}>"

    def _possible(self) -> list[Choice]:
        """All that can take it: of a text that has begun, only those that can go on from it."""
        choices = rank(self._asked, self._kernel.cores_now(), self._tokens)
        progress = self._call.progress
        if progress is None or not progress.text:
            return choices
        return [choice for choice in choices if self._goes_on(choice.core)]

    def _goes_on(self, name: str) -> bool:
        scheduler = self._kernel.schedulers.get(name)
        return scheduler is None or scheduler.core.abilities.preemptible

    def has_larger(self, window: int) -> bool:
        """Whether another core that is left has a wider window, or one that nobody knows yet."""
        cores = {core.facts.name: core.context_tokens for core in self._kernel.cores_now()}
        return any(
            not cores[choice.core] or cores[choice.core] > window
            for choice in self._left()
            if choice.core != self._here
        )

    def _left(self) -> list[Choice]:
        return [choice for choice in self._possible() if choice.core not in self._failed]

    @property
    def has_others(self) -> bool:
        """Whether the generation could go to another core than the one it is on."""
        return any(choice.core != self._here for choice in self._left())

    async def run(self, work: Callable[[Scheduler], Awaitable[T]]) -> T:
        """Have it done on the best core; when that fails, on the next, from where it was.

        What is the caller's to mend is told at once. When none is left, those that are elsewhere
        are asked again, after longer and longer pauses, until ``scheduler.outage_s`` is over.
        """
        before, reason = "", ""
        while True:
            choice = await self._next(before)
            self._tell(choice, before, reason)
            self._here = choice.core
            self._kernel.on_core[choice.core] += 1
            try:
                scheduler = await self._kernel.scheduler(choice.core)
                return await work(scheduler)
            except LineClosed as error:  # drained, or not made for this
                self._failed[choice.core] = error
                before, reason = choice.core, error.message
            except ContextOverflow as error:
                if not self.has_others:
                    raise
                self._failed[choice.core] = error
                before, reason = choice.core, error.message
            except (CoreFailed, CoreTimeout, SetupError) as error:
                if not (isinstance(error, CoreRefused) and self._tokens_made):  # else its one fault
                    self._kernel.core_down(choice.core, error)  # is not to go on from a text
                self._failed[choice.core] = error
                before, reason = choice.core, error.message
            finally:
                self._kernel.on_core[choice.core] -= 1

    def _tell(self, choice: Choice, before: str, reason: str) -> None:
        call, emit = self._call, self._kernel.trace.emit
        pid, core = call.process.pid, choice.core
        if not before:
            if core != self._asked:
                why, asked = choice.reason, self._asked
                emit(ev.CoreChosen, pid, call=call.id, core=core, asked=asked, reason=why)
        elif before != core:
            emit(
                ev.CallMoved,
                pid,
                call=call.id,
                before=before,
                core=core,
                tokens=self._tokens_made,
                reason=reason,
            )

    @property
    def _tokens_made(self) -> int:
        return len(self._call.progress.tokens) if self._call.progress else 0

    async def _next(self, before: str) -> Choice:
        """Where to go; waits while there is nothing but hope. The last error if there is none."""
        kernel, asked = self._kernel, self._asked
        if not before and asked in kernel.schedulers and asked not in kernel.draining:
            return Choice(asked, ONLY)  # there is nothing to choose
        while not (left := self._left()):
            last = self._failed.get(before)
            if last is None or (isinstance(last, LineClosed) and not self._possible()):
                raise nowhere(self._asked, kernel.cores_now())
            if not self._possible():
                raise last
            await self._pause(last)
        maker = self._maker()
        # a second life finds its tokens where the first one made them
        return next((choice for choice in left if choice.core == maker), left[0])

    async def _pause(self, last: AiosError) -> None:
        """Wait until those that failed may be asked again; the last error if that is no use."""
        kernel = self._kernel
        now, made = kernel.clock.monotonic(), self._tokens_made
        if self._stuck_since is None or made > self._made:
            self._stuck_since, self._pause_s, self._cause = now, 0.0, last
        self._made = made
        facts = {core.facts.name: core.facts for core in kernel.cores_now()}
        there_is_hope = any(
            name in facts and not facts[name].is_here and error.retryable
            for name, error in self._failed.items()
        )
        left = self._stuck_since + kernel.config.scheduler.outage_s - now
        if not there_is_hope:
            raise last
        if left <= 0:
            raise self._cause or last
        self._pause_s = min(left, LONGEST_PAUSE_S, self._pause_s * 2 or SHORTEST_PAUSE_S)
        await kernel.clock.sleep(self._pause_s)
        self._failed.clear()

    def _maker(self) -> str:
        """The core whose tokens an earlier life of the program has left, if it begins now."""
        made = self._call.made
        if self._call.progress is not None or made is None or not made.details:
            return ""
        return maker_of(made)


def maker_of(history: CallHistory) -> str:
    return wire.decode(history.details[-1], Made).core


def nowhere(asked: str, cores: Sequence[CoreNow]) -> NotFound | Conflict:
    """Why there is no core for what was asked."""
    missing = unknown_in(asked, cores)
    if missing is not None:
        return unknown(missing, cores)
    return Conflict(
        f"every core for {asked!r} is being drained: `aios core drain NAME --undo` lets one take "
        "calls again."
    )


def unknown(name: str, cores: Sequence[CoreNow]) -> NotFound:
    names = ", ".join(core.facts.name for core in cores)
    return NotFound(
        f"there is no model named {name[:100]!r} here; there are {names} "
        "(`aios model pull`, `aios model import` and `aios core add` add more)."
    )
