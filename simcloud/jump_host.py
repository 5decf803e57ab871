"""A jump host in the private networks of the embedded clouds.

It leads to machines by their private addresses, which exist nowhere else; public ones, which are on this
machine's loopback, it refuses.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncssh

from simcloud.testing import SimCloud

USER = "hop"
START_S = 30.0


@dataclass
class JumpHost:
    """One that runs."""

    port: int
    host_key: str
    """Its public key."""
    led_to: list[str] = field(default_factory=list)
    """The address of each connection that it passed on."""

    @property
    def setting(self) -> dict[str, Any]:
        """The `access.jump_host` that names it."""
        return {"host": "127.0.0.1", "host_keys": [self.host_key], "user": USER, "port": self.port}


class _Server(asyncssh.SSHServer):
    """Lets in one key."""

    def __init__(self, cloud: SimCloud, public_key: str, led_to: list[str]) -> None:
        self._cloud = cloud
        self._key = asyncssh.import_public_key(public_key).public_data
        self._led_to = led_to

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == USER and key.public_data == self._key

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        return self._forwarded(dest_host, dest_port)

    async def _forwarded(self, host: str, port: int) -> Any:
        known = await asyncio.to_thread(self._cloud.private_addresses)
        if host not in known:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, f"no route to {host}")
        self._led_to.append(host)
        return await self._connection.forward_connection(known[host], port)


@contextmanager
def running_jump_host(cloud: SimCloud, public_key: str) -> Iterator[JumpHost]:
    """A jump host that `public_key` opens, for the time of a test."""
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    led_to: list[str] = []
    with _loop() as run:
        listening = asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=lambda: _Server(cloud, public_key, led_to),
            server_host_keys=[host_key],
        )
        acceptor = run(listening)
        yield JumpHost(acceptor.get_port(), host_key.export_public_key().decode().strip(), led_to)
        acceptor.close()


@contextmanager
def _loop() -> Iterator[Callable[[Awaitable[Any]], Any]]:
    """An event loop in a thread of its own, and what runs something in it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def awaited(what: Awaitable[Any]) -> Any:
        return await what

    try:
        yield lambda what: asyncio.run_coroutine_threadsafe(awaited(what), loop).result(START_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(START_S)
