"""The engine: a loop of turns, each a few forward passes for every sequence that holds a slice.

A turn: cancel what was cancelled; compute one chunk for each sequence whose prompt is not in yet;
then one batch of everything small (one new token for each of the others); sample; hand back the
slices that are done. No asyncio here; the worker calls it.

A forward pass is one row of tokens through the model, position ids and all, with no mask and no
cache of the library's own: ``attention`` keeps the rows of different sequences apart.

Exactness. The same prompt and sampling give the same bits alone, batched, preempted, paged out,
recomputed and restored, because each position is always computed by the same arithmetic. The bits
of a matrix product depend on its number of rows (on how many are left over by the four or eight
that a kernel takes at once, on how many threads share them), but in a product of one shape not on
which row it is and what the other rows are. So there are few shapes:
- a prompt is computed in chunks of 64 on a grid of 64 positions, each by itself, 64 rows; the last
  may be padded to fewer, which follows from the prompt's length (``sequences.WIDTHS``). Four of
  them make one pass where that was found to give the same bits (``_packs``);
- all else goes in batches of ``rows`` rows, padded, and each row is attended by itself.
Likewise the head of the model always gets ``rows`` rows. Whether that holds here is asked at the
start (``_probe``): the same tokens at other rows of a batch must give the same bits, else the
engine says that its snapshots are not exact.

Padding makes a lone sequence pay for rows it has no use for; guesses (``text.guesses``) fill some.
With *deterministic* off a turn is one pass of everything that is wanted, as long as that is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from itertools import count as counter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from llguidance.hf import from_tokenizer

from aios.drivers.cores.kept import snapshots
from aios.drivers.cores.kept.disk import Disk
from aios.drivers.cores.text.beams import MOST
from aios.drivers.cores.text.grammar import Grammars
from aios.drivers.cores.text.guesses import Guesses
from aios.drivers.cores.text.sampling import Logits
from aios.drivers.cores.text.searches import Searches
from aios.drivers.cores.text.speaker import Grant, Speaker, plan
from aios.drivers.cores.text.template import Template
from aios.drivers.cores.transformers.attention import Segment, Step, attach
from aios.drivers.cores.transformers.branches import Branches
from aios.drivers.cores.transformers.cells import BLOCK, Cells, Kv, Layout, bytes_per_token
from aios.drivers.cores.transformers.experts import NAME as EXPERTS
from aios.drivers.cores.transformers.loading import fingerprint, first_line
from aios.drivers.cores.transformers.residency import Residency
from aios.drivers.cores.transformers.sequences import WIDTHS, Sequence
from aios.errors import AiosError, ContextOverflow, CoreFailed, CoreRefused, InvalidCall, SetupError
from aios.ports import Abilities, Admitted, Frozen, Paged, Prompt, Slice, SliceResult
from aios.ports import Residency as Report

ROW_GROUP = 8  # rows of a small batch are a multiple of this
MOST_ROWS = 56  # below a chunk's 64
KV_SHARE = 0.5  # of the memory that the weights leave is for cells; the rest is for computing
PACKED = 4  # chunks in one pass
PROBE = 6  # rows that the probe at the start computes after a chunk
LIKENESS = 0.95  # of our logits to those of the model by itself, at least (correlation)

T = TypeVar("T")

Done = tuple[int, SliceResult | AiosError]


class _Part:
    """What a sequence has in a forward pass: its next positions, the last ones guessed."""

    __slots__ = ("count", "guesses", "is_decode", "row", "s", "start")

    def __init__(self, s: Sequence, count: int, guesses: list[int]) -> None:
        self.s, self.count, self.guesses = s, count + len(guesses), guesses
        self.start = s.computed
        self.row = 0  # where its rows begin
        self.is_decode = s.pending == 1 and bool(s.made)

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def tokens(self) -> list[int]:
        known = range(self.start, self.end - len(self.guesses))
        return [self.s.token(position) for position in known] + self.guesses

    @property
    def positions(self) -> Iterable[int]:
        return range(self.start, self.end)

    @property
    def chosen_at(self) -> Iterable[int]:
        """The rows after which a token is chosen."""
        return range(self.row + max(0, self.s.length - 1 - self.start), self.row + self.count)

    def segments(self, width: int) -> list[Segment]:
        """*width* is how many rows it is padded to, if it is attended in one piece."""
        assert self.s.kv.tensors is not None
        return [Segment(self.s.kv.tensors, self.row, self.start, max(width, self.count))]


class _BranchPart:
    """What a beam search has: a step, one row a beam; or a part of a path, computed once more."""

    __slots__ = ("branches", "is_step", "kvs", "row", "s", "starts", "tokens")

    def __init__(self, s: Sequence, branches: Branches, kvs: list[Kv], tokens: list[int]) -> None:
        self.s, self.branches, self.kvs, self.tokens = s, branches, kvs, tokens
        self.is_step = kvs is branches.kvs
        self.starts = [kv.length for kv in kvs]
        self.row = 0

    @property
    def count(self) -> int:
        return len(self.tokens)

    @property
    def positions(self) -> Iterable[int]:
        return self.starts if self.is_step else range(self.starts[0], self.starts[0] + self.count)

    @property
    def chosen_at(self) -> Iterable[int]:
        return range(self.row, self.row + self.count) if self.is_step else ()

    def segments(self, _: int) -> list[Segment]:
        each = self.count // len(self.kvs)
        return [
            Segment(kv.tensors, self.row + place, start, each)
            for place, (kv, start) in enumerate(zip(self.kvs, self.starts, strict=True))
            if kv.tensors
        ]


class Engine:
    """One model, many sequences."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        *,
        slots: int,
        ram_bytes: int,
        context_tokens: int | None = None,
        cells: int | None = None,
        disk: Path | None = None,
        disk_bytes: int = 0,
        deterministic: bool = True,
        share: bool = True,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._is_deterministic = deterministic
        self._rows = min(MOST_ROWS, -(-slots // ROW_GROUP) * ROW_GROUP)
        # over several devices the hooks of accelerate move what is passed to the first one, which
        # need not be where the rows are to be kept: then the head computes all of them
        devices = set(getattr(model, "hf_device_map", {"": 0}).values())
        takes_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._keeps_rows = takes_rows and len(devices) == 1
        self._now = attach(model)
        self._has_experts = any("expert" in name.lower() for name, _ in model.named_modules())
        if deterministic and self._has_experts and model._can_set_experts_implementation():
            model.set_experts_implementation(EXPERTS)
        self._input = model.get_input_embeddings().weight.device
        if self._input.type == "meta":  # offloaded: the hooks move what they get
            self._input = torch.device("cpu")
        window = min(_trained_window(model.config), context_tokens or 1 << 30)
        layout = _asked(name, model, self._layout)
        total = _total(layout, min(cells or 1 << 40, slots * _blocks(window) * BLOCK))
        pool = Cells(layout, total)
        self.residency = Residency(pool, ram_bytes, Disk(disk, disk_bytes), share=share)
        self._model_id = fingerprint(model)
        is_exact = _asked(name, model, self._probe) and deterministic
        self._packed = self._packs() if deterministic else frozenset()
        self.abilities = Abilities(
            name,
            slots,
            min(window, total),
            cells=total,
            exact_snapshots=is_exact,
            beams=min(MOST, self._rows),
        )
        # a model may have logits for more than there are, to round their number up
        self._known = max(tokenizer.get_vocab().values()) + 1
        self._vocabulary = from_tokenizer(
            tokenizer, n_vocab=self._known, eos_token=self._ends() or None
        )
        self._grammars = Grammars(self._vocabulary)
        bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
        self._bos = (bos, tokenizer.bos_token_id)
        self._adds_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        added = tokenizer.added_tokens_decoder
        self._control = {number for number, token in added.items() if token.special}
        spelt = tuple(str(token) for token in added.values() if token.special)
        self._template = Template(_chat_template(tokenizer), bos, eos, spelt)
        ends = frozenset(self._ends())
        self._speaker = Speaker(self._piece, self._spelling, ends.__contains__)
        self._searches = Searches(self._speaker.piece, self._speaker.is_end)
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

    # --- the model --------------------------------------------------------------------------------

    def _layout(self, name: str) -> Layout:
        """What the layers' keys and values are, asked of the model."""
        self._forward([0], [0], None, [0])
        if not self._now.layout:
            raise SetupError(
                f"{name} is a model whose attention aios cannot reach "
                f"({self.model.config.model_type}); choose a plain transformer."
            )
        return dict(sorted(self._now.layout.items()))

    def _forward(
        self, tokens: Many[int], positions: Many[int], step: Step | None, keep: Many[int]
    ) -> Any:
        """Logits after the rows *keep*, shape (rows kept, vocabulary)."""
        self._now.step = step
        with torch.inference_mode():
            rows = torch.tensor(keep, dtype=torch.long, device=self._input)
            logits = self.model(
                input_ids=torch.tensor([tokens], device=self._input),
                position_ids=torch.tensor([positions], device=self._input),
                use_cache=False,
                **({"logits_to_keep": rows} if self._keeps_rows else {}),
            ).logits[0]
            return logits if self._keeps_rows else logits[rows.to(logits.device)]

    def _probe(self, name: str) -> bool:
        """Compare with the model by itself; does a row's place in its batch leave its bits alone?

        A model that keeps a state of which attention knows nothing (recurrent layers, layers that
        borrow the keys of others) gives other logits here, and is refused.
        """
        tokens = [3 + 7 * i % 61 for i in range(BLOCK + PROBE)]
        ours, moved = (self._probed(tokens, first) for first in (0, ROW_GROUP - PROBE))
        self.model.set_attn_implementation("eager")
        theirs = self._forward(tokens, range(len(tokens)), None, range(BLOCK, BLOCK + PROBE))
        self.model.set_attn_implementation("aios")
        alike = [
            float(np.corrcoef(own, other)[0, 1])
            for own, other in zip(_numpy(ours), _numpy(theirs), strict=True)
        ]
        if not np.median(alike) > LIKENESS:
            raise SetupError(
                f"{name} ({self.model.config.model_type}) keeps more than keys and values, or "
                f"attends in a way aios does not know (its logits are alike to {min(alike):.2f} "
                "only); choose a plain transformer."
            )
        return bool((ours == moved).all())

    def _packs(self) -> frozenset[int]:
        """The widths of which PACKED chunks in one pass give the bits that each gives alone.

        How a product adds up depends on its shape and not on its numbers, so what holds for these
        tokens holds for all. Experts get shapes by their numbers: nothing is said for them.
        """
        if self._has_experts:
            return frozenset()
        return frozenset(width for width in WIDTHS if self._is_packed_alike(width))

    def _is_packed_alike(self, width: int) -> bool:
        cells = self.residency.cells
        kvs = [Kv() for _ in range(2 * PACKED)]
        if not all([cells.open(kv, width) for kv in kvs]):
            for kv in kvs:
                cells.drop(kv)
            return False
        tokens = [3 + 7 * i % 61 for i in range(PACKED * width)]
        segments = [Segment(kv.tensors, 0, 0, width) for kv in kvs if kv.tensors]
        alone = []
        for place in range(PACKED):
            step = Step([segments[place]], in_one_piece=True)
            part = tokens[place * width : (place + 1) * width]
            alone.append(self._forward(part, range(width), step, [width - 1] * self._rows)[0])
        for place, segment in enumerate(segments[PACKED:]):
            segment.row = place * width
        ends = [(place + 1) * width - 1 for place in range(PACKED)]
        packed = self._forward(
            tokens,
            [*range(width)] * PACKED,
            Step(segments[PACKED:], in_one_piece=True),
            ends + [0] * (self._rows - PACKED),
        )
        is_alike = all(bool((packed[place] == alone[place]).all()) for place in range(PACKED))
        for one, other in zip(kvs[:PACKED], kvs[PACKED:], strict=True):
            is_alike &= bool((cells.read(one, 0, width) == cells.read(other, 0, width)).all())
        for kv in kvs:
            cells.drop(kv)
        return is_alike

    def _probed(self, tokens: Many[int], first: int) -> Any:
        """Logits of the last tokens in a small batch in which they begin at row *first*."""
        cells, kv = self.residency.cells, Kv()
        if not cells.open(kv, len(tokens)):
            raise SetupError(
                f"there is memory for {cells.total} tokens of context only; "
                "choose a smaller model, or let its weights take less memory."
            )
        assert kv.tensors is not None
        step = Step([Segment(kv.tensors, 0, 0, BLOCK)], in_one_piece=True)
        self._forward(tokens[:BLOCK], range(BLOCK), step, [])
        before, after = [0] * first, [0] * (self._rows - PROBE - first)
        step = Step([Segment(kv.tensors, first, BLOCK, PROBE)], in_one_piece=False)
        found = self._forward(
            [*before, *tokens[BLOCK:], *after],
            [*before, *range(BLOCK, BLOCK + PROBE), *after],
            step,
            range(self._rows),
        )
        cells.drop(kv)
        return found[first : first + PROBE]

    def _ends(self) -> list[int]:
        """The tokens that end an answer."""
        named: Any = getattr(self.model.generation_config, "eos_token_id", None)
        found = named if isinstance(named, list) else [named]
        return sorted({t for t in (*found, self.tokenizer.eos_token_id) if t is not None})

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
            made = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.admit_tokens(number, prompt, self._tokens(prompt), made)

    def measure(self, prompt: Prompt) -> int:
        """How many tokens a prompt has."""
        return len(self._tokens(prompt))

    def _tokens(self, prompt: Prompt) -> Many[int]:
        shown = prompt.tools if prompt.tool_choice != "none" else ()
        said, tokens = self._measured
        if said != (prompt.messages, shown):  # what was measured is admitted next, as a rule
            text = self._template.render(prompt.messages, shown)
            tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            bos, number = self._bos
            if self._adds_bos and not text.startswith(bos):
                tokens = [number, *tokens]
            self._measured = (prompt.messages, shown), tokens
        return tokens

    def admit_tokens(
        self, number: int, prompt: Prompt, tokens: Many[int], made: Many[int] = ()
    ) -> Admitted:
        """Likewise, with the prompt's tokens given."""
        planned = plan(
            prompt, len(tokens), self.abilities, self._vocabulary.vocab_size, lambda: self._grammars
        )
        s = Sequence(number, prompt, tuple(tokens), *planned)
        if prompt.sampling.beams > 1:
            s.branches = self._searches.begin(s, Branches, made)
        else:
            for token in made:
                self._speaker.accept(s, token)
            s.answer.take()  # has been delivered before
        self.residency.add(s)
        return Admitted(number, len(tokens), self.residency.cached(s), s.max_tokens)

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
        snapshot = snapshots.read(path, self._model_id)
        token_bytes = self.residency.cells.token_bytes
        tails = tuple(len(part.nodes) for part in snapshot.parts)
        expected = (snapshot.computed + sum(tails)) * token_bytes
        if snapshot.kv.nbytes != expected:
            raise InvalidCall(
                f"the snapshot {path} holds {snapshot.kv.nbytes} bytes of KV, this core's would be "
                f"{expected}; load the model in the dtype that it was taken in."
            )
        self.admit_tokens(number, snapshot.prompt, snapshot.tokens, snapshot.made)
        s = self._find(number)
        s.max_tokens = min(s.max_tokens, snapshot.max_tokens)
        if s.branches and snapshot.search:
            self._searches.revive(s, s.branches, snapshot.search)
        kv = snapshot.kv.copy()  # PyTorch wants memory it could write to, at an even address
        self.residency.give_image(s, kv, snapshot.computed, tails)
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
        return done + (self._compute() if self._is_deterministic else self._compute_at_once())

    def _compute(self) -> list[Done]:
        """Chunks, then small batches."""
        done: list[Done] = []
        batch: list[_Part | _BranchPart] = []
        chunks: list[_Part] = []
        has_computed = False
        waiting = [*self._granted.values()]
        left = sum(len(s.kvs) if s.branches else s.pending for s in waiting if not s.chunk)
        for s in waiting:
            if s.grant is None or not self.residency.bring(s):
                continue  # the room was made of it, or there is none
            if s.chunk and any(s.next_key and s.next_key == p.s.next_key for p in chunks):
                done += self._chunks(chunks)  # somebody is about to compute the same: adopt it
                chunks = []
                self.residency.bring(s)
            if s.chunk:
                if self.residency.open(s, s.width):
                    has_computed = True
                    chunks.append(_Part(s, s.chunk, []))
                continue
            part = self._small_part(s, max(0, self._rows - left))
            if part is None:
                continue
            if sum(p.count for p in batch) + part.count > self._rows:
                done += self._pass(batch, self._rows, in_one_piece=False)
                has_computed, batch = True, []
            left += len(part.guesses) if isinstance(part, _Part) else 0
            batch.append(part)
        done += self._chunks(chunks)
        if batch:
            has_computed = True
            done += self._pass(batch, self._rows, in_one_piece=False)
        if not done and not has_computed and self._granted:
            done.append(self._give_up(next(iter(self._granted.values()))))
        return done

    def _chunks(self, chunks: list[_Part]) -> list[Done]:
        """Those of one width packed together, as many as were asked for at the start, or alone."""
        done: list[Done] = []
        for width in WIDTHS:
            left = [part for part in chunks if part.s.width == width]
            while left:
                count = PACKED if len(left) >= PACKED and width in self._packed else 1
                done += self._pass(left[:count], width, in_one_piece=True)
                left = left[count:]
        return done

    def _compute_at_once(self) -> list[Done]:
        """Everything in one pass, as long as it is."""
        batch: list[_Part | _BranchPart] = []
        for s in [*self._granted.values()]:
            if not self.residency.bring(s):
                continue
            prompt = len(s.tokens) - s.computed
            if s.branches and not prompt:
                if part := self._branch_part(s, s.branches):
                    batch.append(part)
                continue
            count = min(BLOCK, prompt if prompt > 0 else s.pending)
            if self.residency.open(s, count):
                batch.append(_Part(s, count, []))
        if batch:
            return self._pass(batch, 0, in_one_piece=True)
        return [self._give_up(s) for s in [*self._granted.values()][:1]]

    def _small_part(self, s: Sequence, spare: int) -> _Part | _BranchPart | None:
        """Its next rows of a small batch, guesses in those that are spare; None without room."""
        if s.branches and s.computed == len(s.tokens):
            return self._branch_part(s, s.branches)
        guesses = self._guess(s)[:spare]
        count = min(s.pending, self._rows)
        if not self.residency.open(s, count + len(guesses)):
            return None
        return _Part(s, count, guesses)

    def _branch_part(self, s: Sequence, branches: Branches) -> _BranchPart | None:
        """What a search computes next: what is missing of its KV, else a step."""
        search = branches.search
        if missing := branches.missing(self.residency.cells, s.kv):
            kv, tokens = missing[0], missing[1][: self._rows]
            if self.residency.open(s, len(tokens), kv):
                return _BranchPart(s, branches, [kv], tokens)
            return None
        if all([self.residency.open(s, 1, kv) for kv in branches.kvs]):
            tokens = [search.tokens[node] for node in search.living]
            return _BranchPart(s, branches, branches.kvs, tokens)
        return None

    def _guess(self, s: Sequence) -> list[int]:
        """Tokens that may follow the pending one; a schema often leaves no choice."""
        assert s.grant is not None
        left = min(s.grant.wanted - len(s.grant.tokens), s.max_tokens - len(s.made))
        if s.pending != 1 or not s.made or left <= 1:
            return []
        if s.matcher:
            forced: list[int] = s.matcher.compute_ff_tokens()
            return forced[: left - 1]
        if s.guesses is None:
            s.guesses = Guesses((*s.tokens, *s.made))
        return s.guesses.next(left - 1)

    def _pass(
        self, parts: Many[_Part | _BranchPart], width: int, *, in_one_piece: bool
    ) -> list[Done]:
        """One forward pass of these, and what it leads to.

        It is padded to *width* rows; where each is attended in one piece, each by itself.
        """
        tokens: list[int] = []
        positions: list[int] = []
        segments: list[Segment] = []
        wanted: list[int] = []
        for part in parts:
            part.row = len(tokens)
            segments += part.segments(width if in_one_piece else 0)
            tokens += part.tokens
            positions += part.positions
            wanted += part.chosen_at
            if in_one_piece or part is parts[-1]:
                padding = [0] * (width - (len(tokens) - (part.row if in_one_piece else 0)))
                tokens += padding
                positions += padding
        head = self._rows if self._is_deterministic and wanted else 0
        keep = wanted + [0] * (head - len(wanted))
        logits = self._forward(tokens, positions, Step(segments, in_one_piece=in_one_piece), keep)
        found = _numpy(logits[: len(wanted), : self._known])
        rows = dict(zip(wanted, found, strict=True))
        done: list[Done] = []
        for part in parts:
            take = self._take if isinstance(part, _Part) else self._take_branches
            done += take(part, rows)  # type: ignore[arg-type]
        return done

    def _take(self, part: _Part, rows: dict[int, Logits]) -> list[Done]:
        """Sample what a part of a pass has come to; its slice, if that is over."""
        s = part.s
        assert s.grant is not None
        computed = part.end - len(part.guesses)

        def after(position: int) -> Logits:
            return rows[part.row + position - part.start]

        is_last = computed == s.length
        self.residency.cells.close(s.kv, part.end)
        if is_last:
            self._sample(s, after(computed - 1))
        for guess in part.guesses:
            if s.reason or s.made[-1] != guess:
                break
            computed += 1
            self._sample(s, after(computed - 1))
        self.residency.cells.close(s.kv, computed)
        if not part.is_decode:
            s.grant.prefilled += part.count
        if part.count == BLOCK and computed <= len(s.tokens) and computed % BLOCK == 0:
            self.residency.keep_chunk(s)
        is_over = not part.is_decode or s.reason or len(s.grant.tokens) >= s.grant.wanted
        return [self._end_slice(s)] if is_over else []

    def _take_branches(self, part: _BranchPart, rows: dict[int, Logits]) -> list[Done]:
        """Choose after a step. What is only repeated ends slices by the chunk, as a prompt does."""
        s, branches, grant = part.s, part.branches, part.s.grant
        assert grant is not None
        each = part.count // len(part.kvs)
        for kv, start in zip(part.kvs, part.starts, strict=True):
            self.residency.cells.close(kv, start + each)
        if not part.is_step:
            grant.prefilled += part.count
            return [self._end_slice(s)]
        is_repeated = bool(branches.again)
        self._step(s, branches, [rows[row] for row in part.chosen_at])
        if is_repeated:
            grant.prefilled += part.count
            is_over = grant.prefilled >= BLOCK or not branches.again
        else:
            is_over = self._searches.hand_out(s, branches)
        return [self._end_slice(s)] if is_over else []

    def _step(self, s: Sequence, branches: Branches, logits: list[Logits]) -> None:
        if self.watch:
            for row in logits:
                self.watch(s.number, len(s.tokens) + branches.search.steps, row)
        places = self._searches.step(s, branches, logits)
        branches.regroup(self.residency.cells, places)

    def _sample(self, s: Sequence, logits: Logits) -> None:
        if s.branches:
            if not s.branches.search.steps:  # the prompt is in; else it was computed once more
                s.branches.leave(self.residency.cells)
                s.branches.kvs = [self.residency.cells.share(s.kv)]
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
        need = sum(kv.length for kv in s.kvs) + 1
        del self._granted[s.number]
        s.grant = None
        return s.number, ContextOverflow(
            f"{need} tokens do not fit into the {self.abilities.cells} cells of "
            f"{self.abilities.model}; shorten the messages."
        )

    def _piece(self, token: int) -> bytes:
        """What a token says; nothing if it is a control token."""
        return b"" if token in self._control else self._vocabulary.decode_bytes([token])

    def _spelling(self, token: int) -> str:
        if token in self._control:
            return str(self.tokenizer.added_tokens_decoder[token])
        return self._piece(token).decode("utf-8", "replace")

    # --- what may happen between slices -----------------------------------------------------------

    def cancel(self, number: int) -> None:
        """End it at the next turn, or in the next slice it gets."""
        self._find(number).is_cancelled = True

    def page_out(self, number: int) -> Paged:
        return Paged(self.residency.page_out(self._find_idle(number, "paged out")))

    def page_in(self, number: int) -> Paged:
        s = self._find(number)
        size = s.image.state.size if s.image else 0
        self.residency.bring(s)
        return Paged(size if s.image is None else 0)

    def freeze(self, number: int, path: Path) -> Frozen:
        s = self._find_idle(number, "frozen")
        self.residency.bring(s)
        kv, tails = self.residency.image(s)
        kept, made, length = None, tuple(s.made), s.length
        parts: tuple[snapshots.Part, ...] = ()
        if s.branches:
            kept, made = self._searches.keep(s.branches), ()
            length = len(s.tokens) + s.branches.search.steps
            size = self.residency.cells.token_bytes
            parts = tuple(
                snapshots.Part(tuple(s.branches.before(place)[:tail]), tail * size)
                for place, tail in enumerate(tails)
            )
        snapshot = snapshots.Snapshot(
            s.prompt, s.tokens, made, s.max_tokens, s.computed, kv, parts, kept
        )
        return Frozen(self._model_id, length, snapshots.write(path, self._model_id, snapshot))

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
            cells_used=residency.cells.used,
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


def _asked(name: str, model: Any, question: Callable[[str], T]) -> T:
    """What a model's first forward passes tell; SetupError if they fail."""
    try:
        return question(name)
    except SetupError:
        raise
    except Exception as error:  # noqa: BLE001 - a model's own code may raise anything
        raise SetupError(
            f"{name} ({model.config.model_type}) cannot be run by aios ({first_line(error)}); "
            "choose a plain transformer, or give it more memory."
        ) from error


def _numpy(logits: Any) -> Logits:
    found: Logits = logits.float().cpu().numpy()
    return found


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)


def _trained_window(config: Any) -> int:
    """How many tokens the model was trained for; less where more would make bits depend on others.

    Rotary embeddings of some kinds change for the whole batch once one of it is long, and chunked
    attention looks back to the start of its own chunk only.
    """
    text = config.get_text_config()
    found = int(getattr(text, "max_position_embeddings", None) or 1 << 20)
    rope = getattr(text, "rope_parameters", None) or {}
    for one in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        if one.get("rope_type") in ("longrope", "dynamic"):
            found = min(found, int(one.get("original_max_position_embeddings") or found))
    return min(found, getattr(text, "attention_chunk_size", None) or found)


def _total(layout: Layout, wanted: int) -> int:
    """How many cells there are: as many as are of use, if the memory left holds them."""
    by_device: dict[Any, Layout] = {}
    for number, layer in layout.items():
        by_device.setdefault(layer.device, {})[number] = layer
    for device, part in by_device.items():
        if device.type == "cuda":
            free = int(torch.cuda.mem_get_info(device)[0])
        else:
            free = int(psutil.virtual_memory().available)
        wanted = min(wanted, int(free * KV_SHARE) // bytes_per_token(part))
    return wanted // BLOCK * BLOCK


def _chat_template(tokenizer: Any) -> str | None:
    found = tokenizer.chat_template
    return found.get("default") if isinstance(found, dict) else found
