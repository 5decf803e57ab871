"""Where the jobs of a pipeline run: given subnets, or those of the default VPC."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi_aws
from pulumi import Output
from pulumi_aws import ec2

from fleet import settings


@dataclass(frozen=True)
class Network:
    """Subnets of one VPC."""

    vpc: str
    subnets: list[str]
    one_subnet_a_zone: list[str]
    """EFS takes one mount target in each zone."""
    account: Output[str]


def look_up(jobs: settings.Jobs) -> Network:
    """The network of a pipeline. Reads only; how many mount targets there are is decided by what it finds."""
    ids = list(jobs.subnets) or list(
        ec2.get_subnets(filters=[{"name": "default-for-az", "values": ["true"]}]).ids
    )
    if not ids:
        raise settings.SettingsError(
            [settings.Problem("jobs.subnets", f"{jobs.region} has no default subnet; name at least one")]
        )
    found = [ec2.get_subnet(id=each) for each in ids]
    vpcs = {each.vpc_id for each in found}
    if len(vpcs) > 1:
        where = ", ".join(f"{each.id} in {each.vpc_id}" for each in found)
        raise settings.SettingsError(
            [settings.Problem("jobs.subnets", f"are of several VPCs ({where}); name subnets of one")]
        )
    by_zone = {each.availability_zone: each.id for each in reversed(found)}
    return Network(
        vpc=vpcs.pop(),
        subnets=ids,
        one_subnet_a_zone=sorted(by_zone.values()),
        account=pulumi_aws.get_caller_identity_output().account_id,
    )
