"""What is said to a model and what it says back."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
Effect = Literal["none", "idempotent", "once"]


class ToolUse(Struct, frozen=True):
    """A model's wish to have a tool called; ``arguments`` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation; what is pinned no strategy takes out of its context."""

    role: Role
    content: str = ""
    name: str | None = None
    tool_calls: tuple[ToolUse, ...] = ()
    tool_call_id: str | None = None
    pinned: bool = False


class ToolSpec(Struct, frozen=True, omit_defaults=True):
    """A tool as a model and the kernel see it; ``parameters`` is a JSON Schema object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    effect: Effect = "once"


class Sampling(Struct, frozen=True, omit_defaults=True):
    """How the next token is chosen.

    temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off; max_tokens None means what the
    window leaves; logprobs is how many alternatives to report for each token (None: none at all,
    0: only the chosen one); ignore_end keeps going past the end-of-text token (benchmarks); drawn
    says that the kernel chose the seed.

    beams (1: off) is how many hypotheses a beam search keeps; the answer is the best one's text, by
    sum of log probabilities / length ** length_penalty. It needs temperature 0 and gives no
    logprobs. Every hypothesis's tokens cost: they count as made, against budgets and in usage;
    max_tokens is the length of each. Text is shown as far as all hypotheses agree, the rest at the
    end.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_end: bool = False
    drawn: bool = False
    beams: int = 1
    length_penalty: float = 1.0


class TokenLogprob(Struct, frozen=True):
    """A token's text and natural log probability; ``top`` holds (text, logprob), best first."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Usage(Struct, frozen=True):
    """What was spent: tokens, slices, and seconds of waiting (queued) and running (on a core)."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    calls: int = 0
    slices: int = 0
    preemptions: int = 0
    waiting_s: float = 0.0
    running_s: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(  # written out: it is on the path of every slice
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.calls + other.calls,
            self.slices + other.slices,
            self.preemptions + other.preemptions,
            self.waiting_s + other.waiting_s,
            self.running_s + other.running_s,
        )


class Delta(Struct, frozen=True, omit_defaults=True):
    """What one slice added to a reply."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolUse, ...] = ()
    finish_reason: FinishReason | None = None
