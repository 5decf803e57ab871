"""Rollouts against light nodes: what changes, what does not, and what is left when something goes wrong."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from test_light_nodes import USER_KEY, Node, get, make_nodes, run, text, user_data

from fleet import compose
from fleet.gate import Timeouts
from fleet.progress import Progress
from fleet.rollout.process import Outcome, RolloutFailed, roll_out
from fleet.rollout.release import Release
from fleet.rollout.spec import Queue, RolloutSpec
from fleet.settings import Serving
from fleet.ssh import Target

KEY = "planted-key-0123456789"
MODEL = "Qwen/Qwen3-8B-AWQ"
OTHER = "Qwen/Qwen3-4B-AWQ"


class Operator:
    """Rolls out on one light node, as the Command resource does."""

    def __init__(self, node: Node, directory: Path) -> None:
        self.node, self.directory = node, directory
        self.key_path = directory / "id_ed25519"
        USER_KEY.write_private_key(self.key_path)
        self.key_path.chmod(0o600)
        self.api_key = KEY
        self.said = io.StringIO()

    @property
    def target(self) -> Target:
        host_key = self.node.published["ssh-host-public-keys"].decode().strip()
        return Target(self.node.boot.address, (host_key,), "root", self.node.port, self.key_path)

    def spec(self, serving: dict[str, Any], **changes: Any) -> RolloutSpec:
        wanted = Serving(**{"model": MODEL, **serving})
        spec = RolloutSpec(
            "l4-0",
            "scaleway",
            self.target,
            compose.compose_file(wanted),
            compose.env_file(compose.plain_environment(wanted)),
            prefetch=wanted.model,
            timeouts=Timeouts(ssh_s=10, install_s=10, ready_s=3, token_s=3, reboot_s=10),
            queue=Queue(self.directory / "queue", limit_s=10),
        )
        return replace(spec, **changes)

    def release(self, spec: RolloutSpec) -> Release:
        return spec.release(compose.env_file({"VLLM_API_KEY": self.api_key}))

    async def roll_out(self, serving: dict[str, Any] | None = None, **changes: Any) -> Outcome:
        spec = self.spec(serving or {}, **changes)
        return await roll_out(spec, self.release(spec), Progress("l4-0", self.said))

    async def fails(self, serving: dict[str, Any] | None = None, **changes: Any) -> str:
        with pytest.raises(RolloutFailed) as failure:
            await self.roll_out(serving, **changes)
        return str(failure.value)

    async def connect(self) -> asyncssh.SSHClientConnection:
        return await self.node.connect()

    async def models(self, key: str = "") -> list[str]:
        """What `/v1/models` lists to who holds the key."""
        connection = await self.connect()
        reply = await get(connection, 8000, "/v1/models", key or self.api_key)
        connection.close()
        return [model["id"] for model in reply.json()["data"]]

    async def on_node(self, command: str) -> str:
        connection = await self.connect()
        said = await text(connection, command)
        connection.close()
        return said


@asynccontextmanager
async def serving_node(tmp_path: Path) -> AsyncIterator[Operator]:
    """A node that serves its first release."""
    async with make_nodes(tmp_path, 1) as (node,):
        operator = Operator(node, tmp_path)
        await node.start(user_data(operator_compose := compose.compose_file(Serving(model=MODEL))))
        assert operator_compose
        connection = await node.connect()
        await run(connection, "cloud-init status --wait")
        connection.close()
        assert (await operator.roll_out()).note.startswith("delivered")
        while True:
            try:
                if await operator.models():
                    break
            except Exception:
                await asyncio.sleep(0.01)
        yield operator


@pytest.fixture
async def operator(tmp_path: Path) -> AsyncIterator[Operator]:
    async with serving_node(tmp_path) as operator:
        yield operator


async def test_a_change_of_model_replaces_the_container_and_is_committed(operator: Operator) -> None:
    outcome = await operator.roll_out({"model": OTHER})
    assert await operator.models() == [OTHER]
    served = json.loads(await operator.on_node("cat /opt/llm/rollout/served.json"))
    assert served["release"] == outcome.release and served["serial"] == 1
    assert "Uvicorn running" in outcome.note
    assert (await operator.roll_out({"model": OTHER})).note == "files are up to date"
