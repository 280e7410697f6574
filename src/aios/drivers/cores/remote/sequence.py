"""One generation of a remote core: what has arrived of it, and the task that reads the rest.

What has arrived is paid for and never asked for again: it waits in ``held`` until slices take it,
also when the stream is closed in the meantime. A new stream goes on after all of it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import msgspec
from msgspec import Raw, Struct

from aios.abi.messages import TokenLogprob
from aios.drivers.cores.remote.upstream import Asked, End, Piece
from aios.errors import AiosError, CoreFailed
from aios.ports import Prompt, Slice, SliceResult, Spent

HELD = 64  # pieces that wait for a slice; then nothing is read, and TCP slows the server down
GATHER_S = 0.05  # a slice waits so long for more tokens after its first: a reader sees no delay
END_S = 0.5  # how long the end may come after the last token that was allowed
RUNAWAY = 4  # times more tokens than it was allowed: a server that does not heed max_tokens
LONGEST_TOKEN = 128  # bytes: no usual vocabulary has a longer one

Open = Callable[[Asked], AsyncGenerator[Piece | End, None]]


class State(Struct):
    """All of a sequence that a snapshot keeps. made and text count what has arrived."""

    prompt: Prompt
    prompt_tokens: int
    max_tokens: int
    made: int = 0
    text: str = ""
    held: list[Piece] = msgspec.field(default_factory=list)
    end: End | None = None
    is_open: bool = False  # it has made something that its text does not tell
    is_begun: bool = False  # a stream was opened for it
    model: str = ""  # what served it


class Snapshot(Struct):
    """A snapshot file: JSON, with the SHA-256 of the state as it is written."""

    model: str
    sha256: str
    state: Raw

    @classmethod
    def of(cls, model: str, state: State) -> bytes:
        body = msgspec.json.encode(state)
        return msgspec.json.encode(cls(model, hashlib.sha256(body).hexdigest(), Raw(body)))

    def read(self) -> State | None:
        """None if it is damaged."""
        body = bytes(self.state)
        if hashlib.sha256(body).hexdigest() != self.sha256:
            return None
        return msgspec.json.decode(body, type=State)


class Sequence:
    """A state and, while one is open, its stream."""

    def __init__(self, number: int, state: State, open_stream: Open) -> None:
        self.number, self.state, self._open = number, state, open_stream
        self.is_cancelled = False
        self._failure: AiosError | None = None
        self._reader: asyncio.Task[None] | None = None
        self._arrived, self._room = asyncio.Event(), asyncio.Event()
        self._is_first = True  # no slice has shown anything yet

    def __repr__(self) -> str:
        s = self.state
        how = "ended" if s.end else "streams" if self._reader else "waits"
        return f"<sequence {self.number}: {s.prompt_tokens}+{s.made} tokens, {how}>"

    @property
    def is_streaming(self) -> bool:
        return self._reader is not None and not self._reader.done()

    @property
    def held_tokens(self) -> int:
        return sum(len(piece.ids) for piece in self.state.held)

    # --- the stream -------------------------------------------------------------------------------

    def _begin(self) -> None:
        s = self.state
        s.is_begun = True
        asked = Asked(
            prompt=s.prompt,
            prompt_tokens=s.prompt_tokens,
            max_tokens=s.max_tokens - s.made if s.prompt.sampling.max_tokens is not None else None,
            text=s.text,
            made=s.made,
            model=s.model,
        )
        self._reader = asyncio.get_running_loop().create_task(self._read(asked))

    async def _read(self, asked: Asked) -> None:
        s = self.state
        most = RUNAWAY * s.max_tokens + 64  # pieces are only taken for tokens
        try:
            async with aclosing(self._open(asked)) as stream:
                async for piece in stream:
                    if isinstance(piece, End):
                        s.end = self._whole(piece, asked)
                        return
                    s.held.append(piece)
                    s.made += len(piece.ids)
                    s.text += piece.text
                    s.model = s.model or piece.model
                    s.is_open = s.is_open or piece.is_open
                    if s.made > most:
                        s.end = End("length")
                        return
                    self._arrived.set()
                    while len(s.held) >= HELD:
                        self._room.clear()
                        await self._room.wait()
            raise CoreFailed(f"the stream of {asked.model or 'a model'} ended without an end.")
        except AiosError as error:
            self._failure = error
        finally:
            self._arrived.set()

    def _whole(self, end: End, asked: Asked) -> End:
        """The end of the whole generation, of which this stream may have been the last part.

        What a server says of usage stands if it can be: not negative, no fewer tokens than the text
        needs, no more than were allowed. Else what was counted does.
        """
        s, told = self.state, end.spent
        if told is None:
            return end
        shown = len(s.text[len(asked.text) :].encode())
        least = -(-shown // LONGEST_TOKEN)
        prompt = told.prompt_tokens - asked.made  # what was made before was prompt to it
        most_prompt = 8 * s.prompt_tokens + 8192  # also where its length was only estimated
        if not (
            least <= told.completion_tokens <= max(s.max_tokens - asked.made, s.made - asked.made)
            and 0 < prompt <= most_prompt
        ):
            return End(end.reason, end.tool_calls)
        cached = told.cached_tokens if 0 <= told.cached_tokens <= told.prompt_tokens else 0
        spent = Spent(prompt, asked.made + told.completion_tokens, min(cached, prompt))
        return End(end.reason, end.tool_calls, spent)

    async def settle(self) -> None:
        """If all tokens are here that were allowed, wait a moment for how the answer ended."""
        if self._reader is not None and self.state.made >= self.state.max_tokens:
            await asyncio.wait({self._reader}, timeout=END_S)

    async def stop(self) -> None:
        """Close the stream, if one is open; what has arrived stays."""
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.cancel()
            await asyncio.wait({reader})
        self._arrived.set()

    async def cancel(self) -> None:
        self.is_cancelled = True
        self._arrived.set()
        await self.stop()

    # --- a slice ----------------------------------------------------------------------------------

    async def run(self, grant: Slice) -> SliceResult:
        s = self.state
        try:
            if not self._is_ready(1):
                if self._reader is None and s.made >= s.max_tokens:
                    s.end = End("length")  # the stream was closed just before it said so
                elif self._reader is None:
                    self._begin()
                await self._wait(1)
            if not self._is_first and not self._is_ready(grant.decode_tokens):
                try:
                    async with asyncio.timeout(GATHER_S):
                        await self._wait(grant.decode_tokens)
                except TimeoutError:
                    pass  # what is there by now is the slice
        except asyncio.CancelledError:
            await self.stop()
            raise
        if not s.held and not self.is_cancelled:
            if self._failure is not None:
                raise self._failure
            if self._reader is not None and self._reader.done():
                self._reader.result()  # a bug of ours is heard of, too
        return self._take(grant)

    def _is_ready(self, tokens: int) -> bool:
        return (
            self.held_tokens >= tokens
            or len(self.state.held) >= HELD
            or self.state.end is not None
            or (self._reader is not None and self._reader.done())
            or self.is_cancelled
        )

    async def _wait(self, tokens: int) -> None:
        while not self._is_ready(tokens):
            self._arrived.clear()
            await self._arrived.wait()

    def _take(self, grant: Slice) -> SliceResult:
        """The next tokens, at most as many as granted; a piece's text comes with its last one."""
        s = self.state
        ids: list[int] = []
        text = ""
        logprobs: tuple[TokenLogprob, ...] = ()
        while s.held and len(ids) < grant.decode_tokens:
            piece, room = s.held[0], grant.decode_tokens - len(ids)
            if len(piece.ids) > room:
                ids += piece.ids[:room]
                s.held[0] = msgspec.structs.replace(piece, ids=piece.ids[room:])
                break
            s.held.pop(0)
            ids += piece.ids
            text += piece.text
            logprobs += piece.logprobs
        while s.held and not s.held[0].ids:  # a text that counts as no token of its own
            text += s.held.pop(0).text
        self._room.set()
        first, self._is_first = self._is_first, False
        ended = s.end if not s.held else None
        result = SliceResult(
            prefilled=s.prompt_tokens if first else 0,
            tokens=tuple(ids),
            text=text,
            logprobs=logprobs,
        )
        if self.is_cancelled:
            return msgspec.structs.replace(result, finish_reason="cancelled")
        if ended is None:
            return result
        return msgspec.structs.replace(
            result,
            tool_calls=ended.tool_calls,
            finish_reason=ended.reason,
            spent=ended.spent,
        )
