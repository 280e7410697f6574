"""What the kernel needs from outside, as Protocols, and the plain data that they pass.

Every driver and its fake in ``aios.testing`` pass one contract suite (tests/contract).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct

from aios.abi.calls import (
    Allotment,
    CallState,
    Cleared,
    CoreKind,
    CoreSpec,
    Embedding,
    FileDiff,
    FileHits,
    FileVersions,
    JournalReport,
    KeyInfo,
    MemoryHits,
    MemoryRecord,
    MemUpdate,
    MemWrite,
    Mounted,
    Price,
    ProcessState,
    Pruning,
    Reason,
    Remembered,
    StoredVersion,
    StoRollback,
)
from aios.abi.calls import Files as FileListing
from aios.abi.events import Event
from aios.abi.messages import (
    FinishReason,
    Message,
    Sampling,
    TokenLogprob,
    ToolSpec,
    ToolUse,
)

# --- cores ----------------------------------------------------------------------------------------


class Prompt(Struct, frozen=True):
    """All that decides a generation. ``sampling.seed`` is always set by the kernel.

    session and priority decide nothing of the answer, only where and when a server makes it:
    prompts of one session share their beginnings; priority is like nice, lower first, 0 is usual.
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str = "auto"
    schema: dict[str, Any] | None = None
    session: str = ""
    priority: int = 0


class Abilities(Struct, frozen=True):
    """What a core can do.

    slots is how many sequences may hold a slice at once; context_tokens the model's window; cells
    the KV pool in tokens (0: not our business); exact_snapshots that a restored or recomputed
    sequence gives the same bits; preemptible that it can stop between tokens and go on from there
    (else a sequence that has begun keeps its slot to its end); shared_fate that its CoreFailed
    means the end of all its sequences (else of that one alone); beams how many hypotheses a beam
    search may keep (1: it does none).
    """

    model: str
    slots: int
    context_tokens: int
    cells: int = 0
    preemptible: bool = True
    exact_snapshots: bool = True
    constrained_output: bool = True
    shared_fate: bool = True
    beams: int = 1


class Admitted(Struct, frozen=True):
    """A sequence is in the core. max_tokens is what it may still make (request and window)."""

    sequence: int
    prompt_tokens: int
    cached_tokens: int
    max_tokens: int


class Slice(Struct, frozen=True):
    """One grant: one prefill chunk while the prompt is not in yet, else this many tokens."""

    decode_tokens: int


UNKNOWN = -1  # the id of a token that only its text is known of


class Spent(Struct, frozen=True):
    """What a server says that a whole generation took, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class SliceResult(Struct, frozen=True):
    """What a slice did.

    tokens are the ids decoded, text what they add to the answer (held back while it could be part
    of a stop string or of a tool call), finish_reason is set when the sequence is at its end, and
    then tool_calls holds what the model asks for; cells is what it occupies now in the KV pool.
    A core that is told no ids gives UNKNOWN for each token. At the end such a core says in spent
    what its server says that the generation took, where that is not what was counted here.

    A beam search computes a token for each of its hypotheses, and tokens has them all, each a
    number with the hypothesis it continues: what admit needs to take the same choices again. A step
    that is more than the grant is handed out over several slices.
    """

    prefilled: int = 0
    tokens: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolUse, ...] = ()
    finish_reason: FinishReason | None = None
    cells: int = 0
    spent: Spent | None = None


class Paged(Struct, frozen=True):
    """bytes moved by a page-out or a page-in (0: there was nothing to move)."""

    bytes: int


class Frozen(Struct, frozen=True):
    """A snapshot file: its model's id, the sequence's length in tokens, and its size on disk."""

    model: str
    tokens: int
    bytes: int


class Residency(Struct, frozen=True):
    """How full a core is: KV cells in tokens, RAM snapshots and files of them in bytes."""

    cells_used: int
    cells_total: int
    ram_used: int
    ram_limit: int
    sequences: int
    disk_used: int = 0
    disk_limit: int = 0


class Core(Protocol):
    """Turns a prompt into tokens, slice by slice.

    A sequence is a number given by admit and valid until release. ``run`` may be called for several
    sequences at once (at most one run per sequence); the core batches them. A core that dies raises
    CoreFailed from every call in progress; after that the sequences are gone, and the kernel admits
    them again with ``made``, the tokens decoded so far, and ``text``, what these added to the
    answer: the bits that follow are the same (on a core with exact snapshots; another goes on from
    the text as well as it can).
    Errors are DriverError or CallError; nothing else crosses this border.
    """

    abilities: Abilities

    async def start(self) -> None:
        """Load the model; idempotent. ``abilities`` is final afterwards."""

    async def admit(self, prompt: Prompt, made: Sequence[int] = (), text: str = "") -> Admitted: ...

    async def measure(self, prompt: Prompt) -> int:
        """How many tokens the prompt has, counted as admit would; however long it is."""

    async def run(self, sequence: int, grant: Slice) -> SliceResult: ...

    async def fork(self, sequence: int) -> int:
        """A second sequence in the same state; the KV state is shared, not copied."""

    async def page_out(self, sequence: int) -> Paged:
        """Move its KV state from the cells to RAM or disk (or drop it: recomputed)."""

    async def page_in(self, sequence: int) -> Paged:
        """Make it resident again; ``run`` does this by itself when it must."""

    async def freeze(self, sequence: int, path: str) -> Frozen:
        """Write an exact snapshot of a sequence (not in a run) to a file, atomically."""

    async def thaw(self, path: str) -> Admitted:
        """A new sequence from a snapshot file; InvalidCall if it is damaged or another model's."""

    async def cancel(self, sequence: int) -> None:
        """End its run now: ``run`` returns what it has, with finish_reason cancelled."""

    async def release(self, sequence: int) -> None:
        """Forget it and free its cells (a core may keep its prompt's KV for others); idempotent.

        Safe while a run of it is in progress, also one whose awaiting task was cancelled: returns
        when the sequence no longer takes part in any batch.
        """

    async def residency(self) -> Residency: ...

    async def close(self) -> None: ...


# --- the journal ----------------------------------------------------------------------------------


class ProcessRow(Struct, frozen=True):
    """A process as the journal keeps it; detail is the rest of it as JSON."""

    pid: int
    user: str
    parent: int | None
    program: str
    state: ProcessState
    reasons: tuple[Reason, ...]
    priority: int
    os_pid: int | None
    os_started: float | None
    created_at: float
    ended_at: float | None
    exit_status: int | None
    detail: bytes


class CallRow(Struct, frozen=True):
    """The start of a call; request is its JSON.

    said are a generation's messages and tools its tools, as JSON, left out of request: they are
    kept once, however often they are said again. A journal gives request back whole.
    """

    id: str
    pid: int
    name: str
    started_at: float
    request: bytes
    said: tuple[bytes, ...] = ()
    tools: tuple[bytes, ...] = ()


class CallEnd(Struct, frozen=True):
    """The end of a call; reply is JSON or None, code that of its error."""

    id: str
    state: CallState
    ended_at: float
    reply: bytes | None = None
    error: str | None = None
    code: str | None = None


class TokensRow(Struct, frozen=True):
    """The tokens that one slice of a call decoded, packed as little-endian int32.

    ordinal is how many there were before; detail is what the slice added to the answer, as JSON.
    """

    call: str
    ordinal: int
    tokens: bytes
    detail: bytes = b""


class ContextRow(Struct, frozen=True):
    """A message in a process's context, as JSON: at a position, since a call."""

    pid: int
    context: str
    position: float
    call: str
    message: bytes


class ContextCut(Struct, frozen=True):
    """Messages at these positions are no longer in the context, since a call; they are kept."""

    pid: int
    context: str
    positions: tuple[float, ...]
    call: str


class ContextSetting(Struct, frozen=True):
    """How a context is kept within its window, as JSON; the last one counts."""

    pid: int
    context: str
    detail: bytes


class SpentRow(Struct, frozen=True):
    """What a process has spent and what is left of its budget, as JSON; the last one counts."""

    pid: int
    usage: bytes
    left: bytes


class EnvRow(Struct, frozen=True):
    """The environment that a process's program was started with, sealed."""

    pid: int
    sealed: bytes


class MailRow(Struct, frozen=True):
    """A message in a mailbox, as JSON; number counts the mailbox's messages."""

    pid: int
    number: int
    mail: bytes


class MailTaken(Struct, frozen=True):
    """A message was received by a call; a rollback to before that call puts it back."""

    pid: int
    number: int
    call: str = ""


class MarkRow(Struct, frozen=True):
    """A snapshot of a process: after call number ``call``; detail is the rest, as JSON."""

    id: str
    pid: int
    call: int
    at: float
    detail: bytes


class Rewind(Struct, frozen=True):
    """A process is rolled back to just after call number ``call``.

    Its later calls count no more (they stay to be asked about, open ones are ended), its contexts
    and mailbox are as they were then, and later marks are gone.
    """

    pid: int
    call: int
    at: float


class GrantGone(Struct, frozen=True):
    """A grant was taken back."""

    holder: str
    action: str
    resource: str


class KeyGone(Struct, frozen=True):
    """A key is forgotten (its process was reaped)."""

    id: str


class KeyRow(Struct, frozen=True):
    """hash is the SHA-256 of the key, hex; aid is set for a process's own key."""

    info: KeyInfo
    hash: str


class GrantRow(Struct, frozen=True):
    """holder (``pid:7``, ``user:ann``) may do action (a call's name, or ``*``) to resource."""

    holder: str
    action: str
    resource: str
    expires_at: float | None = None


class SnapshotRow(Struct, frozen=True):
    """A frozen generation: detail is JSON (what is needed to go on)."""

    id: str
    pid: int
    path: str
    created_at: float
    detail: bytes


class Forget(Struct, frozen=True):
    """A process was reaped: drop its row, calls, contexts and volume (its events stay)."""

    pid: int


class MemoryRow(Struct, frozen=True):
    """A record of memory.

    number is its row; id what it is called by (12 is m12; a fork's copies keep theirs); writer the
    pid that wrote it, born and died the numbers of the calls that did. data is JSON (empty: none).
    marks are the words that its owner, tags and source are found by; bytes is what it counts.
    """

    number: int
    id: int
    owner: str
    writer: int
    born: int
    text: str
    data: bytes
    tags: tuple[str, ...]
    source: str
    time: float
    valid_from: float
    marks: str
    bytes: int
    valid_to: float | None = None
    superseded_by: int | None = None
    died: int | None = None


class MemoryEnd(Struct, frozen=True):
    """A record of memory was corrected, by call number ``died``."""

    number: int
    valid_to: float
    superseded_by: int
    died: int


class MemoryGone(Struct, frozen=True):
    """Records of memory are deleted, for good."""

    numbers: tuple[int, ...]


class MemoryCleared(Struct, frozen=True):
    """All records of an owner are deleted; with quota, what was set aside for it as well."""

    owner: str
    quota: bool = False


class MemoryRewind(Struct, frozen=True):
    """What a process remembered, or wrote for others, since call number ``call`` is as it was then.

    What others corrected since stays corrected; what was deleted stays deleted.
    """

    pid: int
    call: int


class MemoryQuota(Struct, frozen=True):
    """How many bytes an owner of a user may remember."""

    owner: str
    user: str
    bytes: int


class VectorRow(Struct, frozen=True):
    """A record of memory as a model's vector, little-endian float32; beside is the number of the
    record whose text went into it as well. Not kept if the record has gone."""

    number: int
    model: str
    beside: int | None
    vector: bytes


class ChunkRow(Struct, frozen=True):
    """A piece of a file: hash is its BLAKE3, size its bytes; body is a zstd frame if packed."""

    hash: bytes
    size: int
    packed: bool
    body: bytes


class FileContent(Struct, frozen=True):
    """What a file holds: hash is the BLAKE3 of its chunks' hashes; chunks are (hash, size).

    Without chunks it is in the database already (or empty).
    """

    hash: bytes
    size: int
    chunks: tuple[tuple[bytes, int], ...] = ()


class Passage(Struct, frozen=True):
    """A part of a text that is found as a whole: its first line, and the words it is found by."""

    line: int
    words: str


class FileEntry(Struct, frozen=True):
    """A file at a new version: content None is deleted; uncovered, it is as if never written."""

    path: str
    content: FileContent | None
    passages: tuple[Passage, ...] = ()
    uncovered: bool = False


class FileCommit(Struct, frozen=True):
    """A new version of a volume. Not kept unless stamp follows the last one of the volume.

    user is whose volume it is; writer a pid, author its name (``pid:7``; ``user:ann`` for a login);
    call the number of the call that did it; size what the volume holds then, in bytes; staged the
    numbers of what was staged by writer and is in it.
    """

    owner: str
    user: str
    stamp: int
    version: int
    writer: int
    author: str
    call: int
    at: float
    message: str
    size: int
    entries: tuple[FileEntry, ...]
    staged: tuple[int, ...] = ()


class FilePurge(Struct, frozen=True):
    """A new version of a volume, without these paths and all their versions."""

    owner: str
    stamp: int
    version: int
    writer: int
    author: str
    call: int
    at: float
    paths: tuple[str, ...]


class FileStage(Struct, frozen=True):
    """A change that waits for a commit: expect is the version that it replaces (-1: any)."""

    owner: str
    user: str
    stamp: int
    writer: int
    number: int
    call: int
    kind: str
    path: str
    to: str
    expect: int
    content: FileContent | None
    size: int


class FileUnstage(Struct, frozen=True):
    """What a process staged is given up."""

    owner: str
    stamp: int
    writer: int
    numbers: tuple[int, ...]


class StageEnd(Struct, frozen=True):
    """What a process staged after a call goes, what it committed since is staged again.

    call None: it has ended, and all goes.
    """

    writer: int
    call: int | None


class FileMount(Struct, frozen=True):
    """A directory of this machine at a path of a volume; host None takes it away."""

    owner: str
    user: str
    stamp: int
    path: str
    host: str | None
    mode: str


class VolumeQuota(Struct, frozen=True):
    """How many bytes a volume may hold."""

    owner: str
    user: str
    stamp: int
    quota: int


class VolumeCopy(Struct, frozen=True):
    """A process's volume for another, and what it has staged: up to a call's number (None: all).

    passages are those of the copy's texts, by path.
    """

    from_pid: int
    to_pid: int
    upto: int | None
    passages: tuple[tuple[str, tuple[Passage, ...]], ...] = ()


class PassageVector(Struct, frozen=True):
    """A passage of a file as a model's vector, little-endian float32; not kept if it has gone."""

    passage: int
    model: str
    vector: bytes


Record = (
    Event
    | ProcessRow
    | CallRow
    | CallEnd
    | TokensRow
    | ContextRow
    | KeyRow
    | GrantRow
    | ContextCut
    | ContextSetting
    | SpentRow
    | EnvRow
    | MailRow
    | MailTaken
    | MarkRow
    | Rewind
    | GrantGone
    | KeyGone
    | SnapshotRow
    | MemoryRow
    | MemoryEnd
    | MemoryGone
    | MemoryCleared
    | MemoryRewind
    | MemoryQuota
    | VectorRow
    | ChunkRow
    | FileCommit
    | FilePurge
    | FileStage
    | FileUnstage
    | StageEnd
    | FileMount
    | VolumeQuota
    | VolumeCopy
    | PassageVector
    | Forget
)


class CallHistory(Struct, frozen=True):
    """A call with its end, if it has one; void if a rollback left it behind."""

    start: CallRow
    end: CallEnd | None
    tokens: tuple[int, ...] = ()
    details: tuple[bytes, ...] = ()
    void: bool = False


class Image(Struct, frozen=True):
    """Everything a kernel needs to go on after a restart."""

    last_seq: int
    last_pid: int
    last_call: int
    processes: tuple[ProcessRow, ...] = ()
    keys: tuple[KeyRow, ...] = ()
    grants: tuple[GrantRow, ...] = ()
    snapshots: tuple[SnapshotRow, ...] = ()
    open_calls: tuple[CallRow, ...] = ()
    contexts: tuple[ContextRow, ...] = ()  # what is in them now, by pid, context, position
    settings: tuple[ContextSetting, ...] = ()
    spent: tuple[SpentRow, ...] = ()
    mail: tuple[MailRow, ...] = ()  # not received yet
    taken: tuple[MailRow, ...] = ()  # received, under an id that its sender gave
    marks: tuple[MarkRow, ...] = ()


class CallFilter(Struct, frozen=True):
    """Which calls of a process: void ones only with ``void``; text is looked for in contents."""

    limit: int = 1000
    before: int | None = None  # numbers below this one
    after: int | None = None  # numbers above this one
    upto: int | None = None  # numbers up to this one
    names: tuple[str, ...] = ()
    text: str | None = None
    since: float | None = None
    until: float | None = None
    open_only: bool = False
    void: bool = True


EVERY_CALL = 2**31  # as a filter's limit


class Journal(Protocol):
    """What is on disk. Records appended together are in one transaction, in order."""

    def load(self) -> Image: ...

    def append(self, records: Sequence[Record]) -> asyncio.Future[None]:
        """Queue at once, in order; the future is done when it, and all before it, is durable.

        It may be left unawaited; no records at all is a barrier. StoreFailed: it is not kept.
        """

    async def events(self, after: int, limit: int, pid: int | None = None) -> list[Event]: ...

    async def first_seq(self) -> int:
        """The number of the oldest event kept (0 if there is none)."""

    async def calls(
        self,
        pid: int,
        which: CallFilter = CallFilter(),  # noqa: B008 (frozen)
    ) -> list[CallHistory]:
        """The newest calls of a process, oldest first."""

    async def environment(self, pid: int) -> bytes | None:
        """What its program was started with, sealed."""

    async def context_at(self, pid: int, call: int) -> list[ContextRow]:
        """What was in its contexts when call number *call* had ended, in order."""

    async def mail(self, pid: int) -> list[MailRow]:
        """What its mailbox holds, in order."""

    async def report(self) -> JournalReport: ...

    async def prune(self, before: float, max_bytes: int | None) -> Pruning:
        """Forget events from before that time, then the oldest until the file has max_bytes.

        What living processes, snapshots and replays need stays; so do the numbers of events.
        """

    async def close(self) -> None: ...


# --- programs -------------------------------------------------------------------------------------


class Started(Struct, frozen=True):
    """An OS process: its pid and its start time (both, because pids are used again)."""

    os_pid: int
    os_started: float


class Taken(Struct, frozen=True):
    """What a program takes of the machine: seconds of CPU so far, bytes of RAM now."""

    cpu_s: float = 0.0
    rss_bytes: int = 0


class Programs(Protocol):
    """Starts, signals and waits for programs, each in its own process group."""

    async def start(
        self, pid: int, argv: Sequence[str], cwd: str | None, env: dict[str, str]
    ) -> Started:
        """InvalidCall if the program is not there or cannot be run."""

    async def wait(self, pid: int) -> int:
        """Its exit status, -N if signal N ended it."""

    async def stop(self, pid: int) -> None:
        """SIGSTOP to its group."""

    async def cont(self, pid: int) -> None: ...

    async def kill(self, pid: int, grace_s: float) -> None:
        """SIGTERM to its group, SIGKILL after grace_s; returns when it is gone; idempotent."""

    async def end_survivor(self, started: Started) -> None:
        """End what a dead kernel left behind, if it is still that same process."""

    async def gone(self, os_pid: int) -> None:
        """Wait until an OS process that was not started here has ended."""

    async def log(self, pid: int, offset: int) -> tuple[str, int]:
        """What it printed from a byte offset on, and the offset to go on at."""

    async def taken(self, pid: int) -> Taken:
        """What its program and the children of that take; nothing once it has ended."""

    async def close(self) -> None: ...


# --- secrets --------------------------------------------------------------------------------------


class Vault(Protocol):
    """Seals data under keys that lie outside the database, one for each user."""

    def seal(self, user: str, data: bytes) -> bytes: ...

    def open(self, user: str, sealed: bytes) -> bytes:
        """InvalidCall if it was changed or sealed for somebody else."""


# --- memory ---------------------------------------------------------------------------------------


class Stamp(Struct, frozen=True):
    """Who changes something, by which call (its number), and when."""

    writer: int
    call: int
    at: float


class MemoryView(Struct, frozen=True):
    """Whose records may be looked at: those of owners, and single ones (owner and id, as m12)."""

    owners: tuple[str, ...]
    records: tuple[tuple[str, str], ...] = ()


class MemoryFilter(Struct, frozen=True):
    """Which of them: with all these tags, of this source, of a time from after on and up to before.

    history shows those as well that were corrected.
    """

    tags: tuple[str, ...] = ()
    source: str | None = None
    after: float | None = None
    before: float | None = None
    history: bool = False


class Memory(Protocol):
    """Records that are written, corrected, deleted and found.

    It plans: what changes comes back as journal records, which the kernel puts into the transaction
    that ends the call, before it waits for anything else. So a record is there if and only if its
    call has ended. If that transaction fails, ``recount`` makes it forget what it counts in RAM.
    """

    async def start(self) -> None:
        """Begin to make vectors in the background, where there is something to make them with."""

    async def close(self) -> None: ...

    async def write(
        self, owner: str, request: MemWrite, stamp: Stamp
    ) -> tuple[Remembered, list[Record]]:
        """QuotaExceeded says what is left; InvalidCall what does not fit."""

    async def update(
        self, owners: Sequence[str], request: MemUpdate, stamp: Stamp
    ) -> tuple[Remembered, list[Record]]:
        """Conflict if the record was corrected before; NotFound if no owner has it."""

    async def clear(self, owners: Sequence[str], id: str) -> tuple[Cleared, list[Record]]:
        """Delete a record of the owners with all that it corrected, for good."""

    async def clear_all(self, owner: str) -> tuple[Cleared, list[Record]]: ...

    async def alloc(self, owner: str, user: str, size: int) -> tuple[Allotment, list[Record]]: ...

    async def find(self, view: MemoryView, id: str, history: bool = False) -> list[MemoryRecord]:
        """A record as it is now, if need be after corrections, and (history) what came before.

        NotFound if it is not in view.
        """

    async def newest(self, owner: str, which: MemoryFilter, limit: int) -> list[MemoryRecord]: ...

    async def search(
        self, view: MemoryView, query: str, which: MemoryFilter, limit: int
    ) -> MemoryHits: ...

    async def embed(self, texts: Sequence[str]) -> Embedding:
        """NotFound without an embedder; ContextOverflow for a text that is too long for it."""

    async def size(self, owner: str) -> int:
        """What an owner's records take, in bytes."""

    def ended(self, pid: int) -> list[Record]:
        """What drops the short-term records of a process that has ended."""

    async def copy(self, from_pid: int, to_pid: int, upto_call: int | None = None) -> list[Record]:
        """A process's own records for another: as they are, or were after a call; ids are kept."""

    async def rewind(self, pid: int, call: int) -> list[Record]:
        """Take a process's own records, and what it wrote for others, back to after a call.

        ``recount`` when they are in the journal.
        """

    def recount(self) -> None:
        """Forget what is counted in RAM: what was planned was not kept, or was a rewind."""


class Embedded(Struct, frozen=True):
    """Unit vectors, little-endian float32, one for each text; tokens is what was read."""

    vectors: tuple[bytes, ...]
    tokens: int


class EmbedderFiles(Struct, frozen=True):
    """An embedder that is here: its model's id, and the paths of graph (ONNX) and tokenizer."""

    model: str
    graph: str
    tokenizer: str


class Embedder(Protocol):
    """Makes vectors of texts, such that what means nearly the same lies near.

    name is what callers know it by; dimensions the length of a vector.
    """

    name: str
    dimensions: int

    @property
    def model(self) -> str | None:
        """What its vectors are to be compared with: those of the same model. None: not there."""

    @property
    def missing(self) -> str:
        """Why it is not there and what to do, as a clause (empty while it is)."""

    async def embed(self, texts: Sequence[str], *, background: bool = False) -> Embedded:
        """background: at low priority. NotFound while it is not there; ContextOverflow for a text
        that is too long; DriverError when it fails."""

    async def close(self) -> None: ...


# --- storage --------------------------------------------------------------------------------------


class Author(Struct, frozen=True):
    """Who changes a volume of a user, by which call (its number), and when.

    name is ``pid:7``, or ``user:ann`` for a login: a person is one author, however often connected.
    """

    pid: int
    name: str
    user: str
    call: int
    at: float


class FileChange(Struct, frozen=True):
    """A change of a volume. expect is as in StoWrite; kind append adds data to the end."""

    kind: Literal["write", "append", "delete", "move", "copy"]
    path: str
    data: bytes = b""
    to: str = ""
    expect: int | None = None


class FilePart(Struct, frozen=True):
    """Bytes of a file from an offset on; size is that of the whole. mount: where it really lies."""

    path: str
    version: int
    size: int
    data: bytes
    mount: str = ""


class HostPlace(Struct, frozen=True):
    """A path below a directory of this machine that is mounted ``rw``."""

    owner: str
    path: str
    mount: str
    host: str


class Files(Protocol):
    """Volumes of versioned files, by owner (``pid:7``, ``program:ann/travel``, ``user:ann``).

    It plans, as Memory does: what changes comes back as records, which the kernel hands to the
    journal before it waits for anything else, in the transaction that ends the call. The changes
    of a volume are planned one after another; the journal refuses one that was planned on another
    that it did not keep. seen says at which version the process saw a path last.

    Errors: InvalidCall for a path or a value that does not fit, NotFound for what is not there,
    Conflict for what somebody else changed, QuotaExceeded with what is left.
    """

    async def start(self) -> None:
        """Begin to make vectors in the background, where there is something to make them with."""

    async def close(self) -> None: ...

    # changes
    async def commit(
        self,
        owner: str,
        changes: Sequence[FileChange],
        author: Author,
        seen: Mapping[str, int],
        message: str = "",
        staged: Sequence[str] | None = None,
    ) -> tuple[StoredVersion, list[Record]]:
        """Make changes, after what the author has staged (None: nothing; else of these paths)."""

    async def stage(
        self, owner: str, change: FileChange, author: Author, seen: Mapping[str, int]
    ) -> tuple[StoredVersion, list[Record]]:
        """Keep a change aside; what it expects is looked at now and when it is committed."""

    async def discard(
        self, owner: str, author: Author, paths: Sequence[str]
    ) -> tuple[StoredVersion, list[Record]]:
        """Give up what the author has staged (of these paths, if any)."""

    async def rollback(
        self, owner: str, path: str, author: Author, which: StoRollback
    ) -> tuple[StoredVersion, list[Record]]: ...

    async def purge(
        self, owner: str, path: str, author: Author
    ) -> tuple[StoredVersion, list[Record]]:
        """Remove a file, or all below a directory, with all versions."""

    async def alloc(
        self, owner: str, size: int, author: Author
    ) -> tuple[Allotment, list[Record]]: ...

    async def mount(
        self, owner: str, path: str, host: str | None, mode: str, author: Author
    ) -> tuple[Mounted, list[Record]]:
        """PermissionDenied if it is not this user's to read, or holds the machine's own files."""

    # what is there
    async def read(
        self, owner: str, path: str, version: int | None, offset: int, length: int | None
    ) -> FilePart: ...

    async def listing(
        self, owner: str, path: str, version: int | None, recursive: bool
    ) -> FileListing: ...

    async def history(self, owner: str, path: str, limit: int) -> FileVersions: ...

    async def diff(self, owner: str, path: str, since: int, until: int | None) -> FileDiff: ...

    async def search(
        self, owners: Sequence[str], query: str, path: str, limit: int
    ) -> FileHits: ...

    async def size(self, owner: str) -> int:
        """What an owner's volume holds, in bytes."""

    async def heads(self, pid: int) -> dict[str, int]:
        """The versions of the volumes that a process has, or has written to."""

    # directories of this machine that are mounted rw: what is changed there is changed at once
    async def place(self, owner: str, path: str) -> HostPlace | None:
        """Where a path really is, if that is below a directory mounted rw."""

    async def host_change(
        self, place: HostPlace, change: FileChange, seen: Mapping[str, int], again: bool
    ) -> int:
        """Change a file there; its new version. again: it may have been done before a crash.

        OutcomeUnknown if that cannot be told.
        """

    # the lives of processes
    def ended(self, pid: int) -> list[Record]:
        """What drops what a process had staged; its volume stays until it is forgotten."""

    def forgotten(self, pid: int) -> list[Record]:
        """What else goes when a process is reaped, beside its volume, which goes with its row."""

    async def copy(self, from_pid: int, to_pid: int, upto_call: int | None = None) -> list[Record]:
        """A process's volume for another: as it is, or was after a call."""

    async def rewind(self, pid: int, call: int) -> list[Record]:
        """Take what a process wrote since a call, wherever it did, back to how it was then.

        A file that somebody else changed since stays (``held`` names it).
        """

    async def held(self, pid: int, call: int) -> list[str]:
        """What rewind would leave: ``user:ann:/notes.md, which pid:9 changed since``."""


# --- clock ----------------------------------------------------------------------------------------


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch."""

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


# --- where cores come from ------------------------------------------------------------------------


class CoreFacts(Struct, frozen=True):
    """What is known of a core before it is started. model and classes are what may be asked for
    besides its name; price is None where nobody knows it, context_tokens 0.
    """

    name: str
    kind: CoreKind
    model: str
    classes: tuple[str, ...] = ()
    price: Price | None = None
    context_tokens: int = 0
    where: str = ""

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine, for nothing."""
        return self.kind in ("embedded", "transformers")


class Cores(Protocol):
    """The cores that can answer here."""

    default: str

    def facts(self) -> list[CoreFacts]:
        """Of every core, the preferred ones first."""

    async def open(self, name: str) -> Core:
        """A core, started; NotFound for a name that is not among the facts."""

    def add(self, name: str, spec: CoreSpec) -> None:
        """Have one more; Conflict if the name is taken, InvalidCall if it cannot be."""

    def check_removable(self, name: str) -> None:
        """InvalidCall for a core that was neither added nor configured."""

    def remove(self, name: str) -> None:
        """Have it no more."""
