"""Texts that shells, YAML and Compose would like to read their own way: what is set is what the process gets.

On a machine that boots, by both ways that files take: user data at the first boot, a rollout later.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest

from fleet import cloudconfig, compose, layout
from fleet.gate import Timeouts
from fleet.progress import Progress
from fleet.rollout.process import roll_out
from fleet.rollout.spec import Queue, RolloutSpec
from fleet.settings import ScalewayNode, Secrets, Serving
from fleet.ssh import Target
from fleet.userdata import HostPart
from simcloud.vm.testing import SSH_PORT, Guest, Lab

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]

HOSTILE = "' \" \\ $(touch /hostile) `touch /hostile` ${PATH} $$ {{x}} #no: [a, *b] %s %n é 世界 🦙 \t"
LINES = f"\n  {HOSTILE}\n\n- 'EOF'\r\n"
SECRETS = Secrets.model_validate(
    {
        "api_key": "~/.planted=+_-0123456789",
        "hf_token": "hf_planted0123456789",
        "delivery": "cloud-init",
    }
)


def node(**changes: Any) -> ScalewayNode:
    serving = {
        "model": f"/models/{HOSTILE}",
        "served_model_name": "it's\"$(x)`{y}世界",
        "environment": {"VLLM_SIM_SPEED": "0", "HOSTILE": HOSTILE},
        "extra_args": ["--chat-template", LINES, "--tokenizer", HOSTILE, f"--revision={HOSTILE}"],
        **changes,
    }
    return ScalewayNode.model_validate(
        {"cloud": "scaleway", "name": "a", "type": "L4-1-24G", "serving": serving}
    )


async def content(guest: Guest, path: str) -> bytes:
    return base64.b64decode(await guest.run(f"base64 -w0 {path}"))


async def has_received(guest: Guest, serving: Serving) -> None:
    """vLLM's process itself: its words and its environment."""
    process = (await guest.run("docker inspect --format '{{.State.Pid}}' vllm")).strip()
    words = (await content(guest, f"/proc/{process}/cmdline")).decode().split("\0")[:-1]
    assert words[words.index("--model") + 1] == serving.model
    assert words[words.index("--served-model-name") + 1] == serving.served_model_name
    assert words[-len(serving.extra_args) :] == list(serving.extra_args)
    environment = (await content(guest, f"/proc/{process}/environ")).decode().split("\0")
    assert {f"{name}={value}" for name, value in serving.environment.items()} <= set(environment)
    assert f"VLLM_API_KEY={SECRETS.api_key.get_secret_value()}" in environment
    assert (await guest.attempt("ls /hostile")).exit_status != 0
    assert (await guest.attempt("docker exec vllm ls /hostile")).exit_status != 0


async def test_hostile_texts_reach_a_process_of_a_booted_machine_intact(lab: Lab, tmp_path: Path) -> None:
    first = node()
    user_data = HostPart.scaleway(first, SECRETS).user_data()
    guest = await lab.boot("scaleway", user_data.encode())
    await guest.until("curl -fsS http://127.0.0.1:8000/health", deadline_s=600)
    for path, text in cloudconfig.written_files(user_data).items():
        assert await content(guest, path) == text.encode(), path
    await has_received(guest, first.serving)

    second = node(environment={"VLLM_SIM_SPEED": "0", "HOSTILE": HOSTILE[::-1], "MORE": "'"}).serving
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(guest.key.export_private_key())
    host_keys = guest.published["ssh-host-public-keys"].decode().splitlines()
    limits = {"ssh_s": 300.0, "install_s": 900.0, "ready_s": 420.0, "token_s": 60.0, "reboot_s": 300.0}
    spec = RolloutSpec(
        "a",
        "scaleway",
        Target(guest.boot.address, tuple(host_keys), "root", SSH_PORT, key),
        compose.compose_file(second),
        compose.env_file(compose.plain_environment(second)),
        min_free_gb=1.0,
        timeouts=Timeouts(**{name: limit * guest.speed_factor for name, limit in limits.items()}),
        queue=Queue(tmp_path / "queue"),
    )
    release = spec.release(compose.env_file(compose.secret_environment(SECRETS)))
    told = io.StringIO()
    try:
        await roll_out(spec, release, Progress("a", stream=told))
    finally:
        print(told.getvalue())
    assert await content(guest, layout.COMPOSE_PATH) == release.compose
    assert await content(guest, layout.ENV_PATH) == release.environment
    await has_received(guest, second)
