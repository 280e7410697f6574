"""Every system call and its reply.

The class is CamelCase, its tag on the wire snake_case: ``{"call": "get_aid"}`` is GetAid. A call is
plain data; ``aid`` is a process's number (the paper's agent id), None meaning the caller itself.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

from msgspec import Struct, field

from aios.abi.messages import FinishReason, Message, Sampling, TokenLogprob, ToolSpec, Usage


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


class Reply(Struct, frozen=True):
    """The base of all replies."""


class Call(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="call", tag=_snake):
    """The base of all system calls.

    timeout_s bounds the call in seconds (time suspended or blocked does not count); path is the
    call's place in its program, for replay.
    """

    reply: ClassVar[type[Reply]]
    timeout_s: float | None = None
    path: str | None = None


# --- processes ------------------------------------------------------------------------------------

ProcessState = Literal["new", "live", "suspended", "zombie"]
CallState = Literal["queued", "active", "blocked", "done", "failed", "cancelled", "unknown"]
Reason = Literal["user", "budget", "approval", "diverged", "unknown_outcome"]


class Limits(Struct, frozen=True, omit_defaults=True):
    """A budget: what may still be spent; None is no limit. tokens counts prompt and completion."""

    tokens: int | None = None
    seconds: float | None = None
    calls: int | None = None


class Done(Reply, frozen=True):
    """The call did what it says; there is nothing more to tell."""


class Aid(Reply, frozen=True):
    aid: int


class Status(Reply, frozen=True, omit_defaults=True):
    """A process as ``ps`` and ``inspect`` show it.

    status is what a person would say (new, live while it computes by itself, ready, running,
    waiting, suspended, zombie); state is what is stored; residency is where its KV state lies
    (cells, ram, none, or empty); budget is what is left.
    """

    aid: int
    user: str
    parent: int | None
    program: str
    status: str
    state: ProcessState
    reasons: tuple[Reason, ...] = ()
    note: str = ""
    priority: int = 0
    model: str = ""
    usage: Usage = Usage()
    budget: Limits = Limits()
    residency: str = ""
    open_calls: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    children: tuple[int, ...] = ()
    task: str = ""
    argv: tuple[str, ...] = ()
    os_pid: int | None = None
    exit_status: int | None = None
    exit_reason: str = ""
    result: str | None = None
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None


class Priority(Reply, frozen=True):
    aid: int
    priority: int


class Processes(Reply, frozen=True):
    processes: tuple[Status, ...]


class Spawned(Reply, frozen=True, omit_defaults=True):
    """key is set only for a process that the caller runs itself (no argv): its bearer key."""

    aid: int
    key: str | None = None


class Exit(Reply, frozen=True, omit_defaults=True):
    """How a process ended. exit_status is 0 for success, -N for signal N."""

    aid: int
    exit_status: int
    reason: str = ""
    result: str | None = None
    usage: Usage = Usage()


class UsageReport(Reply, frozen=True):
    aid: int
    usage: Usage
    budget: Limits


class GetAid(Call, frozen=True, kw_only=True):
    reply = Aid


class SetAid(Call, frozen=True, kw_only=True):
    """Renumber a NEW process to a free aid."""

    reply = Aid
    aid: int
    of: int | None = None


class GetStatus(Call, frozen=True, kw_only=True):
    reply = Status
    aid: int | None = None


class SetStatus(Call, frozen=True, kw_only=True):
    """Move to ``suspended`` or ``running``; ``note`` is a free text for ps."""

    reply = Status
    aid: int | None = None
    status: Literal["suspended", "running"] | None = None
    note: str | None = None


class GetPriority(Call, frozen=True, kw_only=True):
    reply = Priority
    aid: int | None = None


class SetPriority(Call, frozen=True, kw_only=True):
    """Like nice: -20 (first) to 19 (last)."""

    reply = Priority
    aid: int | None = None
    priority: int


class SuspendAgent(Call, frozen=True, kw_only=True):
    reply = Status
    aid: int | None = None


class ResumeAgent(Call, frozen=True, kw_only=True):
    reply = Status
    aid: int | None = None


class SpawnAgent(Call, frozen=True, kw_only=True):
    """Make a process. With argv the kernel starts it as an OS process; without, the caller runs it.

    program names it (records, history and ps go by this name); task is what it is asked to do and
    reaches it as AIOS_TASK; env adds to its environment; wrap_model makes an unknown model name on
    /v1 mean this process's model (programs that hard-code a name); rights are the names of the
    calls it may make (None: all that its parent may); os_pid, without argv, is the OS process in
    which the caller runs it: when that has ended, so has the process (as ``lost``).
    """

    reply = Spawned
    program: str
    argv: tuple[str, ...] = ()
    task: str = ""
    cwd: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    priority: int | None = None
    budget: Limits = Limits()
    on_exhausted: Literal["suspend", "fail"] = "suspend"
    model: str | None = None
    wrap_model: bool = False
    restart: Literal["never", "on-crash"] = "never"
    rights: tuple[str, ...] | None = None
    note: str = ""
    os_pid: int | None = None


class ExitAgent(Call, frozen=True, kw_only=True):
    """The caller is done (the SDK sends it): exit status and result text."""

    reply = Done
    exit_status: int = 0
    reason: str = ""
    result: str | None = None


class KillAgent(Call, frozen=True, kw_only=True):
    """End a process and its descendants, children first."""

    reply = Exit
    aid: int
    reason: str = "killed"


class WaitAgent(Call, frozen=True, kw_only=True):
    """Wait until a process has ended; reaps it when the caller is its parent and reap is set."""

    reply = Exit
    aid: int
    reap: bool = True


class ListAgents(Call, frozen=True, kw_only=True):
    """The processes that the caller may see; ``all`` includes those that have ended."""

    reply = Processes
    all: bool = False


class ForkAgent(Call, frozen=True, kw_only=True):
    """A NEW process with a copy of the contexts; its budget is taken from the original's."""

    reply = Spawned
    aid: int | None = None
    budget: Limits = Limits()


class SetBudget(Call, frozen=True, kw_only=True):
    """Replace what is left of the named amounts; a process stopped at the cap goes on."""

    reply = UsageReport
    aid: int | None = None
    budget: Limits


class GetUsage(Call, frozen=True, kw_only=True):
    reply = UsageReport
    aid: int | None = None


# --- messages between processes -------------------------------------------------------------------


class Mail(Reply, frozen=True):
    """A message: kept until it is received, once per id, in order per sender."""

    id: str
    sender: int
    body: Any
    at: float


class Sent(Reply, frozen=True):
    id: str


class SendMessage(Call, frozen=True, kw_only=True):
    """to is an aid or a program's name (then there must be just one such process)."""

    reply = Sent
    to: int | str
    body: Any
    id: str | None = None


class RecvMessage(Call, frozen=True, kw_only=True):
    """The oldest message, waiting for one if there is none; ``sender`` takes only from that aid."""

    reply = Mail
    sender: int | None = None


# --- generation and contexts ----------------------------------------------------------------------


class Generation(Reply, frozen=True, omit_defaults=True):
    call: str
    model: str
    message: Message
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] = ()


class Snapshot(Reply, frozen=True):
    """A generation frozen exactly; bytes is its size on disk."""

    snapshot: str
    model: str
    tokens: int
    bytes: int


class Generate(Call, frozen=True, kw_only=True):
    """Say messages to the model and have it answer.

    context names which of the process's contexts the messages are appended to and the answer kept
    in; None carries its own messages and leaves no trace in any. schema is a JSON Schema that the
    answer must match. tool_choice is auto, none, required, or a tool's name.
    """

    reply = Generation
    messages: tuple[Message, ...]
    context: str | None = "main"
    model: str | None = None
    sampling: Sampling = Sampling()
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str = "auto"
    schema: dict[str, Any] | None = None


class GenSnapshot(Call, frozen=True, kw_only=True):
    """Freeze an open generation of a process (its only one, or the named call); it goes on."""

    reply = Snapshot
    aid: int | None = None
    target: str | None = None


class GenRestore(Call, frozen=True, kw_only=True):
    """Continue a frozen generation, in the calling process, to its end."""

    reply = Generation
    snapshot: str


class ContextReport(Reply, frozen=True, omit_defaults=True):
    aid: int
    context: str
    window: int
    used: int
    messages: tuple[Message, ...] = ()


class GetContext(Call, frozen=True, kw_only=True):
    """The caller's context by name: how full it is and, on request, its messages."""

    reply = ContextReport
    aid: int | None = None
    context: str = "main"
    messages: bool = False


# --- tools ----------------------------------------------------------------------------------------


class ToolAnswer(Reply, frozen=True):
    """What a tool said; a tool that fails is an answer with is_error, not an exception."""

    content: str
    is_error: bool = False


class ToolSpecs(Reply, frozen=True):
    tools: tuple[ToolSpec, ...]


class ToolInvocation(Reply, frozen=True):
    """A call that the program that owns the tool must carry out, then answer with ToolReturn."""

    id: str
    name: str
    arguments: dict[str, Any]


class ToolRegister(Call, frozen=True, kw_only=True):
    """Offer functions of the calling program as tools; replaces what it offered before."""

    reply = ToolSpecs
    tools: tuple[ToolSpec, ...]


class ToolList(Call, frozen=True, kw_only=True):
    reply = ToolSpecs
    aid: int | None = None


class ToolCall(Call, frozen=True, kw_only=True):
    reply = ToolAnswer
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


class ToolNext(Call, frozen=True, kw_only=True):
    """Wait for the next invocation of one of the caller's own tools."""

    reply = ToolInvocation


class ToolReturn(Call, frozen=True, kw_only=True):
    reply = Done
    id: str
    content: str
    is_error: bool = False


# --- the outside world, once ----------------------------------------------------------------------


class Recorded(Reply, frozen=True):
    value: Any


class Record(Call, frozen=True, kw_only=True):
    """Keep what a program read outside (time, chance, a step's result) under the call's path.

    The reply is the value to go on with: a restarted life gets the one that its first life kept.
    key says what was read (``random``'s kind, a step's name); value is JSON data.
    """

    reply = Recorded
    kind: Literal["now", "random", "step"]
    key: str = ""
    value: Any = None


# --- the machine itself ---------------------------------------------------------------------------


class SchedulerReport(Reply, frozen=True):
    policy: str
    quantum: int
    slots: int
    queued: int
    running: int
    policies: tuple[str, ...]


class GetScheduler(Call, frozen=True, kw_only=True):
    reply = SchedulerReport


class SetScheduler(Call, frozen=True, kw_only=True):
    """Change the policy or the quantum (decoded tokens a slice), at once."""

    reply = SchedulerReport
    policy: str | None = None
    quantum: int | None = None


class CallRecord(Struct, frozen=True, omit_defaults=True):
    """One call of a transcript: what was asked (JSON data) and what came back."""

    id: str
    aid: int
    name: str
    state: CallState
    started_at: float
    ended_at: float | None = None
    request: Any = None
    reply: Any = None
    error: str | None = None


class Transcript(Reply, frozen=True):
    calls: tuple[CallRecord, ...]


class GetTranscript(Call, frozen=True, kw_only=True):
    """The calls of a process with their contents, oldest first; at most ``limit`` of the newest."""

    reply = Transcript
    aid: int | None = None
    limit: int = 1000


class Log(Reply, frozen=True):
    """A part of a program's stdout and stderr; ``next`` is where to read on (bytes)."""

    text: str
    next: int
    ended: bool


class GetLog(Call, frozen=True, kw_only=True):
    reply = Log
    aid: int
    offset: int = 0


class KeyInfo(Struct, frozen=True, omit_defaults=True):
    id: str
    user: str
    label: str = ""
    aid: int | None = None
    created_at: float = 0.0
    revoked_at: float | None = None


class Keys(Reply, frozen=True):
    keys: tuple[KeyInfo, ...]


class NewKey(Reply, frozen=True):
    """The key itself is shown here once; only its hash is kept."""

    id: str
    key: str


class KeyNew(Call, frozen=True, kw_only=True):
    reply = NewKey
    label: str = ""


class KeyRevoke(Call, frozen=True, kw_only=True):
    reply = Done
    id: str


class KeyList(Call, frozen=True, kw_only=True):
    reply = Keys


CALLS: dict[str, type[Call]] = {}


def _collect(base: type[Call]) -> None:
    for call in base.__subclasses__():
        CALLS[str(call.__struct_config__.tag)] = call
        _collect(call)


_collect(Call)


def name_of(call: Call | type[Call]) -> str:
    """The call's name on the wire: ``name_of(GetAid()) == "get_aid"``."""
    return str(call.__struct_config__.tag)
