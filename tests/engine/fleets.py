"""This project's own stack in a test: the real program and engine, embedded clouds, light nodes.

A `Fleet` is a stack of the project with a configuration that tests change by plain assignment:

    fleet.config["nodes"][0]["root_volume_gb"] = 300
    fleet.run("up")

All clouds are configured; `fleet.promises` tells what a test has to know of the one its nodes are on.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from clouds import CLOUDS, ENVIRONMENT
from harness import ROOT, TIMEOUT_S, Result, Running, Stack

from simcloud.testing import SimCloud, running_simcloud

PROJECT_FILES = ("Pulumi.yaml", "__main__.py", "components", "fleet", "cloudinit", ".venv")
SECRETS = {"api_key": "planted-api-key-0123456789", "hf_token": "hf_plantedtoken0123456789"}


every_cloud = pytest.mark.parametrize("fleet", CLOUDS, indirect=True)
every_ready_cloud = pytest.mark.parametrize("ready_fleet", CLOUDS, indirect=True, scope="module")


def each_cloud_in_turn(mark: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """Every cloud, of which one is tried every day and the others on demand."""
    first, *others = CLOUDS
    chosen = [first, *(pytest.param(name, marks=mark) for name in others)]
    return pytest.mark.parametrize("fleet", chosen, indirect=True)


class Fleet:
    """A stack of this project on the embedded clouds; its nodes are on one of them."""

    first_up: Result
    """What the first `up` said, where a fixture ran it."""

    def __init__(self, stack: Stack, cloud: SimCloud, key: Path, cloud_name: str) -> None:
        self.stack, self.cloud, self.cloud_name = stack, cloud, cloud_name
        self.promises = CLOUDS[cloud_name]
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
            key: value for each in CLOUDS.values() for key, value in each.provider(cloud).items()
        }
        own = {f"vllm-fleet:secrets.{name}": value for name, value in SECRETS.items()}
        secrets = own | {key: value for each in CLOUDS.values() for key, value in each.secrets.items()}
        flags = [word for key, value in secrets.items() for word in ("--secret", f"{key}={value}")]
        stack.ask("config", "set-all", "--path", *flags)

    def write(self) -> None:
        """Put the configuration where the engine reads it; the secrets stay as it encrypted them."""
        path = self.stack.folder / f"Pulumi.{self.stack.name}.yaml"
        document = yaml.safe_load(path.read_text())
        kept = {"vllm-fleet:secrets", *(key for each in CLOUDS.values() for key in each.secrets)}
        secrets = {key: value for key, value in document["config"].items() if key in kept}
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

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A `fleet` command about this stack, run where a user runs it, that has ended."""
        return subprocess.run(
            [sys.executable, "-m", "fleet", *words, "--stack", self.stack.name],
            cwd=self.stack.folder,
            env=self.stack.env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def looked_at(self, *flags: str) -> tuple[int, list[dict[str, Any]]]:
        """Exit code and findings of `fleet drift`."""
        done = self.command("drift", "--json", *flags)
        assert done.returncode in (0, 3), done.stderr
        assert not [secret for secret in SECRETS.values() if secret in done.stdout + done.stderr]
        return done.returncode, json.loads(done.stdout)["drift"]

    def outputs(self) -> dict[str, Any]:
        return self.stack.outputs()

    def statuses(self) -> set[str]:
        return {node["status"] for node in self.outputs()["nodes"].values()}

    def nodes(self, *names: str) -> None:
        """Declare nodes of these names, and no others."""
        self.config["nodes"] = [node_config(self.cloud_name, name) for name in names]

    def left(self) -> list[str]:
        """Everything of this fleet that exists in the clouds, as `kind name`."""
        return [f"{thing['kind']} {thing['name']}" for thing in self._own()]

    def parts(self) -> dict[str, dict[str, int]]:
        """How many objects of each kind exist, by node."""
        parts: dict[str, Counter[str]] = {}
        for thing in self._own():
            parts.setdefault(thing["node"], Counter())[thing["kind"]] += 1
        return {node: dict(count) for node, count in parts.items()}

    def whole(self, *nodes: str) -> dict[str, dict[str, int]]:
        """What `parts` tells of nodes that consist of what they should, and of no second server."""
        return {node: dict.fromkeys(self.promises.parts, 1) for node in nodes}

    def written(self, after: int = 0) -> list[str]:
        """The calls that changed something in a cloud after an entry of the log, `Fleet.seen`."""
        calls = self.cloud.calls(after=after)
        reads = ("Describe", "Get", "List")
        return [
            call["call"]
            for call in calls
            if call["method"] != "GET"
            and not call["call"].startswith(reads)
            and "ssh_key" not in call["call"]  # the test's own
        ]

    def seen(self) -> int:
        """Number of the last entry of the clouds' log."""
        return int(self.cloud.log()[-1]["seq"])

    def _own(self) -> list[dict[str, Any]]:
        return [thing for thing in self.cloud.inventory() if thing["kind"] != "ssh_key"]


SSH_PORT = 10022


def node_config(cloud_name: str, name: str) -> dict[str, Any]:
    """A node of a small type of a cloud."""
    return {"name": name, "cloud": cloud_name, **copy.deepcopy(dict(CLOUDS[cloud_name].node))}


@contextmanager
def running_fleet(
    make: Callable[..., Stack], at: Path, cloud_name: str, folder: Path | None = None
) -> Iterator[Fleet]:
    """A fleet with one node `a` on a cloud, not yet up; `make` is what the fixture `pulumi` hands out.

    `folder` is a checkout of its own; without one the fleet is of this checkout.
    """
    key = ssh_key(at / "id_ed25519")
    folder = folder or project_folder(at / "project")
    with running_simcloud(at / "cloud", ssh_port=SSH_PORT) as cloud:
        register_key(cloud, key)
        if cloud_name == "aws":
            cloud.console("ec2").describe_vpcs()  # at the first call it loads moto, longer than clients wait
        fleet = Fleet(make(folder=folder, env=ENVIRONMENT), cloud, key, cloud_name)
        yield fleet
        # The clouds end here with all that is in them: nothing is left to destroy.
        fleet.stack.abandon()


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
