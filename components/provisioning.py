"""What a node is given beside what serves the model: a Command that runs the phases over SSH."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pulumi
from pulumi import Input, ResourceOptions

from components.command import reached_at, run_module
from fleet import settings
from fleet.provision.phases import files_digest, phases_of


@dataclass(frozen=True)
class ProvisioningArgs:
    """What is given to which machine, and how to get there."""

    node: settings.Node
    health: settings.Health
    access: settings.Access
    server_id: Input[str]
    host: Input[str]
    host_keys: Input[Sequence[str]]
    ssh_user: str
    ready_when: Sequence[pulumi.Resource]
    """What must exist before the machine can be reached."""
    hints: dict[str, Input[str]]


class Provisioning(pulumi.ComponentResource):
    """Runs the phases of a node when they, what they copy or the machine changed. What is there already stays
    as it is, and what failed is gone on with at the next `up`."""

    done: pulumi.Resource
    """What needs the phases depends on this."""

    def __init__(self, name: str, args: ProvisioningArgs, opts: ResourceOptions | None = None) -> None:
        super().__init__("vllm-fleet:provisioning:Provisioning", name, None, opts)
        given = args.node.provision
        phases = [asdict(phase) for phase in phases_of(given, args.ssh_user)]
        self.done = run_module(
            f"{name}-phases",
            "fleet.provision",
            reached_at(args.host, args.host_keys, args.hints, args.access, args.ssh_user),
            {
                "node": args.node.name,
                "cloud": args.node.cloud,
                "phases": phases,
                "ssh_tries": given.ssh.tries,
                "ssh_pause_s": given.ssh.pause_s,
                "boot_s": args.health.install_timeout_s,
            },
            {},
            [args.server_id, files_digest(given)],
            ResourceOptions(parent=self, depends_on=[*args.ready_when]),
        )
        self.register_outputs({})
