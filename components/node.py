"""What a GPU node is on every cloud: the same outputs, the same tags, the same way to serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi import Input, Output

from components.access import fingerprints, open_to_operators, ssh_command, tunnel_command
from components.command import described, target_of
from components.gateway import Exposure, Opening
from components.ownership import FleetOwner, Retirement
from components.serving import ServedModel, asked_of
from fleet import layout, observability, ray, settings
from fleet.cost import Cost

if TYPE_CHECKING:
    from components.ray_cluster import Membership


@dataclass(frozen=True)
class Member:
    """A node's place in a Ray cluster."""

    cluster: settings.RayCluster
    index: int
    """0 is the head."""
    network: Input[str]
    """The private network, by what its cloud knows it: id on Scaleway, label on Linode; on AWS the security
    group within which everything may talk."""
    token: Output[str]
    head: Membership | None
    """What to join; None for the head itself."""


@dataclass(frozen=True)
class GpuNodeArgs:
    """Everything a node is made from, already checked."""

    node: settings.Node
    owner: FleetOwner
    access: settings.Access
    health: settings.Health
    secrets: settings.Secrets
    rollout: settings.Rollout
    rollout_after: Sequence[pulumi.Resource] = ()
    """Rollouts of other nodes that have to succeed first."""
    observability: settings.Observability | None = None
    """What watches the node, if anything."""
    network: settings.Network = settings.DIRECT
    """How the machine reaches the internet."""
    member: Member | None = None
    """Of a cluster: the node serves nothing by itself."""
    exposure: Exposure | None = None
    """The node's part in the stack's gateway, if it has one."""

    @property
    def openings(self) -> list[Opening]:
        """What the node's firewall lets in."""
        ssh = Opening("ssh", self.access.ssh_port, self.access.ssh_cidrs)
        return [ssh, *(self.exposure.openings() if self.exposure else [])]


@dataclass(frozen=True)
class Machine:
    """What a cloud's part of a node hands to the part that is the same everywhere."""

    server_id: Output[str]
    public_ip: Output[str] | None
    """None for a machine without a public address, which is reached at its `private_ip`."""
    host_keys: Output[Sequence[str]]
    """OpenSSH public keys, known before the first connection."""
    root_volume_gb: Output[int]
    ssh_user: str
    ready_when: Sequence[pulumi.Resource]
    """What must exist before the machine can be reached."""
    objects: Sequence[Input[str]]
    """Ids of everything in the cloud that the node consists of: what else carries its marks is surplus."""
    hints: dict[str, Input[str]]
    """Names a diagnosis quotes: zone, server, security group."""
    started: Input[str] | None = None
    """Changes whenever this program starts the machine."""
    private_ip: Input[str] | None = None
    """On the private network that the machine is in."""

    @property
    def address(self) -> Output[str]:
        """Where SSH and the gateway reach it."""
        if self.public_ip is not None:
            return self.public_ip
        assert self.private_ip is not None, "a machine without a public address is in a private network"
        return Output.from_input(self.private_ip)

    @property
    def starts(self) -> list[Input[str]]:
        """What is to be done again after each start of the machine has these triggers."""
        return [] if self.started is None else [self.started]


class GpuNode(pulumi.ComponentResource):
    """A GPU node serving a model. One subclass a cloud; the outputs below are the contract."""

    server_id: Output[str]
    """The server's id in its cloud."""
    cloud: str
    zone: str
    """Zone or region, as its cloud names it."""
    public_ip: Output[str] | None
    """None where it has none."""
    address: Output[str]
    """Where SSH and the gateway reach it: its public address, else its private one."""
    ssh: Output[dict[str, Any]]
    """Where SSH answers and by which host keys it is known: the fields of `fleet.ssh.Target`."""
    ssh_keys: Sequence[str]
    """Fingerprints of the keys that open it."""
    reached_from: Output[str] | None
    """Our own address as the node last saw it; None in a cluster."""
    ssh_command: Output[str]
    """Opens a shell on the node, the host verified against the pinned key."""
    tunnel_command: Output[str]
    """Forwards the node's vLLM (and Open WebUI) to the same ports of this machine."""
    endpoint: str | None
    """Base URL of the OpenAI API once the tunnel is open; None where none is served."""
    model: str
    asked_of: dict[str, object]
    """What of the model the gate asks beyond a completion; empty for nothing."""
    """Name clients ask for."""
    container: str
    """Name of the vLLM container; empty for a machine of a Ray cluster."""
    ports: dict[str, int]
    """Ports on the node's loopback, by what listens: `vllm`, `webui`, `ray` for a cluster's dashboard,
    `grafana`, `prometheus`."""
    cost: Cost
    """Server, volume and address, in the cloud's currency; unknown where the catalog does not know."""
    type: str
    root_volume_gb: Output[int]
    """Size the cloud reports, in 10⁹ bytes."""
    certificate_name: str | None
    """Whom the certificate on the node's port 443 is for; None where nothing listens there."""
    status: Output[str]
    """`ready` when the gate passed; `provisioned` when it is switched off; `dry run`; `in cluster NAME`."""
    rollout: pulumi.Resource
    """Brings what is served up to date; what depends on it waits for that."""
    retired: Output[str] | None = None
    """Known once nothing is left of the machine before; None where the stack's own retirement sees to it."""
    objects: Sequence[Input[str]]
    """Ids of everything in the cloud that the node consists of."""
    membership: Membership | None

    def _serve(self, name: str, args: GpuNodeArgs, machine: Machine) -> None:
        """Bring the model up on the machine and register the outputs."""
        node = args.node
        provisioned = self._provision(name, args, machine)
        machine = replace(machine, ready_when=[*machine.ready_when, *provisioned])
        open_to_operators(name, args, machine, self)
        if args.member:
            self._join(name, args, machine)
        else:
            self._serve_alone(name, args, machine)
        self.cost = node.cost_per_hour()
        self.type = node.type
        self.server_id = machine.server_id
        self.cloud = node.cloud
        self.zone = node.location
        self.public_ip, self.address = machine.public_ip, machine.address
        contact = Output.all(machine.address, machine.host_keys).apply(
            lambda known: target_of(args.access, machine.ssh_user, *known)
        )
        self.ssh = contact.apply(described)
        self.ssh_keys = fingerprints(args.access)
        self.ssh_command = contact.apply(ssh_command)
        self.ports = ports_of(args)
        self.tunnel_command = contact.apply(lambda target: tunnel_command(target, self.ports.values()))
        self.endpoint = f"http://127.0.0.1:{node.serving.port}/v1" if "vllm" in self.ports else None
        self.model = node.serving.served_name
        self.asked_of = asked_of(node.serving)
        self.container = "" if args.member else node.serving.container_name
        self.root_volume_gb = machine.root_volume_gb
        self.objects = machine.objects
        self.certificate_name = args.exposure.name if args.exposure else None
        if args.observability and args.observability.enabled:
            self._watch(name, args, args.observability, machine)
        self.register_outputs(self.outputs())

    def _watch(self, name: str, args: GpuNodeArgs, wanted: settings.Observability, machine: Machine) -> None:
        from components.observability import Watching  # noqa: PLC0415  few stacks ask for it

        Watching(
            f"{name}-observability",
            node=args.node,
            vllm_port=self.ports.get("vllm"),
            wanted=wanted,
            health=args.health,
            target=self.ssh,
            server_id=machine.server_id,
            after=[self.rollout],
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _serve_alone(self, name: str, args: GpuNodeArgs, machine: Machine) -> None:
        served = ServedModel(f"{name}-serving", args, machine, pulumi.ResourceOptions(parent=self))
        self.status, self.rollout, self.membership = served.status, served.rollout, None
        self.reached_from = served.reached_from
        if not args.node.serving.dry_run:
            # Of a cluster's machine, whose gate is the cluster's, the stack's own retirement takes care.
            retirement = Retirement(
                f"{name}-retirement",
                owner=args.owner,
                keep=machine.objects,
                node=args.node.name,
                opts=pulumi.ResourceOptions(parent=self, depends_on=[served.gate or served.rollout]),
            )
            self.retired = retirement.id

    def _join(self, name: str, args: GpuNodeArgs, machine: Machine) -> None:
        from components.ray_cluster import Membership  # noqa: PLC0415  few stacks have a cluster

        part = Membership(f"{name}-membership", args, machine, pulumi.ResourceOptions(parent=self))
        self.status, self.rollout, self.membership = part.status, part.joined, part
        self.reached_from = None

    def _provision(self, name: str, args: GpuNodeArgs, machine: Machine) -> list[pulumi.Resource]:
        """Run the phases that the node asks for, if any; what is served may need what they bring."""
        if not args.node.provision.named:
            return []
        from components.provisioning import Provisioning  # noqa: PLC0415  few nodes need it

        own = pulumi.ResourceOptions(parent=self)
        return [Provisioning(f"{name}-provisioning", args, machine, own).done]

    def outputs(self) -> dict[str, Any]:
        """The contract, as `pulumi stack output nodes` shows it.

        What is known from the configuration is a plain value: an `Output` of each would be one more thing
        for every step of a large fleet's preview to wait for.
        """
        return {
            "id": self.server_id,
            "cloud": self.cloud,
            "zone": self.zone,
            "type": self.type,
            "public_ip": self.public_ip,
            "address": self.address,
            "ssh": self.ssh,
            "ssh_command": self.ssh_command,
            "ssh_keys": self.ssh_keys,
            "reached_from": self.reached_from,
            "tunnel_command": self.tunnel_command,
            "endpoint": self.endpoint,
            "model": self.model,
            **self.asked_of,
            "container": self.container,
            "ports": self.ports,
            "cost_per_hour": self.cost.total,
            "currency": self.cost.currency,
            "root_volume_gb": self.root_volume_gb,
            "certificate_name": self.certificate_name,
            "status": self.status,
        }


def ports_of(args: GpuNodeArgs) -> dict[str, int]:
    """What listens on the node's loopback, by name."""
    serving, member = args.node.serving, args.member
    watching = observability.PORTS if args.observability and args.observability.enabled else {}
    if member is None:
        webui = {"webui": layout.WEBUI_PORT} if serving.webui else {}
        return {"vllm": serving.port, **webui, **watching}
    if member.head is not None:
        return {**watching}
    served = {"vllm": serving.port} if member.cluster.serve else {}
    return {**served, "ray": ray.DASHBOARD_PORT, **watching}
