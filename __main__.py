"""The stack: settings → nodes, each with its serving → exports. See `components/`."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pulumi

from components import gateway, own_state, preview
from components.access import refuse_a_key_that_opens_nothing
from components.clouds import gpu_node
from components.node import GpuNode, GpuNodeArgs
from components.owned import Place
from components.ownership import FleetOwner, Retirement
from components.references import Resolved
from fleet import safekeeping, settings, state_files
from fleet.aws_settings import Credentials, CredentialsError
from fleet.cost import total
from fleet.validation import examine

if TYPE_CHECKING:
    from components.ray_cluster import RayCluster


async def main() -> None:
    """Read the configuration, declare every node, export what a user needs next."""
    refused = safekeeping.refusals(pulumi.get_stack(), os.environ, Path.cwd())
    refused += state_files.refusals(pulumi.get_stack(), os.environ, Path.cwd())
    if refused:
        raise settings.SettingsError(refused)
    raw = settings.given(Resolved(pulumi.Config(settings.PROJECT)))
    found = examine(raw)
    deployed = await own_state.outputs()
    if found.settings and found.unpinned:
        found = examine(raw, preview.choose_pins(found.settings, deployed))
    config, checks = found.settings, found.checks
    refuse_unheld_aws_settings(config)
    await refuse_a_key_that_opens_nothing(config, deployed)
    nodes: dict[str, GpuNode] = {}
    owner = owner_of(config)
    doors = gateway.exposures(config, lambda name: nodes[name].address)
    canary = config.rollout.canary
    # A canary comes first, and the others' rollouts wait for its own.
    for node in sorted(config.nodes, key=lambda node: node.name != canary):
        after = [nodes[canary].rollout] if canary in nodes else []
        nodes[node.name] = declare(node, owner, config, after, doors.get(node.name))
    clusters: dict[str, RayCluster] = {}
    if config.ray:
        from components.ray_cluster import RayCluster, RayClusterArgs  # noqa: PLC0415

        shared = (
            config.access,
            config.health,
            config.keys,
            config.rollout,
            config.observability,
            config.network,
        )
        clusters |= {
            each.name: RayCluster(each.name, RayClusterArgs(each, owner, *shared)) for each in config.ray
        }
        nodes |= {name: node for cluster in clusters.values() for name, node in cluster.nodes.items()}
        pulumi.export("ray", {name: cluster.outputs() for name, cluster in clusters.items()})
    if doors:
        pulumi.export("gateway", gateway.described(config, doors))
    pulumi.export("nodes", {name: node.outputs() for name, node in nodes.items()})
    if config.jobs:
        from components.aws.job_pipeline import GpuJobPipeline, GpuJobPipelineArgs  # noqa: PLC0415

        pipeline = GpuJobPipeline(
            config.jobs.name, GpuJobPipelineArgs(config.jobs, config.access, config.network)
        )
        pulumi.export("jobs", pipeline.outputs())
    cost = total((node.cost for node in nodes.values()), config.budget.rate)
    pulumi.export("cost_per_hour", cost.total)
    pulumi.export("cost_per_month", cost.per_month)
    pulumi.export("currency", cost.currency)
    preview.tell(nodes, checks, cost, config, deployed)
    await declared(nodes.values())
    await retire(owner, nodes, clusters, config)


def refuse_unheld_aws_settings(config: settings.StackSettings) -> None:
    """Before anything is made: this program's own calls to AWS have to be the same caller as the provider's.

    Raises SettingsError.
    """
    if not config.jobs and all(node.cloud != "aws" for node in config.machines):
        return
    try:
        Credentials.of(pulumi.Config("aws").get)
    except CredentialsError as error:
        path, _, sentence = str(error).partition(": ")
        raise settings.SettingsError([settings.Problem.said(path, sentence)]) from None


def declare(
    node: settings.BaseNode,
    owner: FleetOwner,
    config: settings.StackSettings,
    rollout_after: Sequence[pulumi.Resource],
    exposure: gateway.Exposure | None,
) -> GpuNode:
    """One node of its cloud's kind."""
    assert isinstance(node, settings.Node), "a node's cloud is chosen before it is declared"
    args = GpuNodeArgs(
        node=node,
        owner=owner,
        access=config.access,
        health=config.health,
        secrets=config.keys,
        rollout=config.rollout,
        rollout_after=rollout_after,
        observability=config.observability,
        network=config.network,
        exposure=exposure,
    )
    return gpu_node(args)


def owner_of(config: settings.StackSettings) -> FleetOwner:
    """What everything of the stack is found by."""
    return FleetOwner(
        "owner",
        places=[place for node in config.machines for place in places_of(node)],
        labels=[f"{pulumi.get_stack()}/{node.name}" for node in config.machines],
    )


def places_of(node: settings.Node) -> list[Place]:
    """Where a node has something: its zone or region, and on AWS the account, if it has a role."""
    account = [Place("aws", "iam")] if isinstance(node, settings.AwsNode) and node.session_manager else []
    return [Place(node.cloud, node.location), *account]


async def retire(
    owner: FleetOwner,
    nodes: Mapping[str, GpuNode],
    clusters: Mapping[str, RayCluster],
    config: settings.StackSettings,
) -> None:
    """Remove what is no longer in use, once everything declared serves.

    The retirement depends on no node in the engine's eyes: the engine would keep it for a node that failed
    while it deletes another from the state, and then refuse that state as inconsistent.
    """
    # The nodes' own retirements come first: two at work on one object would be in each other's way.
    awaited = [
        *(node.status for node in nodes.values()),
        *(node.retired for node in nodes.values() if node.retired),
        *(cluster.status for cluster in clusters.values()),
    ]
    objects = [
        *(id_ for node in nodes.values() for id_ in node.objects),
        *(cluster.network for cluster in clusters.values()),
    ]
    serving = pulumi.runtime.is_dry_run() or all(
        [await pulumi.Output.from_input(each).is_known() for each in awaited]
    )
    Retirement(
        "retirement",
        owner=owner,
        keep=[await plain(id_) for id_ in objects] if serving else [],
        spared=[node.name for node in config.machines if node.serving.dry_run],
        hold=not serving,
    )


async def plain(value: pulumi.Input[str]) -> pulumi.Input[str]:
    """The value itself once it is known, and as it is in a preview that cannot know it."""
    output = pulumi.Output.from_input(value)
    return str(await output.future()) if await output.is_known() else output


async def declared(nodes: Iterable[GpuNode]) -> None:
    """Wait until the engine knows every node whole.

    Pulumi would wait as well, but asks all that is outstanding after each single answer: of a hundred nodes'
    preview that was more than half. What fails is its to report.
    """
    outputs = [output for node in nodes for output in (node.urn, node.status)]
    await asyncio.gather(*(output.future() for output in outputs), return_exceptions=True)


async def program() -> None:
    """The stack, or what is wrong with its configuration."""
    try:
        await main()
    except settings.SettingsError as error:
        # Nothing has been registered yet. The message is the whole story; a stack trace would bury it.
        pulumi.log.error(str(error))
        sys.exit(1)


# What is imported stays to the end: searching it for garbage, at exit above all, takes 0.1 s of each preview.
gc.freeze()
pulumi.run(program)
