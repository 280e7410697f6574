"""Where each sequence's KV lies: in cells, in RAM, on disk, or nowhere (computed again).

When cells are short, room is made in this order: prompt chunks that nobody stands on, used longest
ago first; sequences without a slice, likewise; sequences whose slice was granted later than that of
the one that needs room, the latest first. So the first in line always goes on. A sequence must
ascend in its cells (see ``cells``): one whose next block would lie below its last is moved as a
whole to the lowest free blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Many

import numpy as np

from aios.drivers.cores.kept.disk import Bytes, Disk, State
from aios.drivers.cores.kept.snapshots import Part
from aios.drivers.cores.llama.binding import OUTPUTS, Context
from aios.drivers.cores.llama.branches import Branches, Run
from aios.drivers.cores.llama.cells import BLOCK, FIRST_ID, SCRATCH, Cells
from aios.drivers.cores.llama.prefixes import Node, Prefixes
from aios.drivers.cores.llama.sequences import Image, Sequence

TIDY_STEPS = 16  # a turn, at most
IDLE_TURNS = 8  # after which a sequence without a slice may be moved to RAM


class Residency:
    """All sequences of one context. *share* off computes every prompt by itself (for baselines)."""

    def __init__(
        self, context: Context, blocks: int, ram_limit: int, disk: Disk, *, share: bool = True
    ) -> None:
        self._context = context
        self.cells = Cells(context, blocks)
        self.prefixes = Prefixes()
        self.sequences: dict[int, Sequence] = {}
        self.ram_limit, self.ram_used = ram_limit, 0
        self.disk = disk
        self.turn = 0
        self._share = share
        self._chunk_bytes = self.cells.plug_bytes
        self._free_ids = list(range(OUTPUTS - 1, FIRST_ID - 1, -1))
        self._held: Counter[int] = Counter()  # nodes whose cells an id marks

    # --- into the cells ---------------------------------------------------------------------------

    def bring(self, s: Sequence) -> bool:
        """Put into the cells what is anywhere of its KV; False if there is no room now."""
        s.used_at = self.turn
        if s.id is None:
            s.id = self._take_id(s)
            if s.id is None:
                return False
            self._stop_waiting(s)
        self._adopt(s)
        if s.image and s.computed == s.image.start:
            return self._restore(s)
        return True

    def grow(self, s: Sequence, count: int) -> list[int] | None:
        """Open the cells of its next *count* positions, in order; None if there is no room now.

        The next batch must fill them.
        """
        while len(s.room) < count:
            self._pack(s)
            if len(s.room) >= count:
                break
            blocks = self._reserve(s, 1)
            if blocks is None:
                return None
            s.blocks += blocks
            s.room += _cells_of(blocks)
        cells, s.room = s.room[:count], s.room[count:]
        s.cells += cells
        return cells

    def shrink(self, s: Sequence, count: int) -> None:
        """Give the cells of its last *count* positions back, guesses that were wrong."""
        cells = s.cells[-count:]
        del s.cells[-count:]
        assert s.id is not None
        self._context.forget(s.id, s.computed)
        self.cells.drop((), cells)
        s.room = cells + s.room

    def promote(self, s: Sequence) -> None:
        """Its newest full prompt chunk becomes a node that others may stand on."""
        if not self._share or len(s.cells) != BLOCK:
            return
        tokens = s.tokens[s.base : s.base + BLOCK]
        node = self.prefixes.child(s.nodes[-1] if s.nodes else None, tokens)
        if node.is_somewhere:
            return
        assert s.id is not None
        node.block, node.holder, node.users, node.used_at = s.blocks.pop(), s.id, 1, self.turn
        s.cells.clear()
        self._held[s.id] += 1
        s.nodes.append(node)

    def cached(self, tokens: Many[int]) -> int:
        """How many tokens of a prompt need not be computed; never its last one."""
        if not self._share:
            return 0
        return BLOCK * len(list(self.prefixes.path(tokens, (len(tokens) - 1) // BLOCK)))

    def _adopt(self, s: Sequence) -> None:
        """Stand on the chunks of its prompt that are somewhere."""
        if s.cells or not self._share:
            return
        limit = s.image.start if s.image else len(s.tokens) - 1
        while s.computed + BLOCK <= limit:
            parent = s.nodes[-1] if s.nodes else self.prefixes.root
            node = parent.children.get(s.tokens[s.computed : s.computed + BLOCK])
            if node is None or not node.is_somewhere or not self._stand_on(s, node):
                return

    def _stand_on(self, s: Sequence, node: Node) -> bool:
        assert s.id is not None
        if node.block is not None and node.block <= s.top:
            if node.users:
                return False
            self._evict(node, keep=True)
        if node.block is None and not self._lift(s, node):
            return False
        if node.holder != s.id:
            self._context.share(node.holder, s.id, node.start, node.start + BLOCK)
            node.is_reused = True
        node.users += 1
        node.used_at = self.turn
        s.nodes.append(node)
        s.computed += BLOCK
        return True

    def _lift(self, s: Sequence, node: Node) -> bool:
        """A chunk from RAM or disk into a block above the sequence that wants it."""
        blocks = self._reserve(s, 1) if node.image is not None else None
        if blocks is None:
            return False
        if node.image is None or s.cells:  # the room was made of it, or *s* had to move
            self.cells.drop(blocks, ())
            return False
        state, node.image = node.image, None
        data = self._fetch(state)
        self._drop(state)
        if data is None:  # its file is gone
            self.cells.drop(blocks, ())
            self.prefixes.prune(node)
            return False
        assert s.id is not None
        node.block, node.holder = blocks[0], s.id
        self._held[s.id] += 1
        self._write((s.id,), data, node.cells, node.start)
        return True

    def _restore(self, s: Sequence) -> bool:
        """Its own cells from its image; an image that is gone leaves them to be computed."""
        image = s.image
        assert image is not None
        count = image.end - image.start
        if s.branches and image.parts and not self._take_branch_ids(s, s.branches):
            return False
        blocks = self._reserve(s, _blocks_for(count, image.parts))
        if blocks is None:
            self._give_branch_ids_back(s)
            return False
        data = self._fetch(image.state)
        self._forget_image(s)
        if data is None:
            self._give_branch_ids_back(s)
            self.cells.drop(blocks, ())
        else:
            self._place(s, blocks, count, data, image.parts)
        return True

    def _place(
        self, s: Sequence, blocks: list[int], count: int, data: Bytes, parts: tuple[Part, ...]
    ) -> None:
        """*count* positions, then the parts, for which the branches' ids were taken."""
        cells = _cells_of(blocks)
        assert s.id is not None
        at = data.nbytes - sum(part.bytes for part in parts)
        if count:
            self._write((s.id,), data[:at], cells[:count], s.computed)
        s.blocks += blocks
        s.computed += count
        if s.branches:
            count += self._place_parts(s, s.branches, cells[count:], data[at:], parts)
        s.cells += cells[:count]
        s.room = cells[count:]

    def _place_parts(
        self,
        s: Sequence,
        branches: Branches,
        cells: list[int],
        data: Bytes,
        parts: tuple[Part, ...],
    ) -> int:
        """Branches below the prompt, which lies there already; how many cells they take."""
        assert s.id is not None
        for seq in branches.ids:
            self._context.share(s.id, seq, 0, s.computed)
        standing = branches.standing()
        used = at = 0
        for part in parts:
            lying = cells[used : used + len(part.nodes)]
            ids = [branches.ids[place] for place in standing[part.nodes[0]]]
            start = s.position(part.nodes[0])
            self._write(ids, data[at : at + part.bytes], lying, start)
            branches.cells.update(zip(part.nodes, lying, strict=True))
            used += len(lying)
            at += part.bytes
        return used

    def _write(self, ids: Many[int], data: Bytes, cells: Many[int], start: int) -> None:
        self.cells.open(cells)
        if not self._context.set_state(SCRATCH, data):
            raise RuntimeError(f"llama.cpp refused a KV state of {data.nbytes} bytes")
        for seq in ids:
            self._context.share(SCRATCH, seq, start, start + len(cells))
        self._context.forget(SCRATCH)

    # --- the branches of a beam search ------------------------------------------------------------

    def spread(self, s: Sequence, branches: Branches) -> bool:
        """Give each beam an id that marks the prompt, which is computed; False if none is free."""
        if not branches.ids:
            if not self._take_branch_ids(s, branches):
                return False
            assert s.id is not None
            for seq in branches.ids:
                self._context.share(s.id, seq, 0, s.computed)
        return True

    def _take_branch_ids(self, s: Sequence, branches: Branches) -> bool:
        while len(branches.ids) < branches.search.width:
            seq = self._take_id(s)
            if seq is None:
                self._give_branch_ids_back(s)
                return False
            branches.ids.append(seq)
        return True

    def _give_branch_ids_back(self, s: Sequence) -> None:
        if s.branches:
            self._free_ids += s.branches.ids
            s.branches.ids = []

    def settle(self, s: Sequence, branches: Branches, run: Run, cells: Many[int]) -> None:
        """A run was computed under the id of its first beam: the others stand on it too."""
        branches.cells.update(zip(run.nodes, cells, strict=True))
        start = s.position(run.nodes[0])
        for place in run.places[1:]:
            first, seq = branches.ids[run.places[0]], branches.ids[place]
            self._context.share(first, seq, start, start + len(cells))

    def regroup(self, s: Sequence, branches: Branches, parents: Many[int]) -> None:
        """The living beams are new, each a child of the one that stood at a place before.

        A first child takes its parent's id over; what nobody stands on any more leaves the cells.
        """
        if not branches.ids:
            return
        assert s.id is not None
        ids: list[int] = []
        kept: set[int] = set()
        free = [seq for place, seq in enumerate(branches.ids) if place not in parents]
        for seq in free:
            self._context.forget(seq)
        for place in parents:
            seq = branches.ids[place]
            if place in kept:
                twin = free.pop()
                self._context.share(seq, twin)
                seq = twin
            kept.add(place)
            ids.append(seq)
        for seq in free:  # whoever comes to it later stands on the prompt already
            self._context.share(s.id, seq, 0, s.computed)
        branches.ids = ids + free
        self._drop_dead(s, branches)

    def _drop_dead(self, s: Sequence, branches: Branches) -> None:
        gone = sorted(branches.cells.pop(node) for node in branches.dead())
        if not gone:
            return
        left = set(gone)
        s.cells = [cell for cell in s.cells if cell not in left]
        needed = {cell // BLOCK for cell in s.cells} | {s.blocks[-1]}  # the last one has the room
        empty = [block for block in s.blocks if block not in needed]
        s.blocks = [block for block in s.blocks if block in needed]
        self.cells.drop(empty, gone)

    def _pack(self, s: Sequence) -> None:
        """Branches leave gaps where beams died: when these are most of it, lie closer together."""
        if not s.branches:
            return
        needed = -(-len(s.cells) // BLOCK)
        spare = len(s.blocks) - needed
        free = self.cells.free(above=self._floor(s)) + self.cells.sole(s.blocks)
        if spare > 1 and spare >= len(s.blocks) // 2 and free >= needed:
            self._lay_anew(s)

    # --- room -------------------------------------------------------------------------------------

    def _reserve(self, s: Sequence, count: int) -> list[int] | None:
        """Blocks above its last one, making room if need be; None if that is not enough."""
        was_moved = False
        while self.cells.free(above=s.top) < count:
            own = len(s.blocks) + sum(node.users == 1 for node in s.nodes)
            whole = len(s.blocks) + len(s.nodes) + count
            if not was_moved and s.top >= 0 and self.cells.free() + own >= whole:
                was_moved = True
                if not self._move_down(s):
                    return None
            elif not self._make_room(s):
                return None
        blocks, top = [], s.top
        for _ in range(count):
            block = self.cells.reserve(top)
            assert block is not None
            blocks.append(block)
            top = block
        return blocks

    def _make_room(self, s: Sequence) -> bool:
        if node := self.prefixes.idle():
            self._evict(node)
        elif victim := self._victim(s):
            self.page_out(victim)
        else:
            return False
        return True

    def tidy(self) -> None:
        """Lower the mark when it stands above what runs: attention looks at every cell below.

        A cell costs each row of a batch 0.1 microseconds, a block moved to RAM and back 100 once.
        The holder of the top block goes to RAM if it is idle, else to lower blocks.
        """
        for _ in range(TIDY_STEPS):
            running = [s for s in self.sequences.values() if s.grant is not None]
            needed = {b for s in running for b in (*s.blocks, *(n.block for n in s.nodes))}
            top = self.cells.mark // BLOCK - 1
            if top < len(needed) or not self._clear(top):
                return

    def _clear(self, top: int) -> bool:
        """A step towards an empty top block; False if there is none."""
        for node in self.prefixes.nodes():
            if node.block == top:
                return not node.users and self._retire(node)
        for s in self.sequences.values():
            if s.blocks and s.blocks[-1] == top:
                return self._shelve() or self._lower(s) if s.grant else self._put_away(s)
        return False

    def _shelve(self) -> bool:
        """Something idle to RAM, wherever it lies."""
        if node := self.prefixes.idle():
            return self._retire(node)
        idle = [s for s in self.sequences.values() if s.id is not None and s.grant is None]
        return any(self._put_away(s) for s in idle)

    def _put_away(self, s: Sequence) -> bool:
        """A sequence that had no slice for a while to RAM; False if there is no room."""
        size = (len(s.cells) // BLOCK + 1) * self._chunk_bytes
        if self.turn - s.used_at < IDLE_TURNS or not self._fits(size):
            return False
        self.page_out(s)
        return True

    def _retire(self, node: Node) -> bool:
        """An idle chunk from the cells to RAM; False if there is no room."""
        if not self._fits(self._chunk_bytes):
            return False
        self._evict(node, keep=True)
        return True

    def _lower(self, s: Sequence) -> bool:
        """Move a sequence's own cells to lower blocks, if that takes it off its last one."""
        below = self.cells.free(above=self._floor(s)) - self.cells.free(above=s.blocks[-1])
        count = len(s.cells)
        if s.id is None or below < -(-count // BLOCK):
            return False
        self._lay_anew(s)
        return True

    def _floor(self, s: Sequence) -> int:
        """The block that its own must lie above."""
        return s.nodes[-1].cells[0] // BLOCK if s.nodes else -1

    def _lay_anew(self, s: Sequence) -> None:
        """Its own cells into the lowest blocks that are free or its own."""
        assert s.id is not None
        count = s.computed - s.base
        data, parts = self._own(s, s.base)
        self._context.forget(s.id, s.base)
        if s.branches:
            for seq in s.branches.ids:
                self._context.forget(seq)
            s.branches.cells.clear()
        self.cells.drop(s.blocks, s.cells)
        s.computed, s.blocks, s.cells, s.room = s.base, [], [], []
        blocks = self._reserve(s, _blocks_for(count, parts))
        assert blocks is not None
        self._place(s, blocks, count, data, parts)

    def _victim(self, s: Sequence) -> Sequence | None:
        others = [v for v in self.sequences.values() if v.id is not None and v is not s]
        if idle := [v for v in others if v.grant is None]:
            return min(idle, key=lambda v: v.used_at)
        if s.grant is None:
            return None
        order = s.grant.order
        later = [v for v in others if v.grant is not None and v.grant.order > order]
        return max(later, key=lambda v: v.grant.order if v.grant else 0, default=None)

    def _move_down(self, s: Sequence) -> bool:
        """Move a whole sequence into the lowest free blocks; it then shares no chunk."""
        assert s.id is not None
        (data, parts), count, image = self._own(s, 0), s.computed, s.image
        spread = s.branches if s.branches and s.branches.ids else None
        self._leave(s)
        s.image = None  # not _adopt's to see
        s.id = self._take_id(s)
        is_able = s.id is not None and (not spread or self._take_branch_ids(s, spread))
        blocks = self._reserve(s, _blocks_for(count, parts)) if is_able else None
        s.image = image
        if blocks is None:
            self._give_branch_ids_back(s)
            return False
        self._place(s, blocks, count, data, parts)
        return True

    # --- out of the cells -------------------------------------------------------------------------

    def page_out(self, s: Sequence) -> int:
        """Move its own cells to RAM or disk, or drop them if both are full; the bytes moved."""
        if s.id is None:
            return 0
        moved = 0
        if s.cells and s.image is None:
            data, parts = self._own(s, s.base)
            state = self._put_by(data)
            if state is not None:
                moved = state.size
                s.image = Image(state, s.base, s.computed, parts)
        nodes = s.nodes
        self._leave(s)
        s.waits_on = nodes
        for node in nodes:
            node.waiting += 1
        return moved

    def image(self, s: Sequence) -> tuple[Bytes, int, tuple[Part, ...]]:
        """All of its KV that is in cells: how many positions that is, and the parts after them."""
        if s.id is None or not s.computed:
            return np.empty(0, np.uint8), 0, ()
        data, parts = self._own(s, 0)
        return data, s.computed, parts

    def give_image(
        self, s: Sequence, data: Bytes, computed: int, parts: tuple[Part, ...] = ()
    ) -> None:
        """KV of its first positions, read from a file; dropped if RAM and disk are full."""
        if computed and (state := self._put_by(data)) is not None:
            s.image = Image(state, 0, computed, parts)

    def _own(self, s: Sequence, start: int) -> tuple[Bytes, tuple[Part, ...]]:
        """The KV of its positions from *start* on, and of its branches after them, in one piece."""
        assert s.id is not None
        pieces = [self._copy(s.id, start, s.computed)] if start < s.computed else []
        parts = []
        if s.branches:
            for run in s.branches.runs():
                first, seq = s.position(run.nodes[0]), s.branches.ids[run.places[0]]
                pieces.append(self._copy(seq, first, first + len(run.nodes)))
                parts.append(Part(run.nodes, int(pieces[-1].nbytes)))
        if len(pieces) == 1:
            return pieces[0], tuple(parts)
        return np.concatenate([*pieces, np.empty(0, np.uint8)]), tuple(parts)

    def _copy(self, seq: int, start: int, end: int) -> Bytes:
        self._context.share(seq, SCRATCH, start, end)
        data = self._context.state(SCRATCH)
        self._context.forget(SCRATCH)
        return data

    def _leave(self, s: Sequence) -> None:
        """Out of the cells, whatever becomes of what was in them."""
        assert s.id is not None
        self._context.forget(s.id, s.base)
        if s.branches:
            for seq in s.branches.ids:
                self._context.forget(seq)
            self._give_branch_ids_back(s)
            s.branches.cells.clear()
        self.cells.drop(s.blocks, s.cells)
        for node in s.nodes:
            node.users -= 1
            if node.holder != s.id:
                self._context.forget(s.id, node.start, node.start + BLOCK)
        if not self._held[s.id]:
            self._free_ids.append(s.id)
        s.id = s.guesses = None
        s.computed = 0
        s.nodes, s.blocks, s.cells, s.room = [], [], [], []

    def _evict(self, node: Node, *, keep: bool = False) -> None:
        """A chunk nobody stands on leaves the cells: to RAM if it may be wanted, else nowhere.

        To disk goes only what somebody waits for.
        """
        assert not node.users
        if keep or node.waiting or node.is_reused:
            data = self._copy(node.holder, node.start, node.start + BLOCK)
            node.image = self._put_by(data, may_be_file=node.waiting > 0)
        self._context.forget(node.holder, node.start, node.start + BLOCK)
        assert node.block is not None
        self.cells.drop((node.block,), node.cells)
        node.block = None
        self._held[node.holder] -= 1
        live = {s.id for s in self.sequences.values()}
        if not self._held[node.holder] and node.holder not in live:
            self._free_ids.append(node.holder)
        self.prefixes.prune(node)

    def _fits(self, size: int) -> bool:
        """Is there RAM for this? Chunks that nobody waits for make way."""
        while self.ram_used + size > self.ram_limit:
            if not self._drop_spare(in_ram=True):
                return False
        return True

    def _fits_on_disk(self, size: int) -> bool:
        while not self.disk.fits(size):
            if not self._drop_spare(in_ram=False):
                return False
        return True

    def _drop_spare(self, *, in_ram: bool) -> bool:
        spare = self.prefixes.spare_image(in_ram=in_ram)
        if spare is None or spare.image is None:
            return False
        self._drop(spare.image)
        spare.image = None
        self.prefixes.prune(spare)
        return True

    def _put_by(self, data: Bytes, *, may_be_file: bool = True) -> State | None:
        """A KV state to RAM, or to a file if RAM is full; None if there is no room for it."""
        if self._fits(data.nbytes):
            self.ram_used += data.nbytes
            return State(data, data.nbytes)
        if may_be_file and self._fits_on_disk(data.nbytes):
            return self.disk.write(data)
        return None

    def _fetch(self, state: State) -> Bytes | None:
        return state.data if state.is_in_ram else self.disk.read(state)

    def _drop(self, state: State) -> None:
        if state.is_in_ram:
            self.ram_used -= state.size
        else:
            self.disk.remove(state)

    def _forget_image(self, s: Sequence) -> None:
        if s.image:
            s.image.sharers -= 1
            if not s.image.sharers:
                self._drop(s.image.state)
            s.image = None

    def _stop_waiting(self, s: Sequence) -> None:
        nodes, s.waits_on = s.waits_on, []
        for node in nodes:
            node.waiting -= 1
        for node in reversed(nodes):
            self.prefixes.prune(node)

    # --- beginning and end ------------------------------------------------------------------------

    def add(self, s: Sequence) -> None:
        self.sequences[s.number] = s

    def remove(self, s: Sequence) -> None:
        del self.sequences[s.number]
        if s.id is not None:
            self._leave(s)
        self._forget_image(s)
        self._stop_waiting(s)

    def fork(self, s: Sequence, twin: Sequence) -> None:
        """Give *twin*, which is new, the KV of *s*; cells and images are shared, not copied."""
        self.add(twin)
        seq = self._take_id(twin) if s.id is not None else None
        spread = twin.branches if s.branches and s.branches.ids else None
        if spread and seq is not None and not self._take_branch_ids(twin, spread):
            self._free_ids.append(seq)
            seq = None
        twin.used_at = self.turn
        if s.id is not None and seq is not None:
            twin.id = seq
            self._context.share(s.id, seq)
            twin.computed = s.computed
            twin.nodes, twin.blocks, twin.cells = [*s.nodes], [*s.blocks], [*s.cells]
            if s.branches and spread:
                spread.cells = dict(s.branches.cells)
                for own, new in zip(s.branches.ids, spread.ids, strict=True):
                    self._context.share(own, new)
            for node in s.nodes:
                node.users += 1
                node.is_reused = True
            self.cells.keep(s.blocks, s.cells)
        else:
            if seq is not None:  # the room for it was made of *s*
                self._free_ids.append(seq)
            self._give_branch_ids_back(twin)
            twin.waits_on = [*s.waits_on]
            for node in s.waits_on:
                node.waiting += 1
        if s.image:
            twin.image = s.image
            s.image.sharers += 1

    def _take_id(self, s: Sequence) -> int | None:
        while not self._free_ids:
            if not self._make_room(s):
                return None
        return self._free_ids.pop()

    # --- what there is ----------------------------------------------------------------------------

    @property
    def cells_used(self) -> int:
        """Cells that sequences use; chunks that are only kept in case do not count."""
        kept = sum(node.block is not None and not node.users for node in self.prefixes.nodes())
        return self.cells.used - kept * BLOCK

    def needed(self, *, in_ram: bool) -> int:
        """Bytes of images that sequences need, in RAM or in files."""
        images = {id(s.image): s.image.state for s in self.sequences.values() if s.image}
        nodes = (n.image for n in self.prefixes.nodes() if n.image is not None and n.waiting)
        states = (*images.values(), *nodes)
        return sum(state.size for state in states if state.is_in_ram == in_ram)

    def check(self) -> list[str]:
        """Invariants, in numbers."""
        found = self.cells.check()
        nodes, everyone = list(self.prefixes.nodes()), list(self.sequences.values())
        in_cells = [n for n in nodes if n.block is not None]
        held = len({b for s in everyone for b in s.blocks}) + len(in_cells)
        if held * BLOCK != self.cells.used:
            found.append(f"{held} blocks are accounted for, {self.cells.used // BLOCK} are held")
        images = {id(s.image): s.image.state for s in everyone if s.image}
        states = [*images.values(), *(n.image for n in nodes if n.image is not None)]
        ram = sum(state.size for state in states if state.is_in_ram)
        if ram != self.ram_used or ram > self.ram_limit:
            found.append(f"images take {ram} bytes, counted {self.ram_used} of {self.ram_limit}")
        files = sum(state.size for state in states if not state.is_in_ram)
        if files != self.disk.used or files > self.disk.limit:
            found.append(f"files take {files} bytes, counted {self.disk.used} of {self.disk.limit}")
        ids = {s.id for s in everyone if s.id is not None} | {n.holder for n in in_cells}
        ids |= {seq for s in everyone if s.branches for seq in s.branches.ids}
        if len(ids) + len(self._free_ids) != OUTPUTS - FIRST_ID:
            found.append(f"{len(ids)} ids are used and {len(self._free_ids)} free")
        for node in nodes:
            standing = sum(node in s.nodes for s in everyone)
            waiting = sum(node in s.waits_on for s in everyone)
            if (standing, waiting) != (node.users, node.waiting):
                found.append(f"{node!r} is stood on by {standing} and waited for by {waiting}")
        for s in everyone:
            lying = [c for n in s.nodes for c in n.cells] + s.cells
            branched = len(s.branches.cells) if s.branches else 0
            if len(lying) != s.computed + branched or lying != sorted(lying):
                found.append(
                    f"{s!r} lies in {len(lying)} cells, ascending: {lying == sorted(lying)}"
                )
            if s.id is not None and self._context.length(s.id) < s.computed:
                found.append(f"{s!r} has {self._context.length(s.id)} positions in llama.cpp")
            found += self._check_branches(s)
        return found

    def _check_branches(self, s: Sequence) -> list[str]:
        found: list[str] = []
        if not s.branches or not s.branches.ids:
            return found
        nodes, cells = s.branches.standing(), s.branches.cells
        if astray := [node for node in cells if node not in nodes]:
            found.append(f"{s!r} keeps cells of dead nodes: {astray}")
        if not set(cells.values()) <= set(s.cells):
            found.append(f"{s!r} has branches outside of its cells")
        for place in range(len(s.branches.search.living)):
            own = [n for n, places in nodes.items() if place in places and n in cells]
            lying, length = [cells[n] for n in sorted(own)], s.computed + len(own)
            there = self._context.length(s.branches.ids[place])
            if lying != sorted(lying) or there != length:
                found.append(f"beam {place} of {s!r} has {there} positions instead of {length}")
        return found


def _blocks_for(count: int, parts: tuple[Part, ...]) -> int:
    """How many blocks so many positions and these parts need."""
    return -(-(count + sum(len(part.nodes) for part in parts)) // BLOCK)


def _cells_of(blocks: Many[int]) -> list[int]:
    return [cell for block in blocks for cell in range(block * BLOCK, (block + 1) * BLOCK)]
