"""A life to be journaled: what agents, kernels and their owners do, drawn by chance from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence

from blake3 import blake3
from journals import process, started

from aios.ports import (
    CallEnd,
    CallRow,
    ChunkRow,
    ContextCut,
    ContextRow,
    ContextSetting,
    FileCommit,
    FileContent,
    FileEntry,
    Forget,
    GrantGone,
    GrantRow,
    MailRow,
    MailTaken,
    MarkRow,
    MemoryEnd,
    MemoryGone,
    MemoryRow,
    Passage,
    Record,
    Rewind,
    SpentRow,
    TokensRow,
)

Append = Callable[[Sequence[Record]], Awaitable[None]]


class Life:
    """Gives one append after another; what is said and done depends on the seed alone."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._seq = self._call = self._pid = self._mail = self._memory = self._version = 0
        self._said: dict[int, list[bytes]] = {}  # by pid: its conversation

    def appends(self, count: int) -> Iterator[list[Record]]:
        made = 0
        while made < count:
            for append in self._deed():
                made += 1
                yield [*append, self._event()]

    def _event(self) -> Record:
        self._seq += 1
        return started(self._seq, pid=self._pid)

    def _deed(self) -> Iterator[list[Record]]:
        chance = self._chance
        if len(self._said) < 2:
            yield self._spawn()
            return
        pid = chance.choice(sorted(self._said))
        deed = chance.choices(
            (
                *(self._turn, self._call_of_tool, self._post, self._remember, self._store),
                *(self._compact, self._rewind, self._forget),
            ),
            (8, 3, 3, 2, 2, 1, 1, 1),
        )[0]
        yield from deed(pid)

    def _spawn(self) -> list[Record]:
        self._pid += 1
        self._said[self._pid] = [self._message("system", 80)]
        return [process(self._pid, parent=1 if self._pid > 1 else None), self._spent(self._pid)]

    def _spent(self, pid: int) -> SpentRow:
        return SpentRow(pid, b'{"calls":%d}' % self._call, b'{"tokens":%d}' % self._seq)

    def _message(self, role: str, size: int) -> bytes:
        words = [self._chance.choice(WORDS) for _ in range(size // 5)]
        return json.dumps({"role": role, "content": " ".join(words)}).encode()

    def _begin(self, pid: int, name: str, *, said: Sequence[bytes] = (), size: int = 20) -> CallRow:
        self._call += 1
        request = json.dumps({"call": name, "data": "r" * size}).encode()
        tools = (b'{"name":"search"}',) if said else ()
        return CallRow(f"c{self._call}", pid, name, float(self._seq), request, tuple(said), tools)

    def _turn(self, pid: int) -> Iterator[list[Record]]:
        """A generation, slice by slice."""
        said = self._said[pid]
        said.append(self._message("user", 120))
        begin = self._begin(pid, "generate", said=said)
        yield [begin]
        for ordinal in range(self._chance.randint(0, 2)):
            yield [TokensRow(begin.id, ordinal, bytes(8), b'{"text":"x"}'), self._spent(pid)]
        answer = self._message("assistant", self._chance.choice((60, 300, 3_000)))
        rows = [
            ContextRow(pid, "main", float(len(said) + n), begin.id, message)
            for n, message in enumerate((said[-1], answer))
        ]
        said.append(answer)
        reply = b'{"message":' + answer + b"}"
        yield [*rows, self._spent(pid), CallEnd(begin.id, "done", float(self._seq), reply)]

    def _remember(self, pid: int) -> Iterator[list[Record]]:
        begin = self._begin(pid, "mem_write")
        self._memory += 1
        number = self._memory
        text = self._message("user", 200).decode()
        row = MemoryRow(
            number, number, f"pid:{pid}", pid, self._call, text, b"", (), "", 1.0, 1.0, "o1", 200
        )
        yield [begin, row, CallEnd(begin.id, "done", 1.0, b"{}")]
        if number % 3 == 0:
            yield [MemoryEnd(number - 1, 2.0, number, self._call), MemoryGone((number - 2,))]

    def _store(self, pid: int) -> Iterator[list[Record]]:
        begin = self._begin(pid, "sto_commit")
        self._version += 1
        bodies = [self._chance.randbytes(self._chance.choice((50, 700, 6_000))) for _ in range(2)]
        chunks = [ChunkRow(blake3(b).digest(), len(b), False, b) for b in bodies]
        parts = tuple((chunk.hash, chunk.size) for chunk in chunks)
        hash = blake3(b"".join(hash for hash, _ in parts)).digest()
        content = FileContent(hash, sum(size for _, size in parts), parts)
        entries = (
            FileEntry(f"/file{self._version % 3}", content, (Passage(1, "words to find"),)),
            *([FileEntry("/file0", None)] if self._version % 5 == 0 else []),
        )
        size = 10_000 * self._version
        commit = FileCommit(
            *("user:ann", "ann", self._version, self._version, pid, f"pid:{pid}", self._call),
            *(1.0, "", size, entries),
        )
        yield [begin, *chunks, commit, CallEnd(begin.id, "done", 1.0, b"{}")]

    def _call_of_tool(self, pid: int) -> Iterator[list[Record]]:
        """A call with much in it, that may fail."""
        begin = self._begin(pid, "tool_call", size=self._chance.choice((10, 900, 9_000)))
        yield [begin]
        if self._chance.random() < 0.3:
            yield [CallEnd(begin.id, "failed", float(self._seq), None, "no", "not_found")]
        else:
            yield [CallEnd(begin.id, "done", float(self._seq), b"{}")]

    def _post(self, pid: int) -> Iterator[list[Record]]:
        self._mail += 1
        grant = GrantRow(f"pid:{pid}", "mem_read", f"pid:{self._mail % 3}")
        yield [MailRow(pid, self._mail, b'{"id":"c1","sender":1,"body":1,"at":1.0}'), grant]
        begin = self._begin(pid, "recv_message")
        taken = MailTaken(pid, self._mail, begin.id)
        yield [begin, taken, CallEnd(begin.id, "done", 1.0, b"{}")]
        yield [GrantGone(grant.holder, grant.action, grant.resource)]

    def _compact(self, pid: int) -> Iterator[list[Record]]:
        begin = self._begin(pid, "compact_context")
        cut = ContextCut(pid, "main", (2.0, 3.0, 4.0), begin.id)
        summary = ContextRow(pid, "main", 2.5, begin.id, self._message("user", 50))
        setting = ContextSetting(pid, "main", b'{"n":%d}' % self._call)
        yield [begin, cut, summary, setting, CallEnd(begin.id, "done", 1.0, b"{}")]

    def _rewind(self, pid: int) -> Iterator[list[Record]]:
        upto = self._call
        yield [MarkRow(f"k{upto}", pid, upto, 1.0, b"{}")]
        yield from self._turn(pid)
        yield [Rewind(pid, upto, 2.0)]
        del self._said[pid][-2:]

    def _forget(self, pid: int) -> Iterator[list[Record]]:
        if pid != min(self._said):
            del self._said[pid]
            yield [Forget(pid)]


WORDS = (__doc__ or "").split()
