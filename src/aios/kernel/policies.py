"""Scheduling policies: pure functions from a ticket to its rank; the lowest rank runs next.

A rank is computed when the ticket gets in line, and again when the policy or the process's priority
changes. That is enough for ageing too: an effective priority that falls linearly with waiting time,
``nice - (now - since) / ageing_s``, orders any two tickets the same way at every moment, so the
constant ``nice * ageing_s + since`` has the same order.

To add one: write the function, name it in POLICIES.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from aios.errors import InvalidCall

if TYPE_CHECKING:
    from aios.kernel.scheduler import Ticket

MAX_QUANTUM = 4096  # decoded tokens: longer slices would make suspending and killing slow

Rank = tuple[float, int]
Policy = Callable[["Ticket", float], Rank]


def fifo(ticket: Ticket, ageing_s: float) -> Rank:
    """Who came first stays first: a generation runs to its end."""
    return (ticket.arrived, ticket.number)


def round_robin(ticket: Ticket, ageing_s: float) -> Rank:
    """Who got in line first; after a slice it is the back of the line."""
    return (ticket.queued_at, ticket.turn)


def priority(ticket: Ticket, ageing_s: float) -> Rank:
    """The lowest nice value first; every ageing_s seconds in line are worth one step of it."""
    return (ticket.process.priority * ageing_s + ticket.queued_at, ticket.turn)


POLICIES: dict[str, Policy] = {"fifo": fifo, "round_robin": round_robin, "priority": priority}


def check(policy: str | None, quantum: int | None) -> None:
    """InvalidCall for a policy that is not there, or a quantum out of range."""
    if policy is not None and policy not in POLICIES:
        known = ", ".join(POLICIES)
        raise InvalidCall(f"there is no scheduling policy named {policy!r}; choose one of {known}.")
    if quantum is not None and not 1 <= quantum <= MAX_QUANTUM:
        raise InvalidCall(f"the quantum must be 1 to {MAX_QUANTUM} tokens, not {quantum}.")
