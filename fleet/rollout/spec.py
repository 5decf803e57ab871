"""What a rollout is told on standard input."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fleet.diagnosis import Hints
from fleet.gate import Timeouts
from fleet.rollout.release import Release
from fleet.ssh import Target

SECRET_ENVIRONMENT = "FLEET_SECRET_ENVIRONMENT"  # noqa: S105  (a name, not a secret)
"""Environment variable that carries the secret lines of `.env`."""

SECRET_REGISTRIES = "FLEET_SECRET_REGISTRIES"  # noqa: S105  (a name, not a secret)
"""Environment variable that carries the logins at registries: a JSON object of registry → base64."""


@dataclass(frozen=True)
class Queue:
    """This node's place among the nodes of its stack."""

    directory: Path = Path(".fleet/rollouts")
    """Of this machine, shared by the rollouts of one stack."""
    max_unavailable: int = 1
    """Nodes that may be between two releases at once."""
    settle_s: float = 0.0
    """Seconds after the last start of a rollout in which nobody switches yet."""
    limit_s: float = 86400.0
    """Seconds to wait for this node's turn."""


@dataclass(frozen=True)
class ServedFile:
    """A file or folder of this machine that a release serves with."""

    name: str
    """Below `/files` in vLLM's container."""
    source: Path


@dataclass(frozen=True)
class RolloutSpec:
    """What a node is to serve, how to reach it, and how to get there."""

    node: str
    cloud: str
    target: Target
    compose: str
    """Content of the compose file."""
    environment: str
    """The lines of `.env` that are no secret."""
    owner: str = "vllm-fleet"
    """Who rolls out: project/stack. The same owner takes its own unfinished rollout up again at once."""
    files: tuple[ServedFile, ...] = ()
    files_digest: str = ""
    """Of their content when the update began; the folder's name on the node."""
    prefetch: str = ""
    """What `fleet.weights` downloads before the switch, as JSON; empty: vLLM fetches what it needs."""
    min_free_gb: float = 100.0
    """Least free disk at the first deployment, in 10⁹ bytes."""
    replace: str = "changed"
    """`changed` recreates the containers that changed, `force-recreate` all, `down` removes all first."""
    confirm: tuple[str, ...] = ()
    """Confirmations given for single deployments."""
    drain_s: float = 0.0
    """Seconds to wait for requests to end before what is served is stopped; 0 where nobody takes over."""
    dry_run: bool = False
    """Look and compare, change nothing."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    queue: Queue = field(default_factory=Queue)
    hints: Hints = field(default_factory=Hints)

    def release(self, secret_environment: str) -> Release:
        """The release that this spec and the secret lines of `.env` make."""
        return Release(self.compose.encode(), (self.environment + secret_environment).encode())
