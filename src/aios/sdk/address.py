"""Where the kernel is and who we are: arguments, the environment, then this user's own files."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import msgspec
from msgspec import Struct

from aios.config import Paths
from aios.errors import NotRunning, SetupError, Unauthenticated


class Daemon(Struct, frozen=True):
    """What a running daemon writes to ``daemon.json`` in its runtime directory."""

    pid: int
    url: str | None = None
    socket: str | None = None


class Address(Struct, frozen=True):
    """url is ``http://host:port`` or ``unix:/path``; where names it in an error."""

    url: str
    key: str
    where: str

    @property
    def socket(self) -> str | None:
        return self.url.removeprefix("unix:") if self.url.startswith("unix:") else None


def find(url: str | None = None, key: str | None = None) -> Address:
    """The kernel to talk to and the key to show it.

    NotRunning if there is no kernel, Unauthenticated if there is no key for it.
    """
    paths = Paths.find()
    url = url or os.environ.get("AIOS_URL")
    where = url or str(paths.runtime)
    if url is None:
        url = _running(paths.runtime / "daemon.json")
    if not url.startswith(("http://", "https://", "unix:/")):
        raise SetupError(
            f"{url!r} is no address of a kernel: give http://127.0.0.1:PORT or unix:/PATH."
        )
    key = key or os.environ.get("AIOS_KEY") or _key_of_user(paths.keys / getpass.getuser())
    if not (key.isascii() and key.isprintable()):
        raise Unauthenticated(
            "the key holds signs that no key of aios has: copy it again, or unset AIOS_KEY."
        )
    return Address(url.rstrip("/"), key, where)


def not_running(where: str) -> NotRunning:
    return NotRunning(f"no kernel is running in {where}: start one with `aios up`.")


def _running(file: Path) -> str:
    try:
        daemon = msgspec.json.decode(file.read_bytes(), type=Daemon)
    except (OSError, msgspec.DecodeError) as error:
        raise not_running(str(file.parent)) from error
    if daemon.socket and Path(daemon.socket).exists():
        return f"unix:{daemon.socket}"
    if daemon.url:
        return daemon.url
    raise not_running(str(file.parent))


def _key_of_user(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        raise Unauthenticated(
            f"there is no readable key in {file}: set AIOS_KEY, or run `aios up` as this user."
        ) from error
