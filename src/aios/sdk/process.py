"""Processes as objects: ``Process`` is any that you may act on, ``Me`` is the one that you are."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Unpack, overload

import msgspec

from aios.abi.calls import (
    AgentSnapshot,
    AgentSnapshots,
    Call,
    CallRecord,
    DecryptData,
    EncryptData,
    Exit,
    ExitAgent,
    ForkAgent,
    Generation,
    GenRestore,
    GenSnapshot,
    GetStatus,
    GetTranscript,
    GetUsage,
    KillAgent,
    Limits,
    ListAgents,
    ListSnapshots,
    LogEvent,
    Mail,
    Opened,
    Processes,
    Record,
    Recorded,
    RecvMessage,
    Reply,
    ResumeAgent,
    RollbackAgent,
    RolledBack,
    Sealed,
    SendMessage,
    Sent,
    SetBudget,
    SetPriority,
    SetStatus,
    SettleCall,
    Snapshot,
    SnapshotAgent,
    SpawnAgent,
    Spawned,
    Status,
    SuspendAgent,
    Transcript,
    UsageReport,
    WaitAgent,
)
from aios.abi.events import Event
from aios.abi.messages import ToolSpec
from aios.errors import AiosError, NotFound
from aios.sdk import place, programs
from aios.sdk.answer import Answer, Stream
from aios.sdk.contexts import Context
from aios.sdk.files import Files
from aios.sdk.link import Link
from aios.sdk.memory import Memory
from aios.sdk.programs import Program
from aios.sdk.request import Options, Prompt, Tools, build
from aios.sdk.tools import Tool, Workshop

R = TypeVar("R", bound=Reply)
INTERPRETER = ("PYTHONPATH", "VIRTUAL_ENV")  # a child in our Python finds what we find
LIFE = "AIOS_LIFE"  # the kernel says in it how often it has started this program
ROUNDS = 8  # of tool calls in one generate: a model that asks for more has lost its way


class Process:
    """A process of the kernel; every method is one system call on it.

    is_replayed says that the caller's calls are kept under their paths, so that one whose answer
    was lost with the kernel can be made again.
    """

    def __init__(self, link: Link, key: str, aid: int, is_replayed: bool = False) -> None:
        self.aid = aid
        self.key = key
        self._link = link
        self._is_replayed = is_replayed
        self._said: set[tuple[str, str]] = set()  # (context, system): said once

    def __repr__(self) -> str:
        return f"<{type(self).__name__} aid={self.aid} {self._link.address.url}>"

    @overload
    async def call(self, call: Call) -> Any: ...
    @overload
    async def call(self, call: Call, kind: type[R]) -> R: ...
    async def call(self, call: Call, kind: type[Reply] | None = None) -> Any:
        """Any system call, as it is; the reply is of the type that the call names."""
        if call.place is None and (here := place.next_path()):
            call = msgspec.structs.replace(call, place=here)
        reply = kind or type(call).reply
        return await self._link.trap(call, reply, self.key, is_replayed=self._is_replayed)

    async def status(self) -> Status:
        return await self.call(GetStatus(aid=self.aid), Status)

    async def wait(self, *, timeout_s: float | None = None, reap: bool = True) -> Exit:
        """Wait until it has ended; its result is in ``.result``."""
        return await self.call(WaitAgent(aid=self.aid, reap=reap, timeout_s=timeout_s), Exit)

    async def kill(self, reason: str = "killed") -> Exit:
        return await self.call(KillAgent(aid=self.aid, reason=reason), Exit)

    async def suspend(self) -> Status:
        return await self.call(SuspendAgent(aid=self.aid), Status)

    async def resume(self) -> Status:
        return await self.call(ResumeAgent(aid=self.aid), Status)

    async def note(self, text: str) -> Status:
        """A free text for ps."""
        return await self.call(SetStatus(aid=self.aid, note=text), Status)

    async def set_priority(self, priority: int) -> None:
        """Like nice: -20 (first) to 19 (last)."""
        await self.call(SetPriority(aid=self.aid, priority=priority))

    async def set_budget(
        self,
        *,
        tokens: int | None = None,
        seconds: float | None = None,
        calls: int | None = None,
        usd: float | None = None,
    ) -> UsageReport:
        """Replace what is left of the named amounts; a process stopped at its cap goes on."""
        budget = Limits(tokens=tokens, seconds=seconds, calls=calls, usd=usd)
        return await self.call(SetBudget(aid=self.aid, budget=budget), UsageReport)

    async def usage(self) -> UsageReport:
        """What it has spent and what is left of its budget."""
        return await self.call(GetUsage(aid=self.aid), UsageReport)

    @property
    def memory(self) -> Memory:
        """What it remembers, and its program and its user."""
        return Memory(self)

    @property
    def files(self) -> Files:
        """Its own volume; ``files.of("user")`` is its user's, ``of("program")`` its program's."""
        return Files(self)

    def context(self, name: str = "main") -> Context:
        """One of its contexts: ``await`` it for a report, or ask it to be cleared, cut, widened."""
        return Context(self, name, self._said)

    async def transcript(
        self,
        limit: int = 1000,
        *,
        before: str | None = None,
        names: Sequence[str] = (),
        text: str | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> tuple[CallRecord, ...]:
        """Its newest calls with their contents, oldest first.

        before goes on to older ones (a call's id); names and text (in what was asked or came back)
        narrow it; since and until are seconds since the epoch.
        """
        call = GetTranscript(
            aid=self.aid,
            limit=limit,
            before=before,
            names=tuple(names),
            text=text,
            since=since,
            until=until,
        )
        return (await self.call(call, Transcript)).calls

    async def snapshot(self, target: str | None = None) -> Snapshot:
        """Freeze its open generation (its only one, or the call named *target*); it goes on."""
        return await self.call(GenSnapshot(aid=self.aid, target=target), Snapshot)

    @overload
    async def fork(self, budget: Limits | None = None) -> Me: ...
    @overload
    async def fork(self, budget: Limits | None = None, *, at: str) -> Process: ...
    async def fork(self, budget: Limits | None = None, *, at: str | None = None) -> Process:
        """A new process with a copy of its contexts, records and files.

        It is for you to run (end it with ``exit``). With *at* it is as this one was when that call
        had ended, and if the kernel started this one's program, it starts the copy's as well.
        """
        call = ForkAgent(aid=self.aid, budget=budget or Limits(), at=at)
        forked = await self.call(call, Spawned)
        if forked.key is None:
            return Process(self._link, self.key, forked.aid, self._is_replayed)
        return Me(self._link, forked.key, forked.aid, is_replayed=True)

    async def take_snapshot(self, label: str = "") -> AgentSnapshot:
        """Remember all of it as it is now: contexts, records, files, its place in its program."""
        return await self.call(SnapshotAgent(aid=self.aid, label=label), AgentSnapshot)

    async def snapshots(self) -> tuple[AgentSnapshot, ...]:
        """Those that were taken of it, oldest first."""
        return (await self.call(ListSnapshots(aid=self.aid), AgentSnapshots)).snapshots

    async def rollback(self, snapshot: str | AgentSnapshot) -> RolledBack:
        """Take it back to a snapshot; ``.effects`` of the reply is what cannot be undone."""
        name = snapshot.snapshot if isinstance(snapshot, AgentSnapshot) else snapshot
        return await self.call(RollbackAgent(aid=self.aid, snapshot=name), RolledBack)

    async def settle(
        self, call: str, outcome: Literal["done", "retry", "fail"], value: Any = None
    ) -> Status:
        """Say what became of a call that was under way when the kernel died; see SettleCall."""
        settling = SettleCall(aid=self.aid, target=call, outcome=outcome, value=value)
        return await self.call(settling, Status)

    def events(self, *, after: int = 0, follow: bool = True) -> AsyncGenerator[Event, None]:
        """What happens to it, from event number *after* on."""
        return self._link.events(self.key, after=after, aid=self.aid, follow=follow)


class Me(Process):
    """The process that you are: it generates, calls tools, spawns others and talks to them."""

    def __init__(self, link: Link, key: str, aid: int, is_replayed: bool = False) -> None:
        super().__init__(link, key, aid, is_replayed)
        self._workshop = Workshop(self)
        self.ended = False

    async def generate(
        self,
        prompt: Prompt,
        *,
        tools: Tools = (),
        rounds: int = ROUNDS,
        **options: Unpack[Options],
    ) -> Answer:
        """Say something to the model (a text, a message or several) and have it answer.

        Tools that are functions are called and their results given back, at most *rounds* times; a
        ToolSpec is only described: a call of it ends the generation, in ``answer.tool_calls``.
        """
        call, convert = build(prompt, tools, self._once(options))
        mine = {tool.spec.name: tool for tool in tools if isinstance(tool, Tool)}
        described = {tool.name for tool in tools if isinstance(tool, ToolSpec)}
        if mine:
            await self._workshop.offer(mine.values())
        generation = await self.call(call, Generation)
        usage = generation.usage
        for left in reversed(range(rounds if mine else 0)):
            asked = generation.message.tool_calls
            if not asked or any(use.name in described for use in asked):
                break
            results = tuple([await self._workshop.answer(use) for use in asked])
            call = msgspec.structs.replace(
                call,
                messages=results
                if call.context
                else (*call.messages, generation.message, *results),
                # what was forced has been done; and the last round has to be an answer
                tool_choice="auto" if left else "none",
            )
            generation = await self.call(call, Generation)
            usage += generation.usage
        return Answer(generation, usage, convert)

    def stream(self, prompt: Prompt, *, tools: Tools = (), **options: Unpack[Options]) -> Stream:
        """Like generate, as it comes; tools are only described, a call of one ends the stream."""
        call, convert = build(prompt, tools, self._once(options))
        call = msgspec.structs.replace(call, place=place.next_path())
        return Stream(self._link.stream(call, self.key, is_replayed=self._is_replayed), convert)

    async def restore(self, snapshot: str) -> Answer:
        """Continue a frozen generation to its end, as this process."""
        return Answer(await self.call(GenRestore(snapshot=snapshot), Generation))

    async def spawn(
        self,
        program: str | Program,
        task: str = "",
        *,
        model: str | None = None,
        budget: Limits | None = None,
        priority: int | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Process:
        """Have the kernel start a program (a path, a name, or a Program) as a child of this one.

        options are further fields of SpawnAgent: on_exhausted, wrap_model, restart, rights, note,
        window, strategy, retrieve.
        """
        found = programs.find(program, cwd) if isinstance(program, str) else program
        spawned = await self.call(
            SpawnAgent(
                program=found.name,
                argv=found.argv,
                task=task,
                cwd=cwd or found.cwd or os.getcwd(),
                env={**_interpreter(), **(env or {})},
                model=model or found.model,
                budget=budget or found.budget,
                priority=found.priority if priority is None else priority,
                **{name: getattr(found, name) for name in programs.CARRIED} | options,
            ),
            Spawned,
        )
        return self.process(spawned.aid)

    async def register(self, program: str, task: str = "", **options: Any) -> Me:
        """A child process that your own Python runs: it has its own key; end it with ``exit``.

        options are further fields of SpawnAgent: model, budget, priority, on_exhausted, note.
        """
        call = SpawnAgent(program=program, task=task, os_pid=os.getpid(), **options)
        spawned = await self.call(call, Spawned)
        if spawned.key is None:
            raise NotFound(
                f"process {spawned.aid}, which an earlier life of this program ran, is no longer "
                "kept: it cannot be run again."
            )
        return Me(self._link, spawned.key, spawned.aid, is_replayed=True)

    async def exit(self, result: str | None = None, *, status: int = 0, reason: str = "") -> None:
        """This process is done; nothing else can be asked as it afterwards."""
        self.ended = True
        await self.close()
        with place.at(None):  # the end is no step of the program
            await self.call(ExitAgent(exit_status=status, reason=reason, result=result))

    async def fail(self, error: BaseException) -> None:
        """Exit with status 1 and the error as the reason."""
        text = error.message if isinstance(error, AiosError) else f"{type(error).__name__}: {error}"
        try:
            await self.exit(status=1, reason=text)
        except AiosError as other:  # killed, or the kernel is gone: it knows, or cannot be told
            error.add_note(f"the kernel could not be told: {other.message}")

    async def send(self, to: int | str | Process, body: Any, *, id: str | None = None) -> str:
        """Put JSON data into a mailbox (an aid's, or the one process of a program's name)."""
        receiver = to.aid if isinstance(to, Process) else to
        call = SendMessage(to=receiver, body=msgspec.to_builtins(body), id=id)
        return (await self.call(call, Sent)).id

    async def receive(
        self, sender: int | Process | None = None, *, timeout_s: float | None = None
    ) -> Mail:
        """The oldest message (of *sender*, if given), waiting for one if there is none."""
        aid = sender.aid if isinstance(sender, Process) else sender
        return await self.call(RecvMessage(sender=aid, timeout_s=timeout_s), Mail)

    async def processes(self, *, all: bool = False) -> tuple[Status, ...]:
        """The processes that this one may see; ``all`` includes those that have ended."""
        return (await self.call(ListAgents(all=all), Processes)).processes

    def watch(self, *, after: int = 0, follow: bool = True) -> AsyncGenerator[Event, None]:
        """What happens to all the processes that this one may see, from event number *after* on."""
        return self._link.events(self.key, after=after, follow=follow)

    def process(self, aid: int) -> Process:
        """Another process, by its number."""
        return Process(self._link, self.key, aid, self._is_replayed)

    async def log_event(self, name: str, data: Any = None) -> None:
        """An event of one's own: its name and size go into the trace, its data is kept beside."""
        await self.call(LogEvent(name=name, data=msgspec.to_builtins(data)))

    async def encrypt(self, data: bytes | str) -> str:
        """Seal data under the user's key; neither it nor the key is in the database."""
        plain = data.encode() if isinstance(data, str) else data
        return (await self.call(EncryptData(data=plain), Sealed)).token

    async def decrypt(self, token: str) -> bytes:
        """Open what ``encrypt`` sealed for the same user; InvalidCall if it was changed."""
        return (await self.call(DecryptData(token=token), Opened)).data

    async def now(self) -> float:
        """Seconds since the epoch; a second life reads the same."""
        return float(await self._record("now", "", time.time()))

    async def random(self) -> float:
        """A number in [0, 1); a second life draws the same."""
        return float(await self._record("random", "", random.random()))

    async def step(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do something outside (read a page, a file, a clock) and keep its result as JSON data.

        A plain function runs in a thread. A second life gets the result that was kept, and does not
        do it again.
        """
        path = place.next_path()
        if path and _is_second_life():
            found = await self.call(
                Record(kind="step", key=function.__name__, place=path, recall=True), Recorded
            )
            if found.known:
                return found.value
        # calls made inside count by themselves: a life that reads the result does not make them
        with place.at(place.Place(f"{path}/") if path else None):
            if inspect.iscoroutinefunction(function):
                result = await function(*args, **kwargs)
            else:
                result = await asyncio.to_thread(function, *args, **kwargs)
        return await self._record("step", function.__name__, msgspec.to_builtins(result), path)

    async def close(self) -> None:
        """Stop serving tools."""
        await self._workshop.close()

    async def _record(
        self, kind: Literal["now", "random", "step"], key: str, value: Any, path: str | None = None
    ) -> Any:
        call = Record(kind=kind, key=key, value=value, place=path)
        return (await self.call(call, Recorded)).value

    def _once(self, options: Options) -> Options:
        """Without a system prompt that this context has heard from us already."""
        context, system = options.get("context", "main"), options.get("system")
        if context is None or system is None:
            return options
        if (context, system) in self._said:
            return {name: value for name, value in options.items() if name != "system"}  # type: ignore[return-value]
        self._said.add((context, system))
        return options


def _is_second_life() -> bool:
    """Whether the kernel has started this program again."""
    return os.environ.get(LIFE, "1") != "1"


def _interpreter() -> dict[str, str]:
    return {name: os.environ[name] for name in INTERPRETER if name in os.environ}
