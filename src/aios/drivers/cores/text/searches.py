"""Beam searches: what each step chooses, what is handed out of it, and what is said.

The choices are made in ``beams``, the KV lies where the engine's own branches put it, and the
engine computes. A step's choices are handed out one by one, each a token that is paid for; one
that is more than a slice may take is handed out over several. Only when all of a step is handed out
(and so, before it is shown, in the kernel's journal) are the tokens said that all hypotheses agree
on. A search that was handed out in an earlier life takes the same choices again; it says nothing
until it is as far as it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import msgspec
from msgspec import Struct

from aios.abi.messages import FinishReason
from aios.drivers.cores.text.answer import Answer
from aios.drivers.cores.text.beams import (
    Choice,
    Search,
    advance,
    choose,
    complete,
    log_probabilities,
    pack,
    unpack,
)
from aios.drivers.cores.text.sampling import Logits, masked
from aios.ports import Prompt


class Said(NamedTuple):
    """What one beam has said: looked at for stop strings, and for what the schema lets follow."""

    answer: Answer | None
    matcher: Any

    def copy(self) -> Said:
        return Said(
            self.answer.copy() if self.answer else None,
            self.matcher.deep_copy() if self.matcher else None,
        )


class Hypotheses:
    """One search, and how far it was handed out and said.

    said is parallel to the living set. ``queue`` holds choices, packed, that were made and not yet
    handed out; ``again`` the steps, and ``begun`` the first choices of one more, that were handed
    out in an earlier life and are taken again. ``fed`` counts the agreed tokens that the answer
    has been fed.
    """

    def __init__(self, search: Search, said: Said) -> None:
        self.search = search
        self.said = [said]
        self.queue: list[int] = []
        self.again: deque[list[Choice]] = deque()
        self.begun: list[Choice] = []
        self.fed = 0

    def copy(self) -> Self:
        """The same search, nowhere."""
        twin = type(self)(_copy(self.search), self.said[0])
        twin.said = [said.copy() for said in self.said]
        twin.queue, twin.fed = [*self.queue], self.fed
        twin.again, twin.begun = self.again.copy(), [*self.begun]
        return twin

    def news(self, node: int) -> list[int]:
        """The tokens of a node's path that the answer has not been fed."""
        path = self.search.path(node)[self.fed :]
        self.fed += len(path)
        return path


def _copy(search: Search) -> Search:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(search), type=Search)


class Sequence(Protocol):
    """What of an engine's sequence is looked at and set here."""

    prompt: Prompt
    max_tokens: int
    made: list[int]
    answer: Answer
    matcher: Any
    reason: FinishReason | None
    grant: Any


Branches = TypeVar("Branches", bound=Hypotheses)


class Kept(Struct, frozen=True):
    """A search as a snapshot keeps it: its whole tree, and the rest of ``Hypotheses``."""

    search: Search
    queue: tuple[int, ...]
    again: tuple[list[Choice], ...]
    begun: tuple[Choice, ...]
    fed: int


class Searches:
    """*piece* gives a token's bytes; *is_end* says whether a token ends a sequence's answer."""

    def __init__(self, piece: Callable[[int], bytes], is_end: Callable[[Any, int], bool]) -> None:
        self._piece, self._is_end = piece, is_end

    # --- beginnings -------------------------------------------------------------------------------

    def begin(
        self, s: Sequence, make: Callable[[Search, Said], Branches], made: Many[int] = ()
    ) -> Branches:
        """The branches of a new search; *made* are choices handed out in an earlier life."""
        sampling = s.prompt.sampling
        answer = s.answer.copy() if s.answer.may_stop else None
        matcher = s.matcher.deep_copy() if s.matcher else None
        search = Search(sampling.beams, s.max_tokens, sampling.length_penalty)
        branches = make(search, Said(answer, matcher))
        steps, branches.begun = unpack(made)
        branches.again = deque(steps)
        return branches

    def keep(self, branches: Hypotheses) -> Kept:
        b = branches
        return Kept(b.search, tuple(b.queue), tuple(b.again), tuple(b.begun), b.fed)

    def revive(self, s: Sequence, branches: Hypotheses, kept: Kept) -> None:
        """Take over what was kept; what its beams have said follows from the tree."""
        branches.search = search = kept.search
        branches.queue, branches.begun = [*kept.queue], [*kept.begun]
        branches.again = deque(kept.again)
        first = branches.said[0]
        branches.said = [first.copy() for _ in search.living]
        for said, node in zip(branches.said, search.living, strict=True):
            for token in search.path(node):
                self._say(said, token)
        self._feed(s, search.path(search.agreed())[: kept.fed])
        branches.fed = kept.fed
        s.answer.take()  # has been delivered before
        if search.is_over and not branches.queue:
            self._conclude(s, branches)

    # --- a step -----------------------------------------------------------------------------------

    def step(self, s: Sequence, branches: Hypotheses, logits: Many[Logits]) -> list[int]:
        """Choose after a row of logits for each living beam; of each beam after that its place now.

        Where nothing may follow they stay as they are.
        """
        search, said = branches.search, branches.said
        rows = [log_probabilities(row) for row in logits]
        for place, (_, matcher) in enumerate(said):
            if matcher:
                rows[place] = masked(rows[place], matcher.compute_bitmask())
        is_repeated = bool(branches.again)
        if is_repeated:
            choices = branches.again.popleft()
        else:
            choices = choose(search, rows, lambda place, token: self._ends(s, said[place], token))
            choices = complete(choices, branches.begun, search.width)
            branches.queue = pack(choices)[len(branches.begun) :]
            branches.begun = []
        advance(search, choices, rows)
        living = [choice for choice in choices if not choice.ended]
        places = [choice.place for choice in living] if choices else [*range(len(said))]
        if choices:
            branches.said = [said[place].copy() for place in places]
            for one, choice in zip(branches.said, living, strict=True):
                self._say(one, choice.token)
        if not branches.queue:
            self._agree(s, branches)
        if is_repeated:
            s.answer.take()  # has been delivered before
        return places

    def hand_out(self, s: Sequence, branches: Hypotheses) -> bool:
        """Hand out choices as far as the grant goes; is its slice over?"""
        grant = s.grant
        assert grant is not None
        count = grant.wanted - len(grant.tokens)
        if branches.queue:
            grant.tokens += branches.queue[:count]
            del branches.queue[:count]
            if not branches.queue:
                self._agree(s, branches)
        return s.reason is not None or len(grant.tokens) >= grant.wanted

    def _ends(self, s: Sequence, said: Said, token: int) -> bool:
        """Does nothing follow this token of a beam?"""
        if self._is_end(s, token):
            return True
        if not any(said):
            return False
        answer, matcher = then = said.copy()
        self._say(then, token)
        return bool((matcher and matcher.is_stopped()) or (answer and answer.is_stopped))

    # --- what is said -----------------------------------------------------------------------------

    def _say(self, said: Said, token: int) -> None:
        if said.answer:
            said.answer.feed(self._piece(token))
        if said.matcher:
            said.matcher.consume_token(token)

    def _agree(self, s: Sequence, branches: Hypotheses) -> None:
        """Say what all hypotheses agree on, all of which has been handed out."""
        if branches.search.is_over:
            self._conclude(s, branches)
        else:
            self._feed(s, branches.news(branches.search.agreed()))

    def _conclude(self, s: Sequence, branches: Hypotheses) -> None:
        """The search is over: its best hypothesis is the answer."""
        search = branches.search
        best = search.best()
        if s.matcher and search.finished:
            best = search.finished[0]  # half a value is worth nothing, however likely
        s.made = search.path(best)
        self._feed(s, branches.news(best))
        is_cut = best not in search.finished and search.steps >= search.limit
        s.reason = "length" if is_cut else "stop"

    def _feed(self, s: Sequence, tokens: Many[int]) -> None:
        for token in tokens:
            if not self._is_end(s, token):
                s.answer.feed(self._piece(token))
