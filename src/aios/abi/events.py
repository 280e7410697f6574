"""Everything that can happen, in the past tense.

Events hold sizes, ids and reasons; content is in the transcript. ``seq`` numbers all events of a
kernel, without gaps in what a journal keeps. Every start has exactly one end: CallStarted is ended
by CallCompleted, CallFailed or CallCancelled; SliceGranted by SliceEnded; ProcessCreated by
ProcessEnded; CallBlocked by CallUnblocked or by the call's own end. KernelStarted ends the slices
of the kernel before it.
"""

from __future__ import annotations

import re

from msgspec import Struct

from aios.abi.calls import Reason
from aios.abi.messages import Usage


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


class Event(Struct, frozen=True, omit_defaults=True, tag_field="event", tag=_snake, kw_only=True):
    """seq is 0 until the kernel has numbered it; at is seconds since the epoch."""

    seq: int = 0
    at: float = 0.0
    pid: int


class KernelStarted(Event, frozen=True, kw_only=True):
    """pid is 0: the kernel itself."""

    version: str


class ProcessCreated(Event, frozen=True, kw_only=True):
    parent: int | None
    program: str


class ProcessStarted(Event, frozen=True, kw_only=True):
    os_pid: int | None = None


class ProcessSuspended(Event, frozen=True, kw_only=True):
    reason: Reason


class ProcessResumed(Event, frozen=True, kw_only=True):
    reason: Reason


class ProcessEnded(Event, frozen=True, kw_only=True):
    exit_status: int
    reason: str


class ProcessReaped(Event, frozen=True, kw_only=True):
    pass


class PriorityChanged(Event, frozen=True, kw_only=True):
    priority: int


class BudgetChanged(Event, frozen=True, kw_only=True):
    tokens: int | None = None
    seconds: float | None = None
    calls: int | None = None
    usd: float | None = None


class AidChanged(Event, frozen=True, kw_only=True):
    """pid is the old number."""

    aid: int


class SchedulerChanged(Event, frozen=True, kw_only=True):
    policy: str
    quantum: int


class ModelSubstituted(Event, frozen=True, kw_only=True):
    """A program asked for a model that is not here; its process's own model answered."""

    asked: str
    used: str


class CallStarted(Event, frozen=True, kw_only=True):
    call: str
    name: str


class CallBlocked(Event, frozen=True, kw_only=True):
    call: str
    reason: Reason


class CallUnblocked(Event, frozen=True, kw_only=True):
    call: str


class CallCompleted(Event, frozen=True, kw_only=True):
    call: str
    name: str
    usage: Usage | None = None


class CallFailed(Event, frozen=True, kw_only=True):
    call: str
    name: str
    code: str
    message: str


class CallCancelled(Event, frozen=True, kw_only=True):
    call: str
    name: str
    reason: str


class CallUnknown(Event, frozen=True, kw_only=True):
    """It was under way when the kernel died, and whether its effect happened cannot be known."""

    call: str
    name: str


class CallSettled(Event, frozen=True, kw_only=True):
    """Somebody said what became of an unknown call: done, retry or fail."""

    call: str
    outcome: str


class CallResumed(Event, frozen=True, kw_only=True):
    """A second life of the program came back to a call that its first life had begun."""

    call: str
    name: str


class ProcessRestarted(Event, frozen=True, kw_only=True):
    """Its program was started again and replays; life counts from 1."""

    life: int


class ReplayEnded(Event, frozen=True, kw_only=True):
    """A second life has caught up: it asked for something new. replayed is how many calls."""

    replayed: int


class AgentSnapshotTaken(Event, frozen=True, kw_only=True):
    snapshot: str


class AgentRolledBack(Event, frozen=True, kw_only=True):
    snapshot: str


class ContextCompacted(Event, frozen=True, kw_only=True):
    """before and after are tokens; dropped is how many messages left the context."""

    context: str
    strategy: str
    before: int
    after: int
    dropped: int


class EventLogged(Event, frozen=True, kw_only=True):
    """An event of a program's own; its data is in the transcript, bytes is its size."""

    call: str
    name: str
    bytes: int


class TicketQueued(Event, frozen=True, kw_only=True):
    call: str
    core: str
    prompt_tokens: int
    cached_tokens: int


class SliceGranted(Event, frozen=True, kw_only=True):
    call: str
    core: str


class SliceEnded(Event, frozen=True, kw_only=True):
    """prefilled and decoded are tokens."""

    call: str
    core: str
    prefilled: int = 0
    decoded: int = 0


class TicketPreempted(Event, frozen=True, kw_only=True):
    """A ticket that wanted its next slice at once did not get it: back in line."""

    call: str
    core: str


class PagedOut(Event, frozen=True, kw_only=True):
    call: str
    bytes: int


class PagedIn(Event, frozen=True, kw_only=True):
    call: str
    bytes: int


class CoreLost(Event, frozen=True, kw_only=True):
    """pid is 0."""

    core: str
    message: str


class CoreRestarted(Event, frozen=True, kw_only=True):
    """pid is 0."""

    core: str


class CoreChosen(Event, frozen=True, kw_only=True):
    """A generation that could have gone to several cores goes to this one, and why."""

    call: str
    core: str
    asked: str
    reason: str


class CallMoved(Event, frozen=True, kw_only=True):
    """A generation left a core for another, and why; tokens is how many it had made."""

    call: str
    before: str
    core: str
    tokens: int
    reason: str


class CoreAdded(Event, frozen=True, kw_only=True):
    """pid is who added it."""

    core: str


class CoreDrained(Event, frozen=True, kw_only=True):
    """It is sent nothing new (undo: it is again); pid is who said so."""

    core: str
    undo: bool = False


class CoreRemoved(Event, frozen=True, kw_only=True):
    """pid is who removed it."""

    core: str


class GateChanged(Event, frozen=True, kw_only=True):
    """A provider's gate parked its calls, let them return, opened its breaker, probed or closed it.

    pid is 0. seconds is for how long, told that the provider said so, calls how many wait there.
    """

    gate: str
    what: str
    seconds: float | None = None
    told: bool = False
    calls: int = 0


class AccessDenied(Event, frozen=True, kw_only=True):
    name: str
    resource: str


class KeyIssued(Event, frozen=True, kw_only=True):
    key: str


class KeyRevoked(Event, frozen=True, kw_only=True):
    key: str


EVENTS: tuple[type[Event], ...] = tuple(Event.__subclasses__())
