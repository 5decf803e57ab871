"""What a firewall lets in, read alike from every cloud's own words."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from policy.subject import Subject

EVERY_PORT = (1, 65535)
ANYWHERE = "0.0.0.0/0"
WIDEST_PREFIX = {4: 8, 6: 16}
"""A range wider than that is the internet to whoever scans it: 0.0.0.0/1 twice opens as much as 0.0.0.0/0."""


@dataclass(frozen=True)
class Opening:
    """One range of ports that one range of addresses may reach."""

    first: int
    last: int
    cidr: str

    @property
    def from_everywhere(self) -> bool:
        """Whether its addresses are, to all intents, the whole internet."""
        network = ipaddress.ip_network(self.cidr, strict=False)
        return network.prefixlen < WIDEST_PREFIX[network.version]

    def __str__(self) -> str:
        ports = f"port {self.first}" if self.first == self.last else f"ports {self.first}-{self.last}"
        return f"{ports} from {self.cidr}"


def openings(subject: Subject) -> Iterator[Opening]:
    """What a resource lets in; nothing where it is no firewall. What is unknown yet is left out."""
    reader = _READERS.get(subject.type)
    for first, last, cidr in reader(subject.props) if reader else ():
        if isinstance(cidr, str) and isinstance(first, int | float) and isinstance(last, int | float):
            # Numbers cross the engine's protocol as floats.
            yield Opening(int(first), int(last), cidr)


_Raw = tuple[Any, Any, Any]


def _scaleway(props: Mapping[str, Any]) -> Iterator[_Raw]:
    if props.get("inbound_default_policy") == "accept":
        yield *EVERY_PORT, ANYWHERE
    for rule in _mappings(props.get("rules")):
        if rule.get("direction", "inbound") == "inbound" and rule.get("action", "accept") == "accept":
            port = rule.get("port") or list(EVERY_PORT)
            first, last = port if isinstance(port, list) else (port, port)
            yield first, last, rule.get("cidr")


def _linode(props: Mapping[str, Any]) -> Iterator[_Raw]:
    if props.get("inboundPolicy") == "ACCEPT":
        yield *EVERY_PORT, ANYWHERE
    for rule in _mappings(props.get("inbounds")):
        if rule.get("action") == "ACCEPT" and rule.get("protocol") != "ICMP":
            ports = rule.get("ports") or "1-65535"
            for part in re.split(r"\s*,\s*", ports) if isinstance(ports, str) else ():
                first, _, last = part.partition("-")
                for cidr in (*_list(rule.get("ipv4s")), *_list(rule.get("ipv6s"))):
                    if first.isdecimal() and (last or first).isdecimal():
                        yield int(first), int(last or first), cidr


def _aws(rule: Mapping[str, Any]) -> Iterator[_Raw]:
    """An ingress rule, alone or within its group: each resource type names addresses differently."""
    protocol = rule.get("protocol", rule.get("ipProtocol"))
    if protocol in ("icmp", "icmpv6", "58"):
        return
    first, last = EVERY_PORT if protocol in ("-1", "all") else (rule.get("fromPort"), rule.get("toPort"))
    cidrs = [*_list(rule.get("cidrBlocks")), *_list(rule.get("ipv6CidrBlocks"))]
    for cidr in (*cidrs, rule.get("cidrIpv4"), rule.get("cidrIpv6")):
        yield first, last, cidr


def _aws_group(props: Mapping[str, Any]) -> Iterator[_Raw]:
    for rule in _mappings(props.get("ingress")):
        yield from _aws(rule)


def _aws_rule(props: Mapping[str, Any]) -> Iterator[_Raw]:
    if props.get("type", "ingress") == "ingress":
        yield from _aws(props)


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in _list(value) if isinstance(entry, Mapping)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


_READERS: dict[str, Callable[[Mapping[str, Any]], Iterator[_Raw]]] = {
    "pulumi-python:dynamic/scaleway:SecurityGroup": _scaleway,
    "linode:index/firewall:Firewall": _linode,
    "aws:ec2/securityGroup:SecurityGroup": _aws_group,
    "aws:ec2/securityGroupRule:SecurityGroupRule": _aws_rule,
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": _aws_rule,
}
