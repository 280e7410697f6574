"""What a model answered, whole or as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Self

from aios.abi.calls import Generation
from aios.abi.messages import Delta, FinishReason, Message, TokenLogprob, ToolUse, Usage
from aios.errors import CoreFailed
from aios.sdk.schema import Convert


class Answer:
    """A finished generation. usage counts every round where tools were called."""

    def __init__(
        self, generation: Generation, usage: Usage | None = None, convert: Convert | None = None
    ) -> None:
        self.generation = generation
        self.usage = usage or generation.usage
        self._convert = convert

    def __repr__(self) -> str:
        return f"<Answer {self.text!r} {self.finish_reason} tokens={self.usage.tokens}>"

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        return self.generation.message.content

    @property
    def data(self) -> Any:
        """The answer as what ``schema`` asked for; CoreFailed if it broke off too early."""
        if self._convert is None:
            return None
        try:
            return self._convert(self.text)
        except ValueError as error:  # msgspec's and pydantic's are both of this kind
            cut = ": it was cut, so raise max_tokens" if self.finish_reason == "length" else ""
            raise CoreFailed(f"the answer {self.text!r} does not match the schema{cut}.") from error

    @property
    def message(self) -> Message:
        return self.generation.message

    @property
    def tool_calls(self) -> tuple[ToolUse, ...]:
        return self.generation.message.tool_calls

    @property
    def finish_reason(self) -> FinishReason:
        return self.generation.finish_reason

    @property
    def model(self) -> str:
        return self.generation.model

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return self.generation.logprobs


class Stream:
    """An answer as it comes: iterate over its text; ``answer`` is there at the end.

    Leaving it early (``async with``, or ``aclose``) cancels the generation.
    """

    def __init__(
        self,
        parts: AsyncGenerator[Delta | Generation, None],
        convert: Convert | None = None,
    ) -> None:
        self.answer: Answer | None = None
        self._parts = parts
        self._convert = convert

    async def __aiter__(self) -> AsyncIterator[str]:
        async for part in self._parts:
            if isinstance(part, Generation):
                self.answer = Answer(part, convert=self._convert)
            elif part.text:
                yield part.text

    async def aclose(self) -> None:
        await self._parts.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
