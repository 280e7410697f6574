"""Fakes that pass the same contract tests as the real thing, for our tests and for yours.

    async with machine(script=["Paris."]) as kernel:
        pid = kernel.identify(kernel.user_key)
        reply = await kernel.trap(pid, Generate(messages=(Message("user", "Capital of France?"),)))

ScriptedCore answers from a script, token by token, at once; FakeClock moves when told;
ScriptedPrograms are coroutines that play OS processes; ScriptedEmbedder knows a few synonyms;
FaultyServer is a model server over HTTP that does what it is told, the wrong thing, too.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import re
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from aios.abi.calls import CoreSpec
from aios.abi.messages import FinishReason, Message, Sampling, TokenLogprob, ToolUse
from aios.config import Config
from aios.drivers.clock import SystemClock
from aios.drivers.cores.configured import facts_of
from aios.drivers.files.sqlite import SqliteFiles
from aios.drivers.journal.memory import MemoryJournal
from aios.drivers.journal.sqlite import SqliteJournal
from aios.drivers.memory.sqlite import SqliteMemory
from aios.drivers.vault import FernetVault
from aios.errors import (
    Conflict,
    ContextOverflow,
    CoreFailed,
    DriverError,
    InvalidCall,
    NotFound,
)
from aios.kernel.kernel import Kernel
from aios.ports import (
    Abilities,
    Admitted,
    Clock,
    Core,
    CoreFacts,
    Embedded,
    Embedder,
    Frozen,
    Paged,
    Programs,
    Prompt,
    Residency,
    Slice,
    SliceResult,
    Started,
    Taken,
    Vault,
)

Script = Callable[[Prompt], str] | Sequence[str]


def echo(prompt: Prompt) -> str:
    """The default script: say back the last thing that was said."""
    return f"You said: {prompt.messages[-1].content}"


def example(schema: dict[str, Any]) -> Any:
    """The smallest plain value that fits a JSON Schema (the common keywords)."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return example(schema[key][0])
    kind = schema.get("type", "object")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            wanted = schema.get("required", list(schema.get("properties", {})))
            return {name: example(schema.get("properties", {}).get(name, {})) for name in wanted}
        case "array":
            return [example(schema.get("items", {}))] * schema.get("minItems", 1)
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return "text".ljust(schema.get("minLength", 0), "x")


class _Sequence(Struct):
    prompt: Prompt
    prompt_tokens: int
    answer: list[str]
    limit: int
    filled: int = 0
    made: int = 0
    resident: bool = True
    cancelled: bool = False


class ScriptedCore:
    """A core whose answers are written beforehand.

    A token is a word with the space before it. *script* is a function of the prompt, or texts that
    are given in the order of admission (the last one again when they run out). A schema is answered
    with its smallest example, a forced tool call likewise. Its words are chosen already, so
    temperature, seed and logit_bias change nothing, and a beam search has one hypothesis, which
    costs what the plain answer does. With *gated* every slice waits for ``step``. ``crash`` does
    what a dying worker does.
    """

    def __init__(
        self,
        script: Script = echo,
        *,
        model: str = "scripted",
        slots: int = 8,
        context_tokens: int = 8192,
        chunk: int = 0,
        gated: bool = False,
        beams: int = 16,
    ) -> None:
        self.abilities = Abilities(
            model=model, slots=slots, context_tokens=context_tokens, beams=beams
        )
        self._script, self._chunk = script, chunk
        self._gate = asyncio.Semaphore(0) if gated else None
        self._sequences: dict[int, _Sequence] = {}
        self._running: dict[int, asyncio.Future[None]] = {}
        self._last = self._admitted = 0
        self._vocabulary: dict[str, int] = {}
        self.ran: list[int] = []  # which sequence got each slice, for tests of schedulers

    def step(self, slices: int = 1) -> None:
        """Let this many slices of a gated core run."""
        assert self._gate is not None, "only a gated core is stepped"
        for _ in range(slices):
            self._gate.release()

    def crash(self) -> None:
        """Every run fails, every sequence is gone."""
        self._sequences.clear()
        for run in self._running.values():
            if not run.done():
                run.set_exception(CoreFailed("the scripted core crashed, as it was told to."))
                run.exception()  # seen: its caller may have been cancelled in this same step

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def admit(self, prompt: Prompt, made: Sequence[int] = (), text: str = "") -> Admitted:
        words = await self.measure(prompt)
        window = self.abilities.context_tokens
        if words >= window:
            raise ContextOverflow(
                f"the prompt has {words} tokens, "
                f"but the window of {self.abilities.model} is {window}."
            )
        asked = prompt.sampling.max_tokens
        limit = min(window if asked is None else asked, window - words)
        if limit < 1:
            raise InvalidCall(f"max_tokens must be at least 1, not {limit}.")
        answer = re.findall(r"\s*\S+", self._answer(prompt, bool(made)))
        self._last += 1
        self._sequences[self._last] = _Sequence(
            prompt, words, answer, limit, filled=words if not self._chunk else 0, made=len(made)
        )
        return Admitted(self._last, words, 0, limit)

    async def measure(self, prompt: Prompt) -> int:
        return sum(len(message.content.split()) + 1 for message in prompt.messages)

    def _answer(self, prompt: Prompt, again: bool) -> str:
        if prompt.schema is not None:
            return json.dumps(example(prompt.schema))
        if tool := self._forced(prompt):
            return tool.arguments
        if callable(self._script):
            return self._script(prompt)
        if not again:
            self._admitted += 1
        return self._script[min(self._admitted, len(self._script)) - 1]

    def _forced(self, prompt: Prompt) -> ToolUse | None:
        if not prompt.tools or prompt.tool_choice in ("auto", "none"):
            return None
        named = [t for t in prompt.tools if t.name == prompt.tool_choice] or list(prompt.tools)
        return ToolUse("call_1", named[0].name, json.dumps(example(named[0].parameters)))

    def _id(self, token: str) -> int:
        return self._vocabulary.setdefault(token, len(self._vocabulary))

    def _find(self, sequence: int) -> _Sequence:
        found = self._sequences.get(sequence)
        if found is None:
            raise CoreFailed(f"the scripted core has no sequence {sequence}.")
        return found

    async def run(self, sequence: int, grant: Slice) -> SliceResult:
        found = self._find(sequence)
        if self._gate is not None:
            await self._wait_for_step(sequence)
            found = self._find(sequence)
        self.ran.append(sequence)
        if found.cancelled:
            return SliceResult(finish_reason="cancelled")
        found.resident = True
        if found.filled < found.prompt_tokens:
            chunk = min(self._chunk, found.prompt_tokens - found.filled)
            found.filled += chunk
            return SliceResult(prefilled=chunk, cells=found.filled)
        end = min(found.made + grant.decode_tokens, found.limit)
        pieces = found.answer[found.made : end]
        found.made += len(pieces)
        reason: FinishReason | None = None
        if found.made >= len(found.answer):
            reason = "stop"
        elif found.made >= found.limit:
            reason = "length"
        text = "".join(pieces)
        before = "".join(found.answer[: found.made - len(pieces)])
        for stop in found.prompt.sampling.stop:
            if (at := (before + text).find(stop)) >= 0:
                text, reason = (before + text)[:at][len(before) :], "stop"
        calls: tuple[ToolUse, ...] = ()
        if tool := self._forced(found.prompt):
            text, calls = "", (tool,) if reason == "stop" else ()
            reason = "tool_calls" if reason == "stop" else reason
        logprobs: tuple[TokenLogprob, ...] = ()
        if found.prompt.sampling.logprobs is not None:
            logprobs = tuple(TokenLogprob(piece, 0.0) for piece in pieces)
        return SliceResult(
            tokens=tuple(self._id(piece) for piece in pieces),
            text=text,
            logprobs=logprobs,
            tool_calls=calls,
            finish_reason=reason,
            cells=found.filled + found.made,
        )

    async def _wait_for_step(self, sequence: int) -> None:
        assert self._gate is not None
        crashed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running[sequence] = crashed
        gate = asyncio.ensure_future(self._gate.acquire())
        try:
            waiting: set[asyncio.Future[Any]] = {gate, crashed}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if crashed.done():
                crashed.result()
        finally:
            if not gate.done():
                gate.cancel()
            del self._running[sequence]

    async def fork(self, sequence: int) -> int:
        self._last += 1
        self._sequences[self._last] = msgspec.structs.replace(self._find(sequence))
        return self._last

    async def page_out(self, sequence: int) -> Paged:
        found = self._find(sequence)
        moved = (found.filled + found.made) * 1000 if found.resident else 0
        found.resident = False
        return Paged(moved)

    async def page_in(self, sequence: int) -> Paged:
        found = self._find(sequence)
        moved = 0 if found.resident else (found.filled + found.made) * 1000
        found.resident = True
        return Paged(moved)

    async def freeze(self, sequence: int, path: str) -> Frozen:
        found = self._find(sequence)
        data = msgspec.json.encode((self.abilities.model, found))
        _write(path, data)
        return Frozen(self.abilities.model, found.prompt_tokens + found.made, len(data))

    async def thaw(self, path: str) -> Admitted:
        try:
            model, found = msgspec.json.decode(_read(path), type=tuple[str, _Sequence])
        except (OSError, msgspec.DecodeError) as error:
            raise InvalidCall(f"the snapshot {path} cannot be read: {error}.") from error
        if model != self.abilities.model:
            raise InvalidCall(
                f"the snapshot {path} is of model {model}, not of {self.abilities.model}."
            )
        self._last += 1
        self._sequences[self._last] = found
        return Admitted(self._last, found.prompt_tokens, 0, found.limit)

    async def cancel(self, sequence: int) -> None:
        self._find(sequence).cancelled = True

    async def release(self, sequence: int) -> None:
        self._sequences.pop(sequence, None)

    async def residency(self) -> Residency:
        used = sum(s.filled + s.made for s in self._sequences.values() if s.resident)
        return Residency(used, 0, 0, 0, len(self._sequences))


def _write(path: str, data: bytes) -> None:
    """At once: a few bytes, and a thread would make the order of what happens a matter of luck."""
    Path(path).write_bytes(data)


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


class ScriptedCores:
    """Cores by name; the first is the default. *specs* say of some what config.toml would."""

    def __init__(self, *cores: Core, specs: Mapping[str, CoreSpec] | None = None) -> None:
        self._cores = {core.abilities.model: core for core in cores}
        self._specs = specs or {}
        self.default = next(iter(self._cores))

    def facts(self) -> list[CoreFacts]:
        return [
            facts_of(name, self._specs.get(name, CoreSpec(kind="embedded"))) for name in self._cores
        ]

    def add(self, name: str, spec: CoreSpec) -> None:
        raise InvalidCall(f"{name} cannot be added: the scripted cores are given beforehand.")

    def check_removable(self, name: str) -> None:
        """All are."""

    def remove(self, name: str) -> None:
        del self._cores[name]

    async def open(self, name: str) -> Core:
        core = self._cores.get(name)
        if core is None:
            raise NotFound(
                f"there is no model named {name!r} here; there are {', '.join(self._cores)}."
            )
        await core.start()
        return core


class FakeClock:
    """A clock that stands still until ``advance``."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        waker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now + seconds, waker))
        await waker

    async def advance(self, seconds: float) -> None:
        """Move on, waking every sleeper at its own time, in order."""
        until = self._now + seconds
        while True:
            await settle()
            due = [entry for entry in self._sleepers if entry[0] <= until and not entry[1].done()]
            if not due:
                break
            first = min(due, key=lambda entry: entry[0])
            self._sleepers.remove(first)
            self._now = max(self._now, first[0])
            first[1].set_result(None)
        self._now = until
        await settle()


async def settle(rounds: int = 50) -> None:
    """Let every task that can go on do so."""
    for _ in range(rounds):
        await asyncio.sleep(0)


Program = Callable[[int, dict[str, str]], Awaitable[int]]


class ScriptedPrograms:
    """Programs that are coroutines in this process: argv[0] names one of *programs*."""

    def __init__(self, programs: Mapping[str, Program] | None = None) -> None:
        self._programs = programs or {}
        self._tasks: dict[int, asyncio.Task[int]] = {}
        self.stopped: set[int] = set()
        self.dead: set[int] = set()  # OS processes of others that have ended

    async def start(
        self, pid: int, argv: Sequence[str], cwd: str | None, env: dict[str, str]
    ) -> Started:
        if pid in self._tasks and not self._tasks[pid].done():
            raise Conflict(f"process {pid} has a program that still runs; kill it first.")
        program = self._programs.get(argv[0])
        if program is None:
            raise InvalidCall(f"there is no program {argv[0]!r} to run; check its path.")
        self._tasks[pid] = asyncio.ensure_future(program(pid, env))
        return Started(100_000 + pid, 0.0)

    async def wait(self, pid: int) -> int:
        task = self._task(pid)
        await asyncio.wait({task})
        if task.cancelled():
            return -15
        return 1 if task.exception() else task.result()

    async def stop(self, pid: int) -> None:
        if not self._task(pid).done():
            self.stopped.add(pid)

    async def cont(self, pid: int) -> None:
        self._task(pid)
        self.stopped.discard(pid)

    async def kill(self, pid: int, grace_s: float) -> None:
        if task := self._tasks.get(pid):
            task.cancel()
            await asyncio.wait({task})

    async def end_survivor(self, started: Started) -> None: ...

    async def gone(self, os_pid: int) -> None:
        while os_pid not in self.dead:  # noqa: ASYNC110 (a test adds to the set)
            await asyncio.sleep(0.001)

    async def log(self, pid: int, offset: int) -> tuple[str, int]:
        self._task(pid)
        return "", offset

    async def taken(self, pid: int) -> Taken:
        task = self._tasks.get(pid)
        return Taken() if task is None or task.done() else Taken(rss_bytes=1)

    async def close(self) -> None:
        for pid in list(self._tasks):
            await self.kill(pid, 0)

    def _task(self, pid: int) -> asyncio.Task[int]:
        if pid not in self._tasks:
            raise NotFound(f"process {pid} has no program that was started here.")
        return self._tasks[pid]


OTHER_WORDS = 64  # dimensions of a scripted embedder for words of no group


class ScriptedEmbedder:
    """An embedder that knows which words mean the same: each of *groups* is one of its dimensions.

    ``ScriptedEmbedder("car automobile", "ship boat")``; other words fall into others by chance, and
    weigh a tenth. A test may change ``model`` (None: not there), and set ``trouble`` to a sentence:
    then it fails with that.
    """

    name = "scripted"

    def __init__(self, *groups: str, model: str | None = "scripted/1") -> None:
        self._groups = [set(group.lower().split()) for group in groups]
        self.dimensions = len(groups) + OTHER_WORDS
        self.model = model
        self.trouble = ""
        self.embedded: list[str] = []  # all texts ever, in order

    @property
    def missing(self) -> str:
        return "" if self.model else "the scripted embedder is not there, as it was told"

    async def embed(self, texts: Sequence[str], *, background: bool = False) -> Embedded:
        if self.model is None:
            raise NotFound(f"texts cannot be embedded: {self.missing}.")
        if self.trouble:
            raise DriverError(self.trouble)
        self.embedded += texts
        words = [re.findall(r"\w+", text.lower()) for text in texts]
        return Embedded(tuple(map(self._vector, words)), sum(map(len, words)))

    def _vector(self, words: Sequence[str]) -> bytes:
        counts = [0.0] * self.dimensions
        for word in words or [""]:
            known = [place for place, group in enumerate(self._groups) if word in group]
            other = len(self._groups) + zlib.crc32(word.encode()) % OTHER_WORDS
            counts[known[0] if known else other] += 10.0 if known else 1.0
        length = math.sqrt(sum(count * count for count in counts))
        return struct.pack(f"<{len(counts)}f", *(count / length for count in counts))

    async def close(self) -> None: ...


class Fault(Struct, frozen=True):
    """What a FaultyServer does wrong in one request.

    status, headers and body are a refusal. Else the stream is right until *after* tokens, then:
    ``die`` (the connection breaks), ``end`` (it ends as if all were said), ``stall`` (nothing more
    comes), ``garbage`` (no JSON), ``html``, ``error`` (a server's own), ``model`` (another one goes
    on), ``runaway`` (it never ends), ``open`` (it ends, but neither usage nor the end of the stream
    follow). usage is told instead of what is true.
    """

    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012 (a Struct copies it)
    body: str = ""
    after: int = 0
    then: str = ""
    usage: dict[str, Any] | None = None


class FaultyServer:
    """A model server on the loopback: OpenAI's chat completions, and Anthropic's messages.

        async with FaultyServer(["Once upon a time."]) as server:
            server.faults.append(Fault(then="die", after=2))
            core = OpenAICore(server.url, "scripted", "scripted", gate=…)

    It answers as ScriptedCore does: tokens are words, *script* a function of the prompt, or texts
    one after another. *kind* is ``vllm`` (it counts tokens, and goes on from a begun answer) or
    ``unknown`` (it does neither). Each request to make something takes the first of ``faults``.
    *pages* are further answers to GET. *token_s* is how long a token takes. requests counts what
    was asked of it, tokens what it has sent; ``asked`` and ``headers`` are what it was sent.
    """

    def __init__(
        self,
        script: Script = echo,
        *,
        kind: str = "vllm",
        model: str = "scripted",
        context_tokens: int = 8192,
        token_s: float = 0.0,
        key: str | None = None,
        pages: Mapping[str, Any] | None = None,
    ) -> None:
        self.kind, self.model, self.key = kind, model, key
        self.context_tokens, self.token_s = context_tokens, token_s
        self.faults: list[Fault] = []
        self.requests = self.tokens = self.streams = self.connections = 0
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.extra: dict[str, str] = {}  # headers of every good answer
        self._script, self._pages = script, dict(pages or {})
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def url(self) -> str:
        assert self._server is not None, "use it in async with"
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def __aenter__(self) -> FaultyServer:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()
        assert self._server is not None
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def kill(self) -> None:
        """Break every connection and take no more, as a process that is killed does."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()

    async def quiet(self) -> None:
        """Wait until no stream is open."""
        await self._quiet.wait()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side has gone, or the test is over
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value for name, _, value in (h.partition(": ") for h in head[1:])}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        presented = headers.get("authorization", "").removeprefix("Bearer ")
        presented = headers.get("x-api-key", presented)
        if self.key is not None and presented != self.key:
            said = {"error": {"message": f"Incorrect API key provided: {presented}."}}
            return await _reply(writer, 401, said)
        if method == "GET":
            page = self._page(path)
            return await _reply(writer, 200 if page is not None else 404, page or {})
        asked = json.loads(body)
        if path == "/tokenize" and self.kind == "vllm":
            return await _reply(writer, 200, {"count": _words(asked)})
        if path not in ("/v1/chat/completions", "/v1/messages"):
            return await _reply(writer, 404, {"error": {"message": "Not Found"}})
        self.requests += 1
        self.asked.append(asked)
        self.headers.append(headers)
        fault = self.faults.pop(0) if self.faults else Fault()
        if refusal := self._refusal(asked, fault):
            return await _reply(writer, *refusal)
        self.streams += 1
        self._quiet.clear()
        try:
            wire = _OpenAIStream if path == "/v1/chat/completions" else _AnthropicStream
            return await self._stream(reader, writer, wire(asked, self.model), fault)
        finally:
            self.streams -= 1
            if not self.streams:
                self._quiet.set()

    def _page(self, path: str) -> Any:
        if path in self._pages:
            return self._pages[path]
        if path == "/v1/models":
            owner = "vllm" if self.kind == "vllm" else "somebody"
            window = {"max_model_len": self.context_tokens}
            return {"data": [{"id": self.model, "object": "model", "owned_by": owner} | window]}
        if self.kind == "vllm" and path in ("/version", "/health"):
            return {"version": "0.33.0"}
        return None

    def _refusal(
        self, asked: dict[str, Any], fault: Fault
    ) -> tuple[int, Any, dict[str, str]] | None:
        if fault.status != 200:
            said: Any = fault.body or {"error": {"message": f"told to answer {fault.status}"}}
            return fault.status, said, fault.headers
        if asked["model"] != self.model:
            return 404, {"error": {"message": f"The model {asked['model']} does not exist."}}, {}
        if (words := _words(asked)) >= self.context_tokens:
            message = f"maximum context length is {self.context_tokens} tokens, not {words}"
            return 400, {"error": {"message": message, "code": "context_length_exceeded"}}, {}
        return None

    def _answer(self, asked: dict[str, Any]) -> str:
        said = tuple(
            Message(one["role"], one["content"] if isinstance(one["content"], str) else "")
            for one in asked["messages"]
        )
        begun = said[-1].content if said[-1].role == "assistant" else ""
        if begun and asked.get("continue_final_message"):
            said = said[:-1]
        else:
            begun = ""
        if callable(self._script):
            whole = self._script(Prompt(said, Sampling()))
        else:
            whole = self._script[min(self.requests, len(self._script)) - 1]
        if form := asked.get("response_format"):
            whole = json.dumps(example(form["json_schema"]["schema"]))
        assert whole.startswith(begun), "an answer that has begun is gone on with"
        return whole[len(begun) :]

    async def _stream(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        wire: _OpenAIStream | _AnthropicStream,
        fault: Fault,
    ) -> bool:
        asked = wire.asked
        lines = [
            "HTTP/1.1 200 OK",
            "Content-Type: text/event-stream",
            "Transfer-Encoding: chunked",
            *(f"{name}: {value}" for name, value in (self.extra | fault.headers).items()),
        ]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())

        async def send(text: str) -> None:
            writer.write(f"{len(text.encode()):x}\r\n{text}\r\n".encode())
            await writer.drain()

        await send(wire.begin(_words(asked)))
        most = wire.max_tokens
        pieces, reason = wire.pieces(self._answer(asked)), "stop"
        if most is not None and len(pieces) > most:
            pieces, reason = pieces[:most], "length"
        if fault.then == "runaway":
            pieces = pieces * 10_000
        for made, piece in enumerate([*pieces, ""]):
            if made == fault.after and fault.then not in ("", "runaway", "open"):
                if not await self._go_wrong(reader, fault.then, wire, send):
                    return False
                if fault.then == "end":
                    writer.write(b"0\r\n\r\n")
                    return False
            if piece:
                if self.token_s:
                    await asyncio.sleep(self.token_s)
                if reader.at_eof():
                    return False  # nobody listens any more
                self.tokens += 1  # before it is sent: nobody has what is not counted
                await send(wire.token(piece))
        last = wire.end(reason, _words(asked), len(pieces), fault.usage)
        if fault.then == "open":
            await send(last.partition("\n\n")[0] + "\n\n")
            await reader.read()  # until the other side gives up
            return False
        await send(last)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _go_wrong(
        self,
        reader: asyncio.StreamReader,
        how: str,
        wire: _OpenAIStream | _AnthropicStream,
        send: Callable[[str], Awaitable[None]],
    ) -> bool:
        """Whether the stream goes on."""
        match how:
            case "die":
                return False
            case "stall":
                await reader.read()  # until the other side gives up
                return False
            case "garbage":
                await send("event: content_block_delta\ndata: {this is no JSON\n\n")
            case "html":
                await send("<!doctype html><title>Bad gateway</title>\n")
            case "error":
                await send('data: {"error": {"message": "out of memory", "code": 500}}\n\n')
            case "model":
                wire.model = "another"
        return True


async def _reply(
    writer: asyncio.StreamWriter, status: int, said: Any, headers: Mapping[str, str] | None = None
) -> bool:
    body = (said if isinstance(said, str) else json.dumps(said)).encode()
    lines = [f"HTTP/1.1 {status} As Told", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
    await writer.drain()
    return True


def _words(asked: dict[str, Any]) -> int:
    """The tokens of a request's messages, as ScriptedCore counts them."""
    texts = []
    for one in asked["messages"]:
        content = one["content"] or ""
        if not isinstance(content, str):  # Anthropic's blocks
            content = " ".join(str(block.get("text", "")) for block in content)
        texts.append(content)
    return sum(len(text.split()) + 1 for text in texts)


class _OpenAIStream:
    """The events of a chat completion."""

    def __init__(self, asked: dict[str, Any], model: str) -> None:
        self.asked, self.model = asked, model
        self.max_tokens: int | None = asked.get("max_tokens", asked.get("max_completion_tokens"))
        self._tool = self._forced()

    def _forced(self) -> dict[str, Any] | None:
        choice = self.asked.get("tool_choice", "auto")
        tools: list[dict[str, Any]] = [tool["function"] for tool in self.asked.get("tools", ())]
        if choice in ("auto", "none") or not tools:
            return None
        wanted = choice["function"]["name"] if isinstance(choice, dict) else tools[0]["name"]
        return next(tool for tool in tools if tool["name"] == wanted)

    def pieces(self, answer: str) -> list[str]:
        if self._tool is not None:
            return re.findall(r"\s*\S+", json.dumps(example(self._tool["parameters"])))
        for stop in self.asked.get("stop", ()):
            answer = answer.partition(stop)[0]
        return re.findall(r"\s*\S+", answer)

    def _event(self, delta: dict[str, Any] | None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": None, **more}
        choices = [] if delta is None else [choice]
        usage = more.pop("usage", None)
        body = {"id": "c1", "model": self.model, "choices": choices}
        return f"data: {json.dumps(body | ({'usage': usage} if usage else {}))}\n\n"

    def begin(self, words: int) -> str:
        first = self._event({"role": "assistant", "content": None})
        if self._tool is not None:
            call = {"index": 0, "id": "call_1", "function": {"name": self._tool["name"]}}
            first += self._event({"tool_calls": [call]})
        return first

    def token(self, piece: str) -> str:
        if self._tool is not None:
            part = {"index": 0, "function": {"arguments": piece}}
            return self._event({"tool_calls": [part]})
        if self.asked.get("logprobs"):
            content = [{"token": piece, "logprob": 0.0, "top_logprobs": []}]
            return self._event({"content": piece}, logprobs={"content": content})
        return self._event({"content": piece})

    def end(self, reason: str, words: int, made: int, usage: dict[str, Any] | None) -> str:
        if self._tool is not None and reason == "stop":
            reason = "tool_calls"
        told = {"prompt_tokens": words, "completion_tokens": made, "total_tokens": words + made}
        last = self._event({}, finish_reason=reason)
        if self.asked.get("stream_options", {}).get("include_usage"):
            last += self._event(None, usage=told | (usage or {}))
        return f"{last}data: [DONE]\n\n"


class _AnthropicStream:
    """The events of Anthropic's messages."""

    def __init__(self, asked: dict[str, Any], model: str) -> None:
        self.asked, self.model = asked, model
        self.max_tokens: int | None = asked.get("max_tokens")
        self._tool = next(iter(asked.get("tools", ())), None)

    def pieces(self, answer: str) -> list[str]:
        if self._tool is not None:
            answer = json.dumps(example(self._tool["input_schema"]))
        return re.findall(r"\s*\S+", answer)

    @staticmethod
    def _event(kind: str, **more: Any) -> str:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n"

    def begin(self, words: int) -> str:
        block: dict[str, Any] = {"type": "text", "text": ""}
        if self._tool is not None:
            block = {"type": "tool_use", "id": "toolu_1", "name": self._tool["name"], "input": {}}
        message: dict[str, Any] = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": words, "output_tokens": 1},
        }
        return self._event("message_start", message=message) + self._event(
            "content_block_start", index=0, content_block=block
        )

    def token(self, piece: str) -> str:
        delta = {"type": "text_delta", "text": piece}
        if self._tool is not None:
            delta = {"type": "input_json_delta", "partial_json": piece}
        return self._event("content_block_delta", index=0, delta=delta)

    def end(self, reason: str, words: int, made: int, usage: dict[str, Any] | None) -> str:
        why = {"stop": "tool_use" if self._tool else "end_turn", "length": "max_tokens"}[reason]
        return (
            self._event("content_block_stop", index=0)
            + self._event(
                "message_delta",
                delta={"stop_reason": why, "stop_sequence": None},
                usage={"output_tokens": made} | (usage or {}),
            )
            + self._event("message_stop")
        )


def named_key(user: str) -> bytes:
    """A user's key made of the name: what one machine of a test seals, the next one opens."""
    return base64.urlsafe_b64encode(hashlib.sha256(user.encode()).digest())


class TestKernel(Kernel):
    """A kernel with its user's key at hand."""

    __test__ = False
    user_key: str


@asynccontextmanager
async def machine(
    script: Script = echo,
    *,
    core: Core | None = None,
    cores: ScriptedCores | None = None,
    journal: SqliteJournal | MemoryJournal | None = None,
    programs: Programs | None = None,
    clock: Clock | None = None,
    embedder: Embedder | None = None,
    vault: Vault | None = None,
    config: Config | None = None,
    snapshots: Path | None = None,
) -> AsyncIterator[TestKernel]:
    """A kernel in this process on fakes (or on what is given), with a user ``ann`` and her key."""
    config, journal = config or Config(), journal or MemoryJournal()
    kernel = TestKernel(
        config,
        journal,
        cores or ScriptedCores(core or ScriptedCore(script)),
        programs or ScriptedPrograms(),
        clock or SystemClock(),
        SqliteMemory(journal.read, journal.append, embedder, config.memory),
        SqliteFiles(
            journal.read, journal.append, embedder, config.storage, now=(clock or SystemClock()).now
        ),
        vault or FernetVault(named_key),
        user="ann",
        snapshots=str(snapshots or "."),
    )
    await kernel.start()
    kernel.resume()
    kernel.user_key = kernel.ensure_user_key("ann", renew=True) or ""
    try:
        yield kernel
    finally:
        await kernel.close()


def user(content: str) -> tuple[Message, ...]:
    """One message of a user, as ``Generate`` takes it."""
    return (Message("user", content),)
