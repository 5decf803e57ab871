"""The tunnel: open when it says so, there again after a loss, and clear about what it cannot fix."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
import httpx
import pytest
from light_fleet import DEADLINE_S, LightFleet, light_fleet
from test_light_nodes import ENV, user_data

from fleet.ssh import ConnectionLost, HostKeyMismatch, connect
from fleet.tunnel import Forward, PortTaken, forwards, hold


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Open:
    """A tunnel under way."""

    task: asyncio.Task[None]
    wanted: Forward
    told: list[str] = field(default_factory=list)
    times: int = 0

    async def says(self, text: str, count: int = 1) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while sum(text in line for line in self.told) < count:
                if self.task.done():
                    self.task.result()
                await asyncio.sleep(0.01)

    async def health(self) -> int:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"http://127.0.0.1:{self.wanted.local_port}/health")).status_code


async def deliver(fleet: LightFleet) -> None:
    """What a rollout puts on the node: `.env`, which starts vLLM."""
    async with connect(fleet.target(0)) as session:
        await session.run(["cloud-init", "status", "--wait"], check=False)
        await session.write_file("/opt/llm/.env", ENV, mode=0o600)


@asynccontextmanager
async def opened(fleet: LightFleet) -> AsyncIterator[Open]:
    (wanted,) = forwards(fleet.nodes[0].ports, free_port())
    tunnel = Open(asyncio.Future(), wanted)  # type: ignore[arg-type]

    def on_open() -> None:
        tunnel.times += 1

    tunnel.task = asyncio.create_task(hold(fleet.nodes[0], (wanted,), tunnel.told.append, on_open))
    try:
        yield tunnel
    finally:
        tunnel.task.cancel()
        await asyncio.gather(tunnel.task, return_exceptions=True)


async def test_it_waits_for_vllm_and_then_says_where_it_is(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 1, user_data()) as fleet, opened(fleet) as tunnel:
        await tunnel.says("waiting for vllm on port 8000 of the node: nothing listens yet")
        await deliver(fleet)
        await tunnel.says(f"vllm: http://127.0.0.1:{tunnel.wanted.local_port}/v1")
        assert await tunnel.health() == 200
        assert tunnel.times == 1


async def test_each_service_is_told_as_soon_as_it_answers_whatever_the_others_do(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 1, user_data()) as fleet:
        await deliver(fleet)
        node = fleet.nodes[0]
        # Nothing is there on the first service's port, and never will be.
        wanted = (Forward("webui", 3999, free_port()), *forwards(node.ports, free_port()))
        told, there = [], asyncio.Event()
        url = f"vllm: http://127.0.0.1:{wanted[1].local_port}/v1"

        def tell(line: str) -> None:
            told.append(line)
            if line == url:
                there.set()

        task = asyncio.create_task(hold(node, wanted, tell, lambda: told.append("all are there")))
        try:
            async with asyncio.timeout(60):
                await there.wait()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert "waiting for webui on port 3999 of the node: nothing listens yet" in told
        assert "all are there" not in told


async def test_after_a_reboot_it_is_there_again_on_the_same_port(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 1, user_data()) as fleet:
        await deliver(fleet)
        async with opened(fleet) as tunnel:
            await tunnel.says("vllm: ")
            with suppress(ConnectionLost):
                async with connect(fleet.target(0)) as session:
                    await session.run(["reboot"])
            await tunnel.says("the connection was lost; opening it again")
            await tunnel.says("vllm: ", count=2)
            assert await tunnel.health() == 200
            assert tunnel.times == 1  # a browser is not opened again


async def test_a_taken_port_is_named_with_another_to_choose(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 1) as fleet, opened(fleet) as tunnel:
        tunnel.task.cancel()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(
                PortTaken, match=f"port {port} of this machine is taken.* --port {port + 1000}"
            ):
                await hold(fleet.nodes[0], forwards({"vllm": 8000}, port), tunnel.told.append, lambda: None)


async def test_another_host_key_ends_it(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 1) as fleet:
        stranger = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        fleet.change(0, host_keys=(stranger,))
        with pytest.raises(HostKeyMismatch):
            await hold(fleet.nodes[0], forwards({"vllm": 8000}, free_port()), print, lambda: None)


def test_only_vllms_port_moves_on_request() -> None:
    moved = forwards({"vllm": 5002, "webui": 3000}, 9000)
    assert [(each.service, each.port, each.local_port) for each in moved] == [
        ("vllm", 5002, 9000),
        ("webui", 3000, 3000),
    ]
    assert moved[1].url == "http://127.0.0.1:3000"
