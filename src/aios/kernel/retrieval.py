"""Retrieval augmentation: what memory and files know of what is being asked, into the prompt.

The last thing the user said is looked up; what is found becomes one message before it, with where
it comes from, in this prompt only: the context never holds it. The searches are calls of the same
process, with its rights, so they are journaled and a second life finds the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from aios.abi import calls as abi
from aios.abi.messages import Message
from aios.errors import InvalidCall
from aios.kernel import compaction
from aios.kernel.process import OpenCall, Process

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel
    from aios.kernel.scheduler import Scheduler

QUERY = 500  # characters of what was said that are looked up: more would find anything
PASSAGE = 1_000  # characters of one finding
TOKEN = 6  # characters, rarely more: where the first try at a text of so many tokens begins
TRIES = 6  # at making it short enough
BEGINNING = 24  # characters of a finding, at least: fewer say nothing
HEAD = "Found in memory and files, perhaps of use for what comes next:"


class Finding(NamedTuple):
    """A passage, and where it is from."""

    score: float
    source: str
    text: str


def wish(process: Process, request: abi.Generate) -> abi.Retrieval | None:
    """What a generation is to look up: as it says, else as its process was spawned."""
    found = request.retrieve if request.retrieve is not None else process.spawned.retrieve
    if found is None or not (found.memory or found.files):
        return None
    if found.tokens < 1 or found.limit < 1:
        raise InvalidCall(
            f"retrieve has tokens={found.tokens} and limit={found.limit}: both are 1 or more."
        )
    return found


def last_said(messages: Sequence[Message]) -> int | None:
    """Where the last turn of a user is."""
    places = [place for place, message in enumerate(messages) if message.role == "user"]
    return places[-1] if places else None


def put(messages: tuple[Message, ...], found: Message | None) -> tuple[Message, ...]:
    """With what was found before the last turn of a user."""
    place = last_said(messages)
    if found is None or place is None:
        return messages
    return (*messages[:place], found, *messages[place:])


async def look_up(
    kernel: Kernel,
    call: OpenCall,
    request: abi.Generate,
    messages: Sequence[Message],
    scheduler: Scheduler,
) -> Message | None:
    """What is known of the last thing a user said in *messages*; None if nothing, or not asked."""
    process = call.process
    wished, place = wish(process, request), last_said(messages)
    if wished is None or place is None or not (query := _query(messages[place].content)):
        return None
    found: list[Finding] = []
    if wished.memory:
        inner = abi.MemSearch(
            query=query,
            scopes=wished.memory,
            limit=wished.limit,
            place=call.inner("memory"),
        )
        hits = await kernel.trap(process.pid, inner)
        assert isinstance(hits, abi.MemoryHits)
        found += map(_remembered, hits.hits)
    if wished.files:
        search = abi.StoSearch(query=query, volumes=wished.files, limit=wished.limit)
        passages = await kernel.trap(process.pid, search)
        assert isinstance(passages, abi.FileHits)
        found += map(_read, passages.hits)
    found.sort(key=lambda finding: -finding.score)
    return await _message(kernel, scheduler, found[: wished.limit], wished.tokens)


def _query(text: str) -> str:
    """Beginning and end of a long text: what is asked stands at one of them."""
    text = " ".join(text.split())
    return text if len(text) <= QUERY else f"{text[: QUERY // 2]} {text[-QUERY // 2 :]}"


def _remembered(hit: abi.MemoryHit) -> Finding:
    record = hit.record
    day = time.strftime("%Y-%m-%d", time.gmtime(record.time))
    from_whom = f", {record.source}" if record.source else ""
    return Finding(hit.score, f"memory {record.id}, {day}{from_whom}", record.text)


def _read(hit: abi.FileHit) -> Finding:
    line = f", line {hit.line}" if hit.line else ""
    return Finding(hit.score, f"file {hit.volume}:{hit.path}{line}", hit.text)


async def _message(
    kernel: Kernel, scheduler: Scheduler, found: Sequence[Finding], tokens: int
) -> Message | None:
    """As many of the findings, best first, as so many tokens hold."""
    empty = await compaction.length(kernel, scheduler, [Message("user", "")])
    size = tokens * TOKEN
    for _ in range(TRIES):
        text = _text(found, size)
        if text is None:
            return None
        message = Message("user", text)
        taken = await compaction.length(kernel, scheduler, [message]) - empty
        if taken <= tokens:
            return message
        size = min(size, len(text)) * tokens * 9 // (taken * 10)
    return None


def _text(found: Sequence[Finding], size: int) -> str | None:
    """The findings in at most so many characters; None if not even the first one's beginning."""
    lines = [HEAD]
    left = size - len(HEAD)
    for finding in found:
        line = f"- ({finding.source}) {' '.join(finding.text[:PASSAGE].split())}"
        if len(line) + 1 > left:
            if left > len(finding.source) + BEGINNING:  # a beginning is better than nothing
                lines.append(f"{line[: left - 2]}…")
            break
        lines.append(line)
        left -= len(line) + 1
    return "\n".join(lines) if len(lines) > 1 else None
