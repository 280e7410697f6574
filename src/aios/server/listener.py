"""Sockets that are already bound, served with uvicorn's HTTP protocol.

uvicorn's own Server would poll ten times a second and take the signals; an idle daemon sleeps.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from aios.server.app import App

HEAD_BYTES = 65_536  # of request line and headers; a browser sends 2 KB
ARRIVAL_S = 30.0  # for a request to come in whole, once it has begun (or the connection has)
KEEP_ALIVE_S = 75  # longer than a client's pool keeps a connection, so that we never hang up first

logger = logging.getLogger("aios.server")


class Corked(asyncio.Transport):
    """A transport that sends what one turn of the loop wrote in one piece.

    uvicorn writes the head and the body of an answer apart: two system calls, two packets and two
    wake-ups of the client, a quarter of what a small request costs.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop = transport, loop
        self._pending: list[bytes] = []
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.is_closing = transport.is_closing  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]
        self.abort = transport.abort  # type: ignore[method-assign]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append(bytes(data))

    def _flush(self) -> None:
        if self._pending:
            data = b"".join(self._pending)
            self._pending.clear()
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()


class Connection(HttpToolsProtocol):
    """One client's connection; hangs up on heads that are too long and on requests too slow."""

    arrival_s = ARRIVAL_S
    _late: asyncio.TimerHandle | None = None
    _arriving = True  # a request is not in yet
    _in_head = True
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Corked(transport, self.loop))
        self._late = self.loop.call_later(self.arrival_s, self._hang_up)

    def connection_lost(self, error: Exception | None) -> None:
        self._arrived()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._arriving:
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._hang_up()
        if self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(self.arrival_s, self._hang_up)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._arriving = self._in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._arriving = False
        self._arrived()

    def _arrived(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _hang_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


class Listener:
    """Serves an app on sockets until it is closed; a request must be in within arrival_s."""

    def __init__(self, app: App, arrival_s: float = ARRIVAL_S) -> None:
        self._app, self._arrival_s = app, arrival_s
        self._config = Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._config.load()
        self._state = ServerState()
        self._servers: list[asyncio.Server] = []

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        for one in sockets:
            server = await loop.create_server(self._connection, sock=one, backlog=2048)
            self._servers.append(server)

    def _connection(self) -> Connection:
        made = Connection(self._config, self._state, {})
        made.arrival_s = self._arrival_s
        return made

    async def close(self, grace_s: float) -> None:
        """Hang up on idle clients, let the open requests end, and cut those that do not."""
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        self._app.close()
        tasks = list(self._state.tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            if late:
                logger.warning(
                    "%d requests did not end within %g s; they were cut", len(late), grace_s
                )
                await asyncio.wait(late, timeout=grace_s)
        for connection in list(self._state.connections):
            connection.transport.abort()
