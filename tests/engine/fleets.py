"""This project's own stack in a test: the real program and engine, an embedded cloud, light nodes.

A `Fleet` is a stack of the project with a configuration that tests change by plain assignment:

    fleet.config["nodes"][0]["root_volume_gb"] = 300
    fleet.run("up")
"""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml
from harness import ROOT, Result, Running, Stack

from simcloud.testing import SimCloud

PROJECT_FILES = ("Pulumi.yaml", "__main__.py", "components", "fleet", "cloudinit", ".venv")
SECRETS = {"api_key": "planted-api-key-0123456789", "hf_token": "hf_plantedtoken0123456789"}


class Fleet:
    """A stack of this project on an embedded cloud."""

    def __init__(self, stack: Stack, cloud: SimCloud, key: Path, cloud_name: str) -> None:
        self.stack, self.cloud, self.cloud_name = stack, cloud, cloud_name
        self.config: dict[str, Any] = {
            "nodes": [node_config(cloud_name, "a")],
            "serving": {"model": "Qwen/Qwen3-8B-AWQ", "image": "vllm/vllm-openai:v0.9.2"},
            "access": {
                "ssh_cidrs": ["127.0.0.1/32"],
                "ssh_private_key_path": str(key),
                "ssh_port": SSH_PORT,
            },
            "health": {"ready_timeout_s": 60, "ssh_timeout_s": 60},
        }
        self.provider = {
            "scaleway:apiUrl": cloud.scaleway_url,
            "scaleway:projectId": cloud.project,
            "scaleway:accessKey": "SCWXXXXXXXXXXXXXXXXX",
            "scaleway:zone": "fr-par-2",
            "scaleway:timeout": 2,
        }
        for name, value in SECRETS.items():
            stack.ask("config", "set", "--secret", "--path", f"vllm-fleet:secrets.{name}", value)
        stack.ask("config", "set", "--secret", "scaleway:secretKey", cloud.secret_key)

    def write(self) -> None:
        """Put the configuration where the engine reads it; the secrets stay as it encrypted them."""
        path = self.stack.folder / f"Pulumi.{self.stack.name}.yaml"
        document = yaml.safe_load(path.read_text())
        secrets = {key: document["config"][key] for key in ("vllm-fleet:secrets", "scaleway:secretKey")}
        own = {f"vllm-fleet:{key}": value for key, value in self.config.items()}
        document["config"] = {**self.provider, **own, **secrets}
        path.write_text(yaml.safe_dump(document))

    def run(self, command: str, *flags: str, expect_failure: bool = False) -> Result:
        self.write()
        return self.stack.run(command, *flags, expect_failure=expect_failure)

    def start(self, command: str, *flags: str) -> Running:
        self.write()
        return self.stack.start(command, *flags)

    def drift(self) -> Result | None:
        """What `refresh --preview-only --expect-no-changes` finds; None if nothing."""
        self.write()
        result = self.stack.start("refresh", "--preview-only", "--expect-no-changes").wait()
        return result if result.code else None

    def outputs(self) -> dict[str, Any]:
        return self.stack.outputs()

    def nodes(self, *names: str) -> None:
        """Declare nodes of these names, and no others."""
        self.config["nodes"] = [node_config(self.cloud_name, name) for name in names]

    def left(self) -> list[str]:
        """Everything of this fleet that exists in the cloud, as `kind name`."""
        own = [thing for thing in self.cloud.inventory() if thing["kind"] != "ssh_key"]
        return [f"{thing['kind']} {thing['name']}" for thing in own]


SSH_PORT = 10022


def node_config(cloud_name: str, name: str) -> dict[str, Any]:
    """A node of the smallest type of a cloud."""
    by_cloud: Mapping[str, dict[str, Any]] = {
        "scaleway": {"zone": "fr-par-2", "type": "L4-1-24G", "root_volume_gb": 200},
        "linode": {"region": "us-ord", "type": "g2-gpu-rtx4000a1-s"},
    }
    return {"name": name, "cloud": cloud_name, **copy.deepcopy(by_cloud[cloud_name])}


def project_folder(at: Path) -> Path:
    """A folder that is this project to the engine; its stack files are a test's own."""
    at.mkdir(parents=True)
    for name in PROJECT_FILES:
        (at / name).symlink_to(ROOT / name)
    return at


def ssh_key(at: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(at)], check=True)
    return at


def register_key(cloud: SimCloud, key: Path) -> None:
    """Scaleway installs its project's keys on every server."""
    body = {"name": "test", "public_key": key.with_suffix(".pub").read_text(), "project_id": cloud.project}
    reply = httpx.post(
        f"{cloud.scaleway_url}/iam/v1alpha1/ssh-keys", json=body, headers={"X-Auth-Token": cloud.secret_key}
    )
    reply.raise_for_status()
