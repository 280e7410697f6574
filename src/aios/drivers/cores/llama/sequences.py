"""One generation inside the engine: its tokens, and where their KV is.

The tokens are the prompt and those made; their KV is computed up to ``computed``, which stays one
short of all of them: the last token made is fed to the model when the next one is wanted. So no
logits need to be kept, not even in a snapshot.

Its cells, in order of position: one block for each of ``nodes`` (prompt chunks, shared), then its
own ``cells``, which ascend. How a position was computed follows from its number: those below the
prompt's length as prompt (full chunks of 64 on the grid, the tail in a small batch), the others
decoded. What a beam search decodes are its ``branches``, in its own cells too.
"""

from __future__ import annotations

from typing import Any

from aios.abi.messages import FinishReason
from aios.drivers.cores.kept.disk import State
from aios.drivers.cores.kept.snapshots import Part
from aios.drivers.cores.llama.branches import Branches
from aios.drivers.cores.llama.cells import BLOCK
from aios.drivers.cores.llama.prefixes import Node
from aios.drivers.cores.text.answer import Answer
from aios.drivers.cores.text.guesses import Guesses
from aios.drivers.cores.text.speaker import Grant
from aios.ports import Prompt


class Image:
    """KV of positions [start, end), then of parts, in RAM or in a file; forks share one."""

    __slots__ = ("end", "parts", "sharers", "start", "state")

    def __init__(self, state: State, start: int, end: int, parts: tuple[Part, ...] = ()) -> None:
        self.state, self.start, self.end, self.parts = state, start, end, parts
        self.sharers = 1


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
        self.made: list[int] = []
        self.answer, self.matcher = answer, matcher
        self.reason: FinishReason | None = None
        self.grant: Grant | None = None
        self.is_cancelled = False
        self.branches: Branches | None = None  # of a beam search, which makes tokens at its end
        self.guesses: Guesses | None = None  # made when first decoding, dropped when paged out
        self.used_at = 0  # of the engine's turns
        # where its KV is
        self.id: int | None = None  # in llama.cpp, while it is resident
        self.computed = 0  # positions whose KV is in cells
        self.nodes: list[Node] = []
        self.waits_on: list[Node] = []  # while paged out
        self.blocks: list[int] = []
        self.cells: list[int] = []
        self.room: list[int] = []  # cells of its last block that it may still fill
        self.image: Image | None = None

    def __repr__(self) -> str:
        where = "cells" if self.id is not None else self.image.state if self.image else "nowhere"
        return (
            f"<sequence {self.number}: {len(self.tokens)}+{len(self.made)} tokens, "
            f"{self.computed} computed, {where}>"
        )

    @property
    def base(self) -> int:
        """The first position that lies in its own cells."""
        return len(self.nodes) * BLOCK

    @property
    def top(self) -> int:
        """Its last block; what comes next must lie above it. -1 if it has none."""
        if self.blocks:
            return self.blocks[-1]
        return self.nodes[-1].cells[0] // BLOCK if self.nodes else -1

    @property
    def is_prefilling(self) -> bool:
        return self.computed < len(self.tokens)

    @property
    def pending(self) -> int:
        """Tokens whose KV is not computed yet; 1 when the next step is a plain decode."""
        return len(self.tokens) + len(self.made) - self.computed

    @property
    def length(self) -> int:
        return len(self.tokens) + len(self.made)

    def position(self, node: int) -> int:
        """Where a node of its beam search lies."""
        assert self.branches is not None
        return len(self.tokens) + self.branches.search.lengths[node] - 1

    @property
    def occupied(self) -> int:
        """Cells it occupies; those of a shared chunk are divided among who stands on it."""
        return len(self.blocks) * BLOCK + sum(-(-BLOCK // max(1, n.users)) for n in self.nodes)

    def token(self, position: int) -> int:
        prompt = len(self.tokens)
        return self.tokens[position] if position < prompt else self.made[position - prompt]
