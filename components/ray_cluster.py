"""A Ray cluster: a head and workers on a private network, and one model served over all their GPUs."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi import Input, Output, ResourceOptions
from pulumi.dynamic import CreateResult, ReadResult, Resource, UpdateResult

from components.clouds import gpu_node
from components.command import reached_at, run_module
from components.dynamic import CloudProvider
from components.node import GpuNode, GpuNodeArgs, Machine, Member
from components.ownership import FleetOwner
from components.serving import asked_of
from fleet import compose, layout, ray, settings
from fleet.engine import tasks
from fleet.ray import process
from fleet.ray.plan import arguments, spread
from fleet.ray.spec import SECRETS_VARIABLE, TOKEN_VARIABLE


class ClusterTokenProvider(CloudProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(secrets.token_hex(8), {**props, "token": secrets.token_hex(32)})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        return ReadResult(id_, props)  # it exists in state alone

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult({**news, "token": olds["token"]})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Nothing: it goes with the state."""


class ClusterToken(Resource, module="ray", name="ClusterToken"):
    """The secret that every call within a cluster carries. Its id marks what belongs to the cluster."""

    token: Output[str]

    def __init__(self, name: str, opts: ResourceOptions) -> None:
        secret = ResourceOptions(additional_secret_outputs=["token"])
        super().__init__(ClusterTokenProvider(), name, {"token": None}, ResourceOptions.merge(opts, secret))


class Membership(pulumi.ComponentResource):
    """Brings one machine into its cluster, in place of serving something by itself."""

    joined: pulumi.Resource
    """The Command that does; it is done when the head lists the machine."""
    contact: Output[dict[str, Any]]
    """How the machine is reached: `target` over SSH, with `hints` for a diagnosis; `address` on the private
    network."""
    status: Output[str]

    def __init__(
        self, name: str, args: GpuNodeArgs, machine: Machine, opts: ResourceOptions | None = None
    ) -> None:
        super().__init__("vllm-fleet:ray:Membership", name, None, opts)
        member = args.member
        assert member, "only a member has a membership"
        cluster = member.cluster
        own = self.contact = Output.all(reached_at(machine, args.access), machine.private_ip).apply(
            lambda known: {**known[0], "address": known[1]}
        )
        # The head asks itself.
        head = own if member.head is None else member.head.contact
        joined = self.joined = run_module(
            f"{name}-join",
            "fleet.ray.join",
            Output.all(own, head).apply(
                lambda known: {
                    "target": known[0]["target"],
                    "address": known[0]["address"],
                    "head": known[1]["target"],
                    "head_address": known[1]["address"],
                }
            ),
            {
                "node": args.node.name,
                "requirements": _requirements(cluster),
                "files": process.digest(),
                "timeouts": _timeouts(args.health),
            },
            {TOKEN_VARIABLE: Output.secret(member.token)},
            [machine.server_id, *machine.starts],
            ResourceOptions(
                parent=self,
                depends_on=[*machine.ready_when, *([member.head.joined] if member.head else [])],
            ),
        )
        self.status = Output.unsecret(joined.stdout.apply(lambda _: f"in cluster {cluster.name}"))
        self.register_outputs({"status": self.status})


@dataclass(frozen=True)
class RayClusterArgs:
    """Everything a cluster is made from, already checked."""

    cluster: settings.RayCluster
    owner: FleetOwner
    access: settings.Access
    health: settings.Health
    secrets: settings.Secrets
    rollout: settings.Rollout
    observability: settings.Observability
    network: settings.Network = settings.DIRECT


class RayCluster(pulumi.ComponentResource):
    """Private network → head → workers, each by its own → vLLM on the head, over all of them → gate.

    Workers know the head, and nobody knows the workers: one that comes or goes touches no other. What vLLM is
    started with depends on how many there are, so that is started anew.
    """

    nodes: dict[str, GpuNode]
    """The machines by name, the head first."""
    network: Input[str]
    """What the machines meet in, by what its cloud knows it."""
    status: Output[str]
    """`ready` when the gate passed; `provisioned` when it is switched off, or nothing is served."""

    def __init__(self, name: str, args: RayClusterArgs, opts: ResourceOptions | None = None) -> None:
        super().__init__("vllm-fleet:ray:RayCluster", name, None, opts)
        cluster, child = args.cluster, ResourceOptions(parent=self)
        token = ClusterToken(f"{name}-token", child)
        network = self.network = _private_network(name, cluster, args.owner.id, child)

        def member(index: int, node: settings.Node, head: GpuNode | None) -> GpuNode:
            own = Member(cluster, index, network, token.token, head.membership if head else None)
            return gpu_node(
                GpuNodeArgs(
                    node,
                    args.owner,
                    args.access,
                    args.health,
                    args.secrets,
                    args.rollout,
                    member=own,
                    observability=args.observability,
                    network=args.network,
                ),
                child,
            )

        head = member(0, cluster.head, None)
        workers = [member(index, node, head) for index, node in enumerate(cluster.workers, start=1)]
        members = [head, *workers]
        self.nodes = {node.name: made for node, made in zip(cluster.members, members, strict=True)}
        self.status = self._serve(name, args, members) if cluster.serve else Output.from_input("provisioned")
        self.register_outputs({"status": self.status})

    def _serve(self, name: str, args: RayClusterArgs, members: list[GpuNode]) -> Output[str]:
        """Start vLLM on the head and wait until it answers."""
        cluster, health = args.cluster, args.health
        serving = cluster.serving
        readiness = {
            **_timeouts(health),
            "ready_s": health.ready_timeout_s,
            "token_s": health.first_token_timeout_s,
        }
        contacts = [each.membership.contact for each in members if each.membership]
        secret_lines = Output.secret(compose.env_file(compose.secret_environment(args.secrets)))
        served = run_module(
            f"{name}-serve",
            "fleet.ray.serve",
            Output.all(*contacts).apply(
                lambda known: {
                    "target": known[0]["target"],
                    "hints": known[0]["hints"],
                    "members": [contact["address"] for contact in known],
                }
            ),
            {
                "node": cluster.head.name,
                "arguments": arguments(serving, spread(cluster, args.secrets)),
                "environment": compose.env_file({**serving.environment, **_task(serving)}),
                "cloud": cluster.cloud,
                "timeouts": _timeouts(health),
                "readiness": readiness if health.enabled else None,
            },
            {SECRETS_VARIABLE: secret_lines},
            # A machine made anew has the old one's address at most: ranks on it are to be started.
            [each.server_id for each in members],
            ResourceOptions(parent=self, depends_on=[each.rollout for each in members]),
        )
        if not health.enabled:
            return Output.unsecret(served.stdout.apply(lambda _: "provisioned"))
        gate = run_module(
            f"{name}-gate",
            "fleet.gate",
            contacts[0].apply(lambda known: {"target": known["target"], "hints": known["hints"]}),
            {
                "node": cluster.head.name,
                "cloud": cluster.cloud,
                "vllm_port": serving.port,
                "served_model": serving.served_name,
                **asked_of(serving),
                "unit": ray.SERVE_UNIT,
                "timeouts": readiness,
            },
            {
                "FLEET_API_KEY": Output.secret(args.secrets.api_key.get_secret_value()),
                SECRETS_VARIABLE: secret_lines,  # for the mask
            },
            [*(each.server_id for each in members), served.stdout],
            ResourceOptions(parent=self, depends_on=[served]),
        )
        return Output.unsecret(gate.stdout.apply(lambda _: "ready"))

    def outputs(self) -> dict[str, Any]:
        """What `pulumi stack output ray` shows of a cluster."""
        head, *workers = self.nodes
        return {"head": head, "workers": workers, "status": self.status}


def _private_network(
    name: str,
    cluster: settings.RayCluster,
    owner: Output[str],
    opts: ResourceOptions,
) -> Input[str]:
    """What `Member.network` names. A cloud's module is loaded where it is used."""
    label = f"{pulumi.get_stack()}-{name}"
    match cluster:
        case settings.ScalewayRayCluster():
            from components.scaleway.private_network import PrivateNetwork  # noqa: PLC0415

            return PrivateNetwork(
                f"{name}-network",
                zone=str(cluster.zone),
                label=label,
                cluster=f"{pulumi.get_stack()}/{name}",
                owner=owner,
                subnet=cluster.network,
                opts=opts,
            ).id
        case settings.LinodeRayCluster():
            from components.linode.node import vlan_label  # noqa: PLC0415

            return vlan_label(pulumi.get_stack(), name)
        case settings.AwsRayCluster():
            from components.aws.private_network import inner_group  # noqa: PLC0415

            whose = f"{pulumi.get_stack()}/{name}"
            group: Input[str] = inner_group(f"{name}-network", cluster, label, whose, owner, opts).id
            return group


def _task(serving: settings.Serving) -> dict[str, str]:
    """What vLLM's environment says of it, so that what served before is asked for the right thing."""
    return {} if serving.task == tasks.GENERATE else {layout.TASK_VARIABLE: serving.task}


def _requirements(cluster: settings.RayCluster) -> str:
    version = cluster.serving.vllm_version if cluster.serve else None
    return ray.requirements(cluster.ray_version, str(version) if version else None)


def _timeouts(health: settings.Health) -> dict[str, object]:
    return {"ssh_s": health.ssh_timeout_s, "install_s": health.install_timeout_s}
