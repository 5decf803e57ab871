"""What an embedded cloud asks of the machines it pretends to own.

A cloud emulator decides *when* a machine runs; a backend decides *what* runs: a light node
(in-process SSH server and OpenAI-compatible simulator) or a virtual machine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from starlette.routing import BaseRoute


@dataclass(frozen=True)
class Boot:
    """Everything a machine gets from its cloud at power-on."""

    cloud: str
    """`scaleway`, `linode` or `aws`."""
    server_id: str
    name: str
    address: str
    """The machine's own loopback address, 127.0.x.y."""
    user_data: bytes | None
    """Exactly the bytes the cloud API received."""
    authorized_keys: tuple[str, ...]
    """OpenSSH public keys the cloud installs for its default user."""
    gpu_model: str
    gpu_count: int
    gpu_memory_mib: int
    """Per GPU, as the driver reports it."""
    disk_gb: int
    """Root volume size at power-on, in 10⁹ bytes."""
    directory: Path
    """The machine's disk: kept over stop and start, removed with the server."""
    publish: Callable[[str, bytes], Awaitable[None]]
    """Writes one user-data key from inside the machine, as the metadata service allows."""


class NodeBackend(Protocol):
    """Runs machines. Every method is safe to call again."""

    async def start(self, boot: Boot) -> None:
        """Power on; returns when the machine is on, long before it has booted."""
        ...

    async def stop(self, server_id: str) -> None:
        """Power off; returns when nothing of the machine runs any more. Unknown ids are fine."""
        ...

    async def inject(self, name: str, fault: str | None) -> None:
        """Make the machine of this name misbehave from its next start of vLLM on; None heals it."""
        ...

    async def close(self) -> None:
        """Power off everything."""
        ...

    def controls(self) -> list[BaseRoute]:
        """What can be set from outside beside faults, as routes below `/_sim`."""
        return []
