"""Where a subnet's traffic may go: a machine without a way to the internet bills and installs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, collapse_addresses
from typing import Any

from components.aws.api import NOT_PERMITTED, AwsError

EVERYWHERE = IPv4Network("0.0.0.0/0")


def closed_table(ec2: Any, subnet: Mapping[str, Any]) -> str | None:
    """The id of the route table that leaves a subnet without a way to the internet; None if it has one.

    None too where the credentials may not read route tables: a deployment does without that right.
    """
    try:
        table = _table(ec2, subnet)
    except AwsError as error:
        if error.code not in NOT_PERMITTED:
            raise
        return None
    if table is None or _leads_out(table["Routes"]):
        return None
    return str(table["RouteTableId"])


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


def _leads_out(routes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether routes that work cover all addresses, whatever they lead to.

    Behind a transit gateway or an appliance may be an internet gateway: that cannot be seen from here.
    """
    to = [
        IPv4Network(each["DestinationCidrBlock"])
        for each in routes
        if each.get("State") != "blackhole"
        and each.get("GatewayId") != "local"
        and "DestinationCidrBlock" in each
    ]
    return EVERYWHERE in collapse_addresses(to)
