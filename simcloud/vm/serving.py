"""Small HTTP servers on loopback, inside the process that owns the machines."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

_transport: ContextVar[asyncio.Transport] = ContextVar("transport")


class _Protocol(H11Protocol):
    """Lets a handler cut its own connection, which ASGI has no word for."""

    def data_received(self, data: bytes) -> None:
        _transport.set(self.transport)
        super().data_received(data)


def cut_connection() -> None:
    """End the connection of the request being handled at once, whatever has been sent of the reply."""
    _transport.get().abort()


def free_port() -> int:
    """A TCP port free on 127.0.0.1 a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals belong to the process that hosts this server.
        yield


class LoopbackServer:
    """An ASGI application on free ports of 127.0.0.1; handlers tell them by `request.scope["server"]`."""

    def __init__(self, app: ASGIApp, *, ports: int = 1, certificate: Path | None = None) -> None:
        self._sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(ports)]
        self.ports: list[int] = [each.getsockname()[1] for each in self._sockets]
        options: dict[str, Any] = {} if certificate is None else {"ssl_certfile": certificate}
        self._server = _Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=1,
                **options,
            )
        )
        self._task = asyncio.create_task(self._server.serve(self._sockets))

    async def close(self) -> None:
        """Stop listening and end what is under way."""
        self._server.should_exit = True
        await self._task
