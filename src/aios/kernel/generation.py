"""One generation, from its admission to its last token.

The loop: get a slice, journal what it made, show it, again. What was shown is always a prefix
of what is final, for a slice's tokens are durable before its text leaves the kernel. When the core
dies the tokens made so far are admitted again, and the same bits follow. When the generation goes
on on another core, which may count in other tokens, that core goes on from the text.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from aios.abi import events as ev
from aios.abi import wire
from aios.abi.calls import Generation
from aios.abi.messages import Delta, Message, TokenLogprob, ToolUse, Usage
from aios.errors import CoreFailed, CoreTimeout, InvalidCall, StoreFailed
from aios.kernel.process import OpenCall, Process
from aios.kernel.scheduler import LineClosed
from aios.ports import Admitted, CallHistory, Prompt, SliceResult, TokensRow

if TYPE_CHECKING:
    import asyncio

    from aios.kernel.kernel import Kernel
    from aios.kernel.scheduler import Scheduler

LARGEST = 2**63 - 1  # of a number in a prompt: what every core's wire can carry
MOST_BIASED = 1024  # tokens with a logit_bias: they are gone through for every token that is made
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
    core: str = ""  # that made it


class Progress(Struct):
    """How far a generation is; with the core's own state, all that a snapshot needs.

    model is the core that it is on; own, that this core made all of its tokens, and knows them.
    """

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
    own: bool = True
    took: Usage = Usage()  # on the cores that it was on, without tokens
    paid: str = ""  # the core that its prompt was paid for
    uncounted: int = 0  # tokens of the answer that only its server counted
    before: int = 0  # tokens that it had when its core got it as a text: another's

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens) + self.uncounted

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
            self.model,
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
            self.own = self.own and made.core in ("", self.model)
            self.paid = made.core or self.model

    def go_to(self, core: str) -> None:
        """From here on it is made by this core."""
        if core != self.model:
            self.own = self.own and not self.tokens
            self.model = core


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
    if s.beams > 1 and s.logit_bias:
        raise InvalidCall("a beam search takes no logit_bias: leave out beams or logit_bias.")
    if len(s.stop) > 16 or not all(s.stop):
        raise InvalidCall("stop takes up to 16 texts, none of them empty.")
    _validate_bias(s.logit_bias)
    if prompt.tool_choice not in ("auto", "none", "required") and prompt.tool_choice not in {
        tool.name for tool in prompt.tools
    }:
        raise InvalidCall(
            f"tool_choice names {prompt.tool_choice!r}, which is not among the tools."
        )
    if prompt.tool_choice == "required" and not prompt.tools:
        raise InvalidCall("tool_choice is required, but no tools are given.")


def _validate_bias(bias: tuple[tuple[int, float], ...]) -> None:
    """Whether a token is in the vocabulary is for the core to say."""
    if len(bias) > MOST_BIASED:
        raise InvalidCall(f"logit_bias takes up to {MOST_BIASED} tokens, not {len(bias)}.")
    if len({token for token, _ in bias}) < len(bias):
        raise InvalidCall("logit_bias names a token twice; give each one bias.")
    for token, value in bias:
        if not -100 <= value <= 100:
            raise InvalidCall(f"logit_bias gives token {token} {value}; give -100 to 100.")
        if not 0 <= token < 2**31:
            raise InvalidCall(f"logit_bias names {token}, which is no id of a token.")


def check_beams(kernel: Kernel, call: OpenCall, scheduler: Scheduler, prompt: Prompt) -> None:
    """InvalidCall if its core does not keep so many hypotheses; LineClosed if another may."""
    wanted, most = prompt.sampling.beams, scheduler.core.abilities.beams
    if wanted <= most:
        return
    if call.route is not None and call.route.has_others:
        raise LineClosed(f"{scheduler.name} keeps at most {most} beams, not {wanted}.")
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
    """Bring a generation to its end on one core; *frozen* is the snapshot that it goes on from.

    What an earlier life of its program had made of it is not made again. When the core fails for
    good, *progress* says how far it came, and another core may go on from there.
    """
    check_beams(kernel, call, scheduler, progress.prompt)
    if scheduler.name in kernel.draining and not progress.tokens:  # it waited for its context
        scheduler.send_away(call)
    progress.go_to(scheduler.name)
    if call.progress is None and call.made is not None and call.made.details:
        progress.go_on(call.made)
        frozen = None  # its tokens are enough, and further
        if call.on_delta is not None:
            call.on_delta(Delta(progress.text, progress.logprobs, progress.tool_calls))
    is_first = call.progress is None
    if call.progress is not None and call.progress is not progress:
        progress.took = call.progress.took
    ticket = scheduler.ticket(call)
    call.ticket, call.progress = ticket, progress
    try:
        await _make(kernel, call, scheduler, progress, frozen)
    finally:
        took = Usage(
            slices=ticket.slices,
            preemptions=ticket.preemptions,
            waiting_s=ticket.waited_s,
            running_s=ticket.ran_s,
        )
        progress.took += took
        # its slices were booked one by one
        call.process.usage += structs.replace(took, calls=int(is_first), slices=0)
        call.ticket = None  # what it waited and ran is booked now
        if progress.reason is None:  # without an answer: what it took is taken all the same
            kernel.trace.record(*kernel.processes.spent(call.process))
        else:  # in one transaction with its end
            call.effects += kernel.processes.spent(call.process)
        kernel.processes.recheck_budgets()
        await scheduler.release(ticket)
    return Generation(
        call=call.id,
        model=progress.model,
        message=Message("assistant", progress.text, tool_calls=progress.tool_calls),
        finish_reason=progress.reason,  # type: ignore[arg-type]
        usage=structs.replace(
            progress.took,
            prompt_tokens=progress.prompt_tokens,
            completion_tokens=progress.completion_tokens,
            cached_tokens=progress.cached_tokens,
            calls=1,
        ),
        logprobs=progress.logprobs,
    )


async def _make(
    kernel: Kernel,
    call: OpenCall,
    scheduler: Scheduler,
    progress: Progress,
    frozen: str | None,
) -> None:
    """Slice after slice, until it is at its end; CoreFailed when its core is given up."""
    bill = Bill()
    try:
        await _slices(kernel, call, scheduler, progress, frozen, bill)
    except (CoreFailed, CoreTimeout):
        bill.give_back(call.process, progress)
        raise


async def _slices(
    kernel: Kernel,
    call: OpenCall,
    scheduler: Scheduler,
    progress: Progress,
    frozen: str | None,
    bill: Bill,
) -> None:
    process, ticket = call.process, call.ticket
    assert ticket is not None
    lost, life = 0, scheduler.life
    while progress.reason is None:
        if ticket.sequence is None:
            life = scheduler.life
            try:
                if frozen is not None:
                    admitted = await scheduler.core.thaw(frozen)
                else:
                    made = progress.tokens if progress.own else ()
                    progress.before = 0 if progress.own else len(progress.tokens)
                    admitted = await scheduler.core.admit(progress.prompt, made, progress.text)
            except CoreFailed as error:
                lost = kernel.core_lost(scheduler, life, error, lost)
                continue
            if scheduler.is_here:  # of another, only an answer tells
                kernel.core_found(scheduler)
            ticket.sequence = admitted.sequence
            frozen = None  # after a crash its tokens are enough
            await _pay_for_prompt(kernel, call, scheduler, progress, admitted, bill)
        try:
            result = await scheduler.run(ticket)
        except LineClosed:
            raise
        except CoreFailed as error:
            scheduler.forget(ticket)
            lost = kernel.core_lost(scheduler, life, error, lost)
            continue
        if result is None:
            kernel.processes.exhausted(process, rate=scheduler.answer_usd)
            continue
        bill.close()
        if result.tokens:
            lost = 0
            kernel.core_found(scheduler)
        made_now = len(result.tokens)
        process.usage += Usage(
            completion_tokens=made_now, slices=1, usd=made_now * scheduler.answer_usd
        )
        progress.took += Usage(usd=made_now * scheduler.answer_usd)
        if result.spent is not None:
            _correct(call, scheduler, progress, result)
        if result.tokens or result.finish_reason:  # in one append with the slice's end
            kernel.trace.record(progress.row(call.id, result), *kernel.processes.spent(process))
        progress.add(result)
        kernel.processes.recheck_budgets()
        if call.on_delta and (result.text or result.finish_reason or result.logprobs):
            delta = Delta(result.text, result.logprobs, result.tool_calls, result.finish_reason)
            kernel.trace.durable().add_done_callback(partial(_show, call, delta))


def _correct(call: OpenCall, scheduler: Scheduler, progress: Progress, result: SliceResult) -> None:
    """Book the difference between what was counted here and what the server says it took."""
    spent, process = result.spent, call.process
    assert spent is not None
    prompt = spent.prompt_tokens - progress.prompt_tokens
    answer = spent.completion_tokens - (len(progress.tokens) + len(result.tokens) - progress.before)
    cached = spent.cached_tokens - progress.cached_tokens
    usd = (
        prompt * scheduler.prompt_usd
        + answer * scheduler.answer_usd
        + cached * (scheduler.cached_usd - scheduler.prompt_usd)
    )
    process.budget.settle(0, prompt + answer, 0.0, usd)
    change = Usage(prompt_tokens=prompt, completion_tokens=answer, cached_tokens=cached, usd=usd)
    process.usage += change
    progress.took += Usage(usd=usd)
    progress.prompt_tokens += prompt
    progress.cached_tokens += cached
    progress.uncounted += answer


class Bill:
    """What was paid for a prompt of which nothing has come yet: a core that fails gives it back."""

    def __init__(self) -> None:
        self._spent = Usage()

    def pay(self, process: Process, progress: Progress, core: str, spent: Usage) -> None:
        """Once for a generation and core, however often it is admitted; it was reserved."""
        process.budget.settle(spent.tokens, spent.tokens, spent.usd, spent.usd)
        progress.paid = core
        progress.prompt_tokens, progress.cached_tokens = spent.prompt_tokens, spent.cached_tokens
        progress.took += Usage(usd=spent.usd)
        process.usage += spent
        self._spent = spent

    def close(self) -> None:
        """Something has come of it."""
        self._spent = Usage()

    def give_back(self, process: Process, progress: Progress) -> None:
        spent, self._spent = self._spent, Usage()
        if not spent.tokens:
            return
        back = Usage(-spent.prompt_tokens, 0, -spent.cached_tokens, usd=-spent.usd)
        process.budget.settle(0, back.tokens, 0.0, back.usd)
        process.usage += back
        progress.took += Usage(usd=back.usd)
        progress.paid, progress.prompt_tokens, progress.cached_tokens = "", 0, 0


async def _pay_for_prompt(
    kernel: Kernel,
    call: OpenCall,
    scheduler: Scheduler,
    progress: Progress,
    admitted: Admitted,
    bill: Bill,
) -> None:
    """Book the prompt's tokens."""
    kernel.trace.emit(
        ev.TicketQueued,
        call.process.pid,
        call=call.id,
        core=progress.model,
        prompt_tokens=admitted.prompt_tokens,
        cached_tokens=admitted.cached_tokens,
    )
    process, wanted, cached = call.process, admitted.prompt_tokens, admitted.cached_tokens
    if progress.paid == scheduler.name:
        return
    usd = (wanted - cached) * scheduler.prompt_usd + cached * scheduler.cached_usd
    rate = usd / wanted if wanted else 0.0
    while not process.budget.reserve_tokens(wanted, at_least=wanted, rate=rate):
        kernel.processes.exhausted(process, wanted, rate=rate)
        await kernel.blocked(call)
    spent = Usage(prompt_tokens=wanted, cached_tokens=cached, usd=usd)
    bill.pay(process, progress, scheduler.name, spent)


def _show(call: OpenCall, delta: Delta, durable: asyncio.Future[None]) -> None:
    if durable.cancelled():
        return
    if error := durable.exception():
        call.end(error if isinstance(error, StoreFailed) else StoreFailed(str(error)))
    elif call.on_delta:
        call.on_delta(delta)
