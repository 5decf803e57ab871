"""Brings a node's serving files up to date over SSH: `python -m fleet.rollout`, a spec on stdin.

The compose file and `.env` are written atomically, and only where they differ. At the first delivery a
path unit on the node sees `.env` and starts `vllm.service`; a later change restarts it. The report on stdout
names the release, so that what depends on it runs again exactly when the release changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from dataclasses import dataclass, field

from fleet import spec as specs
from fleet.diagnosis import Context, Hints, diagnose, ssh_fault
from fleet.layout import COMPOSE_PATH, ENV_PATH
from fleet.progress import Progress, Stage
from fleet.ssh import Connection, SshError, Target, wait_for_ssh

SECRET_ENVIRONMENT = "FLEET_SECRET_ENVIRONMENT"  # noqa: S105  (a name, not a secret)
"""Environment variable that carries the secret lines of `.env`."""


@dataclass(frozen=True)
class RolloutSpec:
    """What a node is to serve, and how to reach it."""

    node: str
    cloud: str
    target: Target
    compose: str
    """Content of the compose file."""
    environment: str
    """The lines of `.env` that are no secret."""
    ssh_s: float = 180.0
    """Seconds to wait for SSH."""
    hints: Hints = field(default_factory=Hints)


@dataclass(frozen=True)
class Release:
    """The serving files of a node."""

    files: dict[str, bytes]
    """Path on the node → content. Secret."""

    @classmethod
    def of(cls, spec: RolloutSpec, secret_environment: str) -> Release:
        """The files that a spec and the secret lines of `.env` make."""
        return cls(
            {COMPOSE_PATH: spec.compose.encode(), ENV_PATH: (spec.environment + secret_environment).encode()}
        )

    @property
    def digest(self) -> str:
        """Names all that is served. The key takes part, so that a new key is a new release."""
        content = hashlib.sha256()
        for path in sorted(self.files):
            content.update(path.encode() + b"\0" + self.files[path] + b"\0")
        return content.hexdigest()[:16]


async def apply(spec: RolloutSpec, release: Release, progress: Progress) -> list[str]:
    """Deliver what differs and return the paths written. Raises SshError."""
    node = await wait_for_ssh(spec.target, spec.ssh_s, progress)
    progress.reached(Stage.WORKER_SSH_ACCESSIBLE, str(spec.target))
    try:
        written = [path for path, content in release.files.items() if await _deliver(node, path, content)]
        if written and await _is_serving(node):
            await node.run(["systemctl", "restart", "vllm.service"], timeout_s=600)
    finally:
        await node.close()
    return written


async def _deliver(node: Connection, path: str, content: bytes) -> bool:
    """Write a file unless the node has it already."""
    there = await node.run(["sha256sum", path], check=False)
    if there.exit_status == 0 and there.stdout.split()[0] == hashlib.sha256(content).hexdigest():
        return False
    await node.write_file(path, content, mode=0o600 if path == ENV_PATH else 0o644)
    return True


async def _is_serving(node: Connection) -> bool:
    state = await node.run(["systemctl", "is-active", "vllm.service"], check=False)
    return state.stdout.strip() == "active"


def main() -> int:
    """Entry point of the Command resource; 0 when the node has the release."""
    spec = specs.parse(RolloutSpec, json.load(sys.stdin))
    release = Release.of(spec, os.environ[SECRET_ENVIRONMENT])
    progress = Progress(spec.node)
    try:
        written = asyncio.run(apply(spec, release, progress))
    except SshError as error:
        failed = ssh_fault(error)
        context = Context(spec.node, spec.cloud, spec.hints, spec.target)
        sys.stderr.write(f"{diagnose(failed.fault, Stage.WORKER_SSH_ACCESSIBLE, context, failed.seen)}\n")
        return 1
    names = ", ".join(path.rpartition("/")[2] for path in written)
    progress.note(Stage.WORKER_SSH_ACCESSIBLE, f"delivered {names}" if written else "files are up to date")
    sys.stdout.write(json.dumps({"node": spec.node, "release": release.digest}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
