"""Every error that aios raises on purpose.

    AiosError                     .code (wire)  .status (HTTP)  .retryable
    ├─ CallError                  the caller's to mend
    │  ├─ InvalidCall         422 a value is wrong
    │  ├─ Unauthenticated     401 no key, or a wrong one
    │  ├─ PermissionDenied    403 the key is good, the right is missing
    │  ├─ NotFound            404 not there, or not yours to see
    │  │  └─ Pruned           410 was there, and is no longer kept
    │  ├─ Conflict            409 the state forbids it now
    │  │  └─ ReplayDiverged   409 a second life asks something else than the first did
    │  └─ ContextOverflow     413 longer than the model's window
    ├─ Refused                    try later, or ask for more
    │  ├─ QueueFull           429
    │  ├─ BudgetExhausted     429
    │  └─ QuotaExceeded       429 no room left in a quota of memory or storage
    ├─ DriverError                something outside the kernel failed
    │  ├─ CoreFailed          502
    │  │  └─ CoreRefused      502 no use to try again: its key, its model, its address is wrong
    │  ├─ CoreTimeout         504
    │  ├─ ToolUnreachable     502
    │  ├─ StoreFailed         502
    │  └─ ConnectionLost      502 the kernel went away in the middle of a call (SDK)
    ├─ Cancelled              499 the call was ended before its result
    │  ├─ Killed              410 its process was killed
    │  ├─ TimedOut            504 its own time limit passed
    │  └─ OutcomeUnknown      409 a crash hid whether its effect happened
    ├─ SetupError             500 this machine cannot run aios as asked (CLI and daemon)
    │  └─ NotRunning          503 no kernel answers here (SDK and CLI)
    │     └─ Stopping         503 the kernel goes away in the middle of a call
    └─ KernelBug              500 an invariant broke; never caught inside the kernel

A message is one sentence: what was wrong, with the value, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class AiosError(Exception):
    """The root of the tree; ``code`` goes over the wire, ``status`` is its HTTP status."""

    code: ClassVar[str] = "aios_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else self.code


class CallError(AiosError):
    code, status = "call_error", 400


class InvalidCall(CallError):
    code, status = "invalid_call", 422


class Unauthenticated(CallError):
    code, status = "unauthenticated", 401


class PermissionDenied(CallError):
    code, status = "permission_denied", 403


class NotFound(CallError):
    code, status = "not_found", 404


class Pruned(NotFound):
    code, status = "pruned", 410


class Conflict(CallError):
    code, status = "conflict", 409


class ReplayDiverged(Conflict):
    code = "replay_diverged"


class ContextOverflow(CallError):
    code, status = "context_overflow", 413


class Refused(AiosError):
    code, status, retryable = "refused", 429, True


class QueueFull(Refused):
    code = "queue_full"


class BudgetExhausted(Refused):
    code, retryable = "budget_exhausted", False


class QuotaExceeded(Refused):
    code, retryable = "quota_exceeded", False


class DriverError(AiosError):
    code, status = "driver_error", 502


class CoreFailed(DriverError):
    code, retryable = "core_failed", True


class CoreRefused(CoreFailed):
    code, retryable = "core_refused", False


class CoreTimeout(DriverError):
    code, status, retryable = "core_timeout", 504, True


class ToolUnreachable(DriverError):
    code, retryable = "tool_unreachable", True


class StoreFailed(DriverError):
    code = "store_failed"


class ConnectionLost(DriverError):
    code, retryable = "connection_lost", True


class Cancelled(AiosError):
    code, status = "cancelled", 499


class Killed(Cancelled):
    code, status = "killed", 410


class TimedOut(Cancelled):
    code, status, retryable = "timed_out", 504, True


class OutcomeUnknown(Cancelled):
    code, status = "outcome_unknown", 409


class SetupError(AiosError):
    code = "setup_error"


class NotRunning(SetupError):
    code, status, retryable = "not_running", 503, True


class Stopping(NotRunning):
    code = "stopping"


class KernelBug(AiosError):
    code = "kernel_bug"


def _tree(root: type[AiosError]) -> list[type[AiosError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


BY_CODE: dict[str, type[AiosError]] = {error.code: error for error in _tree(AiosError)}


def from_code(code: str, message: str) -> AiosError:
    """The error that *code* names on the wire; an unknown code becomes a plain AiosError."""
    return BY_CODE.get(code, AiosError)(message)
