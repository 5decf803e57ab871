"""This project's stack on machines that really boot, and a node as its own outputs let a user reach it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from fleets import SSH_PORT, Fleet, project_folder, register_key, ssh_key
from harness import Result, Stack, wait_for

from simcloud.testing import running_simcloud
from simcloud.vm import build

# Emulated on busy processors, a machine takes several times as long as on a cloud.
HEALTH = {
    "ssh_timeout_s": 900,
    "install_timeout_s": 1800,
    "ready_timeout_s": 1200,
    "first_token_timeout_s": 120,
}
UP_S = 2700.0


@contextmanager
def booting_fleet(make: Callable[..., Stack], at: Path, cloud_name: str) -> Iterator[Fleet]:
    """A fleet with one node `a` on a cloud, not yet up, whose machine is a virtual one; it is destroyed in
    the end. `make` is what the fixture `pulumi` hands out."""
    build()
    key = ssh_key(at / "id_ed25519")
    folder = project_folder(at / "project")
    with running_simcloud(at / "cloud", nodes="vm", ssh_port=SSH_PORT) as cloud:
        register_key(cloud, key)
        fleet = Fleet(make(folder=folder, env=cloud.environment), cloud, key, cloud_name)
        fleet.config["health"] = dict(HEALTH)
        yield fleet
        fleet.stack.close()


def up(fleet: Fleet) -> Result:
    """An update that ends with a node that is ready; a machine may take its time."""
    result = fleet.start("up").wait(UP_S)
    assert result.code == 0, result.stdout
    assert fleet.statuses() == {"ready"}
    return result


class Node:
    """A node as its own outputs let a user reach it."""

    def __init__(self, fleet: Fleet) -> None:
        self.outputs: dict[str, Any] = fleet.outputs()["nodes"]["a"]

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
