"""One generation inside the engine: its tokens, and where their KV is.

The tokens are the prompt and those made; their KV is computed up to ``computed``, which stays one
short of all of them: the last token made is fed to the model when the next one is wanted. So no
logits need to be kept, not even in a snapshot.

All that a forward pass needs is in ``kv``, of which a second one with the same content costs
nothing (``Cells.share``). Of a beam search it is the prompt's; ``branches`` has the beams'.

How a position is computed follows from its number and the prompt's length: full chunks of 64 on the
grid; what is left of the prompt likewise, padded to one of WIDTHS, if it is longer than TAIL; else
as tokens made are, row by row.
"""

from __future__ import annotations

from typing import Any

from aios.abi.messages import FinishReason
from aios.drivers.cores.kept.disk import State
from aios.drivers.cores.text.answer import Answer
from aios.drivers.cores.text.guesses import Guesses
from aios.drivers.cores.text.speaker import Grant
from aios.drivers.cores.transformers.branches import Branches
from aios.drivers.cores.transformers.cells import BLOCK, Kv
from aios.drivers.cores.transformers.prefixes import keys_of
from aios.ports import Prompt

TAIL = 8  # a small batch takes others along, but computes twice as long a row as a chunk of 16
WIDTHS = (16, 32, BLOCK)


class Image:
    """KV of the first *length* positions in RAM or in a file; forks share one.

    Of a search also the *tails*: how many positions each beam has beyond the prompt.
    """

    __slots__ = ("length", "sharers", "state", "tails")

    def __init__(self, state: State, length: int, tails: tuple[int, ...] = ()) -> None:
        self.state, self.length, self.tails, self.sharers = state, length, tails, 1


class Sequence:
    def __init__(
        self,
        number: int,
        prompt: Prompt,
        tokens: tuple[int, ...],
        max_tokens: int,
        answer: Answer,
        matcher: Any,
    ) -> None:
        self.number, self.prompt, self.max_tokens = number, prompt, max_tokens
        self.tokens = tokens  # of the prompt
        self.keys = keys_of(tokens)
        self.made: list[int] = []
        self.answer, self.matcher = answer, matcher
        self.reason: FinishReason | None = None
        self.grant: Grant | None = None
        self.is_cancelled = False
        self.guesses: Guesses | None = None  # made when first decoding
        self.used_at = 0  # of the engine's turns
        self.branches: Branches | None = None  # of a beam search, which makes tokens at its end
        self.kv = Kv()
        self.image: Image | None = None

    def __repr__(self) -> str:
        where = self.image.state if self.image else self.kv
        return f"<sequence {self.number}: {len(self.tokens)}+{len(self.made)} tokens, {where}>"

    @property
    def computed(self) -> int:
        """Positions whose KV is in tensors."""
        return self.kv.length

    @property
    def length(self) -> int:
        return len(self.tokens) + len(self.made)

    @property
    def pending(self) -> int:
        """Tokens whose KV is not computed yet; 1 when the next step is a plain decode."""
        return self.length - self.computed

    @property
    def chunk(self) -> int:
        """How many tokens of its prompt are computed next as a chunk; 0 if none are."""
        left = len(self.tokens) - self.computed
        on_grid = self.computed % BLOCK == 0
        return min(left, BLOCK) if left >= BLOCK or (on_grid and left > TAIL) else 0

    @property
    def next_key(self) -> bytes | None:
        """The name of that chunk, if it is a full one."""
        return self.keys[self.computed // BLOCK] if self.chunk == BLOCK else None

    @property
    def width(self) -> int:
        """To how many rows that chunk is padded."""
        return next(width for width in WIDTHS if self.chunk <= width)

    @property
    def occupied(self) -> int:
        """Cells it occupies; those of shared tensors are divided among who shares them."""
        return sum(-(-t.capacity // t.sharers) for kv in self.kvs if (t := kv.tensors))

    @property
    def kvs(self) -> list[Kv]:
        return [self.kv, *self.branches.kvs] if self.branches else [self.kv]

    def token(self, position: int) -> int:
        prompt = len(self.tokens)
        return self.tokens[position] if position < prompt else self.made[position - prompt]
