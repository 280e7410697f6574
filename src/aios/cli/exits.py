"""Exit codes: what the shell gets back, as a table from which `aios help exit-codes` is drawn.

`run` and `wait` end with the program's own exit status instead, 128+N when signal N ended it.
"""

from __future__ import annotations

from typing import NamedTuple

from aios.errors import (
    AiosError,
    BudgetExhausted,
    Conflict,
    ContextOverflow,
    InvalidCall,
    NotFound,
    NotRunning,
    PermissionDenied,
    Refused,
    Unauthenticated,
)


class ExitCode(NamedTuple):
    code: int
    name: str
    meaning: str


OK = ExitCode(0, "ok", "it was done")
FAILED = ExitCode(1, "failed", "it could not be done, or a check (doctor, demo) did not pass")
USAGE = ExitCode(2, "usage", "the command line or a value in it is wrong")
NO_KERNEL = ExitCode(3, "no kernel", "no kernel is running; `aios up` starts one")
NOT_FOUND = ExitCode(4, "not found", "no such process, program, model, key or snapshot")
REFUSED = ExitCode(5, "refused", "no right, no budget, no room, or the state forbids it now")
INTERRUPTED = ExitCode(130, "interrupted", "Ctrl-C (128 + signal 2)")

EXIT_CODES = (OK, FAILED, USAGE, NO_KERNEL, NOT_FOUND, REFUSED, INTERRUPTED)

# the first row that fits decides, so the narrower error comes first
_BY_ERROR: tuple[tuple[type[AiosError], ExitCode], ...] = (
    (NotRunning, NO_KERNEL),
    (NotFound, NOT_FOUND),
    (InvalidCall, USAGE),
    (ContextOverflow, USAGE),
    (PermissionDenied, REFUSED),
    (Unauthenticated, REFUSED),
    (BudgetExhausted, REFUSED),
    (Refused, REFUSED),
    (Conflict, REFUSED),
    (AiosError, FAILED),
)


def of_error(error: AiosError) -> int:
    """The exit code of a command that ended with *error*."""
    return next(row.code for kind, row in _BY_ERROR if isinstance(error, kind))


def of_program(exit_status: int) -> int:
    """A program's exit status as a shell reports it: 0 to 255 as it is, -N as 128+N."""
    return 128 - exit_status if exit_status < 0 else exit_status
