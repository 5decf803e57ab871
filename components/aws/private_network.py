"""Where the machines of a cluster meet on AWS: private addresses, in a group that lets in itself."""

from __future__ import annotations

from pulumi import Output, ResourceOptions
from pulumi_aws import ec2

from components.tags import NODE_TAG, OWNER_TAG
from fleet import settings


def inner_group(
    name: str,
    cluster: settings.AwsRayCluster,
    label: str,
    whose: str,
    owner: Output[str],
    opts: ResourceOptions,
) -> ec2.SecurityGroup:
    """A security group whose members may talk to each other about everything, and nobody else to them.

    Every port: beside Ray's fixed ones, NCCL lets the kernel choose. `whose` is `stack/cluster`.
    """
    return ec2.SecurityGroup(
        name,
        name_prefix=f"{label}-",  # it can be replaced while machines are in it, as a node's own
        description=f"Inside {label}",
        vpc_id=ec2.get_subnet_output(id=cluster.subnet).vpc_id if cluster.subnet else None,
        ingress=[
            ec2.SecurityGroupIngressArgs(
                description="cluster", protocol="-1", from_port=0, to_port=0, self=True
            )
        ],
        egress=[
            ec2.SecurityGroupEgressArgs(protocol="-1", from_port=0, to_port=0, cidr_blocks=["0.0.0.0/0"])
        ],
        tags={"Name": label, OWNER_TAG: owner, NODE_TAG: whose},
        opts=ResourceOptions.merge(opts, ResourceOptions(retain_on_delete=True)),
    )
