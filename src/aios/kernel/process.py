"""Processes and calls: their states, and the only places where these move.

Who may change what: the Kernel creates and ends; ``move`` changes a state, by the tables below;
``usage`` grows by handlers; ``tickets`` belong to the scheduler. Everything else is set once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from aios.abi.calls import (
    Call,
    CallState,
    Limits,
    Mail,
    ProcessState,
    Reason,
    SpawnAgent,
    ToolInvocation,
)
from aios.abi.messages import Delta, ToolSpec, Usage
from aios.errors import AiosError, KernelBug
from aios.kernel.budget import Budget
from aios.kernel.context import Context
from aios.ports import CallHistory, Record, Started

if TYPE_CHECKING:
    from aios.kernel.generation import Progress
    from aios.kernel.replay import Replay, Unknown
    from aios.kernel.routing import Route
    from aios.kernel.scheduler import Ticket

PROCESS_MOVES: dict[ProcessState, frozenset[ProcessState]] = {
    "new": frozenset({"live", "zombie"}),  # made, has not run yet
    "live": frozenset({"suspended", "zombie"}),  # may call and be served
    "suspended": frozenset({"live", "zombie"}),  # for a set of reasons; its calls wait
    "zombie": frozenset(),  # has ended; kept until somebody asked how
}

CALL_MOVES: dict[CallState, frozenset[CallState]] = {
    "active": frozenset({"queued", "blocked", "done", "failed", "cancelled", "unknown"}),
    "queued": frozenset({"active", "blocked", "failed", "cancelled"}),  # waits for a slice
    "blocked": frozenset({"active", "queued", "failed", "cancelled"}),  # suspended, or no budget
    "done": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
    "unknown": frozenset({"done", "failed", "active"}),  # ran when the kernel died; to be settled
}


class OpenCall:
    """One system call under way. The task that waits in the trap *is* the call."""

    __slots__ = (
        "call",
        "effects",
        "id",
        "is_silent",
        "lost",
        "made",
        "name",
        "on_delta",
        "process",
        "progress",
        "route",
        "started",
        "state",
        "task",
        "ticket",
        "undo",
        "verdict",
    )

    def __init__(
        self,
        id: str,
        name: str,
        process: Process,
        call: Call,
        started: float,
        task: asyncio.Task[object],
        on_delta: Callable[[Delta], None] | None,
    ) -> None:
        self.id, self.name, self.process, self.call = id, name, process, call
        self.started, self.task, self.on_delta = started, task, on_delta
        self.state: CallState = "active"
        self.is_silent = False  # leaves no trace
        self.lost = 0  # what the trace had lost before it began
        self.ticket: Ticket | None = None
        self.progress: Progress | None = None
        self.route: Route | None = None  # of a generation: where it may go
        self.verdict: AiosError | None = None  # why the kernel ended it, if it did
        self.made: CallHistory | None = None  # by an earlier life of its program
        self.effects: list[Record] = []  # journaled in the transaction that ends the call
        self.undo: list[Callable[[], None]] = []  # what to take back in RAM if that fails

    def __repr__(self) -> str:
        return f"<call {self.id} {self.name} of {self.process.pid}: {self.state}>"

    def move(self, state: CallState) -> None:
        if state not in CALL_MOVES[self.state]:
            raise KernelBug(f"call {self.id} cannot become {state} while {self.state}")
        self.state = state

    def inner(self, name: str) -> str:
        """The place of a call that is made inside this one, the same in every life."""
        return f"{self.call.place or self.id}/{name}"

    def end(self, verdict: AiosError) -> None:
        """Have it fail with *verdict*, wherever it waits."""
        if self.verdict is None and CALL_MOVES[self.state]:
            self.verdict = verdict
            self.task.cancel()


class Process:
    """One run of a program."""

    __slots__ = (
        "_running",
        "argv",
        "awaits_launch",
        "budget",
        "by",
        "calls",
        "children",
        "contexts",
        "created",
        "ended",
        "exit_reason",
        "exit_status",
        "heard",
        "invocations",
        "keeper",
        "key_id",
        "launching",
        "lives",
        "looking",
        "mail_number",
        "mail_size",
        "mailbox",
        "model",
        "note",
        "on_exhausted",
        "os",
        "parent",
        "payer",
        "pending",
        "pending_tools",
        "pid",
        "priority",
        "program",
        "reasons",
        "received",
        "replay",
        "restarts",
        "result",
        "rights",
        "seen_files",
        "seen_mail",
        "spawned",
        "started",
        "state",
        "survivor",
        "taken_tools",
        "task",
        "tool_waiters",
        "tools",
        "unknown",
        "usage",
        "user",
        "waiters",
        "wanted",
        "wanted_usd",
        "wrap_model",
    )

    def __init__(
        self, pid: int, user: str, parent: Process | None, spawned: SpawnAgent, at: float
    ) -> None:
        self.pid, self.user, self.parent, self.created = pid, user, parent, at
        self.spawned = spawned
        self.program, self.argv, self.task = spawned.program, spawned.argv, spawned.task
        self.note, self.model, self.wrap_model = spawned.note, spawned.model, spawned.wrap_model
        self.priority = 0
        self.rights: frozenset[str] | None = None
        self.payer = parent  # with whose budget its own is paid, also when that one has ended
        self.budget: Budget = Budget(spawned.budget, parent.budget if parent else None)
        self.on_exhausted = spawned.on_exhausted
        self.state: ProcessState = "new"
        self.reasons: set[Reason] = set()
        self.children: dict[int, Process] = {}
        self.calls: dict[str, OpenCall] = {}
        self.contexts: dict[str, Context] = {}
        self.usage = Usage()
        self.key_id: str | None = None
        self.keeper: asyncio.Task[None] | None = None  # waits for its end, then to forget it
        self.wanted = 1  # tokens that it needs to go on, when it is at the cap
        self.wanted_usd = 0.0  # for each of these
        self.os: Started | None = None
        self.survivor: Started | None = None  # of a dead kernel, to be ended before a next life
        self.restarts = 0
        self.lives = 1  # how often its program was started
        self.by = ""  # the call that made it
        self.heard: asyncio.Event | None = None  # for those who wait for its next call
        self.looking: asyncio.Task[None] | None = None  # back at what it asked before a crash
        self.awaits_launch = False  # its program is to be started again
        self.launching = asyncio.Lock()  # by one at a time
        self.replay: Replay | None = None  # what its earlier lives asked
        self.pending: dict[str, str] = {}  # begun by an earlier life and not ended: id -> name
        self.unknown: dict[str, Unknown] = {}  # of these, what has to be settled
        self.taken_tools: set[str] = set()  # tool calls that its living program works on already
        self.started: float | None = None
        self.ended: float | None = None
        self.exit_status: int | None = None
        self.exit_reason = ""
        self.result: str | None = None
        self.mailbox: deque[tuple[int, Mail]] = deque()  # with its number in the mailbox
        self.mail_number = 0
        self.mail_size = 0
        self.seen_files: dict[str, dict[str, int]] = {}  # owner -> path -> version read last
        self.seen_mail: dict[tuple[int, str], None] = {}  # (sender, id), the newest last
        self.received: deque[asyncio.Future[None]] = deque()  # those who wait for mail
        self.tools: dict[str, ToolSpec] = {}
        self.invocations: deque[ToolInvocation] = deque()
        self.tool_waiters: list[asyncio.Future[None]] = []  # its program, asking what to do
        self.pending_tools: dict[str, asyncio.Future[tuple[str, bool]]] = {}
        self.waiters: list[asyncio.Future[None]] = []  # those who wait for its end
        self._running: asyncio.Event | None = None  # made by the first who must wait

    def __repr__(self) -> str:
        return f"<process {self.pid} {self.program}: {self.status}>"

    def move(self, state: ProcessState) -> None:
        if state not in PROCESS_MOVES[self.state]:
            raise KernelBug(f"process {self.pid} cannot become {state} while {self.state}")
        self.state = state
        if self._running is not None:
            if state == "suspended":
                self._running.clear()
            else:
                self._running.set()

    @property
    def is_suspended(self) -> bool:
        return self.state == "suspended"

    async def wait_running(self) -> None:
        """Wait while it is suspended."""
        while self.state == "suspended":
            if self._running is None:
                self._running = asyncio.Event()
            await self._running.wait()

    @property
    def status(self) -> str:
        """What a person would say: derived from the state and the open calls."""
        if self.state != "live":
            return self.state
        if self.awaits_launch:
            return "restarting"
        states = {call.state for call in self.calls.values() if call.name != "tool_next"}
        tickets = [call.ticket for call in self.calls.values() if call.ticket]
        if any(ticket.is_running for ticket in tickets):
            return "running"
        if "queued" in states:
            return "ready"
        return "waiting" if states else "live"

    @property
    def residency(self) -> str:
        """Where the KV state of its open generations lies: cells, ram, none."""
        places = {
            c.ticket.residency
            for c in self.calls.values()
            if c.ticket and c.ticket.sequence is not None
        }
        return ",".join(sorted(places))

    @property
    def spent(self) -> Usage:
        """Its usage, with what its open generations have waited, run and been preempted so far."""
        usage = self.usage
        for call in self.calls.values():
            if ticket := call.ticket:
                usage += Usage(
                    preemptions=ticket.preemptions,
                    waiting_s=ticket.waited_s,
                    running_s=ticket.ran_s,
                )
        return usage

    def put_mail(self, number: int, mail: Mail, size: int) -> None:
        """Put a message into its mailbox, in the order of the numbers; wake who waits for one."""
        if number > self.mail_number:
            self.mailbox.append((number, mail))
        else:  # put back
            self.mailbox.insert(sum(other < number for other, _ in self.mailbox), (number, mail))
        self.mail_size += size
        self.mail_number = max(self.mail_number, number)
        for waiter in self.received:
            if not waiter.done():
                waiter.set_result(None)

    def unsend(self, number: int, mail: Mail, size: int) -> None:
        """It could not be kept: nobody was sent it, and it may be sent again."""
        self.seen_mail.pop((mail.sender, mail.id), None)
        if (number, mail) in self.mailbox:
            self.mailbox.remove((number, mail))
            self.mail_size -= size

    def subtree(self) -> Iterator[Process]:
        """It and its descendants, children first."""
        for child in list(self.children.values()):
            yield from child.subtree()
        yield self

    @property
    def runner(self) -> Process | None:
        """Itself or the nearest above that has a program: whose Python runs it."""
        process: Process | None = self
        while process is not None and not process.argv:
            process = process.parent
        return process

    def depth(self) -> int:
        return 0 if self.parent is None else 1 + self.parent.depth()

    def is_within(self, ancestor: Process) -> bool:
        """Whether it is *ancestor* or a descendant of it."""
        process: Process | None = self
        while process is not None:
            if process is ancestor:
                return True
            process = process.parent
        return False

    def left(self) -> Limits:
        return self.budget.left()
