"""Replay: a second life of a program is told again what its first life was told.

A restarted program asks from its beginning. What it asks is looked up among the recorded calls, by
its place where the SDK gave one, else by what is asked, in order. A call that has its result is
answered from the record and nothing happens a second time; one that was under way goes on under its
own number, a generation with the tokens that it had; what was never asked is made as any call. A
call whose effect may have happened outside, nobody knows, is *unknown*: it waits to be settled.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.abi import wire
from aios.abi.calls import CALLS, Call, Reply
from aios.abi.messages import Delta
from aios.errors import AiosError, OutcomeUnknown, ReplayDiverged, from_code
from aios.kernel.kept import canonical, kept
from aios.ports import CallEnd, CallHistory

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel
    from aios.kernel.process import Process
    from aios.kernel.table import Entry

SHOWN = 200  # characters of a request in a sentence
RETRIED = "retried"  # the code of a call that was settled by making it again
OUTCOMES = frozenset({"timed_out", "outcome_unknown"})  # ends by cancelling that a program was told


class Unknown:
    """A call that was under way outside when its kernel died, until somebody settles it."""

    __slots__ = ("_waiting", "history")

    def __init__(self, history: CallHistory) -> None:
        self.history = history
        self._waiting: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"<unknown {self.id} {self.name}>"

    @property
    def id(self) -> str:
        return self.history.start.id

    @property
    def name(self) -> str:
        return self.history.start.name

    async def settled(self) -> None:
        """Wait until it is; raises what ended the wait instead."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    def answer(self, error: AiosError | None = None) -> None:
        """Have those who wait go on, or fail."""
        for waiting in self._waiting:
            if waiting.done():
                continue
            if error is None:
                waiting.set_result(None)
            else:
                waiting.set_exception(error)
        self._waiting.clear()


class Replay:
    """The calls of a process's earlier lives, each to be given once."""

    def __init__(self, calls: Iterable[CallHistory], is_replayed: Callable[[str], bool]) -> None:
        self._by_place: dict[str, CallHistory] = {}
        self._by_request: defaultdict[bytes, deque[CallHistory]] = defaultdict(deque)
        self._requests: dict[str, Any] = {}  # call id -> what was asked, in canonical form
        self._kept: dict[str, asyncio.Future[None]] = {}  # what was settled in this life
        self.given = 0
        self.is_over = False  # it asked for something new
        for history in calls:
            if not is_replayed(history.start.name):
                continue
            request = msgspec.json.decode(history.start.request)
            if request.get("recall"):
                continue  # a look into this very record
            spot = request.get("place")
            asked = canonical(request)
            if spot is None:
                if is_told(history) or history.end is None:
                    self._by_request[_key(asked)].append(history)
            else:  # of several lives: what has a result, else the newest
                earlier = self._by_place.get(spot)
                if earlier is None or not is_told(earlier):
                    self._by_place[spot] = history
            self._requests[history.start.id] = asked

    def __repr__(self) -> str:
        return f"<replay: {self.given} given, {len(self)} left>"

    def __len__(self) -> int:
        return len(self._by_place) + sum(map(len, self._by_request.values()))

    @property
    def is_unused(self) -> bool:
        """Whether nobody has asked for anything yet."""
        return not self.given and not self.is_over

    def find(self, call: Call) -> CallHistory | None:
        """What an earlier life asked there; None if nothing. ReplayDiverged if something else."""
        asked = canonical(msgspec.json.decode(wire.encode(kept(call))))
        if call.place is None:
            waiting = self._by_request.get(_key(asked))
            return waiting[0] if waiting else None
        history = self._by_place.get(call.place)
        if history is None:
            return None
        first = self._requests[history.start.id]
        if asked != first:
            raise ReplayDiverged(
                f"at {call.place} its first life asked {_shown(first)} (call {history.start.id}) "
                f"and this one asks {_shown(asked)}: what a program reads outside goes through "
                "`aios.now`, `aios.random` and `aios.step`, and its code must not change meanwhile."
            )
        return history

    def get(self, call: str) -> CallHistory | None:
        """A call that has not been given yet, by its id."""
        for history in (*self._by_place.values(), *chain.from_iterable(self._by_request.values())):
            if history.start.id == call:
                return history
        return None

    async def kept(self, history: CallHistory) -> None:
        """Wait until its outcome is durable; StoreFailed if it could not be kept."""
        if kept := self._kept.get(history.start.id):
            await asyncio.shield(kept)

    def take(self, history: CallHistory) -> None:
        """It has been given; it will not be again."""
        self.given += 1
        asked = self._requests.pop(history.start.id)
        spot = msgspec.json.decode(history.start.request).get("place")
        if spot is not None:
            del self._by_place[spot]
            return
        waiting = self._by_request[_key(asked)]
        waiting.remove(history)
        if not waiting:
            del self._by_request[_key(asked)]

    def settle(self, call: str, end: CallEnd, kept: asyncio.Future[None]) -> None:
        """A call's outcome is known now, and durable when *kept* is done."""
        self._kept[call] = kept
        for spot, history in list(self._by_place.items()):
            if history.start.id == call:
                self._by_place[spot] = msgspec.structs.replace(history, end=end)
        for waiting in self._by_request.values():
            for place, history in enumerate(waiting):
                if history.start.id == call:
                    waiting[place] = msgspec.structs.replace(history, end=end)


def is_told(history: CallHistory) -> bool:
    """Whether the program heard how the call ended, or could have."""
    end = history.end
    if end is None:
        return False
    return end.state in ("done", "failed") or end.code in OUTCOMES


def _is_retried(history: CallHistory) -> bool:
    return history.end is not None and history.end.code == RETRIED


async def recall(
    kernel: Kernel,
    caller: Process,
    entry: Entry,
    call: Call,
    on_delta: Callable[[Delta], None] | None,
) -> tuple[Reply | None, CallHistory | None]:
    """The recorded reply of a call, or the record of one to go on with; neither: it is new.

    Raises what the first life was told, and ReplayDiverged, which suspends the process.
    """
    while (replay := caller.replay) is not None:
        try:
            history = replay.find(call)
        except ReplayDiverged as error:
            kernel.processes.suspend(caller, "diverged")
            raise ReplayDiverged(f"process {caller.pid} diverged: {error.message}") from None
        if history is None:
            if isinstance(call, abi.Record) and call.recall:
                return abi.Recorded(None, known=False), None
            kernel.lives.caught_up(caller)
            return None, None
        if unknown := caller.unknown.get(history.start.id):
            await unknown.settled()
            continue
        if is_told(history):
            replay.take(history)
            await replay.kept(history)
            await caller.wait_running()
            return await _told(kernel, caller, entry, call, history, on_delta), None
        replay.take(history)
        return None, history if history.end is None else None
    return None, None


async def tell_again(
    kernel: Kernel,
    caller: Process,
    entry: Entry,
    call: Call,
    on_delta: Callable[[Delta], None] | None,
) -> Reply | None:
    """What a process was told that has ended, while its parent's next life runs it again.

    None once there is nothing left to tell: it had ended there.
    """
    if caller.replay is None:
        return None
    match call:
        case abi.ExitAgent():
            return abi.Done()
        case abi.ToolRegister():
            return abi.ToolSpecs(call.tools)
        case abi.ToolNext():  # none will come; it goes with whoever asks
            await asyncio.get_running_loop().create_future()
    history = caller.replay.find(call)
    if history is None or not is_told(history):
        return None
    caller.replay.take(history)
    return await _told(kernel, caller, entry, call, history, on_delta)


async def _told(
    kernel: Kernel,
    caller: Process,
    entry: Entry,
    call: Call,
    history: CallHistory,
    on_delta: Callable[[Delta], None] | None,
) -> Reply:
    end = history.end
    assert end is not None
    if end.state != "done":
        raise from_code(end.code or "aios_error", end.error or "")
    reply: Reply = wire.decode(end.reply or b"{}", type(call).reply)
    if entry.recall is not None:
        reply = await entry.recall(kernel, caller, call, reply)
    if on_delta is not None and isinstance(reply, abi.Generation):
        message = reply.message
        on_delta(Delta(message.content, reply.logprobs, message.tool_calls, reply.finish_reason))
    return reply


async def outcomes(
    kernel: Kernel, process: Process, calls: Iterable[CallHistory], lives_on: bool
) -> list[CallHistory]:
    """Those of a dead life's *calls* whose effect may have happened and whose result is not known.

    A tool's call is safe to make again while nobody took it, or if its tool says so; where the tool
    had answered, the answer is known and the call ends here. A program that lives on (in its
    caller's Python) works on what it has taken, and will answer.
    """
    effects: dict[str, str] = {}
    taken: set[str] = set()
    returned: dict[str, abi.ToolReturn] = {}
    unended = []
    for history in calls:
        match history.start.name:
            case "tool_register":
                request = wire.decode(history.start.request, abi.ToolRegister)
                effects = {tool.name: tool.effect for tool in request.tools}
                if lives_on and is_told(history):  # it offers them still
                    process.tools = {tool.name: tool for tool in request.tools}
            case "tool_next" if history.end is not None and history.end.reply is not None:
                taken.add(wire.decode(history.end.reply, abi.ToolInvocation).id)
            case "tool_return":
                said = wire.decode(history.start.request, abi.ToolReturn)
                returned[said.id] = said
            case "tool_call" if not is_told(history) and not _is_retried(history):
                unended.append(history)
    unknown = []
    for history in unended:
        call = history.start.id
        if answer := returned.get(call):
            reply = abi.ToolAnswer(answer.content, answer.is_error)
            settle(kernel, process, history, reply)
        elif call in taken and lives_on:
            process.taken_tools.add(call)
        elif call in taken:
            name = wire.decode(history.start.request, abi.ToolCall).name
            if effects.get(name, "once") == "once":
                unknown.append(history)
    return unknown


def settle(
    kernel: Kernel, process: Process, history: CallHistory, outcome: Reply | AiosError
) -> None:
    """End a call of a dead life with what came of it."""
    call, name, now = history.start.id, history.start.name, kernel.clock.now()
    if isinstance(outcome, AiosError):
        end = CallEnd(call, "failed", now, None, outcome.message, outcome.code)
    else:
        end = CallEnd(call, "done", now, wire.encode(kept(outcome)))
    if history.end is not None:  # its end was told already: its program had crashed
        kernel.trace.record(end)
    elif isinstance(outcome, AiosError):
        kernel.trace.emit(
            ev.CallFailed,
            process.pid,
            end,
            call=call,
            name=name,
            code=outcome.code,
            message=outcome.message,
        )
    else:
        kernel.trace.emit(ev.CallCompleted, process.pid, end, call=call, name=name)
    process.pending.pop(call, None)
    if process.replay is not None:
        process.replay.settle(call, end, kernel.trace.durable())


def retry(kernel: Kernel, process: Process, history: CallHistory) -> None:
    """A call of a dead life has to be made again: as a new one, and this one is over."""
    call, reason = history.start.id, "settled: it is made again"
    end = CallEnd(call, "cancelled", kernel.clock.now(), None, reason, RETRIED)
    if history.end is None:
        name = history.start.name
        kernel.trace.emit(ev.CallCancelled, process.pid, end, call=call, name=name, reason=reason)
    else:
        kernel.trace.record(end)
    process.pending.pop(call, None)
    if process.replay is not None:
        process.replay.settle(call, end, kernel.trace.durable())


def outcome_unknown(call: str) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"call {call} was under way when its kernel or program died, and is said to have failed."
    )


def _key(asked: Any) -> bytes:
    return msgspec.json.encode(asked, order="sorted")


def _shown(asked: Any) -> str:
    text = msgspec.json.encode(asked).decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def is_replayed(table: dict[type[Call], Entry]) -> Callable[[str], bool]:
    """Whether calls of a name are given from the record."""
    return lambda name: name in CALLS and CALLS[name] in table and table[CALLS[name]].replayed
