"""The machines behind the servers of all embedded clouds."""

from __future__ import annotations

import random
import shutil
import socket
from collections.abc import Collection
from pathlib import Path

from simcloud.nodes import Boot, NodeBackend


class NoNodes(NodeBackend):
    """Servers with no machine behind them: the cloud's own API is all there is."""

    async def start(self, boot: Boot) -> None:
        pass

    async def stop(self, server_id: str) -> None:
        pass

    async def inject(self, name: str, fault: str | None) -> None:
        pass

    async def close(self) -> None:
        pass


class Machines:
    """Addresses, disks and power of the machines."""

    def __init__(self, backend: NodeBackend, directory: Path, *, ssh_port: int) -> None:
        self.backend = backend
        self._directory = directory
        self._ssh_port = ssh_port

    def directory(self, server_id: str) -> Path:
        """The disk of one machine."""
        directory = self._directory / server_id
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def free_address(self, used: Collection[str]) -> str:
        """A loopback address 127.0.x.y that no server has and on which nobody listens for SSH.

        Raises:
            RuntimeError: no free address was found.
        """
        # Chosen at random and tried, since other emulators may run beside this one.
        for _ in range(1000):
            address = f"127.0.{random.randint(1, 254)}.{random.randint(2, 254)}"
            if address not in used and _can_listen(address, self._ssh_port):
                return address
        raise RuntimeError(
            f"no free loopback address 127.0.x.y for SSH port {self._ssh_port}: stop other embedded clouds"
        )

    async def remove(self, server_id: str) -> None:
        """Powers a machine off for good and wipes its disk."""
        await self.backend.stop(server_id)
        shutil.rmtree(self._directory / server_id, ignore_errors=True)


def _can_listen(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
