"""The engine: a loop of turns, each one batch for every sequence that holds a slice.

A turn: cancel what was cancelled; compute one chunk for each sequence whose prompt is not in yet;
then one batch of everything small (one new token for each of the others); sample; hand back the
slices that are done. No asyncio here; the worker calls it.

Exactness. The same prompt and sampling give the same bits alone, batched, preempted, paged out,
recomputed and restored, because each position is always computed by the same arithmetic:
- A prompt is computed in chunks of 64 on a grid of 64 positions, each chunk in a batch of its own:
  from 64 tokens on llama.cpp's attention works in tiles. The tiles are tiles of *cells*, so a chunk
  lies in one aligned block (``cells``).
- All else (the prompt's tail, decoded tokens, decoded tokens once more) goes in batches of at most
  63 tokens, row by row, whose bits do not depend on how many rows there are...
- ...except that a batch of one token is split among the threads once attention looks at 512 cells.
  One thread does not split, and gives the bits of the unsplit path; so such a batch gets one.
- Attention adds up in the order of cells, so a sequence always ascends in them.
Measured on Cascade Lake (AVX2 build) and Zen 5; tests/machine/test_llama_exact.py asks again.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from itertools import count as counter
from pathlib import Path
from typing import Any

from aios.drivers.cores.kept import snapshots
from aios.drivers.cores.kept.disk import Disk
from aios.drivers.cores.llama.binding import Context, Model, vocabulary
from aios.drivers.cores.llama.branches import Branches, Run
from aios.drivers.cores.llama.cells import BLOCK
from aios.drivers.cores.llama.residency import Residency
from aios.drivers.cores.llama.sequences import Sequence
from aios.drivers.cores.text.beams import MOST
from aios.drivers.cores.text.grammar import Grammars
from aios.drivers.cores.text.guesses import Guesses, shared_out
from aios.drivers.cores.text.sampling import Logits
from aios.drivers.cores.text.searches import Searches
from aios.drivers.cores.text.speaker import Grant, Speaker, plan
from aios.drivers.cores.text.template import Template
from aios.errors import AiosError, ContextOverflow, CoreFailed, CoreRefused, InvalidCall
from aios.ports import Abilities, Admitted, Frozen, Paged, Prompt, Slice, SliceResult
from aios.ports import Residency as Report

SMALL = 63  # tokens in a small batch, at most: one more and attention works in tiles
NEVER = 1 << 30  # beyond every position
UNSPLIT_CELLS = 256  # up to this many cells attention looks at fewer than 512

Done = tuple[int, SliceResult | AiosError]
Row = tuple[int, int, int, int, int]  # cell, token, position, id; the first position wanted


class _Part:
    """What a sequence has in a small batch: its next positions' cells, the last ones guessed."""

    __slots__ = ("cells", "end", "guesses", "is_decode", "s", "start")

    def __init__(self, s: Sequence, cells: list[int], guesses: list[int]) -> None:
        self.s, self.cells, self.guesses = s, cells, guesses
        self.start = s.computed
        self.end = self.start + len(cells)
        self.is_decode = s.pending == 1 and bool(s.made)

    def rows(self) -> list[Row]:
        s = self.s
        tokens = [s.token(p) for p in range(self.start, self.end - len(self.guesses))]
        positions = range(self.start, self.end)
        return [
            (cell, token, position, s.id or 0, s.length - 1)
            for cell, token, position in zip(
                self.cells, tokens + self.guesses, positions, strict=True
            )
        ]


class _BranchPart:
    """What a beam search has in a small batch: a step, or a run whose KV is computed once more."""

    __slots__ = ("branches", "cells", "is_step", "run", "s")

    def __init__(
        self, s: Sequence, branches: Branches, cells: list[int], run: Run, *, is_step: bool
    ) -> None:
        self.s, self.branches, self.cells = s, branches, cells
        self.run, self.is_step = run, is_step

    def rows(self) -> list[Row]:
        ids, tokens = self.branches.ids, self.branches.search.tokens
        first, wanted_from = (None, 0) if self.is_step else (ids[self.run.places[0]], NEVER)
        return [
            (
                cell,
                tokens[node],
                self.s.position(node),
                ids[at] if first is None else first,
                wanted_from,
            )
            for at, (cell, node) in enumerate(zip(self.cells, self.run.nodes, strict=True))
        ]


def _next_run(branches: Branches) -> tuple[Run, bool]:
    """What a search computes next: what is missing of its KV, else (True) a step."""
    if missing := branches.missing(SMALL):
        return missing, False
    living = tuple(branches.search.living)
    return Run(living, tuple(range(len(living)))), True


class Engine:
    """One model, one context, many sequences."""

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        slots: int,
        threads: int,
        cells: int,
        ram_bytes: int,
        context_tokens: int | None = None,
        disk: Path | None = None,
        disk_bytes: int = 0,
        share: bool = True,
    ) -> None:
        self.model = Model(path)
        blocks = max(cells // BLOCK, 8)
        self._context = Context(self.model, blocks * BLOCK, threads)
        self._threads = threads
        self.residency = Residency(
            self._context, blocks, ram_bytes, Disk(disk, disk_bytes), share=share
        )
        window = min(self.model.trained_window, blocks * BLOCK, context_tokens or 1 << 30)
        self.abilities = Abilities(name, slots, window, cells=blocks * BLOCK, beams=MOST)
        self._template = Template(
            self.model.chat_template,
            self.model.bos_text,
            self.model.eos_text,
            self.model.control_texts,
        )
        self._speaker = Speaker(self.model.piece, self._spelling, self.model.is_end)
        self._searches = Searches(self._speaker.piece, self._speaker.is_end)
        self._grammars: Grammars | None = None  # takes a fifth of a second: made when first needed
        self._measured: tuple[object, Many[int]] = (None, ())  # the last prompt, and its tokens
        self._orders = counter()
        self._granted: dict[int, Sequence] = {}  # in the order of their grants
        self._ended: list[Done] = []  # outside a turn
        self.watch: Callable[[int, int, Logits], None] | None = None
        """Called with a sequence, the position a token is chosen for, and the model's logits."""

    def __repr__(self) -> str:
        return f"<engine {self.abilities.model}: {len(self._granted)} run, {self.residency.cells}>"

    @property
    def is_busy(self) -> bool:
        return bool(self._granted or self._ended)

    # --- beginnings -------------------------------------------------------------------------------

    def admit(self, number: int, prompt: Prompt, made: Many[int] = (), text: str = "") -> Admitted:
        """A new sequence under a number the caller chose; *made* are tokens it made before.

        *text* is what these say; without them another core made it, and it is gone on with.
        """
        if text and not made:
            if prompt.sampling.beams > 1:
                raise CoreRefused(
                    f"{self.abilities.model} cannot go on with the beam search of another core; "
                    "ask again for the whole."
                )
            made = self.model.tokenize(text, add_bos=False, special=False)
        return self.admit_tokens(number, prompt, self._tokens(prompt), made)

    def measure(self, prompt: Prompt) -> int:
        """How many tokens a prompt has."""
        return len(self._tokens(prompt))

    def _tokens(self, prompt: Prompt) -> Many[int]:
        shown = prompt.tools if prompt.tool_choice != "none" else ()
        said, tokens = self._measured
        if said != (prompt.messages, shown):  # what was measured is admitted next, as a rule
            text = self._template.render(prompt.messages, shown)
            add_bos = self.model.adds_bos and not text.startswith(self.model.bos_text or "\0")
            tokens = self.model.tokenize(text, add_bos=add_bos)
            self._measured = (prompt.messages, shown), tokens
        return tokens

    def admit_tokens(
        self, number: int, prompt: Prompt, tokens: Many[int], made: Many[int] = ()
    ) -> Admitted:
        """Likewise, with the prompt's tokens given."""
        planned = plan(prompt, len(tokens), self.abilities, self.model.tokens, self._matchers)
        s = Sequence(number, prompt, tuple(tokens), *planned)
        if prompt.sampling.beams > 1:
            s.branches = self._searches.begin(s, Branches, made)
        else:
            for token in made:
                self._speaker.accept(s, token)
            s.answer.take()  # has been delivered before
        self.residency.add(s)
        return Admitted(number, len(tokens), self.residency.cached(s.tokens), s.max_tokens)

    def _matchers(self) -> Grammars:
        if self._grammars is None:
            self._grammars = Grammars(vocabulary(self.model))
        return self._grammars

    def fork(self, number: int, new: int) -> None:
        """A second sequence in the same state, under the number *new*."""
        s = self._find(number)
        twin = Sequence(
            new,
            s.prompt,
            s.tokens,
            s.max_tokens,
            s.answer.copy(),
            s.matcher.deep_copy() if s.matcher else None,
        )
        twin.made, twin.reason = [*s.made], s.reason
        twin.branches = s.branches.copy() if s.branches else None
        self.residency.fork(s, twin)

    def thaw(self, number: int, path: Path) -> Admitted:
        """A new sequence from a snapshot file."""
        snapshot = snapshots.read(path, snapshots.model_id(self.model.path))
        self.admit_tokens(number, snapshot.prompt, snapshot.tokens, snapshot.made)
        s = self._find(number)
        s.max_tokens = min(s.max_tokens, snapshot.max_tokens)
        if s.branches and snapshot.search:
            self._searches.revive(s, s.branches, snapshot.search)
        self.residency.give_image(s, snapshot.kv, snapshot.computed, snapshot.parts)
        return Admitted(number, len(s.tokens), snapshot.computed, s.max_tokens)

    # --- slices -----------------------------------------------------------------------------------

    def run(self, number: int, grant: Slice) -> None:
        """Grant a slice; a later turn hands back its result."""
        s = self._find(number)
        if s.grant is not None:
            raise InvalidCall(f"sequence {number} holds a slice already; one at a time.")
        s.grant = Grant(max(1, grant.decode_tokens), next(self._orders))
        self._granted[number] = s

    def turn(self) -> list[Done]:
        """Advance every sequence that holds a slice by one step; the slices that are over."""
        self.residency.turn += 1
        done, self._ended = self._ended, []
        for s in [*self._granted.values()]:
            if (
                s.reason
                or s.is_cancelled
                or (s.branches and self._searches.hand_out(s, s.branches))
            ):
                done.append(self._end_slice(s))
        self.residency.tidy()
        return done + self._compute()

    def _compute(self) -> list[Done]:
        done: list[Done] = []
        small: list[Sequence] = []
        for s in [*self._granted.values()]:
            if not self._is_here(s):
                continue
            if len(s.tokens) - s.computed < BLOCK:
                small.append(s)
            elif self._chunk(s):
                done.append(self._end_slice(s))
        batches = self._batches(small)
        for batch in batches:
            done += self._small(batch)
        if not done and not batches and self._granted:
            done.append(self._give_up(next(iter(self._granted.values()))))
        return done

    def _is_here(self, s: Sequence) -> bool:
        """Brings what is anywhere of its KV into the cells; False if there is no room now."""
        is_whole = s.id is not None and not s.is_prefilling and not (s.branches and s.image)
        if not is_whole and not self.residency.bring(s):
            return False
        return s.branches is None or s.is_prefilling or self.residency.spread(s, s.branches)

    def _batches(self, small: list[Sequence]) -> list[list[_Part | _BranchPart]]:
        """What is pending of these, and guesses, in batches that are small enough."""
        wishes = [self._guess(s) for s in small]
        branching = {
            s.number: _next_run(s.branches) for s in small if s.branches and not s.is_prefilling
        }
        rows = [
            len(branching[s.number][0].nodes) if s.number in branching else s.pending for s in small
        ]
        shares = shared_out(sum(rows), [len(wish) for wish in wishes])
        batches: list[list[_Part | _BranchPart]] = []
        size = SMALL
        for s, own, wish, share in zip(small, rows, wishes, shares, strict=True):
            count = min(own, SMALL) + share
            if s.id is None or (cells := self.residency.grow(s, count)) is None:
                continue  # paged out for one before it, or no room left
            if size + count > SMALL:
                batches.append([])
                size = 0
            if s.branches and s.number in branching:
                run, is_step = branching[s.number]
                batches[-1].append(_BranchPart(s, s.branches, cells, run, is_step=is_step))
            else:
                batches[-1].append(_Part(s, cells, wish[:share]))
            size += count
        return batches

    def _chunk(self, s: Sequence) -> bool:
        """Compute one full chunk of a prompt; False if there is no room for it now."""
        cells = self.residency.grow(s, BLOCK)
        if cells is None:
            return False
        assert s.id is not None
        assert s.grant is not None
        start, end = s.computed, s.computed + BLOCK
        is_last = end == s.length
        self.residency.cells.open(cells)
        self._context.decode(
            s.tokens[start:end], range(start, end), s.id, (BLOCK - 1,) if is_last else ()
        )
        s.computed = end
        self.residency.promote(s)
        s.grant.prefilled += BLOCK
        if is_last:
            self._sample(s, self._context.logits(BLOCK - 1))
        return True

    def _guess(self, s: Sequence) -> list[int]:
        """Tokens that may follow the pending one; a schema often leaves no choice."""
        assert s.grant is not None
        left = min(s.grant.wanted - len(s.grant.tokens), s.max_tokens - len(s.made))
        if s.pending != 1 or not s.made or left <= 1:
            return []
        if s.matcher:
            forced: list[int] = s.matcher.compute_ff_tokens()
            return forced[: min(left - 1, BLOCK // 4)]
        if s.guesses is None:
            s.guesses = Guesses((*s.tokens, *s.made))
        return s.guesses.next(left - 1)

    def _small(self, parts: list[_Part | _BranchPart]) -> list[Done]:
        """Compute a batch of everything small, in the order of cells, and sample."""
        rows = sorted(row for part in parts for row in part.rows())
        cells, row_tokens, positions, ids, lasts = zip(*rows, strict=True)
        self.residency.cells.open(cells)
        is_whole = self.residency.cells.mark <= UNSPLIT_CELLS
        self._context.set_single_threads(self._threads if is_whole else 1)
        wanted = [row for row, last in enumerate(lasts) if positions[row] >= last]
        self._context.decode(row_tokens, positions, ids, wanted)
        row_of = {cells[row]: row for row in wanted}
        done: list[Done] = []
        for part in parts:
            if isinstance(part, _BranchPart):
                done += self._take_branches(part, part.branches, row_of)
            else:
                done += self._take(part, row_of)
        return done

    def _take(self, part: _Part, row_of: dict[int, int]) -> list[Done]:
        """Sample what a part of a batch has come to; its slice, if that is over."""
        s = part.s
        assert s.grant is not None
        s.computed = part.end - len(part.guesses)
        if s.computed == s.length:
            self._sample(s, self._context.logits(row_of[s.cells[s.computed - s.base - 1]]))
        for guess in part.guesses:
            if s.reason or s.made[-1] != guess:
                break
            s.computed += 1
            self._sample(s, self._context.logits(row_of[s.cells[s.computed - s.base - 1]]))
        if s.computed < part.end:
            self.residency.shrink(s, part.end - s.computed)
        if not part.is_decode:
            s.grant.prefilled += len(part.cells)
        is_over = not part.is_decode or s.reason or len(s.grant.tokens) >= s.grant.wanted
        return [self._end_slice(s)] if is_over else []

    def _take_branches(
        self, part: _BranchPart, branches: Branches, row_of: dict[int, int]
    ) -> list[Done]:
        """Choose after a step. What is only repeated ends slices by the chunk, as a prompt does."""
        s, grant, count = part.s, part.s.grant, len(part.cells)
        assert grant is not None
        if not part.is_step:
            self.residency.settle(s, branches, part.run, part.cells)
            grant.prefilled += count
            return [self._end_slice(s)]
        branches.cells.update(zip(part.run.nodes, part.cells, strict=True))
        is_repeated = bool(branches.again)
        self._step(s, branches, [self._context.logits(row_of[cell]) for cell in part.cells])
        if is_repeated:
            grant.prefilled += count
            is_over = grant.prefilled >= BLOCK or not branches.again
        else:
            is_over = self._searches.hand_out(s, branches)
        return [self._end_slice(s)] if is_over else []

    def _step(self, s: Sequence, branches: Branches, logits: list[Logits]) -> None:
        if self.watch:
            for row in logits:
                self.watch(s.number, len(s.tokens) + branches.search.steps, row)
        self.residency.regroup(s, branches, self._searches.step(s, branches, logits))

    def _sample(self, s: Sequence, logits: Logits) -> None:
        if s.branches:
            if not s.branches.search.steps:  # the prompt is in; else it was computed once more
                self._step(s, s.branches, [logits])
                self._searches.hand_out(s, s.branches)
            return
        assert s.grant is not None
        if self.watch:
            self.watch(s.number, s.length, logits)
        self._speaker.sample(s, s.grant, logits)

    def _end_slice(self, s: Sequence) -> Done:
        """Take the grant back; what its slice did."""
        grant, s.grant = s.grant, None
        assert grant is not None
        del self._granted[s.number]
        s.used_at = self.residency.turn
        return s.number, self._speaker.result(s, grant)

    def _give_up(self, s: Sequence) -> Done:
        """The first in line cannot go on although all others made way."""
        need = s.length + (len(s.branches.cells) if s.branches else 0)
        del self._granted[s.number]
        s.grant = None
        return s.number, ContextOverflow(
            f"{need} tokens do not fit into the {self.abilities.cells} cells of "
            f"{self.abilities.model}; raise core.cells."
        )

    def _spelling(self, token: int) -> str:
        return self.model.piece(token, special=True).decode("utf-8", "replace")

    # --- what may happen between slices -----------------------------------------------------------

    def cancel(self, number: int) -> None:
        """End it at the next turn, or in the next slice it gets."""
        self._find(number).is_cancelled = True

    def page_out(self, number: int) -> Paged:
        s = self._find_idle(number, "paged out")
        return Paged(self.residency.page_out(s))

    def page_in(self, number: int) -> Paged:
        s = self._find(number)
        size = s.image.state.size if s.image and s.id is None else 0
        self.residency.bring(s)
        return Paged(size if s.image is None else 0)

    def freeze(self, number: int, path: Path) -> Frozen:
        s = self._find_idle(number, "frozen")
        self.residency.bring(s)
        kv, computed, parts = self.residency.image(s)
        model = snapshots.model_id(self.model.path)
        kept, length = None, s.length
        if s.branches:
            kept = self._searches.keep(s.branches)
            length = len(s.tokens) + s.branches.search.steps
        made = () if s.branches else tuple(s.made)
        snapshot = snapshots.Snapshot(
            s.prompt, s.tokens, made, s.max_tokens, computed, kv, parts, kept
        )
        return Frozen(model, length, snapshots.write(path, model, snapshot))

    def release(self, number: int) -> None:
        """Forget it; a slice in progress ends as cancelled; idempotent."""
        s = self.residency.sequences.get(number)
        if s is None:
            return
        if s.grant is not None:
            s.is_cancelled = True
            self._ended.append(self._end_slice(s))
        self.residency.remove(s)

    def report(self) -> Report:
        residency = self.residency
        return Report(
            cells_used=residency.cells_used,
            cells_total=residency.cells.total,
            ram_used=residency.needed(in_ram=True),
            ram_limit=residency.ram_limit,
            disk_used=residency.needed(in_ram=False),
            disk_limit=residency.disk.limit,
            sequences=len(residency.sequences),
        )

    def check(self) -> list[str]:
        """Invariants, in numbers; empty when all hold."""
        return self.residency.check()

    def close(self) -> None:
        self.residency.disk.close()
        self._context.close()
        self.model.close()

    def _find(self, number: int) -> Sequence:
        s = self.residency.sequences.get(number)
        if s is None:
            raise CoreFailed(f"the core has no sequence {number}; admit its prompt again.")
        return s

    def _find_idle(self, number: int, what: str) -> Sequence:
        s = self._find(number)
        if s.grant is not None:
            raise InvalidCall(f"sequence {number} holds a slice and cannot be {what} now.")
        return s


def load(*, path: str, disk: str | None = None, **options: Any) -> Engine:
    """An engine, for the worker: *options* as Engine takes them."""
    return Engine(Path(path), disk=Path(disk) if disk else None, **options)
