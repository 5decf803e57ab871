"""Power-on to ready on a machine that really boots: this project's user data ÷ the plain serial order.

The plain order is the one that guides for such a node teach: install everything, restart, then let systemd
start the container, whose image is pulled then, and after it the weights. Both get the same machine, and what
takes minutes on a real cloud takes as many here, for both alike: registry and hub are throttled, and the
driver's kernel module is compiled. Packages come at full speed, as they do from a cloud's own mirror.
"""

from __future__ import annotations

import asyncio
import base64
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncssh
import yaml

from fleet import cloudconfig, layout
from fleet.settings import LinodeNode, Secrets
from fleet.userdata import HostKey, HostPart
from simcloud.vm import VmNodes
from simcloud.vm.mirrors import Condition, Mirror
from simcloud.vm.testing import SSH_PORT, Lab

RUNS = 3
BANDWIDTH = {Mirror.REGISTRY: 640_000, Mirror.WEIGHTS: 400_000}
"""Bytes a second. Image and weights, 75 MB each here, stand for an image of 10 GB and a model of 8 billion
parameters in 16 bits, 16 GB, on a line of 83 MB/s: two minutes, and more than three."""
DRIVER_BUILD_S = 120.0
"""The shortest that was found published for installing a driver: 2 to 3 minutes by NVIDIA's installer, about
12 by apt (Azure/acs-engine #989); 12 (skypilot-org/skypilot #3718)."""
DEADLINE_S = 3600.0

READY = "curl -fsS http://127.0.0.1:8000/health"


def bench_boot() -> tuple[float, float, str]:
    """Median of several runs in turns ÷ median of as many of the plain order, with its aim and unit."""
    return asyncio.run(_measure()), 0.6, "ratio"


async def _measure() -> float:
    backend = VmNodes(ssh_port=SSH_PORT, driver_build_s=DRIVER_BUILD_S)
    with tempfile.TemporaryDirectory(prefix="vllm-fleet-bench-") as folder:
        try:
            lab = Lab(backend, await backend.prepare(), Path(folder))
            own = ours()
            pairs = []
            for run in range(1, RUNS + 1):
                pair = await _boot(lab, own), await _boot(lab, plain(own))
                print(f"first boot, run {run}: {pair[0]:.0f} s ÷ {pair[1]:.0f} s", file=sys.stderr)
                pairs.append(pair)
        finally:
            await backend.close()
    return round(statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs), 2)


async def _boot(lab: Lab, user_data: bytes) -> float:
    """Seconds until `/health` answers, which it does once the weights are loaded."""
    began = time.monotonic()
    guest = await lab.boot("linode", user_data)
    for mirror, bandwidth in BANDWIDTH.items():
        lab.backend.mirrors(guest.boot.name)[mirror] = Condition(bandwidth=bandwidth)
    await guest.until(READY, deadline_s=DEADLINE_S)
    taken = time.monotonic() - began
    await lab.stop()
    return taken


def ours() -> bytes:
    """What `pulumi up` gives a Linode, secrets included: nobody has to bring them."""
    node = LinodeNode.model_validate(
        {
            "cloud": "linode",
            "name": "a",
            "region": "us-ord",
            "type": "g2-gpu-rtx4000a1-s",
            "serving": {
                "image": "vllm/vllm-openai:v0.9.2",
                "model": "Qwen/Qwen3-8B",
                "environment": {"VLLM_SIM_SPEED": "0"},
            },
        }
    )
    secrets = Secrets.model_validate({"api_key": "bench-0123456789abcdef", "delivery": "cloud-init"})
    key = asyncssh.generate_private_key("ssh-ed25519")
    host_key = HostKey(key.export_private_key().decode(), key.export_public_key().decode().strip())
    return base64.b64decode(HostPart.linode(node, secrets, host_key).user_data())


def plain(own: bytes) -> bytes:
    """The same files, packages and containers, one step after the other."""
    document = cloudconfig.document(cloudconfig.decoded(base64.b64encode(own).decode()))
    files: dict[str, Any] = {entry["path"]: entry for entry in document["write_files"]}
    source = f"{layout.SCRIPTS_DIRECTORY}/nvidia-container-toolkit"
    packages = "docker.io docker-compose-v2 nvidia-driver-580-server nvidia-container-toolkit"
    del document["bootcmd"]
    document["write_files"] = [
        files[layout.COMPOSE_PATH],
        files[layout.ENV_PATH],
        files[f"{layout.UNITS_DIRECTORY}/vllm.service"],
        files[f"{source}.asc"] | {"path": "/etc/apt/keyrings/nvidia-container-toolkit.asc"},
        files[f"{source}.sources"] | {"path": "/etc/apt/sources.list.d/nvidia-container-toolkit.sources"},
    ]
    document["runcmd"] = [
        ["apt-get", "update"],
        ["env", "DEBIAN_FRONTEND=noninteractive", *shlex.split(f"apt-get install -y {packages}")],
        ["nvidia-ctk", "runtime", "configure", "--runtime=docker"],
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", "vllm.service"],
    ]
    document["power_state"] = {"mode": "reboot"}
    return b"#cloud-config\n" + yaml.safe_dump(document).encode()
