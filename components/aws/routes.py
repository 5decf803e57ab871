"""Where a subnet's traffic may go: a machine without a way to the internet bills and installs nothing.

An internet gateway serves only machines with a public address; a NAT gateway lets out those without one and
lets no one in (VPC user guide, "Internet gateways" and "NAT gateways").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, collapse_addresses
from typing import Any

from components.aws.api import NOT_PERMITTED, AwsError

EVERYWHERE = IPv4Network("0.0.0.0/0")
USELESS: Mapping[bool | None, tuple[str, ...]] = {True: ("nat-",), False: ("igw-",), None: ()}
"""How the ids of gateways begin that are no way out, by whether a machine has a public address."""


@dataclass(frozen=True)
class Closed:
    """A route table that leaves a machine without a way to the internet."""

    table: str
    gateway: str
    """Where it leads that is of no use to the machine: `igw-…` or `nat-…`; empty where it leads nowhere."""


def closed_table(ec2: Any, subnet: Mapping[str, Any], *, public: bool | None) -> Closed | None:
    """What leaves a machine of a subnet without a way to the internet; None if it has one.

    `public`: whether the machine has a public address; None where either way out will do. The answer is None
    too where the credentials may not read route tables: a deployment does without that right.
    """
    try:
        table = _table(ec2, subnet)
    except AwsError as error:
        if error.code not in NOT_PERMITTED:
            raise
        return None
    routes = [each for each in table["Routes"] if _works(each)] if table else []
    useless = [each for each in routes if _gateway(each).startswith(USELESS[public])]
    if table is None or _leads_out([each for each in routes if each not in useless]):
        return None
    gateway = next(map(_gateway, useless), "") if _leads_out(routes) else ""
    return Closed(str(table["RouteTableId"]), gateway)


def _table(ec2: Any, subnet: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The subnet's own table, else the main one of its VPC."""
    own = [{"Name": "association.subnet-id", "Values": [subnet["SubnetId"]]}]
    main = [
        {"Name": "association.main", "Values": ["true"]},
        {"Name": "vpc-id", "Values": [subnet["VpcId"]]},
    ]
    for filters in (own, main):
        if found := ec2.describe_route_tables(Filters=filters)["RouteTables"]:
            table: Mapping[str, Any] = found[0]
            return table
    return None


def _works(route: Mapping[str, Any]) -> bool:
    return (
        route.get("State") != "blackhole"
        and route.get("GatewayId") != "local"
        and "DestinationCidrBlock" in route
    )


def _gateway(route: Mapping[str, Any]) -> str:
    return str(route.get("GatewayId") or route.get("NatGatewayId") or "")


def _leads_out(routes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether routes cover all addresses, whatever they lead to.

    Behind a transit gateway or an appliance may be an internet gateway: that cannot be seen from here.
    """
    return EVERYWHERE in collapse_addresses(IPv4Network(each["DestinationCidrBlock"]) for each in routes)
