"""RemoteCore: the port Core over an upstream, for models that run elsewhere.

A sequence is a stream that the first slice opens and that stays open between slices. A core that
can go on from a text (preemptible) closes it when the sequence is paged out and opens another one
when it runs again; one that cannot keeps it open to the end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence as Tokens
from pathlib import Path

import msgspec

from aios.drivers.cores.remote.sequence import Sequence, Snapshot, State
from aios.drivers.cores.remote.upstream import End, Upstream
from aios.errors import Conflict, ContextOverflow, CoreFailed, CoreRefused, InvalidCall
from aios.ports import (
    Abilities,
    Admitted,
    Frozen,
    Paged,
    Prompt,
    Residency,
    Slice,
    SliceResult,
)


class RemoteCore:
    """*name* is what the kernel calls the model."""

    def __init__(self, name: str, upstream: Upstream) -> None:
        self.name, self._upstream = name, upstream
        self.abilities = Abilities(
            name, 1, 0, preemptible=False, exact_snapshots=False, shared_fate=False
        )
        self._sequences: dict[int, Sequence] = {}
        self._last = 0

    def __repr__(self) -> str:
        return f"<core {self.name}: {self._upstream!r}, {len(self._sequences)} sequences>"

    async def start(self) -> None:
        self.abilities = await self._upstream.start()

    async def close(self) -> None:
        for sequence in list(self._sequences.values()):
            await sequence.cancel()
        self._sequences.clear()
        await self._upstream.close()

    # --- sequences --------------------------------------------------------------------------------

    async def measure(self, prompt: Prompt) -> int:
        return await self._upstream.measure(prompt)

    async def admit(self, prompt: Prompt, made: Tokens[int] = (), text: str = "") -> Admitted:
        asked = prompt.sampling.max_tokens
        if asked is not None and asked < 1:
            raise InvalidCall(f"max_tokens must be at least 1, not {asked}.")
        if text and not self._goes_on(prompt):
            raise CoreRefused(
                f"{self.name} cannot go on from an answer that has begun "
                f"({len(made)} tokens of it are made); ask again for the whole."
            )
        tokens, window = await self.measure(prompt), self.abilities.context_tokens
        if tokens >= window:
            raise ContextOverflow(
                f"the prompt has {tokens} tokens, but the window of {self.name} is {window}."
            )
        limit = min(window if asked is None else asked, window - tokens)
        state = State(prompt, tokens, limit, made=len(made), text=text)
        if len(made) >= limit:
            state.end = End("length")
        sequence = self._add(state)
        return Admitted(sequence.number, tokens, 0, max(0, limit - len(made)))

    async def run(self, sequence: int, grant: Slice) -> SliceResult:
        return await self._find(sequence).run(grant)

    async def cancel(self, sequence: int) -> None:
        await self._find(sequence).cancel()

    async def release(self, sequence: int) -> None:
        found = self._sequences.pop(sequence, None)
        if found is not None:
            await found.cancel()

    async def page_out(self, sequence: int) -> Paged:
        """Close its stream if it can be gone on with: its text is all that there is to keep."""
        found = self._find(sequence)
        await found.settle()
        if found.is_streaming and self._can_leave(found.state):
            await found.stop()
        return Paged(0)

    async def page_in(self, sequence: int) -> Paged:
        self._find(sequence)
        return Paged(0)

    async def fork(self, sequence: int) -> int:
        """A second sequence that goes on from what has arrived; Conflict where that cannot be."""
        state = await self._settled(sequence, "forked")
        return self._add(_copy(state)).number

    async def freeze(self, sequence: int, path: str) -> Frozen:
        """What has arrived, as a file (not exact); Conflict if nobody could go on from it."""
        state = await self._settled(sequence, "frozen")
        body = Snapshot.of(self.name, state)
        await asyncio.to_thread(_write, Path(path), body)
        return Frozen(self.name, state.prompt_tokens + state.made, len(body))

    async def thaw(self, path: str) -> Admitted:
        try:
            body = await asyncio.to_thread(Path(path).read_bytes)
            snapshot = msgspec.json.decode(body, type=Snapshot)
            state = snapshot.read()
        except (OSError, msgspec.DecodeError) as error:
            raise InvalidCall(f"the snapshot {path} cannot be read: {error}.") from error
        if state is None:
            raise InvalidCall(f"the snapshot {path} is damaged: its checksum is another one.")
        if snapshot.model != self.name:
            raise InvalidCall(f"the snapshot {path} is of {snapshot.model}, not of {self.name}.")
        if not self._can_leave(state):
            raise InvalidCall(f"the snapshot {path} holds a part of an answer; ask for the whole.")
        sequence = self._add(state)
        left = max(0, state.max_tokens - state.made)
        return Admitted(sequence.number, state.prompt_tokens, 0, left)

    async def residency(self) -> Residency:
        return Residency(0, 0, 0, 0, len(self._sequences))

    # --- rules ------------------------------------------------------------------------------------

    def _goes_on(self, prompt: Prompt) -> bool:
        """Whether a part of the answer may be given back to be gone on with.

        Not where a grammar holds the answer: the server would begin it anew in the middle.
        """
        is_free = prompt.schema is None and (
            not prompt.tools or prompt.tool_choice in ("auto", "none")
        )
        return self.abilities.preemptible and is_free

    def _can_leave(self, state: State) -> bool:
        """Whether its stream is not needed: not begun, at its end, or to be gone on with."""
        if not state.is_begun or state.end is not None:
            return True
        return self._goes_on(state.prompt) and not state.is_open

    async def _settled(self, sequence: int, what: str) -> State:
        """Its state, from which another one can go on; Conflict if none could."""
        found = self._find(sequence)
        await found.settle()
        if not self._can_leave(found.state):
            raise Conflict(
                f"an answer of {self.name} that has begun cannot be {what}: nobody could go on "
                "from a part of it; wait for its end."
            )
        return found.state

    def _add(self, state: State) -> Sequence:
        self._last += 1
        added = self._sequences[self._last] = Sequence(self._last, state, self._upstream.stream)
        return added

    def _find(self, sequence: int) -> Sequence:
        found = self._sequences.get(sequence)
        if found is None:
            raise CoreFailed(f"{self.name} has no sequence {sequence}.")
        return found


def _copy(state: State) -> State:
    return msgspec.structs.replace(state, held=state.held.copy())


def _write(path: Path, body: bytes) -> None:
    """Whole or not at all; for its owner's eyes alone."""
    beside = path.with_name(f"{path.name}.part")
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
