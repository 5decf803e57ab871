"""A Ray cluster on nodes: what is put on them, what they must be told, and how their state is asked.

`plan` decides before anything costs; `join` brings one machine into the cluster, `serve` vLLM up on its head.
The units and scripts are files in `cloudinit/ray`. Ray itself comes from PyPI, into `/opt/ray`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILES = Path(__file__).parent.parent.parent / "cloudinit" / "ray"

PORT = 6379
"""Of the head, on the private network."""
DASHBOARD_PORT = 8265
"""Of the head, on its loopback."""

HEAD_UNIT, WORKER_UNIT, SERVE_UNIT = "ray-head.service", "ray-worker.service", "vllm-ray.service"
RETIRE_UNIT, RETIRE_SCRIPT = "ray-retire.service", "ray-retire.py"
SETUP_SCRIPT = "ray-setup.sh"

SETTINGS_PATH = "/etc/vllm-fleet/ray.env"
TOKEN_PATH = "/etc/vllm-fleet/ray.token"  # noqa: S105  the file's name
REQUIREMENTS_PATH = "/etc/vllm-fleet/ray-requirements.txt"
ARGUMENTS_PATH = "/etc/vllm-fleet/vllm.json"
STARTED_WITH_PATH, SERVING_PATH = "/etc/vllm-fleet/ray.started-with", "/etc/vllm-fleet/vllm.started-with"
"""Digests of what Ray, and vLLM, were last started with."""
BEFORE_PATH = "/etc/vllm-fleet/vllm.before.json"
"""What served before a change that has not passed the gate yet."""
MEMBERS_PATH = "/etc/vllm-fleet/ray-members"
"""Private addresses of the machines that vLLM may use."""
ENVIRONMENT_PATH = "/etc/vllm-fleet/vllm-ray.env"


def settings_file(address: str, head_address: str) -> str:
    """`ray.env`: where this machine is on the private network, and where the head is."""
    return f"RAY_NODE_IP={address}\nRAY_ADDRESS={head_address}:{PORT}\n"


def requirements(ray_version: str, vllm_version: str | None) -> str:
    """What pip installs on every machine: ranks run in Ray's own environment, so vLLM is part of it."""
    serving = [f"vllm=={vllm_version}"] if vllm_version else []
    return "".join(f"{line}\n" for line in [f"ray[default]=={ray_version}", *serving])


def members(reply: Mapping[str, Any]) -> dict[str, float]:
    """Address and GPUs of each machine in the cluster, as the dashboard's `/api/v0/nodes` tells them."""
    nodes = reply["data"]["result"]["result"]
    return {
        node["node_ip"]: node["resources_total"].get("GPU", 0.0) for node in nodes if node["state"] == "ALIVE"
    }
