"""The scheduler: who holds a core, slice by slice.

The contract. A ticket gets in line, is granted one slice, runs it, and gets in line again, until
its generation ends. Between two slices anything may happen to it: preempted, paged out, suspended,
killed. At every moment at most ``slots`` tickets of a core run. When a slot is free, the ticket of
the lowest rank that may run gets it; a ticket whose process is suspended, or that somebody holds,
may not. A slice that was granted ends, however it ends, and then its slot is free.

A ticket that ends a slice is back in line before the free slot is given away (``_dispatch`` runs
after the current step of the event loop), so a policy that favours it keeps it on the core.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from aios.abi import events as ev
from aios.abi.calls import Price, SchedulerReport
from aios.errors import CoreFailed, QueueFull
from aios.kernel.context import to_page_out
from aios.kernel.policies import POLICIES, Rank, check
from aios.kernel.process import OpenCall, Process
from aios.kernel.trace import Trace
from aios.ports import Clock, Core, CoreFacts, Slice, SliceResult

BEGUN: Rank = (float("-inf"), 0)
SPEED_WEIGHT = 0.2  # of a slice, in the running mean of a core's speed


class LineClosed(CoreFailed):
    """The core is being drained; what has not begun may go elsewhere."""


class Ticket:
    """A generation's place in line. Times are seconds of the clock's ``monotonic``."""

    __slots__ = (
        "arrived",
        "call",
        "cells",
        "entry",
        "grant",
        "holders",
        "is_parked",
        "is_running",
        "number",
        "preemptions",
        "process",
        "queued_at",
        "ran_s",
        "rank",
        "residency",
        "sequence",
        "slices",
        "stopped",
        "turn",
        "used",
        "waited_s",
    )

    def __init__(self, number: int, call: OpenCall, arrived: float) -> None:
        self.number, self.call, self.process, self.arrived = number, call, call.process, arrived
        self.sequence: int | None = None  # in the core; None before admission and after a crash
        self.queued_at, self.turn = arrived, number
        self.rank: Rank = (0.0, 0)
        self.entry = 0  # which of its entries in the heap is the valid one
        self.grant: asyncio.Future[None] | None = None  # set while it waits in line
        self.is_running = False
        self.is_parked = False
        self.holders = 0
        self.stopped: asyncio.Future[None] | None = None
        self.cells = 0
        self.used = 0  # tokens of its quantum, on a core whose slices may be shorter
        self.residency = "none"
        self.slices = self.preemptions = 0
        self.waited_s = self.ran_s = 0.0

    def __repr__(self) -> str:
        return f"<ticket {self.number} of {self.call.id}: {self.slices} slices, {self.residency}>"

    @property
    def may_run(self) -> bool:
        return not self.holders and not self.process.is_suspended


class Scheduler:
    """The line in front of one core."""

    def __init__(
        self,
        name: str,
        core: Core,
        policy: str,
        quantum: int,
        ageing_s: float,
        limit: int,
        trace: Trace,
        clock: Clock,
        facts: CoreFacts,
    ) -> None:
        self.name, self.core, self.is_here = name, core, facts.is_here
        price = facts.price or Price()
        self.prompt_usd, self.answer_usd = price.prompt / 1e6, price.answer / 1e6  # a token
        self.cached_usd = self.prompt_usd if price.cached is None else price.cached / 1e6
        self.speed = 0.0  # tokens a second of one generation that runs; 0: not known yet
        self.life = self.served_in = (
            0  # of the core: counted up when it dies; the last it served in
        )
        self._trace, self._clock = trace, clock
        self._ageing_s, self._limit = ageing_s, limit
        self._line: list[tuple[Rank, int, int, Ticket]] = []
        self.tickets: set[Ticket] = set()
        self.policy, self.quantum = policy, quantum
        self.set(policy, quantum)
        self._running = 0
        self._numbers = 0
        self._turns = 0
        self._will_dispatch = False
        self._wanting: list[
            Ticket
        ] = []  # got in line right after a slice, in this step of the loop
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<scheduler {self.name}: {self.policy}, {self._running} of {len(self.tickets)} run>"

    # --- the line ---------------------------------------------------------------------------------

    def ticket(self, call: OpenCall) -> Ticket:
        """A new place in line; QueueFull when there are too many."""
        if len(self.tickets) >= self._limit:
            raise QueueFull(
                f"{len(self.tickets)} generations wait for {self.name} already; try again later."
            )
        self._numbers += 1
        ticket = Ticket(self._numbers, call, self._clock.monotonic())
        self.tickets.add(ticket)
        return ticket

    async def run(self, ticket: Ticket) -> SliceResult | None:
        """Wait for a slice and run it: its result, which the caller journals before it awaits.

        None when the budget allows no token. CoreFailed when the core died.
        """
        await self._turn(ticket)
        if ticket.sequence is None:
            self._leave(ticket)
            raise CoreFailed(f"the core of {self.name} died while {ticket!r} was in line.")
        budget = ticket.process.budget
        reserved = budget.reserve_tokens(self.quantum, rate=self.answer_usd)
        if not reserved:
            self._leave(ticket)
            return None
        pid, call = ticket.process.pid, ticket.call.id
        self._trace.emit(ev.SliceGranted, pid, call=call, core=self.name)
        started = self._clock.monotonic()
        result = SliceResult()
        cancelled = False
        try:
            await self._make_room(ticket)
            assert ticket.sequence is not None
            result = await self.core.run(ticket.sequence, Slice(reserved))
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            budget.settle_tokens(reserved, len(result.tokens), self.answer_usd)
            self._note_speed(len(result.tokens), self._clock.monotonic() - started)
            ticket.slices += 1
            ticket.used += len(result.tokens)
            ticket.ran_s += self._clock.monotonic() - started
            ticket.cells = result.cells
            ticket.residency = "cells"
            self._trace.emit(
                ev.SliceEnded,
                pid,
                call=call,
                core=self.name,
                prefilled=result.prefilled,
                decoded=len(result.tokens),
            )
            if cancelled:
                self._later(self._drain(ticket))
            else:
                self._leave(ticket)
        return result

    async def _turn(self, ticket: Ticket) -> None:
        """Get in line and wait for the grant."""
        began = self._clock.monotonic()
        if ticket.slices:
            self._wanting.append(ticket)
        ticket.queued_at = began
        self._turns += 1
        ticket.turn = self._turns
        ticket.grant = asyncio.get_running_loop().create_future()
        ticket.call.move("queued")
        if ticket.may_run:
            self._push(ticket)
        else:  # suspended or held during its slice
            self._park(ticket)
            self._stop_stream(ticket)
        try:
            await ticket.grant
        except LineClosed:
            ticket.call.move("active")
            raise
        except asyncio.CancelledError:
            if ticket.is_running:  # granted in the same step in which it was cancelled
                self._leave(ticket)
            raise
        finally:
            ticket.grant = None
            ticket.entry = 0
            ticket.waited_s += self._clock.monotonic() - began

    @property
    def _slots(self) -> int:
        return self.core.abilities.slots

    @property
    def _streams(self) -> bool:
        """Whether each sequence is a stream of its own from a server."""
        return not self.core.abilities.shared_fate

    def _push(self, ticket: Ticket) -> None:
        ticket.rank = POLICIES[self.policy](ticket, self._ageing_s)
        if ticket.slices and not self.core.abilities.preemptible:
            ticket.rank = BEGUN  # it cannot stop, so it keeps its slot
        elif self._streams and 0 < ticket.used < self.quantum:
            ticket.rank = BEGUN  # its slice ended early, for what had come had to be shown
        else:
            ticket.used = 0
        self._turns += 1
        ticket.entry = self._turns
        heapq.heappush(self._line, (ticket.rank, ticket.entry, ticket.number, ticket))
        self._dispatch_soon()

    def _dispatch_soon(self) -> None:
        if not self._will_dispatch:
            self._will_dispatch = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Give every free slot to the first in line that may run."""
        self._will_dispatch = False
        while self._running < self._slots and (ticket := self._first()):
            self._running += 1
            ticket.is_running = True
            ticket.call.move("active")
            assert ticket.grant is not None
            ticket.grant.set_result(None)
        for ticket in self._wanting:
            if ticket.grant and not ticket.grant.done() and not ticket.is_parked:
                ticket.preemptions += 1
                self._stop_stream(ticket)
                self._trace.emit(
                    ev.TicketPreempted, ticket.process.pid, call=ticket.call.id, core=self.name
                )
        self._wanting.clear()

    def _first(self) -> Ticket | None:
        while self._line:
            _, entry, _, ticket = heapq.heappop(self._line)
            if ticket.entry != entry or ticket.grant is None or ticket.grant.done():
                continue  # it left the line, or stands elsewhere in it
            if ticket.may_run:
                return ticket
            self._park(ticket)
        return None

    def _leave(self, ticket: Ticket) -> None:
        """The slot is free again."""
        self._running -= 1
        ticket.is_running = False
        if ticket.stopped is not None:
            ticket.stopped.set_result(None)
            ticket.stopped = None
        self._dispatch_soon()

    async def _drain(self, ticket: Ticket) -> None:
        """After a cancelled slice: the core must be done with it before another gets the slot."""
        try:
            if ticket.sequence is not None:
                await self.core.release(ticket.sequence)
        finally:
            self._leave(ticket)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what may happen between two slices -------------------------------------------------------

    def _park(self, ticket: Ticket) -> None:
        """Out of the line until somebody wakes it."""
        ticket.is_parked = True
        ticket.entry = 0
        if ticket.process.is_suspended and ticket.call.state == "queued":
            ticket.call.move("blocked")
            reason = min(ticket.process.reasons)
            self._trace.emit(ev.CallBlocked, ticket.process.pid, call=ticket.call.id, reason=reason)

    def park(self, process: Process) -> None:
        """A process was suspended: its tickets leave the line."""
        for call in process.calls.values():
            if call.ticket in self.tickets and call.ticket.grant and not call.ticket.grant.done():
                self._park(call.ticket)
                self._stop_stream(call.ticket)

    def _stop_stream(self, ticket: Ticket) -> None:
        """Have a server that goes on from a text stop for now: its place there is another's."""
        if self.core.abilities.preemptible and self._streams and ticket.sequence is not None:
            self._later(self._page_out(ticket, ticket.sequence))

    async def _page_out(self, ticket: Ticket, sequence: int) -> None:
        async with self.hold(ticket):
            if ticket.sequence == sequence:
                await self.core.page_out(sequence)

    def wake(self, process: Process) -> None:
        """A process goes on, or its priority changed: its tickets get in line by their new rank."""
        for call in process.calls.values():
            if call.ticket in self.tickets:
                self._wake(call.ticket)

    def _wake(self, ticket: Ticket) -> None:
        if ticket.grant is None or ticket.grant.done() or not ticket.may_run:
            return
        ticket.is_parked = False
        if ticket.call.state == "blocked":
            ticket.call.move("queued")
            self._trace.emit(ev.CallUnblocked, ticket.process.pid, call=ticket.call.id)
        self._push(ticket)

    @asynccontextmanager
    async def hold(self, ticket: Ticket) -> AsyncIterator[None]:
        """Keep a ticket between two slices for as long as the block lasts."""
        ticket.holders += 1
        try:
            if ticket.is_running:
                if ticket.stopped is None:
                    ticket.stopped = asyncio.get_running_loop().create_future()
                await asyncio.shield(ticket.stopped)
            yield
        finally:
            ticket.holders -= 1
            self._wake(ticket)

    def drain(self) -> None:
        """Send away who waits here, has nothing yet, and could go elsewhere."""
        for ticket in self.tickets:
            progress = ticket.call.progress
            if ticket.grant is None or ticket.grant.done() or (progress and progress.tokens):
                continue
            try:
                self.send_away(ticket.call)
            except LineClosed as closed:
                ticket.grant.set_exception(closed)

    def send_away(self, call: OpenCall) -> None:
        """LineClosed for a call that could go to another core."""
        if call.route is not None and call.route.has_others:
            raise LineClosed(f"the core {self.name} is being drained.")

    async def release(self, ticket: Ticket) -> None:
        """The generation is over: its ticket goes, and its sequence with it."""
        self.tickets.discard(ticket)
        if ticket.sequence is not None and not ticket.is_running:
            sequence, ticket.sequence = ticket.sequence, None
            await self.core.release(sequence)

    def lost(self) -> None:
        """The core died: what stands between two slices has nothing in it any more."""
        self.life += 1
        for ticket in self.tickets:
            if not ticket.is_running:  # those hear of it from their run
                self.forget(ticket)

    def forget(self, ticket: Ticket) -> None:
        """Its sequence is gone with the core; if that was a mistake, it goes now."""
        if ticket.sequence is not None:
            self._later(self.core.release(ticket.sequence))
        ticket.sequence, ticket.cells, ticket.residency = None, 0, "none"

    async def _make_room(self, ticket: Ticket) -> None:
        """Page out others if this one's context would not fit into the cells."""
        cells = self.core.abilities.cells
        if not cells or ticket.residency == "cells":
            return
        used = sum(t.cells for t in self.tickets if t.residency == "cells")
        for victim in to_page_out(self.tickets, ticket.cells + self.quantum, cells - used):
            if victim.sequence is None or victim.is_running:
                continue
            paged = await self.core.page_out(victim.sequence)
            victim.residency = "ram" if paged.bytes else "none"
            self._trace.emit(
                ev.PagedOut, victim.process.pid, call=victim.call.id, bytes=paged.bytes
            )
        if ticket.residency == "ram" and ticket.sequence is not None:
            paged = await self.core.page_in(ticket.sequence)
            self._trace.emit(ev.PagedIn, ticket.process.pid, call=ticket.call.id, bytes=paged.bytes)

    def _note_speed(self, tokens: int, seconds: float) -> None:
        if tokens and seconds > 0:
            now = tokens / seconds
            self.speed += SPEED_WEIGHT * (now - self.speed) if self.speed else now

    # --- policy -----------------------------------------------------------------------------------

    def set(self, policy: str | None, quantum: int | None) -> None:
        """Change policy and quantum at once; those in line get their new rank."""
        check(policy, quantum)
        self.policy = policy or self.policy
        self.quantum = quantum or self.quantum
        for ticket in self.tickets:
            if ticket.entry:
                self._push(ticket)

    def report(self) -> SchedulerReport:
        return SchedulerReport(
            policy=self.policy,
            quantum=self.quantum,
            slots=self._slots,
            queued=sum(1 for t in self.tickets if t.grant and not t.grant.done()),
            running=self._running,
            policies=tuple(POLICIES),
        )

    def check(self) -> list[str]:
        """Invariants, in numbers."""
        found = []
        slots = self.core.abilities.slots
        holders = sum(1 for ticket in self.tickets if ticket.is_running) + len(self._tasks)
        if self._running > min(slots, holders):
            found.append(
                f"{self.name}: {self._running} of {slots} slots are taken by {holders} tickets"
            )
        for ticket in self.tickets:
            if ticket.call.state in ("done", "failed", "cancelled"):
                found.append(
                    f"{self.name}: {ticket!r} is kept although its call is {ticket.call.state}"
                )
        return found
