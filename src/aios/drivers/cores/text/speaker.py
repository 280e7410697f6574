"""How a prompt becomes a generation, and rows of logits an answer: the same in every engine.

An engine computes logits and knows where KV states lie; what is made of the logits is here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Any, NamedTuple, Protocol

from aios.abi.messages import FinishReason, TokenLogprob
from aios.drivers.cores.text.answer import Answer
from aios.drivers.cores.text.grammar import Grammars, call_schema, dead_end
from aios.drivers.cores.text.guesses import Guesses
from aios.drivers.cores.text.sampling import Logits, check_bias, choose, logprobs, masked
from aios.drivers.cores.text.searches import Hypotheses
from aios.errors import ContextOverflow, InvalidCall
from aios.ports import Abilities, Prompt, SliceResult


class Grant:
    """A slice in progress: how many tokens it may decode, and what it has done."""

    __slots__ = ("logprobs", "order", "prefilled", "tokens", "wanted")

    def __init__(self, wanted: int, order: int) -> None:
        self.wanted, self.order = wanted, order
        self.prefilled = 0
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []


class Sequence(Protocol):
    """What of an engine's sequence is looked at and set here."""

    prompt: Prompt
    max_tokens: int
    made: list[int]
    answer: Answer
    matcher: Any
    reason: FinishReason | None
    guesses: Guesses | None
    is_cancelled: bool

    @property
    def tokens(self) -> Many[int]: ...

    @property
    def branches(self) -> Hypotheses | None: ...

    @property
    def occupied(self) -> int: ...


class Plan(NamedTuple):
    """What a prompt asks of a generation: tokens at most, what it says, what its schema allows."""

    max_tokens: int
    answer: Answer
    matcher: Any


def plan(
    prompt: Prompt,
    length: int,
    abilities: Abilities,
    vocabulary: int,
    grammars: Callable[[], Grammars],
) -> Plan:
    """For a prompt of so many tokens; InvalidCall or ContextOverflow if it cannot be answered."""
    window, sampling = abilities.context_tokens, prompt.sampling
    if not 0 < length < window:
        raise ContextOverflow(
            f"the prompt has {length} tokens, but the window of {abilities.model} is {window}; "
            "shorten the messages."
        )
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise InvalidCall(f"max_tokens must be at least 1, not {sampling.max_tokens}.")
    check_bias(sampling, vocabulary, abilities.model)
    if sampling.beams > abilities.beams:
        raise InvalidCall(f"beams must be at most {abilities.beams}, not {sampling.beams}.")
    forced = bool(prompt.tools) and prompt.tool_choice not in ("auto", "none")
    names = tuple(tool.name for tool in prompt.tools) if prompt.tool_choice != "none" else ()
    schema = call_schema(prompt.tools, prompt.tool_choice) if forced else prompt.schema
    return Plan(
        min(sampling.max_tokens or window, window - length),
        Answer(() if forced else sampling.stop, names, forced=forced),
        grammars().matcher(schema) if schema is not None else None,
    )


class Speaker:
    """*piece* is what a token says (nothing, if it is a control token), *shown* how it is spelt;
    *ends* whether it ends an answer."""

    def __init__(
        self,
        piece: Callable[[int], bytes],
        shown: Callable[[int], str],
        ends: Callable[[int], bool],
    ) -> None:
        self._of, self._shown, self._ends = piece, shown, ends
        self._pieces: dict[int, bytes] = {}

    def piece(self, token: int) -> bytes:
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self._of(token)
        return found

    def is_end(self, s: Any, token: int) -> bool:
        """Does this token end the answer of this sequence?"""
        is_ignored = s.prompt.sampling.ignore_end and not s.matcher
        return not is_ignored and self._ends(token)

    def sample(self, s: Sequence, grant: Grant, logits: Logits) -> None:
        """Choose the next token."""
        sampling = s.prompt.sampling
        allowed = masked(logits, s.matcher.compute_bitmask()) if s.matcher else logits
        token = choose(allowed, sampling, len(s.made))
        grant.tokens.append(token)
        if sampling.logprobs is not None:
            own, best = logprobs(logits, token, sampling.logprobs)
            top = tuple((self._shown(other), value) for other, value in best)
            grant.logprobs.append(TokenLogprob(self._shown(token), own, top))
        self.accept(s, token)

    def accept(self, s: Sequence, token: int) -> None:
        """One more token was made."""
        s.made.append(token)
        if self.is_end(s, token):
            s.answer.end()
            s.reason = "stop"
            return
        s.answer.feed(self.piece(token))
        if s.guesses:
            s.guesses.add(token)
        if s.matcher:
            s.matcher.consume_token(token)
        is_matched = s.matcher is not None and s.matcher.is_stopped()
        if s.answer.is_stopped or is_matched:
            s.reason = "stop"
        elif len(s.made) >= s.max_tokens:
            s.reason = "length"

    def result(self, s: Sequence, grant: Grant) -> SliceResult | InvalidCall:
        """What a slice did, now that it is over."""
        said = [one.matcher for one in s.branches.said] if s.branches else [s.matcher]
        if broken := [matcher for matcher in said if matcher and matcher.is_error()]:
            return dead_end(broken[0])
        reason: FinishReason | None = "cancelled" if s.is_cancelled else s.reason
        if reason:
            s.reason = reason
            s.answer.end()
            text, calls = s.answer.finish(_identity(s))
        else:
            text, calls = s.answer.take(), ()
        return SliceResult(
            prefilled=grant.prefilled,
            tokens=tuple(grant.tokens),
            text=text,
            logprobs=tuple(grant.logprobs),
            tool_calls=calls,
            finish_reason="tool_calls" if calls and reason == "stop" else reason,
            cells=s.occupied,
        )


def _identity(s: Sequence) -> str:
    """The same for the same tokens: ids of tool calls are made of it."""
    text = ",".join(map(str, (*s.tokens, -1, *s.made)))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
