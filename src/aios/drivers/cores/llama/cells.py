"""The KV cells: which are whose, and how llama.cpp is made to put a token into a chosen one.

Attention adds up over the cells in the order of their numbers, and a prompt's chunk of 64 is added
up in tiles of 64 cells. So the bits of a result depend on where its cells lie: a sequence must lie
in ascending cells, and a chunk of its prompt in one aligned block of 64. llama.cpp chooses cells by
itself, always the lowest empty ones; so here every cell below a mark is kept full. What nobody uses
holds a *plug*: a cell of the sequence PLUG whose position is the cell's own number, so that each
can be taken out alone. To fill certain cells, their plugs are taken out (``open``) and the next
batch has nowhere else to go.

A block is 64 cells, block b being cells [64b, 64b + 64). A cell is open (about to be written), used
by one or more sequences, plugged, or empty (above the mark).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from aios.drivers.cores.kept.disk import Bytes
from aios.drivers.cores.llama.binding import Context
from aios.errors import SetupError

BLOCK = 64
PLUG = 0  # the sequence id of all plugs
SCRATCH = 1  # holds cells for a moment while they are moved
FIRST_ID = 2
HEADER = 16  # bytes of a state before its cells: magic, version, streams, number of cells
CELL = 12  # bytes a cell: position, number of sequences (1), sequence id


class Cells:
    """The pool of cells of one context."""

    def __init__(self, context: Context, blocks: int) -> None:
        self._context, self.blocks = context, blocks
        self._reserved = [0] * blocks  # how many hold each block
        self._taken = bytearray(blocks)  # 1 where it is held at all
        self._users = np.zeros(blocks * BLOCK, np.int32)  # how many sequences use each cell
        self._mark = 0  # in blocks: below it every cell is used or plugged
        self._plugs = _templates(context)

    def __repr__(self) -> str:
        return f"<cells: {self.used} of {self.total} used, mark {self.mark}>"

    @property
    def total(self) -> int:
        return self.blocks * BLOCK

    @property
    def used(self) -> int:
        """Cells of blocks that somebody holds."""
        return sum(self._taken) * BLOCK

    @property
    def mark(self) -> int:
        """In cells: what attention looks at, at most."""
        return self._mark * BLOCK

    @property
    def plug_bytes(self) -> int:
        """The size of a KV state of one block."""
        return int(self._plugs[BLOCK][0].nbytes)

    def free(self, above: int = -1) -> int:
        """How many free blocks there are above block *above*."""
        return self._taken.count(0, above + 1)

    def sole(self, blocks: Iterable[int]) -> int:
        """How many of these blocks are held once: dropped, they are free."""
        return sum(self._reserved[block] == 1 for block in blocks)

    def reserve(self, above: int) -> int | None:
        """The lowest free block above block *above*, now held once; all its cells are plugged."""
        block = self._taken.find(0, above + 1)
        if block < 0:
            return None
        while self._mark <= block:
            first = self._mark * BLOCK
            self._mark += 1
            self._plug(range(first, first + BLOCK))
        self._taken[block] = self._reserved[block] = 1
        return block

    def keep(self, blocks: Iterable[int], cells: Sequence[int]) -> None:
        """One more sequence holds these blocks and uses these cells."""
        for block in blocks:
            self._reserved[block] += 1
        self._users[np.asarray(cells, np.int64)] += 1

    def open(self, cells: Sequence[int]) -> None:
        """Make room for a batch (or a state) in exactly these cells, given in ascending order."""
        start = cells[0]
        for cell, after in pairwise((*cells, -1)):
            if after != cell + 1:
                self._context.forget(PLUG, start, cell + 1)
                start = after
        self._users[np.asarray(cells, np.int64)] = 1

    def drop(self, blocks: Iterable[int], cells: Sequence[int]) -> None:
        """One sequence fewer; it has forgotten these cells already."""
        if len(cells):
            gone = np.asarray(cells, np.int64)
            self._users[gone] -= 1
            self._plug([int(cell) for cell in gone[self._users[gone] == 0]])
        for block in blocks:
            self._reserved[block] -= 1
            self._taken[block] = self._reserved[block] > 0
        mark = self._mark
        while self._mark and not self._taken[self._mark - 1]:
            self._mark -= 1
        if self._mark < mark:
            self._context.forget(PLUG, self._mark * BLOCK, mark * BLOCK)

    def _plug(self, cells: Sequence[int]) -> None:
        """Fill empty cells, the only ones below the mark, with plugs."""
        while len(cells):
            size = 1 << min(6, len(cells).bit_length() - 1)
            part, cells = cells[:size], cells[size:]
            state, positions = self._plugs[size]
            positions[:] = part
            if not self._context.set_state(SCRATCH, state):
                raise RuntimeError("llama.cpp refused a KV state of its own making")
            self._context.share(SCRATCH, PLUG, part[0], part[-1] + 1)
            self._context.forget(SCRATCH)

    def check(self) -> list[str]:
        """Invariants, in numbers."""
        found = []
        users = self._users.reshape(-1, BLOCK)
        for block in range(self.blocks):
            held, top = self._reserved[block], int(users[block].max())
            if top > held:
                found.append(f"block {block}: a cell has {top} users, but {held} hold the block")
            if bool(self._taken[block]) != (held > 0):
                found.append(f"block {block}: held by {held}, taken is {self._taken[block]}")
            if block >= self._mark and held:
                found.append(f"block {block} is held above the mark {self._mark}")
        wanted = self.mark - int((self._users > 0).sum())
        plugged = self.plugged()
        if plugged != wanted:
            found.append(f"{plugged} cells are plugged where {wanted} should be")
        return found

    def plugged(self) -> int:
        """How many plugs llama.cpp itself counts."""
        if not self.mark:
            return 0
        return int.from_bytes(self._context.state(PLUG)[HEADER - 4 : HEADER].tobytes(), "little")


def _templates(context: Context) -> dict[int, tuple[Bytes, NDArray[np.int32]]]:
    """KV states of 1, 2, 4 … 64 cells to make plugs of, each with a view of its positions."""
    context.decode([0] * BLOCK, range(BLOCK), FIRST_ID, [])
    found = {}
    for size in (1, 2, 4, 8, 16, 32, 64):
        context.share(FIRST_ID, SCRATCH, 0, size)
        state = context.state(SCRATCH)
        context.forget(SCRATCH)
        table = state[HEADER : HEADER + size * CELL].view(np.int32).reshape(size, 3)
        if table[:, 0].tolist() != list(range(size)) or set(table[:, 1]) != {1}:
            raise SetupError(
                "this llama.cpp lays its KV states out in a way aios does not know; "
                "install the version of xllamacpp that the constraints file names."
            )
        found[size] = state, table[:, 0]
    context.clear()
    return found
