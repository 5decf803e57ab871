"""The stack's gateway as each node sees it: what its firewall lets in, and what its Caddy is made from."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pulumi import Input, Output

from components.certificate import Certificate
from fleet import settings
from fleet.gateway import DRAIN_S, HTTP_PORT, HTTPS_PORT, NODE_NAME, Gateway


@dataclass(frozen=True)
class Opening:
    """A TCP port that a firewall lets these ranges of addresses reach."""

    name: str
    port: int
    cidrs: tuple[Input[str], ...]


def by_version(cidrs: Iterable[Input[str]]) -> dict[int, list[Input[str]]]:
    """Ranges of addresses by their IP version. What is known later is a node's address, which is IPv4."""
    found: dict[int, list[Input[str]]] = {4: [], 6: []}
    for cidr in cidrs:
        found[ipaddress.ip_network(cidr).version if isinstance(cidr, str) else 4].append(cidr)
    return found


@dataclass(frozen=True)
class Exposure:
    """The gateway, as the node `node` sees it."""

    node: str
    nodes: tuple[str, ...]
    """All that the gateway balances over."""
    expose: settings.Expose
    secrets: settings.Secrets
    certificate: Certificate
    address: Callable[[str], Output[str]]
    """Of a node; it need not have been declared yet."""

    @property
    def carries(self) -> bool:
        """Whether the public door is on this node."""
        return self.node == gateway_node(self.expose, self.nodes)

    @property
    def name(self) -> str:
        """What the certificate on the node's port 443 is for."""
        return self.expose.domain if self.carries else NODE_NAME

    @property
    def drain_s(self) -> float:
        """Seconds to wait for requests to end before this node is changed; 0 where nobody takes over."""
        return DRAIN_S if len(self.nodes) > 1 else 0.0

    def openings(self) -> list[Opening]:
        """Clients reach the public door; the other nodes are reached by it alone."""
        if not self.carries:
            gateway = self.address(gateway_node(self.expose, self.nodes))
            return [Opening("gateway", HTTPS_PORT, (Output.concat(gateway, "/32"),))]
        challenges = [Opening("http", HTTP_PORT, self.expose.cidrs)] if self.expose.tls == "acme" else []
        return [Opening("https", HTTPS_PORT, self.expose.cidrs), *challenges]

    def gateway(self) -> Output[Gateway]:
        """What this node's Caddy is made from; known with the addresses of the nodes behind it."""
        behind = [self.address(name) for name in self.nodes if name != self.node] if self.carries else []
        return Output.all(self.certificate.authority, self.certificate.certificate, *behind).apply(
            lambda known: Gateway(
                expose=self.expose,
                two_keys=self.secrets.previous_api_key is not None,
                authority=known[0],
                certificate=known[1],
                others=tuple(known[2:]) if self.carries else None,
            )
        )


def gateway_node(expose: settings.Expose, nodes: Iterable[str]) -> str:
    """The node with the public door: the one that is named, else the first."""
    return expose.gateway or next(iter(nodes))


def exposures(config: settings.StackSettings, address: Callable[[str], Output[str]]) -> dict[str, Exposure]:
    """How each node takes part, by its name; nobody does in a stack that is not exposed.

    `address` is asked once the program has declared all of its nodes: the gateway's part needs the others'
    addresses, and theirs need its own.
    """
    if config.expose is None:
        return {}
    nodes = tuple(node.name for node in config.nodes)
    certificate = Certificate("gateway-certificate", [config.expose.domain, NODE_NAME])

    def later(name: str) -> Output[str]:
        # What is applied runs after the program's own code, which declares every node without a pause.
        return Output.from_input(True).apply(lambda _: address(name))

    return {name: Exposure(name, nodes, config.expose, config.keys, certificate, later) for name in nodes}


def described(config: settings.StackSettings, found: dict[str, Exposure]) -> dict[str, Any]:
    """The stack's output: where clients go and what they trust."""
    assert config.expose, "only an exposed stack has a gateway"
    exposure = next(each for each in found.values() if each.carries)
    return {
        "url": f"https://{config.expose.domain}/v1",
        "node": exposure.node,
        "address": exposure.address(exposure.node),
        **({"authority": exposure.certificate.authority} if config.expose.tls == "internal" else {}),
    }
