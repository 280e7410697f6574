"""What the commands print: tables for people, one JSON document for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from aios.abi import wire
from aios.abi.calls import Limits, Status

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text


def note(text: str) -> None:
    """A remark for the person at the terminal: stderr, so that pipes stay clean."""
    print(f"aios: {text}", file=sys.stderr, flush=True)


def json(value: Any) -> None:
    """One JSON document on one line."""
    print(wire.encode(value).decode(), flush=True)


def console() -> Console:
    from rich.console import Console

    # in a pipe nothing is to be cut; rich would take it for 80 columns wide
    return Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)


def printable(text: str) -> str:
    """*text* without what a terminal would take for an order: programs write notes and names."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Text:
    """A plain table; a column whose name starts with ``>`` is flush right.

    Lines that are too long for the terminal are cut at its edge, so the last column should be the
    one that can be cut. (rich's own tables shrink every column, the short ones to nothing.)
    """
    from rich.text import Text

    names = [column.lstrip(">") for column in columns]
    cells = [names, *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    flush = [">" if column.startswith(">") else "<" for column in columns]
    lines = [
        "  ".join(
            f"{cell:{to}{width}}" for cell, to, width in zip(row, flush, widths, strict=True)
        ).rstrip()
        for row in cells
    ]
    drawn = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
    drawn.stylize("bold", 0, len(lines[0]))
    return drawn


def out(shown: RenderableType) -> None:
    # said again: rich joins what it prints into a new text, which would wrap
    console().print(shown, no_wrap=True, overflow="ellipsis")


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, one pair a line."""
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        lines = str(value).split("\n")
        print(f"{name:<{width}}  " + "\n".join(map(printable, lines)))


# --- processes ------------------------------------------------------------------------------------

PROCESS_COLUMNS = (
    *(">PID", "PROGRAM", "STATUS", ">NI", ">TOKENS", ">SLICES", ">PREEMPT", "KV", "LEFT", ">LIVES"),
    *(">AGE", "TASK"),
)


def program(name: str) -> str:
    """A program's name as lists show it: a path by its last part."""
    return PurePath(name).name if "/" in name else name


def moment(at: float | None) -> str:
    """A time as a person reads it, to the second."""
    return "-" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def seconds(amount: float) -> str:
    if amount < 60:
        return f"{amount:.1f}s"
    if amount < 3600:
        return f"{int(amount) // 60}m{int(amount) % 60:02d}s"
    return f"{int(amount) // 3600}h{int(amount) % 3600 // 60:02d}m"


def limits(left: Limits) -> str:
    """What is left of a budget: ``tokens=100,calls=3``; a dash when there is no limit."""
    named = {"tokens": left.tokens, "seconds": left.seconds, "calls": left.calls, "usd": left.usd}
    parts = [f"{name}={value:g}" for name, value in named.items() if value is not None]
    return ",".join(parts) or "-"


def unknown_calls(status: Status) -> list[str]:
    """The calls that were under way when the kernel died and have to be settled."""
    return [call.split()[0] for call in status.open_calls if call.endswith(" unknown")]


def condition(status: Status) -> str:
    """The status word with its reason: ``suspended(budget)``, ``zombie(0)``.

    An unknown outcome is told by its calls: ``suspended(unknown c12)``.
    """
    if status.state == "zombie":
        return f"zombie({status.exit_status})"
    reasons: list[str] = [reason for reason in status.reasons if reason != "unknown_outcome"]
    if unknown := unknown_calls(status):
        reasons.append(f"unknown {' '.join(unknown)}")
    return f"{status.status}({','.join(reasons)})" if reasons else status.status


def process_row(status: Status, now: float) -> tuple[object, ...]:
    end = status.ended_at if status.ended_at is not None else now
    about = status.note or status.task
    return (
        status.aid,
        program(status.program),
        condition(status),
        status.priority,
        status.usage.tokens,
        status.usage.slices,
        status.usage.preemptions,
        status.residency or "-",
        limits(status.budget),
        status.lives,
        seconds(max(0.0, end - status.created_at)),
        " ".join(about.split())[:60],
    )


def processes(statuses: Iterable[Status], now: float) -> Text:
    return table(PROCESS_COLUMNS, (process_row(status, now) for status in statuses))
