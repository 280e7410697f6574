"""Errors meet HTTP here, in one function, in the words of the API that was asked."""

from __future__ import annotations

from msgspec import Struct

from aios.abi import wire
from aios.errors import (
    AiosError,
    BudgetExhausted,
    ContextOverflow,
    InvalidCall,
    NotFound,
    QueueFull,
    Unauthenticated,
)
from aios.server import edge


class BadField(InvalidCall):
    """A request's field is wrong; ``param`` is its path, as in ``messages[0].role``."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class Failure(Struct, frozen=True):
    """An error as HTTP."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


# where OpenAI's status or code differs from ours: (status, type, code, param)
_Row = tuple[int, str, str | None, str | None]
_OPENAI: dict[type[AiosError], _Row] = {
    InvalidCall: (400, "invalid_request_error", None, None),
    ContextOverflow: (400, "invalid_request_error", "context_length_exceeded", "messages"),
    Unauthenticated: (401, "invalid_request_error", "invalid_api_key", None),
    edge.UnknownRoute: (404, "invalid_request_error", "unknown_url", None),
    NotFound: (404, "invalid_request_error", "model_not_found", "model"),
    QueueFull: (429, "requests", "rate_limit_exceeded", None),
    BudgetExhausted: (429, "insufficient_quota", "insufficient_quota", None),
}


def failure(error: AiosError, *, openai: bool) -> Failure:
    """*error* as an answer; *openai* in OpenAI's form, else in ours."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, Unauthenticated):
        headers = ((b"www-authenticate", b"Bearer"),)
    elif isinstance(error, edge.TooLarge):
        headers = ((b"connection", b"close"),)  # the rest of the body is not worth reading
    if not openai:
        told = {"code": error.code, "message": error.message, "retryable": error.retryable}
        return Failure(error.status, wire.encode({"error": told}), headers)
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    row: _Row = (error.status, kind, error.code, None)
    for ancestor in type(error).__mro__:
        if ancestor in _OPENAI:
            row = _OPENAI[ancestor]
            break
    status, kind, code, param = row
    param = error.param if isinstance(error, BadField) else param
    # the official client retries 409, 429 and 5xx by itself; it may only where that can help
    headers += ((b"x-should-retry", b"true" if error.retryable else b"false"),)
    body = {"message": error.message, "type": kind, "param": param, "code": code}
    return Failure(status, wire.encode({"error": body}), headers)
