"""What the commands print: tables for people, one JSON document for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from aios.abi import wire
from aios.abi.calls import Limits, Status

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table


def note(text: str) -> None:
    """A remark for the person at the terminal: stderr, so that pipes stay clean."""
    print(f"aios: {text}", file=sys.stderr, flush=True)


def json(value: Any) -> None:
    """One JSON document on one line."""
    print(wire.encode(value).decode(), flush=True)


def console() -> Console:
    from rich.console import Console

    # in a pipe rich would cut every line at 80 columns
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table; a column whose name starts with ``>`` is flush right."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        drawn.add_column(
            column.lstrip(">"),
            justify="right" if right else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    return drawn


def out(shown: RenderableType) -> None:
    console().print(shown)


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, one pair a line."""
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{name:<{width}}  {value}")


# --- processes ------------------------------------------------------------------------------------

PROCESS_COLUMNS = (
    ">PID", ">PARENT", "PROGRAM", "STATUS", ">NI", ">TOKENS", ">SLICES", ">PREEMPT", "KV", "LEFT",
    ">AGE", "TASK",
)  # fmt: skip


def program(name: str) -> str:
    """A program's name as lists show it: a path by its last part."""
    return PurePath(name).name if "/" in name else name


def seconds(amount: float) -> str:
    if amount < 60:
        return f"{amount:.1f}s"
    if amount < 3600:
        return f"{int(amount) // 60}m{int(amount) % 60:02d}s"
    return f"{int(amount) // 3600}h{int(amount) % 3600 // 60:02d}m"


def limits(left: Limits) -> str:
    """What is left of a budget: ``tokens=100,calls=3``; a dash when there is no limit."""
    named = {"tokens": left.tokens, "seconds": left.seconds, "calls": left.calls}
    parts = [f"{name}={value:g}" for name, value in named.items() if value is not None]
    return ",".join(parts) or "-"


def condition(status: Status) -> str:
    """The status word with its reason: ``suspended(budget)``, ``zombie(0)``."""
    if status.state == "zombie":
        return f"zombie({status.exit_status})"
    if status.reasons:
        return f"{status.status}({','.join(status.reasons)})"
    return status.status


def process_row(status: Status, now: float) -> tuple[object, ...]:
    end = status.ended_at if status.ended_at is not None else now
    about = status.note or status.task
    return (
        status.aid,
        "-" if status.parent is None else status.parent,
        program(status.program),
        condition(status),
        status.priority,
        status.usage.tokens,
        status.usage.slices,
        status.usage.preemptions,
        status.residency or "-",
        limits(status.budget),
        seconds(max(0.0, end - status.created_at)),
        " ".join(about.split())[:60],
    )


def processes(statuses: Iterable[Status], now: float) -> Table:
    return table(PROCESS_COLUMNS, (process_row(status, now) for status in statuses))
