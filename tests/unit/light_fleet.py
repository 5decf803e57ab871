"""Light nodes as a stack's nodes, for the tests of commands that work over SSH."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import asyncssh

from fleet.inventory import FleetNode
from fleet.ssh import Target
from simcloud.light import LightNodes
from simcloud.nodes import Boot

DEADLINE_S = 30.0


@dataclass
class LightFleet:
    """Nodes n-0, n-1, …, booted and listening."""

    backend: LightNodes
    nodes: list[FleetNode]
    boots: list[Boot]

    def target(self, index: int) -> Target:
        return self.nodes[index].reachable()

    def change(self, index: int, **target: object) -> None:
        """Tell another address, key or user of a node than is true."""
        changed = replace(self.target(index), **target)  # type: ignore[arg-type]
        self.nodes[index] = replace(self.nodes[index], target=changed)


@asynccontextmanager
async def light_fleet(
    directory: Path, count: int, user_data: bytes | None = None, fault: str | None = None
) -> AsyncIterator[LightFleet]:
    """`count` nodes; the first one has the fault."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(directory / "id_ed25519")
    (directory / "id_ed25519").chmod(0o600)
    # Test processes that run side by side have addresses of their own.
    net = os.getpid() % 200 + 20
    with socket.socket() as probe:
        probe.bind((f"127.0.{net}.1", 0))
        port = int(probe.getsockname()[1])
    backend = LightNodes(ssh_port=port, speed=0.0)
    if fault:
        await backend.inject("n-0", fault)
    published: dict[str, asyncio.Future[bytes]] = {}
    boots = [
        Boot(
            cloud="scaleway",
            server_id=f"{index:08x}-1111",
            name=f"n-{index}",
            address=f"127.0.{net}.{index + 1}",
            user_data=user_data,
            authorized_keys=(key.export_public_key().decode(),),
            gpu_model="L4",
            gpu_count=1,
            gpu_memory_mib=23034,
            disk_gb=200,
            directory=directory / f"n-{index}",
            publish=_publisher(published.setdefault(f"n-{index}", asyncio.Future())),
        )
        for index in range(count)
    ]
    try:
        nodes = []
        for boot in boots:
            boot.directory.mkdir()
            await backend.start(boot)
        for boot in boots:
            async with asyncio.timeout(DEADLINE_S):
                host_key = (await published[boot.name]).decode().strip()
            target = Target(boot.address, (host_key,), "root", port, directory / "id_ed25519")
            nodes.append(
                FleetNode(
                    name=boot.name,
                    cloud="scaleway",
                    zone="fr-par-2",
                    type="L4-1-24G",
                    target=target,
                    container="vllm",
                    ports={"vllm": 8000},
                    model="Qwen/Qwen3-8B-AWQ",
                    server_id=boot.server_id,
                )
            )
        for node in nodes:
            await until(lambda node=node: _listens(node.reachable()))  # type: ignore[misc]
        yield LightFleet(backend, nodes, boots)
    finally:
        await backend.close()


def _publisher(found: asyncio.Future[bytes]) -> Callable[[str, bytes], Awaitable[None]]:
    async def publish(_key: str, value: bytes) -> None:
        if not found.done():
            found.set_result(value)

    return publish


async def _listens(target: Target) -> bool:
    try:
        _, writer = await asyncio.open_connection(target.host, target.port)
    except OSError:
        return False
    writer.close()
    return True


async def until(ask: Callable[[], Awaitable[object]]) -> None:
    """Ask again until the answer holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not await ask():  # noqa: ASYNC110  nobody tells of a file or a port
            await asyncio.sleep(0.02)
