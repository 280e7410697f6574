"""One generation, from its admission to its last token.

The loop: get a slice, journal what it made, show it, again. What was shown is always a prefix
of what is final, for a slice's tokens are durable before its text leaves the kernel. When the core
dies the tokens made so far are admitted again, and the same bits follow.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct

from aios.abi import events as ev
from aios.abi import wire
from aios.abi.calls import Generation
from aios.abi.messages import Delta, Message, TokenLogprob, ToolUse, Usage
from aios.errors import CoreFailed, InvalidCall, StoreFailed
from aios.kernel.process import OpenCall
from aios.ports import Admitted, CallHistory, Prompt, SliceResult, TokensRow

if TYPE_CHECKING:
    import asyncio

    from aios.kernel.kernel import Kernel
    from aios.kernel.scheduler import Scheduler

LARGEST = 2**63 - 1  # of a number in a prompt: what every core's wire can carry
MOST_BEAMS = 16  # of a search, whatever its core: a journaled choice names one in 4 bits
LOST_IN_A_ROW = 3  # crashes of a core without one token between: then the call fails


class Made(Struct, frozen=True, omit_defaults=True):
    """What a slice added to the answer; with its tokens, all that a second life needs to go on."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolUse, ...] = ()
    reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0


class Progress(Struct):
    """How far a generation is; with the core's own state, all that a snapshot needs."""

    prompt: Prompt
    model: str
    context: str | None
    tokens: list[int]
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolUse, ...] = ()
    cached_tokens: int = 0
    prompt_tokens: int = 0
    reason: str | None = None  # why it ended

    def add(self, result: SliceResult) -> None:
        self.tokens.extend(result.tokens)
        self.text += result.text
        self.logprobs += result.logprobs
        self.tool_calls += result.tool_calls
        self.reason = result.finish_reason

    def row(self, call: str, result: SliceResult) -> TokensRow:
        """A slice as the journal keeps it, before it is added."""
        packed = b"".join(token.to_bytes(4, "little", signed=True) for token in result.tokens)
        made = Made(
            result.text,
            result.logprobs,
            result.tool_calls,
            result.finish_reason,
            self.prompt_tokens,
            self.cached_tokens,
        )
        return TokensRow(call, len(self.tokens), packed, wire.encode(made))

    def go_on(self, history: CallHistory) -> None:
        """Take over what an earlier life of the program had made."""
        self.tokens.extend(history.tokens)
        for detail in history.details:
            made = wire.decode(detail, Made)
            self.text += made.text
            self.logprobs += made.logprobs
            self.tool_calls += made.tool_calls
            self.reason = made.reason
            self.prompt_tokens, self.cached_tokens = made.prompt_tokens, made.cached_tokens


def validate(prompt: Prompt) -> None:
    """InvalidCall for a prompt that no core could answer."""
    s = prompt.sampling
    if not prompt.messages:
        raise InvalidCall("messages is empty; say at least one thing to the model.")
    if s.max_tokens is not None and s.max_tokens < 1:
        raise InvalidCall(f"max_tokens must be at least 1, not {s.max_tokens}.")
    if not 0 <= s.temperature <= 2:
        raise InvalidCall(f"temperature must be 0 to 2, not {s.temperature}.")
    if not 0 < s.top_p <= 1:
        raise InvalidCall(f"top_p must be above 0 and at most 1, not {s.top_p}.")
    if not 0 <= s.min_p <= 1:
        raise InvalidCall(f"min_p must be 0 to 1, not {s.min_p}.")
    if s.top_k < 0:
        raise InvalidCall(f"top_k must be 0 (off) or more, not {s.top_k}.")
    for name, value in (("max_tokens", s.max_tokens), ("top_k", s.top_k), ("seed", s.seed)):
        if value is not None and not -LARGEST - 1 <= value <= LARGEST:
            raise InvalidCall(f"{name} is {value}: give a number of at most 64 bits.")
    if s.logprobs is not None and not 0 <= s.logprobs <= 20:
        raise InvalidCall(f"logprobs must be 0 to 20 alternatives, not {s.logprobs}.")
    if not 1 <= s.beams <= MOST_BEAMS:
        raise InvalidCall(f"beams must be 1 (off) to {MOST_BEAMS}, not {s.beams}.")
    if not -8 <= s.length_penalty <= 8:
        raise InvalidCall(f"length_penalty must be -8 to 8, not {s.length_penalty}.")
    if s.beams > 1 and s.temperature > 0:
        raise InvalidCall(
            f"a search with {s.beams} beams draws nothing: temperature must be 0, not "
            f"{s.temperature}."
        )
    if s.beams > 1 and s.logprobs is not None:
        raise InvalidCall("a beam search gives no logprobs: leave out beams or logprobs.")
    if len(s.stop) > 16 or not all(s.stop):
        raise InvalidCall("stop takes up to 16 texts, none of them empty.")
    if prompt.tool_choice not in ("auto", "none", "required") and prompt.tool_choice not in {
        tool.name for tool in prompt.tools
    }:
        raise InvalidCall(
            f"tool_choice names {prompt.tool_choice!r}, which is not among the tools."
        )
    if prompt.tool_choice == "required" and not prompt.tools:
        raise InvalidCall("tool_choice is required, but no tools are given.")


def check_beams(kernel: Kernel, scheduler: Scheduler, prompt: Prompt) -> None:
    """InvalidCall if its core does not keep so many hypotheses."""
    wanted, most = prompt.sampling.beams, scheduler.core.abilities.beams
    if wanted <= most:
        return
    able = [name for name, s in kernel.schedulers.items() if s.core.abilities.beams >= wanted]
    says = f"keeps at most {most} beams, not {wanted}" if most > 1 else "does no beam search"
    raise InvalidCall(
        f"{scheduler.name} {says}; of the models that run here, "
        f"{', '.join(sorted(able)) or 'none'} can."
    )


async def run(
    kernel: Kernel,
    call: OpenCall,
    scheduler: Scheduler,
    progress: Progress,
    frozen: str | None = None,
) -> Generation:
    """Bring a generation to its end; *frozen* is the snapshot file that it goes on from.

    What an earlier life of its program had made of it is not made again.
    """
    check_beams(kernel, scheduler, progress.prompt)
    process = call.process
    if call.made is not None and call.made.details:
        progress.go_on(call.made)
        frozen = None  # its tokens are enough, and further
        if call.on_delta is not None:
            call.on_delta(Delta(progress.text, progress.logprobs, progress.tool_calls))
    ticket = scheduler.ticket(call)
    call.ticket, call.progress = ticket, progress
    lost, life = 0, scheduler.life
    try:
        while progress.reason is None:
            if ticket.sequence is None:
                life = scheduler.life
                try:
                    if frozen is not None:
                        admitted = await scheduler.core.thaw(frozen)
                    else:
                        admitted = await scheduler.core.admit(
                            progress.prompt, progress.tokens, progress.text
                        )
                except CoreFailed as error:
                    lost = kernel.core_lost(scheduler, life, error, lost)
                    continue
                kernel.core_found(scheduler)
                ticket.sequence = admitted.sequence
                frozen = None  # after a crash its tokens are enough
                await _pay_for_prompt(kernel, call, progress, admitted)
            try:
                result = await scheduler.run(ticket)
            except CoreFailed as error:
                scheduler.forget(ticket)
                lost = kernel.core_lost(scheduler, life, error, lost)
                continue
            if result is None:
                kernel.processes.exhausted(process)
                continue
            lost = 0 if result.tokens else lost
            process.usage += Usage(completion_tokens=len(result.tokens), slices=1)
            if result.tokens or result.finish_reason:  # in one append with the slice's end
                kernel.trace.record(progress.row(call.id, result), *kernel.processes.spent(process))
            progress.add(result)
            kernel.processes.recheck_budgets()
            if call.on_delta and (result.text or result.finish_reason or result.logprobs):
                delta = Delta(result.text, result.logprobs, result.tool_calls, result.finish_reason)
                kernel.trace.durable().add_done_callback(partial(_show, call, delta))
    finally:
        process.usage += Usage(
            calls=1,
            preemptions=ticket.preemptions,
            waiting_s=ticket.waited_s,
            running_s=ticket.ran_s,
        )
        call.ticket = None  # what it waited and ran is booked now
        if progress.reason is None:  # without an answer: what it took is taken all the same
            kernel.trace.record(*kernel.processes.spent(process))
        else:  # in one transaction with its end
            call.effects += kernel.processes.spent(process)
        kernel.processes.recheck_budgets()
        await scheduler.release(ticket)
    return Generation(
        call=call.id,
        model=progress.model,
        message=Message("assistant", progress.text, tool_calls=progress.tool_calls),
        finish_reason=progress.reason,  # type: ignore[arg-type]
        usage=Usage(
            prompt_tokens=progress.prompt_tokens,
            completion_tokens=len(progress.tokens),
            cached_tokens=progress.cached_tokens,
            calls=1,
            slices=ticket.slices,
            preemptions=ticket.preemptions,
            waiting_s=ticket.waited_s,
            running_s=ticket.ran_s,
        ),
        logprobs=progress.logprobs,
    )


async def _pay_for_prompt(
    kernel: Kernel, call: OpenCall, progress: Progress, admitted: Admitted
) -> None:
    """Book the prompt's tokens, once for a generation, however often it is admitted."""
    kernel.trace.emit(
        ev.TicketQueued,
        call.process.pid,
        call=call.id,
        core=progress.model,
        prompt_tokens=admitted.prompt_tokens,
        cached_tokens=admitted.cached_tokens,
    )
    if progress.prompt_tokens:
        return
    process, wanted = call.process, admitted.prompt_tokens
    while not process.budget.reserve_tokens(wanted, at_least=wanted):
        kernel.processes.exhausted(process, wanted)
        await kernel.blocked(call)
    process.budget.settle_tokens(wanted, wanted)
    progress.prompt_tokens, progress.cached_tokens = wanted, admitted.cached_tokens
    process.usage += Usage(prompt_tokens=wanted, cached_tokens=admitted.cached_tokens)


def _show(call: OpenCall, delta: Delta, durable: asyncio.Future[None]) -> None:
    if durable.cancelled():
        return
    if error := durable.exception():
        call.end(error if isinstance(error, StoreFailed) else StoreFailed(str(error)))
    elif call.on_delta:
        call.on_delta(delta)
