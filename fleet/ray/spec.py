"""What a cluster's Commands are told: one machine's part in it, and what vLLM serves over all of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from fleet import gate
from fleet.diagnosis import Hints
from fleet.ssh import Target

TOKEN_VARIABLE = "FLEET_RAY_TOKEN"  # noqa: S105  a variable's name
SECRETS_VARIABLE = "FLEET_SECRET_ENVIRONMENT"


@dataclass(frozen=True)
class Timeouts:
    """How long each part of the way may take, in seconds."""

    ssh_s: float = 180.0
    install_s: float = 1800.0
    """cloud-init and the driver, a reboot included; then Ray, and vLLM where it serves, from PyPI."""
    join_s: float = 300.0
    """From the start of the unit until the head lists the machine; Ray's first start takes some 20 s."""


@dataclass(frozen=True)
class JoinSpec:
    """One machine's part in a cluster."""

    node: str
    target: Target
    address: str
    """On the private network."""
    head: Target
    """The head's SSH: who is in the cluster is asked there."""
    head_address: str
    """The head's address on the private network."""
    requirements: str
    """What pip installs."""
    files: str
    """Digest of the units and scripts, so that a change of them reaches the machine."""
    timeouts: Timeouts = field(default_factory=Timeouts)

    @property
    def is_head(self) -> bool:
        """Whether the others join this machine."""
        return self.address == self.head_address


@dataclass(frozen=True)
class ServeSpec:
    """What the head runs over all members."""

    node: str
    target: Target
    members: tuple[str, ...]
    """Private addresses of the machines it may use, in order."""
    arguments: tuple[str, ...]
    """Of `vllm serve`."""
    environment: str
    """`NAME='value'` lines, none secret."""
    cloud: str = ""
    hints: Hints = field(default_factory=Hints)
    timeouts: Timeouts = field(default_factory=Timeouts)
    readiness: gate.Timeouts | None = None
    """How long the gate waits after a change, before that is undone; None: nothing is gated or undone."""
