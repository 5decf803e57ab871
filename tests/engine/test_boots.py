"""From `pulumi up` to a generated token on machines that really boot, one for each cloud.

The engine is real, the user data is the program's own, and so are cloud-init, apt, dockerd, compose, systemd
and the reboot. A boot takes minutes: everything to be seen of one is looked at in one test.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fleets
import httpx
import openai
import pytest
from fleets import SECRETS, Fleet
from harness import Stack, wait_for

from simcloud import aws
from simcloud.testing import running_simcloud
from simcloud.vm import build

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3000)]

NODES: dict[str, dict[str, Any]] = {
    "scaleway": {"zone": "fr-par-2", "type": "L4-1-24G", "root_volume_gb": 200},
    "linode": {"region": "us-ord", "type": "g2-gpu-rtx4000a1-s"},
    "aws": {"type": "g6.xlarge", "root_volume_gb": 200},
}
# Emulated on busy processors, a machine takes several times as long as on a cloud.
HEALTH = {
    "ssh_timeout_s": 900,
    "install_timeout_s": 1800,
    "ready_timeout_s": 1200,
    "first_token_timeout_s": 120,
}
UP_S = 2700.0
DRIVER = "nvidia-driver-580-server"


@pytest.fixture
def boots(pulumi: Callable[..., Stack], tmp_path: Path) -> Iterator[Callable[[str], Fleet]]:
    """Makes this project's stack with one node of a cloud, whose machines are virtual ones."""
    build()
    key = fleets.ssh_key(tmp_path / "id_ed25519")
    folder = fleets.project_folder(tmp_path / "project")
    with running_simcloud(tmp_path / "cloud", nodes="vm", ssh_port=fleets.SSH_PORT) as cloud:
        fleets.register_key(cloud, key)

        def make(cloud_name: str) -> Fleet:
            fleet = Fleet(pulumi(folder=folder, env=cloud.environment), cloud, key, "scaleway")
            fleet.config["nodes"] = [{"name": "a", "cloud": cloud_name, **NODES[cloud_name]}]
            fleet.config["serving"] |= {"webui": True, "environment": {"VLLM_SIM_SPEED": "0"}}
            fleet.config["health"] = dict(HEALTH)
            if cloud_name == "aws":
                endpoints = dict.fromkeys(("ec2", "iam", "ssm", "sts", "efs", "logs"), cloud.aws_url)
                fleet.provider = {
                    "aws:region": "us-east-1",
                    "aws:accessKey": aws.DEV_ACCESS_KEY,
                    "aws:secretKey": aws.DEV_SECRET_KEY,
                    "aws:endpoints": [endpoints],
                }
            made.append(fleet)
            return fleet

        made: list[Fleet] = []
        yield make
        for fleet in made:
            fleet.stack.close()


class Node:
    """A node as its own outputs let a user reach it."""

    def __init__(self, outputs: dict[str, Any]) -> None:
        self.outputs = outputs

    def attempt(self, script: str) -> subprocess.CompletedProcess[str]:
        """The end of a script that runs on the node as root, through `ssh_command` as printed."""
        command = f"{self.outputs['ssh_command']} sudo sh -s"
        return subprocess.run(
            command, shell=True, input=script, capture_output=True, text=True, timeout=300, check=False
        )

    def run(self, script: str) -> str:
        done = self.attempt(script)
        assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def tunnel(self) -> Iterator[None]:
        """`tunnel_command` as printed, until the end of the block."""
        process = subprocess.Popen(
            f"exec {self.outputs['tunnel_command']}", shell=True, stderr=subprocess.PIPE, text=True
        )
        try:
            wait_for(lambda: _answers("http://127.0.0.1:8000/health"), "the tunnel to carry /health")
            yield
        finally:
            process.terminate()
            process.wait(30)

    def boots(self) -> int:
        return len(self.run("journalctl --list-boots --quiet").splitlines())


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).is_success
    except httpx.TransportError:
        return False


def up(fleet: Fleet) -> Node:
    result = fleet.start("up").wait(UP_S)
    assert result.code == 0, result.stdout
    assert "100 % READY" in result.stdout
    node = fleet.outputs()["nodes"]["a"]
    assert node["status"] == "ready"
    return Node(node)


def look_inside(node: Node) -> None:
    """What holds of every node that is ready."""
    assert '"status": "done"' in node.run("cloud-init status --format json")
    assert node.run("systemctl --failed --plain --no-legend") == ""
    units = node.run("systemctl show --property=ActiveState,SubState --value vllm.service")
    assert units.split() == ["active", "exited"]
    assert node.run("docker ps --format '{{.Names}}' | sort").split() == ["open-webui", "vllm"]
    listening = node.run("ss --no-header --listening --tcp --numeric | awk '{print $4}'").split()
    outside = {each for each in listening if not each.startswith("127.")}
    assert {each.rpartition(":")[2] for each in outside} == {"22"}
    assert {"127.0.0.1:8000", "127.0.0.1:3000", "127.0.0.1:8080"} <= set(listening)
    assert node.run("stat --format '%a %U' /opt/llm/.env") == "600 root\n"
    held = node.run("apt-mark showhold").split()
    assert {DRIVER, "nvidia-container-toolkit", "docker.io"} <= set(held)
    # Root file system grown to its volume.
    size = int(node.run("df --output=size --block-size=1 / | tail -1"))
    assert size > 0.92 * node.outputs["root_volume_gb"] * 10**9


def talk(node: Node) -> None:
    """A completion by OpenAI's own client, and Open WebUI's page."""
    with node.tunnel():
        client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=SECRETS["api_key"], timeout=120)
        completion = client.chat.completions.create(
            model=node.outputs["model"], messages=[{"role": "user", "content": "Hello"}], max_tokens=8
        )
        assert completion.choices[0].message.content
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="another-key-0123456789").models.list()
        assert "Open WebUI" in httpx.get("http://127.0.0.1:3000/", timeout=60).text


def restart(node: Node) -> None:
    """A reboot that nobody prepared: the node comes back serving, by itself."""
    before = node.boots()
    node.attempt("systemctl reboot")

    def back() -> bool:
        done = node.attempt("journalctl --list-boots --quiet && curl -fsS http://127.0.0.1:8000/health")
        return done.returncode == 0 and len(done.stdout.splitlines()) == before + 1

    wait_for(back, "the node to serve again", timeout_s=1200)


def test_a_linode_node_installs_everything_reboots_once_and_serves_again_after_another(
    boots: Callable[[str], Fleet],
) -> None:
    fleet = boots("linode")
    node = up(fleet)
    look_inside(node)
    assert node.boots() == 2
    talk(node)
    restart(node)
    look_inside(node)
    talk(node)
    assert fleet.run("preview", "--expect-no-changes").changes == {}


def test_a_scaleway_node_proves_itself_by_its_published_key_and_needs_no_reboot(
    boots: Callable[[str], Fleet],
) -> None:
    node = up(boots("scaleway"))
    look_inside(node)
    assert node.boots() == 1
    talk(node)


def test_an_aws_node_is_entered_as_its_images_user_and_needs_no_reboot(boots: Callable[[str], Fleet]) -> None:
    node = up(boots("aws"))
    look_inside(node)
    assert node.boots() == 1
    talk(node)
