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
    wanted = (
        {"name": "subnet-id", "values": list(jobs.subnets)}
        if jobs.subnets
        else {"name": "default-for-az", "values": ["true"]}
    )
    ids = list(ec2.get_subnets(filters=[wanted]).ids)
    if missing := sorted(set(jobs.subnets) - set(ids)):
        raise _wrong(
            f"{', '.join(missing)} does not exist in {jobs.region}; name one of `aws ec2 describe-subnets`"
        )
    if not ids:
        raise _wrong(f"{jobs.region} has no default subnet; name at least one")
    # In the order given: the first that has capacity is used.
    ids = list(jobs.subnets) or ids
    found = [ec2.get_subnet(id=each) for each in ids]
    vpcs = {each.vpc_id for each in found}
    if len(vpcs) > 1:
        where = ", ".join(f"{each.id} in {each.vpc_id}" for each in found)
        raise _wrong(f"are of several VPCs ({where}); name subnets of one")
    by_zone = {each.availability_zone: each.id for each in reversed(found)}
    return Network(
        vpc=vpcs.pop(),
        subnets=ids,
        one_subnet_a_zone=sorted(by_zone.values()),
        account=pulumi_aws.get_caller_identity_output().account_id,
    )


def _wrong(message: str) -> settings.SettingsError:
    return settings.SettingsError([settings.Problem("jobs.subnets", message)])
