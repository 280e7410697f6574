"""Budgets: reserved before, settled after.

A budget is a chain: what a process spends counts for it and for every ancestor, so a child can
never spend more than its parent has left, however many children there are. All numbers are what is
left; None is no limit.
"""

from __future__ import annotations

from aios.abi.calls import Limits

EPSILON = 1e-6  # of a token: what adding up dollars may lose
LEAST_USD = 1e-9  # no core sells anything for less


class Budget:
    """What one process may still spend.

    ``held`` is reserved and not yet settled (tokens), ``held_usd`` what these will cost.
    """

    __slots__ = ("above", "calls", "held", "held_usd", "seconds", "tokens", "usd")

    def __init__(self, limits: Limits, above: Budget | None) -> None:
        self.above = above
        self.tokens, self.seconds, self.calls = limits.tokens, limits.seconds, limits.calls
        self.usd = limits.usd
        self.held, self.held_usd = 0, 0.0

    def __repr__(self) -> str:
        return f"<budget {self.left()}>"

    def left(self) -> Limits:
        return Limits(self.tokens, self.seconds, self.calls, self.usd)

    def replace(self, limits: Limits) -> None:
        """Set the amounts that *limits* names; the others stay."""
        if limits.tokens is not None:
            self.tokens = limits.tokens
        if limits.seconds is not None:
            self.seconds = limits.seconds
        if limits.calls is not None:
            self.calls = limits.calls
        if limits.usd is not None:
            self.usd = limits.usd

    def lift(self, limits: Limits, living: Budget | None) -> None:
        """Take the amounts that *limits* names off the dead ancestors' budgets, up to *living*.

        An orphan stays under the cap of its dead parent, which nobody can raise any more: who may
        give the orphan more decides for both.
        """
        budget = self.above
        while budget is not None and budget is not living:
            budget.tokens = budget.tokens if limits.tokens is None else None
            budget.seconds = budget.seconds if limits.seconds is None else None
            budget.calls = budget.calls if limits.calls is None else None
            budget.usd = budget.usd if limits.usd is None else None
            budget = budget.above

    def tokens_free(self, rate: float = 0.0) -> int | None:
        """Tokens that may still be reserved, over the whole chain, at so many dollars each; None
        is no limit."""
        free: int | None = None
        budget: Budget | None = self
        while budget is not None:
            if budget.tokens is not None:
                here = max(0, budget.tokens - budget.held)
                free = here if free is None else min(free, here)
            if rate and budget.usd is not None:
                here = max(0, int((budget.usd - budget.held_usd) / rate + EPSILON))
                free = here if free is None else min(free, here)
            budget = budget.above
        return free

    def reserve_tokens(self, wanted: int, at_least: int = 1, rate: float = 0.0) -> int:
        """Reserve up to *wanted* at *rate* dollars each; 0 when fewer than *at_least* are free."""
        free = self.tokens_free(rate)
        granted = wanted if free is None else min(wanted, free)
        if granted < at_least:
            return 0
        budget: Budget | None = self
        while budget is not None:
            budget.held += granted
            budget.held_usd += granted * rate
            budget = budget.above
        return granted

    def settle_tokens(self, reserved: int, spent: int, rate: float = 0.0) -> None:
        """Give back a reservation and book what was really spent (below 0: was booked too much)."""
        self.settle(reserved, spent, reserved * rate, spent * rate)

    def settle(self, reserved: int, spent: int, reserved_usd: float, spent_usd: float) -> None:
        """Likewise, with what it costs said in dollars."""
        budget: Budget | None = self
        while budget is not None:
            budget.held -= reserved
            budget.held_usd = budget.held_usd - reserved_usd if budget.held else 0.0
            if budget.tokens is not None:
                budget.tokens = max(0, budget.tokens - spent)
            if budget.usd is not None:
                budget.usd = max(0.0, budget.usd - spent_usd)
            budget = budget.above

    def spend_call(self) -> bool:
        """Book one call; False (and nothing booked) when there is none left."""
        budget: Budget | None = self
        while budget is not None:
            if budget.calls is not None and budget.calls < 1:
                return False
            budget = budget.above
        budget = self
        while budget is not None:
            if budget.calls is not None:
                budget.calls -= 1
            budget = budget.above
        return True

    def limits_calls(self) -> bool:
        """Whether calls are counted, by it or by one that pays for it."""
        return self.calls is not None or (self.above is not None and self.above.limits_calls())

    def spend_seconds(self, seconds: float) -> None:
        if self.seconds is not None:
            self.seconds = max(0.0, self.seconds - seconds)

    def seconds_left(self) -> float | None:
        return self.seconds

    def exhausted(self) -> str | None:
        """The first amount that is used up, over the chain; None when something is left of all."""
        budget: Budget | None = self
        while budget is not None:
            if budget.tokens is not None and budget.tokens - budget.held <= 0:
                return "tokens"
            if budget.seconds is not None and budget.seconds <= 0:
                return "seconds"
            if budget.calls is not None and budget.calls <= 0:
                return "calls"
            if budget.usd is not None and budget.usd - budget.held_usd < LEAST_USD:
                return "usd"
            budget = budget.above
        return None

    def check(self) -> list[str]:
        """Invariants, in numbers."""
        found = []
        if self.held < 0:
            found.append(f"a budget holds {self.held} tokens, which is less than none")
        if self.tokens is not None and self.tokens < 0:
            found.append(f"a budget has {self.tokens} tokens left, which is less than none")
        return found
