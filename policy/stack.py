"""The policies on a stack's settings, before any resource exists: the same rules, on what would be made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fleet import compose
from fleet.checks import NodeCheck
from fleet.cost import total
from fleet.settings import AwsNode, LinodeNode, Network, Node, Problem, Reading, Secrets, StackSettings
from fleet.userdata import HostKey, HostPart, UserDataTooLarge
from policy import rules
from policy.rules import Rule
from policy.subject import Subject

MACHINES = {
    "scaleway": rules.SCALEWAY_SERVER,
    "linode": rules.LINODE_INSTANCE,
    "aws": rules.AWS_INSTANCE,
}
HOST_KEY = HostKey("x" * 400, f"ssh-ed25519 {'A' * 68}")
"""As long as one is: user data has a limit."""

Asked = tuple[Subject, Mapping[Rule, str]]
"""What is judged, and by which rules; each with the setting that decides it."""


def strictness(folder: Path, stack: str) -> Mapping[str, Any]:
    """The policies' configuration for a stack, as `pulumi preview --policy-pack-config` is given it."""
    try:
        found = json.loads((folder / f"config.{stack}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def broken(
    config: StackSettings,
    reading: Reading,
    checks: Mapping[str, NodeCheck],
    stack: str,
    strictness: Mapping[str, Any],
) -> Iterator[tuple[bool, Problem]]:
    """Each policy that the stack would break: whether that stops a preview, and what is wrong."""
    for place, node in _machines(config, reading):
        assert config.secrets is not None, "a stack with machines has them"
        try:
            yield from _judged(_machine(node, config.secrets, config.network, place, stack), strictness)
        except UserDataTooLarge as error:
            yield True, Problem.said(f"{place}.serving", str(error))
    for asked in _others(config, reading, checks, stack):
        yield from _judged(asked, strictness)


def _judged(asked: Asked, strictness: Mapping[str, Any]) -> Iterator[tuple[bool, Problem]]:
    subject, rules_of = asked
    for rule, setting in rules_of.items():
        name = rule.__name__.replace("_", "-")
        own = strictness.get(name, {})
        settings = own if isinstance(own, dict) else {"enforcementLevel": own}
        level = settings.get("enforcementLevel", strictness.get("all", "mandatory"))
        if level == "disabled" or settings.get("waiver"):
            continue
        for sentence in rule(subject.configured(settings)):
            problem, _, fix = sentence.partition("; ")
            yield level == "mandatory", Problem(setting, f"{problem} (policy {name})", fix)


def _machines(config: StackSettings, reading: Reading) -> Iterator[tuple[str, Node]]:
    """The machines that policies judge, one of each cluster, with their places in the configuration."""
    for section, machines in (
        ("nodes", config.nodes),
        ("ray", [cluster.head for cluster in config.ray]),
    ):
        for at, machine in zip(reading.positions.get(section, ()), machines, strict=False):
            if isinstance(machine, Node):
                yield f"{section}[{at}]", machine


def _others(
    config: StackSettings, reading: Reading, checks: Mapping[str, NodeCheck], stack: str
) -> Iterator[Asked]:
    for place, node in _machines(config, reading):
        yield _release(node, config.network, place)
    if config.jobs is not None and config.jobs.control.existing is None:
        control = Subject(rules.AWS_INSTANCE, "control", {}, stack, config.jobs.control.protect)
        yield control, {rules.production_protected: "jobs.control.protect"}
    yield from _firewall("access.ssh_cidrs", 22, config.access.ssh_cidrs)
    if config.expose is not None:
        yield from _firewall("expose.cidrs", 443, config.expose.cidrs)
    if reading.complete:
        cost = total((check.cost for check in checks.values()), config.budget.rate)
        props = {"cost_per_hour": cost.total, "currency": cost.currency}
        yield Subject("pulumi:pulumi:Stack", stack, props, stack), {rules.within_budget: "nodes"}


def _machine(node: Node, secrets: Secrets, network: Network, place: str, stack: str) -> Asked:
    match node:
        case LinodeNode():
            host = replace(HostPart.linode(node, secrets, HOST_KEY, node.driver), network=network)
            props: dict[str, Any] = {"metadatas": [{"userData": host.user_data()}]}
        case AwsNode():
            host = replace(HostPart.aws(node, secrets, HOST_KEY), network=network)
            props = {"userData": host.user_data()}
        case _:
            host = replace(HostPart.scaleway(node, secrets), network=network)
            props = {"user_data": host.user_data()}
    return Subject(MACHINES[node.cloud], node.name, props, stack, node.protect), {
        rules.production_protected: f"{place}.protect",
        rules.user_data_without_secrets: "secrets.delivery",
        rules.driver_held: place,
    }


def _release(node: Node, network: Network, place: str) -> Asked:
    rollout = {"stdin": json.dumps({"compose": compose.compose_file(node.serving, network=network)})}
    return Subject("command:local:Command", node.name, rollout), {
        rules.image_pinned: f"{place}.serving.image",
        rules.gpu_memory_left: f"{place}.serving.gpu_memory_utilization",
        rules.vllm_behind_gateway: f"{place}.serving",
    }


def _firewall(setting: str, port: int, cidrs: Iterable[str]) -> Iterator[Asked]:
    """What each range of addresses may reach; Scaleway's words for it do for every cloud."""
    for index, cidr in enumerate(cidrs):
        opened = {"rules": [{"protocol": "TCP", "cidr": cidr, "port": port}]}
        yield (
            Subject(rules.SCALEWAY_SECURITY_GROUP, setting, opened),
            {
                rules.ssh_from_known_addresses: f"{setting}[{index}]",
                rules.vllm_behind_gateway: f"{setting}[{index}]",
            },
        )
