"""Where each sequence's KV lies: in tensors, in RAM, on disk, or nowhere (computed again).

When cells are short, room is made in this order: sequences without a slice, used longest ago first;
sequences whose slice was granted later than that of the one that needs room, the latest first. So
the first in line always goes on. The limit of RAM is for what was moved out and for kept chunks of
prompts together; the chunks make way.
"""

from __future__ import annotations

import numpy as np

from aios.drivers.cores.kept.disk import Bytes, Disk, State
from aios.drivers.cores.transformers.cells import BLOCK, Cells, Kv
from aios.drivers.cores.transformers.prefixes import Prefixes
from aios.drivers.cores.transformers.sequences import Image, Sequence


class Residency:
    """All sequences of one model. *share* off computes every prompt by itself (for baselines)."""

    def __init__(self, cells: Cells, ram_limit: int, disk: Disk, *, share: bool = True) -> None:
        self.cells, self.disk = cells, disk
        self.prefixes = Prefixes()
        self.sequences: dict[int, Sequence] = {}
        self.ram_limit, self.images_size = ram_limit, 0
        self.turn = 0
        self._share = share

    # --- into the tensors -------------------------------------------------------------------------

    def bring(self, s: Sequence) -> bool:
        """Put into tensors what is anywhere of its KV; False if there is no room now."""
        s.used_at = self.turn
        if s.image and not s.computed:
            return self._restore(s)
        self._adopt(s)
        return True

    def open(self, s: Sequence, count: int, kv: Kv | None = None) -> bool:
        """Make the next *count* positions writable, of one of its beams or its own; makes room."""
        while not self.cells.open(kv or s.kv, count):
            victim = self._victim(s)
            if victim is None:
                return False
            self.page_out(victim)
        return True

    def _adopt(self, s: Sequence) -> None:
        """Copy the chunks of its prompt that were kept."""
        while self._share and s.computed % BLOCK == 0 and s.computed + BLOCK < len(s.tokens):
            chunk = self.prefixes.get(s.keys, s.computed // BLOCK, self.turn)
            if chunk is None or not self.open(s, BLOCK):
                return
            self.cells.write(s.kv, chunk.data, BLOCK)

    def keep_chunk(self, s: Sequence) -> None:
        """Its newest full prompt chunk may be wanted by others."""
        depth, start = s.computed // BLOCK - 1, s.computed - BLOCK
        size = BLOCK * self.cells.token_bytes
        if not self._share or self.prefixes.get(s.keys, depth, self.turn) or not self._fits(size):
            return
        data = self.cells.read(s.kv, start, s.computed)
        self.prefixes.add(s.keys[depth], data, depth, self.turn)

    def cached(self, s: Sequence) -> int:
        """How many tokens of a prompt need not be computed; never its last one."""
        known = self.prefixes.known(s.keys) if self._share else 0
        return BLOCK * min(known, (len(s.tokens) - 1) // BLOCK)

    def _restore(self, s: Sequence) -> bool:
        """From its image; one that is gone leaves the KV to be computed."""
        assert s.image is not None
        if not self.open(s, s.image.length):
            return False
        state, count, tails = s.image.state, s.image.length, s.image.tails
        data = state.data if state.is_in_ram else self.disk.read(state)
        self._forget_image(s)
        if data is None:
            self.cells.drop(s.kv)
            return True
        at = count * self.cells.token_bytes
        self.cells.write(s.kv, data[:at], count)
        for tail in tails if s.branches else ():
            assert s.branches is not None
            kv = self.cells.share(s.kv)
            if tail and not self.open(s, tail, kv):
                self.cells.drop(kv)  # this beam and those after it are computed again
                break
            size = tail * self.cells.token_bytes
            self.cells.write(kv, data[at : at + size], tail)
            s.branches.kvs.append(kv)
            at += size
        return True

    # --- out of the tensors -----------------------------------------------------------------------

    def page_out(self, s: Sequence) -> int:
        """Move its KV to RAM or disk, or drop it if both are full; the bytes moved."""
        if not s.computed:
            return 0
        data, tails = self.image(s)
        state = self._put_by(data)
        if state is not None:
            s.image = Image(state, s.computed, tails)
        if s.branches:
            s.branches.leave(self.cells)
        self.cells.drop(s.kv)
        return state.size if state else 0

    def image(self, s: Sequence) -> tuple[Bytes, tuple[int, ...]]:
        """All of its KV that is in tensors, its beams' tails last, and how long these are."""
        own, beams = s.computed, s.branches.kvs if s.branches else []
        parts = [self.cells.read(s.kv, 0, own)]
        parts += [self.cells.read(kv, own, kv.length) for kv in beams]
        return np.concatenate(parts), tuple(kv.length - own for kv in beams)

    def give_image(
        self, s: Sequence, data: Bytes, computed: int, tails: tuple[int, ...] = ()
    ) -> None:
        """KV of its first positions, read from a file; dropped if RAM and disk are full."""
        if computed and (state := self._put_by(data)) is not None:
            s.image = Image(state, computed, tails)

    def _victim(self, s: Sequence) -> Sequence | None:
        others = [v for v in self.sequences.values() if v.kv.tensors and v is not s]
        if idle := [v for v in others if v.grant is None]:
            return min(idle, key=lambda v: v.used_at)
        if s.grant is None:
            return None
        order = s.grant.order
        later = [v for v in others if v.grant is not None and v.grant.order > order]
        return max(later, key=lambda v: v.grant.order if v.grant else 0, default=None)

    def _put_by(self, data: Bytes) -> State | None:
        if self._fits(data.nbytes):
            self.images_size += data.nbytes
            return State(data, data.nbytes)
        return self.disk.write(data)

    def _fits(self, size: int) -> bool:
        """Is there RAM for this? Kept chunks make way."""
        while self.images_size + self.prefixes.size + size > self.ram_limit:
            if not self.prefixes.drop_one():
                return False
        return True

    def _forget_image(self, s: Sequence) -> None:
        if s.image:
            s.image.sharers -= 1
            if not s.image.sharers:
                if s.image.state.is_in_ram:
                    self.images_size -= s.image.state.size
                else:
                    self.disk.remove(s.image.state)
            s.image = None

    # --- beginning and end ------------------------------------------------------------------------

    def add(self, s: Sequence) -> None:
        self.sequences[s.number] = s

    def remove(self, s: Sequence) -> None:
        del self.sequences[s.number]
        for kv in s.kvs:
            self.cells.drop(kv)
        self._forget_image(s)

    def fork(self, s: Sequence, twin: Sequence) -> None:
        """Give *twin*, which is new, the KV of *s*; tensors and images are shared, not copied."""
        self.add(twin)
        twin.used_at = self.turn
        twin.kv = self.cells.share(s.kv)
        if s.branches and twin.branches:
            twin.branches.kvs = [self.cells.share(kv) for kv in s.branches.kvs]
        if s.image:
            twin.image = s.image
            s.image.sharers += 1

    # --- what there is ----------------------------------------------------------------------------

    def needed(self, *, in_ram: bool) -> int:
        """Bytes of images, in RAM or in files."""
        images = {id(s.image): s.image.state for s in self.sequences.values() if s.image}
        return sum(state.size for state in images.values() if state.is_in_ram == in_ram)

    def check(self) -> list[str]:
        """Invariants, in numbers."""
        found = self.prefixes.check()
        everyone = [*self.sequences.values()]
        kvs = [kv for s in everyone for kv in s.kvs]
        tensors = {id(kv.tensors): kv.tensors for kv in kvs if kv.tensors}
        held = sum(t.capacity for t in tensors.values())
        if held != self.cells.used or held > self.cells.total:
            found.append(f"{held} cells are held, counted {self.cells.used} of {self.cells.total}")
        for key, t in tensors.items():
            lengths = [kv.length for kv in kvs if id(kv.tensors) == key]
            if len(lengths) != t.sharers or max(lengths) > t.filled or t.filled > t.capacity:
                found.append(
                    f"tensors of {t.capacity} positions, {t.filled} filled, for {t.sharers}: "
                    f"{lengths}"
                )
        ram, files = self.needed(in_ram=True), self.needed(in_ram=False)
        if ram != self.images_size or ram + self.prefixes.size > self.ram_limit:
            found.append(f"images take {ram} bytes, counted {self.images_size}")
        if files != self.disk.used or files > self.disk.limit:
            found.append(f"files take {files} bytes, counted {self.disk.used} of {self.disk.limit}")
        for s in everyone:
            if s.computed and s.image:
                found.append(f"{s!r} is in tensors and outside")
        return found
