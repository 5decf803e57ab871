"""What provisioning a node is told on standard input."""

from __future__ import annotations

from dataclasses import dataclass, field

from fleet.diagnosis import Context, Hints
from fleet.provision.phases import Phase
from fleet.ssh import Target


@dataclass(frozen=True)
class ProvisionSpec:
    """A node, how to reach it, and what it is given."""

    node: str
    cloud: str
    target: Target
    phases: tuple[Phase, ...] = ()
    ssh_tries: int = 30
    ssh_pause_s: float = 2.0
    boot_s: float = 1800.0
    """Seconds for the machine's own first boot, its restart included."""
    hints: Hints = field(default_factory=Hints)

    @property
    def context(self) -> Context:
        """For diagnoses."""
        return Context(self.node, self.cloud, self.hints, self.target)
