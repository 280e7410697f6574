"""The daemon: one kernel behind a Unix socket and a port of 127.0.0.1, until it is told to stop.

``python -m aios.server.daemon [--port N] [--no-tcp]`` stays in the foreground; ``aios up`` starts
it in the background and waits for daemon.json in the runtime directory: there while it serves.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import fcntl
import gc
import logging
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from aios import boot, config
from aios.abi import wire
from aios.config import Config, Paths
from aios.errors import AiosError, Conflict, SetupError
from aios.kernel.kernel import VERSION, Kernel
from aios.ports import Cores
from aios.server import log
from aios.server.app import App
from aios.server.listener import Listener

END = signal.SIGUSR1  # of `aios down`: end all processes; TERM and INT leave them to go on later
GRACE_S = 3.0  # for open requests to take their last answer, when the daemon stops
SOCKET_PATH_BYTES = 107  # sun_path of Linux, less its end; macOS has 103

_LOOPBACK = {"127.0.0.1": socket.AF_INET, "localhost": socket.AF_INET, "::1": socket.AF_INET6}

logger = logging.getLogger("aios.daemon")


class Running(Struct, frozen=True):
    """A daemon that serves, as daemon.json tells it; url is None when it has no port."""

    pid: int
    url: str | None
    socket: str
    started: float
    version: str


async def serve(settings: Config, paths: Paths, cores: Cores | None = None) -> None:
    """Run a kernel and its server until a signal or ``POST /api/down``; on the models here, or
    *cores*.

    TERM and INT stop it as a crash would, with all that was said on disk: the next one goes on.
    END and ``POST /api/down`` end its processes first.

    Conflict if a daemon has this directory already, SetupError if the machine says no.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # this machine goes down: the agents go on later
        loop.add_signal_handler(number, stopping.set)

    def end() -> None:
        ending.set()
        stopping.set()

    loop.add_signal_handler(END, end)
    paths.make()
    with _lock(paths.runtime / "daemon.lock"), log.to_file(paths.logs / "daemon.log"):
        with contextlib.ExitStack() as stack:
            unix = stack.enter_context(_unix_socket(paths.socket))
            tcp = stack.enter_context(_tcp_socket(settings.server)) if settings.server.tcp else None
            async with boot.machine(settings, paths, cores) as kernel:
                if key := _missing_key(kernel, paths.keys / kernel.user):
                    await kernel.trace.durable()  # before anybody holds it
                    _write_private(paths.keys / kernel.user, f"{key}\n".encode())
                    logger.info("wrote a new key for %s", kernel.user)
                listener = Listener(App(kernel, settings.server, end))
                await listener.open([unix, tcp] if tcp else [unix])
                running = Running(
                    os.getpid(), _url(tcp), str(paths.socket), round(time.time(), 3), VERSION
                )
                kernel.base_url, kernel.socket = running.url, running.socket
                with _announced(paths.runtime / "daemon.json", running):
                    where = " and ".join(filter(None, (running.url, running.socket)))
                    logger.info("serving %s", where)
                    sys.stdout.write(f"aios: serving {where}\n")
                    sys.stdout.flush()
                    kernel.resume()
                    gc.freeze()  # what is here now stays: later collections need not look at it
                    await stopping.wait()
                logger.info("stopping")
                if not ending.is_set():
                    await kernel.freeze()
                await listener.close(GRACE_S)
        logger.info("stopped")


# --- files ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Hold a runtime directory (the journal holds the data); a forked child does not keep it."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 20).decode(errors="replace").strip()
            raise Conflict(
                f"a daemon already has {file.parent}: it is process {holder or 'unknown'}, "
                "and `aios down` stops it."
            ) from error
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)


def _write_private(file: Path, content: bytes) -> None:
    """Put a file that only its user can read in place, whole."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(handle, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(handle)
    draft.replace(file)


def _missing_key(kernel: Kernel, file: Path) -> str | None:
    """The user's key, if it has to be written: at the first start, and when its file was lost."""
    return kernel.ensure_user_key(kernel.user, renew=not file.exists())


@contextlib.contextmanager
def _announced(file: Path, running: Running) -> Iterator[None]:
    _write_private(file, wire.encode(running) + b"\n")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


# --- sockets --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _unix_socket(path: Path) -> Iterator[socket.socket]:
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise SetupError(
            f"the path of the socket is too long for this system ({path}): "
            "choose a shorter AIOS_HOME."
        )
    if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
        raise SetupError(f"{path} is in the way of the socket: move it.")
    path.unlink(missing_ok=True)  # a dead daemon's: we hold the lock
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(str(path))
        path.chmod(0o600)
        try:
            yield made
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _tcp_socket(server: config.Server) -> Iterator[socket.socket]:
    family = _LOOPBACK.get(server.host)
    if family is None:
        raise SetupError(
            f"server.host is {server.host!r}, but aios answers this machine only: set it to "
            "127.0.0.1, and come from elsewhere by `ssh -L`."
        )
    # naming TCP has asyncio turn Nagle's delay (40 ms an answer) off; uvloop always does
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((server.host, server.port))
            made.listen(2048)
        except (OSError, OverflowError) as error:
            why = "is in use" if getattr(error, "errno", 0) == errno.EADDRINUSE else str(error)
            raise SetupError(
                f"port {server.port} of {server.host}: {why}; give another with --port, "
                "AIOS_SERVER_PORT or the setting server.port (0 takes any free one)."
            ) from error
        yield made


def _url(tcp: socket.socket | None) -> str | None:
    if tcp is None:
        return None
    host, port = tcp.getsockname()[:2]
    return f"http://[{host}]:{port}" if tcp.family == socket.AF_INET6 else f"http://{host}:{port}"


# --- the command ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 (the machine says no), 2 (a wrong flag), 5 (another daemon is here)."""
    import uvloop

    parser = argparse.ArgumentParser(prog="aios.server.daemon", description="The aios daemon.")
    parser.add_argument("--port", help="of 127.0.0.1; 0 takes any free one")
    parser.add_argument("--no-tcp", action="store_true", help="the Unix socket only")
    given = parser.parse_args(arguments)
    flags = {} if given.port is None else {"server.port": given.port}
    if given.no_tcp:
        flags["server.tcp"] = "false"
    try:
        paths = Paths.find()
        settings = config.load(paths, flags)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, paths))
    except AiosError as error:
        sys.stderr.write(f"aios: {error.message}\n")
        return 5 if isinstance(error, Conflict) else 1
    except OSError as error:  # a disk that is full or read-only, a directory that went away
        sys.stderr.write(f"aios: the daemon cannot run here: {error}.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
