"""What is refused before a request is looked at: wrong host, foreign origin, no key, no JSON.

Pure functions of a request's headers. A web page that the user visits can reach 127.0.0.1, by a
name of its own too (DNS rebinding); the host and origin checks keep it out, the key everybody else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from aios.errors import (
    CallError,
    InvalidCall,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)

SESSION_CHARACTERS = 200  # of X-Session-ID: room for a few UUIDs, no room for a payload

# any port: `ssh -L 9000:localhost:7311` is a legitimate way in, and rebinding needs another name
_LOOPBACK = rb"(?:127\.0\.0\.1|localhost|\[::1\])(?::\d{1,5})?"
_HOST = re.compile(_LOOPBACK, re.IGNORECASE)
_ORIGIN = re.compile(rb"https?://" + _LOOPBACK, re.IGNORECASE)

Headers = Mapping[bytes, bytes]


class Misdirected(CallError):
    code, status = "misdirected", 421


class UnknownRoute(NotFound):
    code = "unknown_route"


class MethodNotAllowed(CallError):
    code, status = "method_not_allowed", 405


class NotJson(CallError):
    code, status = "not_json", 415


class TooLarge(CallError):
    code, status = "too_large", 413


def check_host(headers: Headers) -> None:
    """The Host header must name this machine (a Unix socket needs no such check)."""
    host = headers.get(b"host", b"")
    if not _HOST.fullmatch(host):
        raise Misdirected(
            f"this server does not answer to the host {host.decode('latin-1')[:100]!r}: "
            "ask for 127.0.0.1 or localhost."
        )


def check_origin(headers: Headers) -> None:
    """A browser says where a page comes from; only pages of this machine may ask."""
    origin = headers.get(b"origin")
    if origin is not None and not _ORIGIN.fullmatch(origin):
        raise PermissionDenied(
            f"requests from the origin {origin.decode('latin-1')[:100]!r} are not allowed: "
            "only pages of this machine may ask."
        )


def check_json(headers: Headers) -> None:
    """A form or plain text can be posted by any page without asking the browser first."""
    kind = headers.get(b"content-type", b"")
    if kind != b"application/json" and kind.split(b";")[0].strip().lower() != b"application/json":
        raise NotJson(
            f"the content type is {kind.decode('latin-1')[:100]!r}: send application/json."
        )


def bearer(headers: Headers) -> str:
    """The key of a request."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not key.strip():
        raise Unauthenticated("no key was given: send the header `Authorization: Bearer KEY`.")
    return key.strip().decode("latin-1")


def session(headers: Headers) -> str | None:
    """Which of a user's login processes is meant."""
    name = headers.get(b"x-session-id")
    if name is None:
        return None
    if len(name) > SESSION_CHARACTERS or not name.decode("latin-1").isprintable():
        raise InvalidCall(
            f"X-Session-ID has {len(name)} bytes: send at most {SESSION_CHARACTERS} printable ones."
        )
    return name.decode("latin-1") or None
