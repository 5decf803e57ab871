"""What a node is given beside what serves the model: a Command that runs the phases over SSH."""

from __future__ import annotations

from dataclasses import asdict

import pulumi
from pulumi import ResourceOptions

from components.command import reached_at, run_module
from components.node import GpuNodeArgs, Machine
from fleet import network
from fleet.provision.phases import files_digest, phases_of


class Provisioning(pulumi.ComponentResource):
    """Runs the phases of a node when they, what they copy or the machine changed. What is there already stays
    as it is, and what failed is gone on with at the next `up`."""

    done: pulumi.Resource
    """What needs the phases depends on this."""

    def __init__(
        self, name: str, args: GpuNodeArgs, machine: Machine, opts: ResourceOptions | None = None
    ) -> None:
        super().__init__("vllm-fleet:provisioning:Provisioning", name, None, opts)
        given = args.node.provision
        phases = [asdict(phase) for phase in phases_of(given, machine.ssh_user, network.lines(args.network))]
        self.done = run_module(
            f"{name}-phases",
            "fleet.provision",
            reached_at(machine, args.access),
            {
                "node": args.node.name,
                "cloud": args.node.cloud,
                "phases": phases,
                "ssh_tries": given.ssh.tries,
                "ssh_pause_s": given.ssh.pause_s,
                "boot_s": args.health.install_timeout_s,
            },
            {},
            [machine.server_id, files_digest(given)],
            ResourceOptions(parent=self, depends_on=[*machine.ready_when]),
        )
        self.register_outputs({})
