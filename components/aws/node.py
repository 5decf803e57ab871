"""A GPU node on AWS."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace

import pulumi
from pulumi import Input, Output, ResourceHookBinding, ResourceOptions
from pulumi_aws import ec2

from components.aws.owned import role_path
from components.aws.resources import (
    FirstBoot,
    Power,
    before_first_boot,
    before_key_pair,
    before_launch,
)
from components.gateway import Opening, by_version
from components.node import GpuNode, GpuNodeArgs, Machine
from components.ssh_host_key import SshHostKey
from components.tags import BOOT_TAG, HOST_TAG, NODE_TAG, OWNER_TAG
from fleet import settings, userdata
from fleet.ssh_key import public_key

Tags = Mapping[str, Input[str]]


class AwsGpuNode(GpuNode):
    """Security group and key pair → instance on one encrypted volume → power and address → serving.

    The SSH host key is made first and given to the machine. What the machine is made with is decided once
    (`FirstBoot`): newer images are offered, not taken.
    """

    def __init__(self, name: str, args: GpuNodeArgs, opts: ResourceOptions | None = None) -> None:
        super().__init__("vllm-fleet:aws:GpuNode", name, None, opts)
        node = args.node
        assert isinstance(node, settings.AwsNode)
        label, whose = f"{pulumi.get_stack()}-{node.name}", f"{pulumi.get_stack()}/{node.name}"
        owner, child = args.owner, ResourceOptions(parent=self)
        # What is in the cloud goes once its successor serves, or with the stack: see components/ownership.py.
        kept = ResourceOptions(parent=self, retain_on_delete=True)
        tags: Tags = {
            "Name": label,
            OWNER_TAG: owner.id,
            NODE_TAG: whose,
            **dict(tag.partition("=")[::2] for tag in node.tags),
        }
        host_key = SshHostKey(f"{name}-host-key", opts=child)
        group = ec2.SecurityGroup(
            f"{name}-security-group",
            # Each gets a name of its own: with a new description or VPC a new group is made, the machine put
            # into it and the old one deleted.
            name_prefix=f"{label}-",
            description=f"SSH to {label}",
            # The VPC of the subnet that is named, else the default one.
            vpc_id=_vpc_of(node.subnet),
            ingress=[inbound(opening) for opening in args.openings],
            egress=[
                ec2.SecurityGroupEgressArgs(protocol="-1", from_port=0, to_port=0, cidr_blocks=["0.0.0.0/0"])
            ],
            tags=tags,
            opts=kept,
        )
        public = public_key(args.access.ssh_private_key_path)
        key = ec2.KeyPair(
            f"{name}-key",
            # Unique in the account, the same again after an interrupted run, and another for another key.
            key_name=owner.id.apply(lambda id_: f"{label}-{id_[:8]}-{fingerprint(public)}"),
            public_key=public,
            tags=tags,
            opts=ResourceOptions.merge(
                kept, ResourceOptions(hooks=before_key_pair(f"{name}-key-vacancy", node.region))
            ),
        )
        newest = newest_ami(node.ami_source)
        boot = FirstBoot(
            f"{name}-first-boot",
            owner=owner.id,
            label=whose,
            node=node.name,
            region=node.region,
            type=node.type,
            digest=_host(args, node, userdata.HostKey("", "")).digest(),
            user_data=Output.all(host_key.private_key, host_key.public_key).apply(
                lambda keys: _host(args, node, userdata.HostKey(*keys)).user_data()
            ),
            ami=node.ami,
            newest_ami=newest,
            subnet=node.subnet,
            public_ip=node.public_ip,
            root_volume_gb=node.root_volume_gb,
            opts=ResourceOptions(
                parent=self,
                hooks=ResourceHookBinding(before_create=[before_first_boot(f"{name}-look")]),
            ),
        )
        Output.all(boot.made_with, newest).apply(lambda known: _offer(node, *known))
        role = _Role(name, label, whose, owner.id, tags, kept) if node.session_manager else None
        instance = ec2.Instance(
            f"{name}-server",
            ami=boot.made_with["ami"],
            instance_type=node.type,
            subnet_id=boot.made_with["subnet"],
            associate_public_ip_address=node.public_ip,
            vpc_security_group_ids=[group.id, *([args.member.network] if args.member else [])],
            key_name=key.key_name,
            iam_instance_profile=role.profile.name if role else None,
            user_data_base64=boot.made_user_data,
            # Otherwise the machine would be stopped and given user data that no first boot reads any more.
            user_data_replace_on_change=True,
            metadata_options=ec2.InstanceMetadataOptionsArgs(
                http_endpoint="enabled",
                http_tokens="required",
                # One hop reaches the machine itself. A container is one further: what runs in it can neither
                # read the user data nor take the role of the machine.
                http_put_response_hop_limit=1,
            ),
            root_block_device=ec2.InstanceRootBlockDeviceArgs(
                volume_type="gp3",
                volume_size=node.root_volume_gb,
                iops=node.volume_iops,
                throughput=node.volume_throughput,
                encrypted=True,
                delete_on_termination=True,
            ),
            volume_tags=tags,
            disable_api_termination=node.protect,
            instance_market_options=_market(node.spot) if node.spot else None,
            tags={**tags, BOOT_TAG: boot.mark, HOST_TAG: boot.digest},
            opts=ResourceOptions(
                parent=self,
                # The machine holds everything that costs hours to rebuild.
                protect=node.protect,
                retain_on_delete=True,
                # A key pair and user data act at the first boot alone: others make no new machine. (Of one
                # that is imported, the provider reads a digest in place of the latter.) And of an address it
                # reads whether there is one now: none, for a machine that somebody has stopped.
                ignore_changes=["keyName", "userData", "userDataBase64", "associatePublicIpAddress"],
                replacement_trigger=boot.mark,
                hooks=ResourceHookBinding(
                    before_create=[
                        before_launch(f"{name}-launch", node.name, whose, node.region, protect=node.protect)
                    ]
                ),
            ),
        )
        address = (
            ec2.Eip(
                f"{name}-address",
                domain="vpc",
                instance=instance.id,
                tags=tags,
                opts=kept,
            )
            if node.elastic_ip
            else None
        )
        power = Power(
            f"{name}-power",
            node=node.name,
            region=node.region,
            instance_id=instance.id,
            root_volume_gb=node.root_volume_gb,
            opts=ResourceOptions(parent=self, depends_on=[address] if address else []),
        )
        self._serve(
            name,
            args,
            Machine(
                server_id=instance.id,
                public_ip=_public_ip(node, address, power),
                host_keys=boot.host_key.apply(lambda key: [key]),
                root_volume_gb=instance.root_block_device.apply(lambda device: int(device.volume_size)),
                ssh_user=node.ssh_user,
                started=power.started,
                objects=[
                    *(instance.id, group.id, key.id),
                    *([address.id] if address else []),
                    *([role.role.id, role.profile.id] if role else []),
                ],
                private_ip=instance.private_ip,
                ready_when=[power, *([address] if address else [])],
                hints={
                    "zone": node.region,
                    "server_id": instance.id,
                    "security_group": group.id,
                    "console_url": Output.concat(
                        f"https://{node.region}.console.aws.amazon.com/ec2/home?region={node.region}"
                        "#InstanceDetails:instanceId=",
                        instance.id,
                    ),
                },
            ),
        )


def _public_ip(node: settings.AwsNode, address: ec2.Eip | None, power: Power) -> Output[str] | None:
    if not node.public_ip:
        return None
    return address.public_ip if address else power.public_ip


def _host(args: GpuNodeArgs, node: settings.AwsNode, host_key: userdata.HostKey) -> userdata.HostPart:
    return replace(
        userdata.HostPart.aws(node, args.secrets, host_key), network=args.network, serves=args.member is None
    )


def ssh_rule(access: settings.Access) -> ec2.SecurityGroupIngressArgs:
    """Lets SSH in from the ranges of the settings."""
    return inbound(Opening("ssh", access.ssh_port, access.ssh_cidrs))


def inbound(opening: Opening) -> ec2.SecurityGroupIngressArgs:
    """The rule that lets its ranges reach its port."""
    versions = by_version(opening.cidrs)
    return ec2.SecurityGroupIngressArgs(
        description=opening.name,
        protocol="tcp",
        from_port=opening.port,
        to_port=opening.port,
        cidr_blocks=versions[4] or None,
        ipv6_cidr_blocks=versions[6] or None,
    )


def fingerprint(public_key: str) -> str:
    """Tells one public key from another in a name."""
    return hashlib.sha256(public_key.encode()).hexdigest()[:8]


def newest_ami(source: settings.AmiSource) -> Output[str]:
    """The newest image there is. Reads only."""
    if source.parameter:
        from pulumi_aws import ssm  # noqa: PLC0415 - only for this kind of source

        value: Output[str] = ssm.get_parameter_output(name=source.parameter).value
        return value
    newest: Output[str] = ec2.get_ami_output(
        owners=[source.owner],
        filters=[{"name": "name", "values": [source.name]}],
        most_recent=True,
    ).id
    return newest


def _offer(node: settings.AwsNode, made_with: Mapping[str, str], newest: str) -> None:
    """Tell of an image that is newer than the machine's; at preview, where one decides."""
    if pulumi.runtime.is_dry_run() and made_with["ami"] != newest:
        pulumi.log.info(
            f"{node.name}: {newest} is newer than its image {made_with['ami']}. Taking it makes a new "
            f"machine: set ami: {newest} in the node's settings"
        )


def _vpc_of(subnet: str | None) -> Output[str] | None:
    return ec2.get_subnet_output(id=subnet).vpc_id if subnet else None


def _market(spot: settings.Spot) -> ec2.InstanceInstanceMarketOptionsArgs:
    """Spot capacity. A machine that is to be stopped when interrupted needs a request that stays open."""
    return ec2.InstanceInstanceMarketOptionsArgs(
        market_type="spot",
        spot_options=ec2.InstanceInstanceMarketOptionsSpotOptionsArgs(
            instance_interruption_behavior=spot.interruption,
            spot_instance_type="persistent" if spot.interruption == "stop" else "one-time",
            max_price=str(spot.max_price) if spot.max_price else None,
        ),
    )


SESSION_MANAGER_ACTIONS = (
    "ssm:UpdateInstanceInformation",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
)
"""What Session Manager's agent does: AWS's "Add Session Manager permissions to an existing IAM role", without
the parts for encrypted sessions and S3. None of them can be limited to a resource."""


class _Role:
    """A role with the rights of Session Manager's agent and no others, and its instance profile."""

    def __init__(
        self, name: str, label: str, whose: str, owner: Output[str], tags: Tags, opts: ResourceOptions
    ) -> None:
        from pulumi_aws import iam  # noqa: PLC0415 - only for nodes with a role

        trust = {
            "Effect": "Allow",
            "Principal": {"Service": "ec2.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
        rights = {"Effect": "Allow", "Action": list(SESSION_MANAGER_ACTIONS), "Resource": "*"}
        path = owner.apply(lambda id_: role_path(id_, whose))
        self.role = iam.Role(
            f"{name}-role",
            path=path,
            description=f"Session Manager on {label}",
            assume_role_policy=json.dumps({"Version": "2012-10-17", "Statement": [trust]}),
            tags=tags,
            opts=opts,
        )
        iam.RolePolicy(
            f"{name}-role-policy",
            role=self.role.name,
            policy=json.dumps({"Version": "2012-10-17", "Statement": [rights]}),
            opts=opts,
        )
        self.profile = iam.InstanceProfile(
            f"{name}-profile", path=path, role=self.role.name, tags=tags, opts=opts
        )
