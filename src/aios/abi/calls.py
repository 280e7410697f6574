"""Every system call and its reply.

The class is CamelCase, its tag on the wire snake_case: ``{"call": "get_aid"}`` is GetAid. A call is
plain data; ``aid`` is a process's number (the paper's agent id), None meaning the caller itself.
"""

from __future__ import annotations

import re
from math import inf
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct, field

from aios.abi.messages import FinishReason, Message, Sampling, TokenLogprob, ToolSpec, Usage

Data = bytes  # a field named bytes hides the type from those below it


def _check_dollars(name: str, amount: float | None) -> None:
    """ValueError, which msgspec reports with its place: on the wire nan would mean no limit."""
    if amount is not None and not 0 <= amount < inf:
        raise ValueError(f"{name} is {amount}: give dollars from 0 up")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


class Reply(Struct, frozen=True):
    """The base of all replies."""


class Call(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="call", tag=_snake):
    """The base of all system calls.

    timeout_s bounds the call in seconds (time suspended or blocked does not count); place is where
    in its program the call stands, for replay.
    """

    reply: ClassVar[type[Reply]]
    timeout_s: float | None = None
    place: str | None = None


# --- processes ------------------------------------------------------------------------------------

ProcessState = Literal["new", "live", "suspended", "zombie"]
CallState = Literal["queued", "active", "blocked", "done", "failed", "cancelled", "unknown"]
Reason = Literal["user", "budget", "approval", "diverged", "unknown_outcome"]


Strategy = Literal["drop", "summarise", "page", "fail"]
Scope = Literal["process", "program", "user"]


class CallRecord(Struct, frozen=True, omit_defaults=True):
    """One call of a transcript: what was asked (JSON data) and what came back.

    void says that a rollback has left it behind.
    """

    id: str
    aid: int
    name: str
    state: CallState
    started_at: float
    ended_at: float | None = None
    request: Any = None
    reply: Any = None
    error: str | None = None
    void: bool = False


class Retrieval(Struct, frozen=True, omit_defaults=True):
    """What a generation looks up for itself: at most tokens of it, with sources, in the prompt.

    memory and files name whose; limit is how many findings.
    """

    memory: tuple[Scope, ...] = ("process", "program", "user")
    files: tuple[Scope, ...] = ()
    tokens: int = 512
    limit: int = 5


class Limits(Struct, frozen=True, omit_defaults=True):
    """A budget: what may still be spent; None is no limit. tokens counts prompt and completion.

    usd is US dollars, by the prices of the cores that are used; one without a price costs nothing.
    """

    tokens: int | None = None
    seconds: float | None = None
    calls: int | None = None
    usd: float | None = None

    def __post_init__(self) -> None:
        _check_dollars("usd", self.usd)


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
    lives: int = 1  # how often its program was started


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


class UsageReport(Reply, frozen=True, omit_defaults=True):
    """What a process has spent and what is left of its budget.

    memory_bytes and storage_bytes are what its own records and volume take; cpu_s and rss_bytes are
    of the program that the kernel started for it (0 without one).
    """

    aid: int
    usage: Usage
    budget: Limits
    memory_bytes: int = 0
    storage_bytes: int = 0
    cpu_s: float = 0.0
    rss_bytes: int = 0


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
    which the caller runs it: when that has ended, so has the process (as ``lost``); window and
    strategy are those of its contexts (ExpContext, CompactContext); retrieve is what each of its
    generations looks up by itself.
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
    window: int | None = None
    strategy: Strategy = "drop"
    retrieve: Retrieval | None = None


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
    """A NEW process with a copy of contexts, records and files; its budget is the original's.

    at names a call of the original: the copy is as things were when that call had ended, and its
    program is started and replays to there (without a program, the caller runs it).
    """

    reply = Spawned
    aid: int | None = None
    budget: Limits = Limits()
    at: str | None = None


class AgentSnapshot(Reply, frozen=True, omit_defaults=True):
    """A process at one moment: its contexts, records, files and its place in its program.

    call is the last call that had ended by then (empty: none had).
    """

    snapshot: str
    aid: int
    call: str
    at: float
    label: str = ""


class AgentSnapshots(Reply, frozen=True):
    snapshots: tuple[AgentSnapshot, ...]


class RolledBack(Reply, frozen=True, omit_defaults=True):
    """A process is back at a snapshot.

    effects are the calls since then whose doings outside cannot be undone, each with its arguments;
    held says which files stay as they are because somebody else changed them since.
    """

    aid: int
    snapshot: str
    effects: tuple[CallRecord, ...] = ()
    held: tuple[str, ...] = ()


class SnapshotAgent(Call, frozen=True, kw_only=True):
    """Remember how a process is now, to roll back to (SDK: create_agent_snapshot)."""

    reply = AgentSnapshot
    aid: int | None = None
    label: str = ""


class ListSnapshots(Call, frozen=True, kw_only=True):
    """The snapshots that were taken of a process, oldest first."""

    reply = AgentSnapshots
    aid: int | None = None


class RollbackAgent(Call, frozen=True, kw_only=True):
    """Take a process back to a snapshot: contexts, records, files; its program starts again.

    The program replays up to the snapshot and goes on from there (SDK: rollback_agent_state).
    """

    reply = RolledBack
    aid: int
    snapshot: str


class SettleCall(Call, frozen=True, kw_only=True):
    """Say what became of a call that was under way when the kernel died (state ``unknown``).

    done: its effect happened, and value is what it returned (for a tool, its text); retry: it did
    not, so make it again; fail: the program gets OutcomeUnknown.
    """

    reply = Status
    aid: int
    target: str
    outcome: Literal["done", "retry", "fail"]
    value: Any = None


class LogEvent(Call, frozen=True, kw_only=True):
    """Put an event of one's own into the trace: name and size; data is in the transcript."""

    reply = Done
    name: str
    data: Any = None


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
    answer must match. tool_choice is auto, none, required, or a tool's name. retrieve has memory
    and files searched for it (None: as its process was spawned).
    """

    reply = Generation
    messages: tuple[Message, ...]
    context: str | None = "main"
    model: str | None = None
    sampling: Sampling = Sampling()
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str = "auto"
    schema: dict[str, Any] | None = None
    retrieve: Retrieval | None = None


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
    """A context: window and used are tokens.

    pinned is how many messages stay whatever happens (the system prompt, pins), dropped how many a
    strategy took out so far, in so many compactions.
    """

    aid: int
    context: str
    window: int
    used: int
    pinned: int = 0
    strategy: Strategy = "drop"
    compactions: int = 0
    dropped: int = 0
    messages: tuple[Message, ...] = ()


class GetContext(Call, frozen=True, kw_only=True):
    """The caller's context by name: how full it is and, on request, its messages."""

    reply = ContextReport
    aid: int | None = None
    context: str = "main"
    messages: bool = False


class ExpContext(Call, frozen=True, kw_only=True):
    """Give a context a window of so many tokens, up to the model's; None: the most."""

    reply = ContextReport
    aid: int | None = None
    context: str = "main"
    window: int | None = None


class ClrContext(Call, frozen=True, kw_only=True):
    """Empty a context; pinned messages stay unless pins is set."""

    reply = ContextReport
    aid: int | None = None
    context: str = "main"
    pins: bool = False


class SetContext(Call, frozen=True, kw_only=True):
    """Replace a context's messages (None: they stay), and how it is kept within its window."""

    reply = ContextReport
    aid: int | None = None
    context: str = "main"
    messages: tuple[Message, ...] | None = None
    strategy: Strategy | None = None


class CompactContext(Call, frozen=True, kw_only=True):
    """Make a context shorter now, to at most tokens (None: half its window), by a strategy.

    drop takes turns out of the middle; summarise has the model put them in its own words; page
    moves them to memory and leaves a pointer that mem_read reads back; fail never shortens. model
    says whose tokens are counted, and who summarises.
    """

    reply = ContextReport
    aid: int | None = None
    context: str = "main"
    strategy: Strategy | None = None
    tokens: int | None = None
    model: str | None = None


# --- memory ---------------------------------------------------------------------------------------


class MemoryRecord(Struct, frozen=True, omit_defaults=True):
    """A thing remembered. ``owner`` is pid:7, program:ann/travel or user:ann.

    time is when it was so (seconds since the epoch); valid_to is set once it was corrected, and
    superseded_by is the id of what corrected it.
    """

    id: str
    owner: str
    text: str
    data: Any = None
    tags: tuple[str, ...] = ()
    source: str = ""
    time: float = 0.0
    valid_from: float = 0.0
    valid_to: float | None = None
    superseded_by: str | None = None


class Remembered(Reply, frozen=True):
    """The id of what was written, and what is left of the owner's quota in bytes."""

    id: str
    owner: str
    left: int


class Allotment(Reply, frozen=True):
    """A quota in bytes, of memory or storage, and what of it is used."""

    owner: str
    size: int
    used: int


class MemoryRecords(Reply, frozen=True):
    records: tuple[MemoryRecord, ...]


class Cleared(Reply, frozen=True):
    """How many records or files went, and the bytes they took."""

    count: int
    bytes: int


class MemoryHit(Struct, frozen=True, omit_defaults=True):
    """A record that matched. score is 0 to 1; words and meaning are its parts; why says it."""

    record: MemoryRecord
    score: float
    words: float = 0.0
    meaning: float = 0.0
    why: str = ""


class MemoryHits(Reply, frozen=True, omit_defaults=True):
    """note says what was not done (no embedder, vectors being made again)."""

    hits: tuple[MemoryHit, ...]
    note: str = ""


class MemAlloc(Call, frozen=True, kw_only=True):
    """Set and reserve a quota of memory, in bytes."""

    reply = Allotment
    aid: int | None = None
    size: int
    scope: Scope = "process"


class MemWrite(Call, frozen=True, kw_only=True):
    """Remember something: text, with JSON data, tags, a source, and the time it was so."""

    reply = Remembered
    aid: int | None = None
    text: str
    data: Any = None
    tags: tuple[str, ...] = ()
    source: str = ""
    time: float | None = None
    scope: Scope = "process"


class MemRead(Call, frozen=True, kw_only=True):
    """A record by id, or (None) the newest of a scope; ``history`` shows what was corrected too."""

    reply = MemoryRecords
    aid: int | None = None
    id: str | None = None
    scope: Scope = "process"
    tags: tuple[str, ...] = ()
    after: float | None = None
    before: float | None = None
    limit: int = 100
    history: bool = False


class MemUpdate(Call, frozen=True, kw_only=True):
    """Correct a record: a new one takes its place, the old one is kept as it was until now."""

    reply = Remembered
    aid: int | None = None
    id: str
    text: str | None = None
    data: Any = None
    tags: tuple[str, ...] | None = None
    source: str | None = None
    time: float | None = None


class MemClear(Call, frozen=True, kw_only=True):
    """Delete a record (with all that it corrected), or (None) all of a scope; for good."""

    reply = Cleared
    aid: int | None = None
    id: str | None = None
    scope: Scope = "process"


class MemSearch(Call, frozen=True, kw_only=True):
    """Find records by words and by meaning, in the caller's scopes and what is shared with it."""

    reply = MemoryHits
    aid: int | None = None
    query: str
    scopes: tuple[Scope, ...] = ("process", "program", "user")
    tags: tuple[str, ...] = ()
    source: str | None = None
    after: float | None = None
    before: float | None = None
    limit: int = 10


class MemShare(Call, frozen=True, kw_only=True):
    """Let another process read a record, or a whole scope, until a time (None: for good).

    revoke takes it back.
    """

    reply = Done
    aid: int | None = None
    to: int
    id: str | None = None
    scope: Scope = "process"
    until: float | None = None
    revoke: bool = False


class Embedding(Reply, frozen=True):
    """vectors are unit vectors of floats, one for each text; tokens is what was read."""

    model: str
    vectors: tuple[tuple[float, ...], ...]
    tokens: int


class Embed(Call, frozen=True, kw_only=True):
    """Texts as vectors of the local embedder (model None: whatever it is)."""

    reply = Embedding
    texts: tuple[str, ...]
    model: str | None = None


# --- storage --------------------------------------------------------------------------------------


class FileVersion(Struct, frozen=True, omit_defaults=True):
    """A file at one version of its volume. version counts the volume's commits, from 1."""

    path: str
    version: int
    bytes: int
    at: float
    aid: int
    call: str = ""
    message: str = ""
    deleted: bool = False


class StoredFile(Reply, frozen=True, omit_defaults=True):
    """A part of a file; text if it is UTF-8 and was asked for as text, else content.

    bytes is the size of the whole file. mount is the directory that it lies in, if it is not in the
    volume itself; its version is then the time of its last change, in nanoseconds.
    """

    path: str
    volume: str
    version: int
    bytes: int
    offset: int = 0
    text: str | None = None
    content: Data = b""
    mount: str = ""


class StoredVersion(Reply, frozen=True, omit_defaults=True):
    """A volume is at this version now; left is what remains of its quota, in bytes.

    staged is set while the change waits for sto_commit.
    """

    volume: str
    version: int
    paths: tuple[str, ...]
    left: int
    staged: bool = False


class FileInfo(Struct, frozen=True, omit_defaults=True):
    """A file or a directory in a volume; aid is who wrote it last, mount where it really lies."""

    path: str
    kind: Literal["file", "directory"] = "file"
    bytes: int = 0
    version: int = 0
    at: float = 0.0
    aid: int = 0
    mount: str = ""


class Files(Reply, frozen=True):
    volume: str
    version: int
    files: tuple[FileInfo, ...]


class FileVersions(Reply, frozen=True):
    volume: str
    versions: tuple[FileVersion, ...]


class FileDiff(Reply, frozen=True, omit_defaults=True):
    """Unified diffs of text files; of others a line that says how they differ."""

    volume: str
    text: str
    paths: tuple[str, ...] = ()


class FileHit(Struct, frozen=True, omit_defaults=True):
    """A passage of a file. score is 0 to 1; words and meaning are its parts; why says it."""

    path: str
    volume: str
    version: int
    text: str
    score: float
    line: int = 0
    words: float = 0.0
    meaning: float = 0.0
    why: str = ""


class FileHits(Reply, frozen=True, omit_defaults=True):
    """note says what was not done (no embedder, vectors being made, mounted directories)."""

    hits: tuple[FileHit, ...]
    note: str = ""


class Mounted(Reply, frozen=True):
    volume: str
    path: str
    host: str
    mode: str


class StoAlloc(Call, frozen=True, kw_only=True):
    """Set and reserve a quota of storage, in bytes. volume: process, program, user, or an owner."""

    reply = Allotment
    aid: int | None = None
    size: int
    volume: str = "process"


class StoWrite(Call, frozen=True, kw_only=True):
    """Write a file: text or content; a new version of its volume.

    expect is the version of the file that this one replaces (0: it must be new; -1: whatever is
    there; None: the one that the process saw last): Conflict if somebody else wrote since. append
    adds to the end; stage keeps it aside until sto_commit writes all that is staged at once.
    """

    reply = StoredVersion
    aid: int | None = None
    path: str
    text: str | None = None
    content: bytes | None = None
    volume: str = "process"
    expect: int | None = None
    append: bool = False
    stage: bool = False
    message: str = ""


class StoRead(Call, frozen=True, kw_only=True):
    """Read a file, or a part of it (offset and length in bytes), as it is or was at a version."""

    reply = StoredFile
    aid: int | None = None
    path: str
    volume: str = "process"
    version: int | None = None
    offset: int = 0
    length: int | None = None
    binary: bool = False


class StoDelete(Call, frozen=True, kw_only=True):
    """Delete a file or a directory; its versions are kept, and purge removes those as well."""

    reply = StoredVersion
    aid: int | None = None
    path: str
    volume: str = "process"
    expect: int | None = None
    stage: bool = False
    purge: bool = False


class StoList(Call, frozen=True, kw_only=True):
    """The files under a directory, at the newest version or an older one."""

    reply = Files
    aid: int | None = None
    path: str = "/"
    volume: str = "process"
    version: int | None = None
    recursive: bool = False


class StoMove(Call, frozen=True, kw_only=True):
    """Move a file or a directory within its volume; copy leaves the original.

    expect is of the file that is replaced at ``to``, as in StoWrite.
    """

    reply = StoredVersion
    aid: int | None = None
    path: str
    to: str
    volume: str = "process"
    expect: int | None = None
    copy: bool = False
    stage: bool = False


class StoSearch(Call, frozen=True, kw_only=True):
    """Find passages of files by words and by meaning."""

    reply = FileHits
    aid: int | None = None
    query: str
    volumes: tuple[str, ...] = ("process", "program", "user")
    path: str = "/"
    limit: int = 10


class StoHistory(Call, frozen=True, kw_only=True):
    """The versions of a file, or (``/``) of the whole volume, newest first."""

    reply = FileVersions
    aid: int | None = None
    path: str = "/"
    volume: str = "process"
    limit: int = 100


class StoDiff(Call, frozen=True, kw_only=True):
    """What changed between two versions (until None: now) of a file or of a whole volume."""

    reply = FileDiff
    aid: int | None = None
    path: str = "/"
    volume: str = "process"
    since: int
    until: int | None = None


class StoRollback(Call, frozen=True, kw_only=True):
    """Make a file or a volume as it was: at a version, so many versions ago, or at a time.

    That is a new version; the history stays.
    """

    reply = StoredVersion
    aid: int | None = None
    path: str = "/"
    volume: str = "process"
    version: int | None = None
    back: int | None = None
    time: float | None = None


class FileDraft(Struct, frozen=True, omit_defaults=True):
    """A change of one file: text or content to write there; with neither it is deleted."""

    path: str
    text: str | None = None
    content: bytes | None = None
    expect: int | None = None
    append: bool = False


class StoCommit(Call, frozen=True, kw_only=True):
    """Write all that is staged in a volume, and changes, as one version; or (discard) forget it.

    What is staged belongs to the process that staged it; paths takes only what concerns these.
    """

    reply = StoredVersion
    aid: int | None = None
    volume: str = "process"
    message: str = ""
    changes: tuple[FileDraft, ...] = ()
    paths: tuple[str, ...] = ()
    discard: bool = False


class StoMount(Call, frozen=True, kw_only=True):
    """Show a directory of this machine in a volume: ro, cow (changes stay in the volume) or rw.

    host None takes the mount away.
    """

    reply = Mounted
    aid: int | None = None
    path: str
    host: str | None
    volume: str = "process"
    mode: Literal["ro", "cow", "rw"] = "ro"


class StoShare(Call, frozen=True, kw_only=True):
    """Let another process read (or write) a path of a volume; revoke takes it back."""

    reply = Done
    aid: int | None = None
    to: int
    path: str = "/"
    volume: str = "process"
    write: bool = False
    until: float | None = None
    revoke: bool = False


# --- secrets --------------------------------------------------------------------------------------


class Sealed(Reply, frozen=True):
    """token is text that only this user's key opens."""

    token: str


class Opened(Reply, frozen=True):
    data: bytes


class EncryptData(Call, frozen=True, kw_only=True):
    """Seal data under the user's key, which lies outside the database."""

    reply = Sealed
    data: bytes


class DecryptData(Call, frozen=True, kw_only=True):
    """Open what EncryptData sealed; InvalidCall if it was changed or is another user's."""

    reply = Opened
    token: str


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
    """Wait for the next invocation of one of the caller's own tools.

    busy are those that it works on: any other that it was given, but did not get because the kernel
    died, is given again.
    """

    reply = ToolInvocation
    busy: tuple[str, ...] = ()


class ToolReturn(Call, frozen=True, kw_only=True):
    reply = Done
    id: str
    content: str
    is_error: bool = False


# --- the outside world, once ----------------------------------------------------------------------


class Recorded(Reply, frozen=True, omit_defaults=True):
    """known is unset where a life looked for what an earlier one kept, and it had kept nothing."""

    value: Any
    known: bool = True


class Record(Call, frozen=True, kw_only=True):
    """Keep what a program read outside (time, chance, a step's result) under the call's path.

    The reply is the value to go on with: a restarted life gets the one that its first life kept.
    key says what was read (``random``'s kind, a step's name); value is JSON data. With recall
    nothing is kept: the reply is what an earlier life kept under this path, if it did.
    """

    reply = Recorded
    kind: Literal["now", "random", "step"]
    key: str = ""
    value: Any = None
    recall: bool = False


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


class Transcript(Reply, frozen=True):
    calls: tuple[CallRecord, ...]


class GetTranscript(Call, frozen=True, kw_only=True):
    """The calls of a process with their contents, oldest first; at most ``limit`` of the newest.

    before goes on to older ones (a call's id); names and text narrow it; since and until are times.
    """

    reply = Transcript
    aid: int | None = None
    limit: int = 1000
    before: str | None = None
    names: tuple[str, ...] = ()
    text: str | None = None
    since: float | None = None
    until: float | None = None


class Log(Reply, frozen=True):
    """A part of a program's stdout and stderr; ``next`` is where to read on (bytes)."""

    text: str
    next: int
    ended: bool


class GetLog(Call, frozen=True, kw_only=True):
    reply = Log
    aid: int
    offset: int = 0


class JournalReport(Reply, frozen=True):
    """What the journal holds: rows by table, and sizes in bytes."""

    version: int
    bytes: int
    wal_bytes: int
    free_bytes: int
    first_event: int
    last_event: int
    rows: dict[str, int]


class GetJournal(Call, frozen=True, kw_only=True):
    reply = JournalReport


class Pruning(Reply, frozen=True):
    """What a pruning took away: events, blobs of transcripts and files, and bytes of the file."""

    events: int
    calls: int
    blobs: int
    bytes: int


class PruneJournal(Call, frozen=True, kw_only=True):
    """Forget old history: events older than days, and the oldest until it fits max_bytes.

    Nothing that a living process, its replay or a kept snapshot needs goes. None: as configured.
    """

    reply = Pruning
    days: float | None = None
    max_bytes: int | None = None


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


# --- cores ----------------------------------------------------------------------------------------

CoreKind = Literal["embedded", "transformers", "openai", "provider"]


class Price(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """US dollars for a million tokens: of the prompt, of the answer, of the prompt if cached."""

    prompt: float = 0.0
    answer: float = 0.0
    cached: float | None = None  # as the prompt

    def __post_init__(self) -> None:
        for name, amount in (("prompt", self.prompt), ("answer", self.answer)):
            _check_dollars(f"price.{name}", amount)
        _check_dollars("price.cached", self.cached)


class CoreSpec(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A core as config.toml describes it, ``[cores.NAME]``.

    kind: ``embedded`` (a GGUF model that is here), ``transformers`` (a folder or a repository, run
    by the library of that name), ``openai`` (a server that speaks that API, at url), ``provider``
    (a cloud's own API). model is its name there, and what may be asked for besides the core's own
    name; classes are more such names, ``small`` or ``vision``. The key is in the environment
    variable key_env, or in the keyring of this machine under the name keyring. 0 and "" mean: as
    the core itself says. device, max_memory (bytes or ``24GB`` by GPU), dtype, quantization and
    gguf_file are for transformers alone.
    """

    kind: CoreKind = "openai"
    model: str = ""
    url: str = ""
    provider: str = ""
    key_env: str = ""
    keyring: str = ""
    classes: tuple[str, ...] = ()
    price: Price | None = None
    slots: Annotated[int, Meta(ge=0)] = 0
    context_tokens: Annotated[int, Meta(ge=0)] = 0
    continues: bool | None = None  # an answer that was begun; None: find out
    device: str = "auto"
    max_memory: dict[str, str] = field(default_factory=dict)
    dtype: str = "auto"
    quantization: str = ""
    gguf_file: str = ""
    deterministic: bool = True


class CoreInfo(Struct, frozen=True, omit_defaults=True):
    """A core now: cold (not started yet), up, down, draining; speed is tokens a second."""

    name: str
    kind: CoreKind
    model: str
    state: Literal["cold", "up", "down", "draining"]
    classes: tuple[str, ...] = ()
    price: Price | None = None
    slots: int = 0
    context_tokens: int = 0
    running: int = 0
    queued: int = 0
    speed: float = 0.0
    where: str = ""  # its server's address
    message: str = ""  # why it is down


class CoreInfos(Reply, frozen=True):
    cores: tuple[CoreInfo, ...]


class CoreList(Call, frozen=True, kw_only=True):
    """The cores that there are, in the order in which they are preferred."""

    reply = CoreInfos


class CoreAdd(Call, frozen=True, kw_only=True):
    """Have one more core, until the kernel stops; config.toml is what keeps it."""

    reply = CoreInfos
    name: str
    spec: CoreSpec


class CoreDrain(Call, frozen=True, kw_only=True):
    """Send it nothing new: what waits for it goes to other cores, what has begun ends there.

    undo takes that back.
    """

    reply = CoreInfos
    name: str
    undo: bool = False


class CoreRemove(Call, frozen=True, kw_only=True):
    """Drain it, wait until it is idle, and have it no more."""

    reply = Done
    name: str


CALLS: dict[str, type[Call]] = {}


def _collect(base: type[Call]) -> None:
    for call in base.__subclasses__():
        CALLS[str(call.__struct_config__.tag)] = call
        _collect(call)


_collect(Call)


def name_of(call: Call | type[Call]) -> str:
    """The call's name on the wire: ``name_of(GetAid()) == "get_aid"``."""
    return str(call.__struct_config__.tag)
