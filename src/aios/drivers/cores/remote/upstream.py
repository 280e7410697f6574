"""What a remote core needs of the place where the model is."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from msgspec import Struct

from aios.abi.messages import FinishReason, TokenLogprob, ToolUse
from aios.ports import Abilities, Prompt, Spent


class Asked(Struct, frozen=True):
    """What a stream is to answer.

    text is what the answer has so far, made the tokens of that; max_tokens is what may follow
    (None: what the window leaves). model is what served the earlier part ("": nothing did).
    """

    prompt: Prompt
    prompt_tokens: int
    max_tokens: int | None
    text: str = ""
    made: int = 0
    model: str = ""


class Piece(Struct, frozen=True):
    """What came at once: ids are its tokens (UNKNOWN where only their number is known).

    is_open says that it belongs to something that its text does not tell (a thought, a tool call),
    so nobody could go on from the text after it.
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    is_open: bool = False
    model: str = ""


class End(Struct, frozen=True):
    """The last thing in a stream. spent is what the server says, of this stream alone."""

    reason: FinishReason
    tool_calls: tuple[ToolUse, ...] = ()
    spent: Spent | None = None


class Upstream(Protocol):
    """Errors are DriverError or CallError, each one sentence; a key is in none of them."""

    async def start(self) -> Abilities:
        """Find out what is there; idempotent."""

    async def measure(self, prompt: Prompt) -> int:
        """The tokens of a prompt: counted there if it can, else estimated."""

    def stream(self, asked: Asked) -> AsyncGenerator[Piece | End, None]:
        """The answer as it comes, with an End; closing the generator closes the connection."""

    async def close(self) -> None: ...
