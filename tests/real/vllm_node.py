"""Light nodes that vLLM itself serves on, and its parser as a process."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import httpx
from container import maker
from test_light_nodes import make_nodes, run, text, user_data
from test_rollout import Operator
from vllm_questions import KEY, LENGTH
from vllm_questions import MODEL as SERVED

from fleet import compose
from fleet.gate import GateSpec, Timeouts
from fleet.settings import Serving
from fleet.ssh import connect
from tools import vllm_cpu

HERE = Path(__file__).parent
MODEL = "tiny/qwen3"
LORA = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", "sql=/files/adapter")
TIMEOUTS = Timeouts(ssh_s=60, install_s=60, ready_s=900, token_s=60, reboot_s=60)
"""Of a start that takes 90 s on two cores, and five minutes where others use them, too."""


class Judge:
    """vLLM's own parser, in a process of its own."""

    def __init__(self, python: Path) -> None:
        self._process = subprocess.Popen(
            [python, HERE / "vllm_parser.py"], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.options: list[dict[str, Any]] = self._read()
        self.names = {name: each["dest"] for each in self.options for name in each["names"]}

    def __call__(self, words: Sequence[str]) -> dict[str, Any]:
        """What it makes of the words: `values` by destination, or `error`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(list(words)) + "\n")
        self._process.stdin.flush()
        return self._read()  # type: ignore[no-any-return]

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@dataclass
class Served:
    """A light node on which vLLM itself serves the tiny model and an adapter of it, with a key."""

    operator: Operator
    transcript: Path

    @property
    def gate(self) -> GateSpec:
        """What the gate is to find."""
        spec = self.operator.spec({})
        return GateSpec("l4-0", "scaleway", spec.target, SERVED, KEY, timeouts=TIMEOUTS)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client of vLLM's port on the node's loopback."""
        async with (
            connect(self.operator.spec({}).target) as node,
            node.forward(8000) as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
        ):
            yield client


@asynccontextmanager
async def node_with(
    models: Path, folder: Path, transcript: Path, settings: dict[str, Any]
) -> AsyncIterator[Operator]:
    """A node, from its first boot until its container is healthy."""
    async with make_nodes(folder, 1, engine=maker(models, transcript)) as (node,):
        operator = Operator(node, folder, KEY, TIMEOUTS)
        await node.start(user_data(compose.compose_file(Serving(**settings))))
        connection = await node.connect()
        await run(connection, "cloud-init status --wait")
        await operator.roll_out(settings)
        await healthy(connection, transcript)
        connection.close()
        yield operator


def serving(models: Path, more: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    """The settings under `serving`; `more` are further arguments of vLLM."""
    return {
        "image": f"vllm/vllm-openai:v{vllm_cpu.VERSION}",
        "model": MODEL,
        "served_model_name": SERVED,
        "max_model_len": LENGTH,
        "files": {"adapter": models / "adapter"},
        "extra_args": (*LORA, *more),
        **changes,
    }


def end(transcript: Path) -> str:
    """The last lines of the logs, for a test that fails."""
    return transcript.read_text()[-3000:]


async def healthy(connection: asyncssh.SSHClientConnection, transcript: Path) -> None:
    """Wait until the container is, or has ended."""
    state = "docker inspect vllm --format '{{.State.Status}} {{.State.Health.Status}} {{.RestartCount}}'"
    async with asyncio.timeout(TIMEOUTS.ready_s):
        while not (seen := await text(connection, state)).startswith("running healthy"):
            unit = await text(connection, "systemctl status vllm.service")
            assert "failed" not in unit, unit
            assert seen.endswith(" 0") or not seen, end(transcript)
            await asyncio.sleep(1)
