"""A daemon on the scripted core, as its own process: what the tests of the CLI talk to.

    AIOS_HOME=... python tests/unit/scripted_daemon.py [--durable] [SCRIPT]

It does what ``aios.server.daemon`` does, with the core and journal of ``aios.testing``; real
programs are started. SCRIPT is a JSON list of answers; else the core says back what it heard.
With --durable the journal is a file, so that it may be killed and started again, and the core is
gated: SIGUSR1 lets one slice run, SIGUSR2 all that will come.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import signal
import socket
import sys

from aios.config import Config, Paths
from aios.drivers.journal.sqlite import SqliteJournal
from aios.drivers.programs import OsPrograms
from aios.server.app import App
from aios.server.listener import Listener
from aios.testing import ScriptedCore, echo, machine

ALL = 1_000_000  # slices: more than any test runs


async def serve(script: list[str] | None, durable: bool) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    paths, config = Paths.find(), Config()
    for folder in (paths.runtime, paths.keys, paths.snapshots, paths.logs):
        folder.mkdir(parents=True, exist_ok=True)
    core = ScriptedCore(script or echo, gated=durable)
    if durable:
        for number, slices in ((signal.SIGUSR1, 1), (signal.SIGUSR2, ALL)):
            asyncio.get_running_loop().add_signal_handler(number, core.step, slices)
    async with machine(
        core=core,
        journal=SqliteJournal(paths.journal) if durable else None,
        programs=OsPrograms(paths.logs),
        snapshots=paths.snapshots,
    ) as kernel:
        paths.socket.unlink(missing_ok=True)  # of one that was killed
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(str(paths.socket))
        tcp = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{tcp.getsockname()[1]}"
        listener = Listener(App(kernel, config.server, stopping.set))
        await listener.open([unix, tcp])
        kernel.base_url, kernel.socket = url, str(paths.socket)
        key = paths.keys / getpass.getuser()
        key.write_text(kernel.user_key)
        key.chmod(0o600)
        told = {"pid": os.getpid(), "url": url, "socket": str(paths.socket)}
        draft = paths.runtime / ".daemon.json"
        draft.write_text(json.dumps(told))
        draft.replace(paths.runtime / "daemon.json")
        await stopping.wait()
        await listener.close(2.0)
    (paths.runtime / "daemon.json").unlink()
    paths.socket.unlink()


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--durable"]
    asyncio.run(serve(json.loads(words[0]) if words else None, "--durable" in sys.argv))
