"""The application: edge, key, route, answer. Plain ASGI; one instance a kernel.

Host 421 -> Origin 403 -> key 401 -> route 404, 405 -> JSON 415 -> size 413 -> the call itself
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aios.abi import wire
from aios.config import Server
from aios.errors import AiosError, KernelBug, Stopping
from aios.kernel.kernel import Kernel
from aios.server import edge
from aios.server.exchange import Exchange, Gone, Receive, Scope, Send
from aios.server.failures import failure
from aios.server.native import Native
from aios.server.openai import OpenAI

logger = logging.getLogger("aios.server")

Handler = Callable[[Exchange], Awaitable[None]]


class App:
    """Serves one kernel; *stop* is what ``POST /api/down`` calls."""

    def __init__(self, kernel: Kernel, config: Server, stop: Callable[[], None]) -> None:
        self._kernel, self._config = kernel, config
        self._open: set[Exchange] = set()
        self._stopping = False
        native = Native(kernel, config, stop)
        openai = OpenAI(kernel, config)
        self._routes: dict[str, dict[str, Handler]] = {**native.routes, **openai.routes}
        self._folders: dict[str, Handler] = {**native.folders, **openai.folders}  # GET only

    def __repr__(self) -> str:
        return f"<app with {len(self._open)} open exchanges>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._config.body_bytes)
        self._open.add(exchange)
        try:
            await self._serve(exchange, is_tcp=scope["server"][1] is not None)
        except AiosError as error:
            if isinstance(error, KernelBug):
                logger.exception("the kernel broke its own rules in %r", exchange)
            await self._fail(exchange, error)
        except asyncio.CancelledError:
            if exchange.verdict is None:
                raise
            if exchange.task is not None:
                exchange.task.uncancel()
            if isinstance(exchange.verdict, AiosError):
                await self._fail(exchange, exchange.verdict)
        except Gone:
            pass  # as wished
        except Exception:
            logger.exception("%r failed", exchange)
            if exchange.started:
                raise  # half an answer is out: the connection must break
            await self._fail(
                exchange, KernelBug("the server failed on this request; see its log, daemon.log.")
            )
        finally:
            self._open.discard(exchange)
            exchange.close()

    async def _serve(self, exchange: Exchange, *, is_tcp: bool) -> None:
        headers = exchange.headers
        if is_tcp:
            edge.check_host(headers)
        edge.check_origin(headers)
        if self._stopping:
            raise Stopping("the daemon is stopping: start it again with `aios up`.")
        if exchange.path == "/healthz":
            await exchange.answer(wire.encode({"ok": True, "boot": self._kernel.boot}))
            return
        exchange.pid = self._kernel.identify(edge.bearer(headers), edge.session(headers))
        await self._handler(exchange)(exchange)

    def _handler(self, exchange: Exchange) -> Handler:
        methods = self._routes.get(exchange.path)
        if methods is None:
            for folder, handler in self._folders.items():
                if exchange.path.startswith(folder) and len(exchange.path) > len(folder):
                    methods = {"GET": handler}
                    break
            else:
                raise edge.UnknownRoute(
                    f"there is nothing at {exchange.path[:200]!r}: GET /api/openapi.json lists all."
                )
        found = methods.get(exchange.method)
        if found is None:
            raise edge.MethodNotAllowed(
                f"{exchange.path} does not answer to {exchange.method}: use {' or '.join(methods)}."
            )
        return found

    async def _fail(self, exchange: Exchange, error: AiosError) -> None:
        told = failure(error, openai=exchange.path.startswith("/v1"))
        if not exchange.started:
            await exchange.answer(told.body, told.status, told.headers)

    def close(self) -> None:
        """Refuse new requests and end the open ones; each gets an answer that says so."""
        self._stopping = True
        for exchange in list(self._open):
            exchange.end(Stopping("the daemon is stopping: this call was cancelled."))
