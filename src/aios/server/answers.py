"""From our words to OpenAI's: a Generation becomes a chat completion, its deltas chunks."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from aios.abi import messages as abi
from aios.abi.calls import Generation
from aios.abi.messages import Delta, ToolUse
from aios.kernel.kernel import VERSION
from aios.server import chat
from aios.server.chat import Chunk, ChunkChoice

FINGERPRINT = f"aios-{VERSION}"


class About:
    """What all parts of one answer say."""

    def __init__(self, model: str) -> None:
        self.id = f"chatcmpl-{random.getrandbits(96):024x}"  # a name, not a secret
        self.created = int(time.time())
        self.model = model


def completion(made: Sequence[Generation], about: About) -> chat.Completion:
    return chat.Completion(
        id=about.id,
        created=about.created,
        model=made[0].model,
        choices=[_choice(index, one) for index, one in enumerate(made)],
        usage=_usage(made),
        system_fingerprint=FINGERPRINT,
    )


def _choice(index: int, made: Generation) -> chat.Choice:
    said = made.message
    calls = [_tool_call(use) for use in said.tool_calls]
    return chat.Choice(
        index=index,
        message=chat.Answer(
            content=None if calls and not said.content else said.content,
            tool_calls=calls or UNSET,
        ),
        finish_reason=_finish(made.finish_reason),
        logprobs=_logprobs(made.logprobs),
    )


def _tool_call(use: ToolUse, index: int | None = None) -> chat.ToolCallOut:
    return chat.ToolCallOut(
        id=use.id,
        function=chat.Function(use.name, use.arguments),
        index=UNSET if index is None else index,
    )


def _finish(reason: abi.FinishReason) -> chat.FinishReason:
    return "length" if reason == "cancelled" else reason  # cut short is cut short


def _logprobs(tokens: Sequence[abi.TokenLogprob]) -> chat.Logprobs | None:
    if not tokens:
        return None
    return chat.Logprobs(
        [
            chat.TokenLogprob(
                one.text,
                one.logprob,
                list(one.text.encode()),
                [chat.TopLogprob(text, value, list(text.encode())) for text, value in one.top],
            )
            for one in tokens
        ]
    )


def _usage(made: Sequence[Generation]) -> chat.ChatUsage:
    prompt = made[0].usage.prompt_tokens  # read once for all choices
    completion_tokens = sum(one.usage.completion_tokens for one in made)
    return chat.ChatUsage(
        prompt_tokens=prompt,
        completion_tokens=completion_tokens,
        total_tokens=prompt + completion_tokens,
        prompt_tokens_details=chat.PromptDetails(made[0].usage.cached_tokens),
    )


class Telling:
    """An answer told in chunks: a role first for each choice, text, tool calls, an end, usage."""

    def __init__(self, about: About, *, with_usage: bool) -> None:
        self._about, self._with_usage = about, with_usage
        self._tool_calls: dict[int, int] = {}  # choice that has begun -> its tool calls so far

    def delta(self, index: int, delta: Delta) -> list[Chunk]:
        chunks = self._begin(index)
        logprobs = _logprobs(delta.logprobs)
        if delta.text or logprobs:
            chunks.append(self._chunk(index, chat.ChatDelta(content=delta.text), logprobs=logprobs))
        chunks += self._tools(index, delta.tool_calls)
        return chunks

    def ends(self, made: Sequence[Generation]) -> list[Chunk]:
        chunks: list[Chunk] = []
        for index, one in enumerate(made):
            chunks += self._begin(index)
            chunks += self._tools(index, one.message.tool_calls[self._tool_calls[index] :])
            chunks.append(self._chunk(index, chat.ChatDelta(), _finish(one.finish_reason)))
        if self._with_usage:
            chunks.append(self._new([], _usage(made)))
        return chunks

    def _begin(self, index: int) -> list[Chunk]:
        if index in self._tool_calls:
            return []
        self._tool_calls[index] = 0
        return [self._chunk(index, chat.ChatDelta(role="assistant", content="", refusal=None))]

    def _tools(self, index: int, uses: Sequence[ToolUse]) -> list[Chunk]:
        first = self._tool_calls[index]
        self._tool_calls[index] += len(uses)
        return [
            self._chunk(index, chat.ChatDelta(tool_calls=[_tool_call(use, first + i)]))
            for i, use in enumerate(uses)
        ]

    def _chunk(
        self,
        index: int,
        delta: chat.ChatDelta,
        finish_reason: chat.FinishReason | None = None,
        logprobs: chat.Logprobs | None = None,
    ) -> Chunk:
        choice = ChunkChoice(index, delta, finish_reason, logprobs)
        return self._new([choice], None if self._with_usage else UNSET)

    def _new(self, choices: list[ChunkChoice], usage: chat.ChatUsage | None | UnsetType) -> Chunk:
        about = self._about
        return Chunk(about.id, about.created, about.model, choices, FINGERPRINT, usage=usage)
