"""What a preview says of a stack beside its resources: what was chosen, whether it fits, what it costs.

The deployed state is read as the stack's own outputs, through the engine, which has that state open: no cloud
is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pulumi

from components.node import GpuNode
from fleet.checks import NodeCheck, cost_line
from fleet.cost import Cost, ExchangeRate
from fleet.settings import Access, CheapestNode, Pin, Problem, SettingsError, StackSettings


def choose_pins(config: StackSettings, deployed: Mapping[str, Any]) -> dict[str, Pin]:
    """Choose for each node with `cloud: cheapest` that is not pinned, and pin it in the stack's file.

    A node of `deployed`, the outputs of the last update, stays where it is. Raises SettingsError where
    nothing can be chosen.
    """
    unpinned = {i: node for i, node in enumerate(config.nodes) if isinstance(node, CheapestNode)}
    if not unpinned:
        return {}
    from fleet.cheapest import choose, keep, pinned  # noqa: PLC0415  loads the whole catalog

    there = deployed.get("nodes") or {}
    pins: dict[str, Pin] = {}
    problems: list[Problem] = []
    for index, node in unpinned.items():
        last = there.get(node.name)
        try:
            choice = (
                keep(node, config.keys, config.budget, last["cloud"], last["zone"], last["type"])
                if last
                else choose(node, config.keys, config.budget)
            )
        except ValueError as error:
            problems.append(Problem.said(f"nodes[{index}]", str(error)))
            continue
        pins[node.name] = choice.pin
        pulumi.log.info(f"{node.name}: {choice.why}")
    if problems:
        raise SettingsError(problems)
    path = Path(f"Pulumi.{pulumi.get_stack()}.yaml")
    try:
        path.write_text(pinned(path.read_text(encoding="utf-8"), pins), encoding="utf-8")
    except (OSError, ValueError) as error:
        pulumi.log.warn(
            f"the choice is not pinned: {error}; write under the node: "
            + "; ".join(f"{name}: pinned: {dict(pin)}" for name, pin in pins.items())
        )
    return pins


def tell(
    nodes: Mapping[str, GpuNode],
    checks: Mapping[str, NodeCheck],
    cost: Cost,
    config: StackSettings,
    deployed: Mapping[str, Any],
) -> None:
    """Attach to each node what was found out about it, and to the stack what it costs."""
    there, rate = deployed.get("nodes") or {}, config.budget.rate
    for name, node in nodes.items():
        found = checks[name]
        cost_now = cost_line(found.cost, _per_hour(there.get(name), found.cost, rate))
        pulumi.log.info("\n".join([*found.facts, cost_now]), node)
        moved = _moved(name, there.get(name), node)
        for warning in [*found.warnings, *(moved or _locked_out(name, there.get(name), config.access))]:
            pulumi.log.warn(warning, node)
    count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    pulumi.log.info(f"{count}, {cost_line(cost, _per_hour(deployed, cost, rate))}")


def _moved(name: str, deployed: Mapping[str, Any] | None, node: GpuNode) -> list[str]:
    """Whether the node gets another kind of address than it has, and what comes of it."""
    if not deployed or (deployed.get("public_ip") is None) == (node.public_ip is None):
        return []
    way = "without a public address" if node.public_ip is None else "with a public address"
    return [
        f"public_ip: {name} gets a new machine {way}; the one that serves is removed once the new one has "
        "passed its gate. Clients, tunnels and DNS records have to follow to its new address"
    ]


def _locked_out(name: str, deployed: Mapping[str, Any] | None, access: Access) -> list[str]:
    """Whether the address from which the node was last reached could not reach it any more."""
    last = (deployed or {}).get("reached_from")
    try:
        address = ip_address(last) if last else None
    except ValueError:
        return []
    if address is None or any(address in ip_network(cidr, strict=False) for cidr in access.ssh_cidrs):
        return []
    return [
        f"access.ssh_cidrs: {name} was last reached from {address}, which is in none of "
        f"{', '.join(access.ssh_cidrs)}: from there this update locks you out and fails at SSH. "
        f"Add {address}/{address.max_prefixlen}, or run it from an address that is in them"
    ]


def _per_hour(outputs: Mapping[str, Any] | None, now: Cost, rate: ExchangeRate) -> float | None:
    """What is deployed costs an hour, in the currency of what is to be; None if that is unknown."""
    match outputs:
        case {"cost_per_hour": int() | float() as amount, "currency": str() as currency}:
            return rate.convert(amount, currency, now.currency)
    return None
