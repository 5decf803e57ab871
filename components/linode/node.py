"""A GPU node on Linode."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import replace
from secrets import token_urlsafe
from typing import Any

import pulumi
import pulumi_linode as linode
from pulumi import Output, ResourceHookBinding, ResourceOptions

from components.gateway import Opening, by_version
from components.linode.resources import (
    FirewallAttachment,
    NodeOwner,
    Power,
    before_create,
    make_way,
    owner_tag,
    remove_instances,
    stock_check,
)
from components.node import GpuNode, GpuNodeArgs, Machine, Member
from components.ssh_host_key import SshHostKey
from components.tags import NODE_TAG
from fleet import settings, userdata
from fleet.ssh_key import public_key

LONGEST_INSTANCE_LABEL = 50
"""What Linode's provider takes; the API itself takes 64."""
LONGEST_FIREWALL_LABEL = 32
LONGEST_VLAN_LABEL = 64
FIRST_ON_VLAN = 10
"""The head's address in the network; the lower ones are for people."""
LONGEST_TAG = 50
MIB = 2**20
GB = 10**9


class LinodeGpuNode(GpuNode):
    """Firewall → instance, made with its disk and started by Linode in one step → serving.

    The SSH host key is made first and given to the machine. Its disk is the plan's own; there is nothing to
    grow.
    """

    def __init__(self, name: str, args: GpuNodeArgs, opts: ResourceOptions | None = None) -> None:
        super().__init__("vllm-fleet:linode:GpuNode", name, None, opts)
        node = args.node
        assert isinstance(node, settings.LinodeNode)
        region = str(node.region)
        stack = pulumi.get_stack()

        owner = NodeOwner(f"{name}-owner", node=node.name, opts=ResourceOptions(parent=self))
        tags = [owner.id.apply(owner_tag), node_tag(stack, node.name), *node.tags]
        if pulumi.runtime.is_dry_run():
            # Before there is a key there is no user data: one as long tells whether it will fit.
            _host(args, node, userdata.HostKey(token_urlsafe(300), "")).user_data()
        host_key = SshHostKey(f"{name}-host-key", opts=ResourceOptions(parent=self))
        user_data = Output.all(host_key.private_key, host_key.public_key).apply(
            lambda keys: _host(args, node, userdata.HostKey(*keys)).user_data()
        )
        firewall = linode.Firewall(
            f"{name}-firewall",
            label=label(stack, node.name, LONGEST_FIREWALL_LABEL),
            tags=tags,
            inbound_policy="DROP",
            inbounds=[inbound(opening) for opening in args.openings],
            outbound_policy="ACCEPT",
            opts=ResourceOptions(
                parent=self,
                hooks=ResourceHookBinding(
                    before_create=[before_create(f"{name}-firewall-vacancy", node.name, make_way)]
                ),
            ),
        )
        instance = linode.Instance(
            f"{name}-server",
            label=label(stack, node.name, LONGEST_INSTANCE_LABEL),
            region=region,
            type=node.type,
            image=node.image,
            tags=tags,
            booted=True,
            authorized_keys=[public_key(args.access.ssh_private_key_path)],
            # Behind the firewall from its first second.
            firewall_id=firewall.id.apply(int),
            **_interfaces(args.member),
            metadatas=[linode.InstanceMetadataArgs(user_data=user_data)],
            opts=ResourceOptions(
                parent=self,
                # The machine holds everything that costs hours to rebuild.
                protect=node.protect,
                # User data and keys act at the first boot alone, and a firewall can be changed without a
                # new machine (see FirewallAttachment): none of them may replace one. What of the user data
                # shapes the host is in the trigger.
                ignore_changes=["metadatas", "authorized_keys", "firewall_id"],
                replacement_trigger=_host(args, node, userdata.HostKey("", "")).digest(),
                # Linode would move the machine for hours, or resize it and keep the small disk.
                replace_on_changes=["region", "type"],
                # A label is unique in an account, a second GPU may not be had while the first is taken, and
                # a node that never has two machines is what lets a left-over one be told (resources.py).
                delete_before_replace=True,
                hooks=ResourceHookBinding(
                    before_create=[
                        stock_check(f"{name}-stock", region, node.type, self),
                        before_create(
                            f"{name}-server-vacancy", node.name, remove_instances, protect=node.protect
                        ),
                    ]
                ),
            ),
        )
        public_ip = instance.ipv4s.apply(lambda addresses: addresses[0])
        attachment = FirewallAttachment(
            f"{name}-firewall-attachment",
            node=node.name,
            firewall_id=firewall.id,
            instance_id=instance.id,
            public_ip=public_ip,
            opts=ResourceOptions(parent=self),
        )
        power = Power(
            f"{name}-power", node=node.name, instance_id=instance.id, opts=ResourceOptions(parent=self)
        )
        self._serve(
            name,
            args,
            Machine(
                server_id=instance.id,
                public_ip=public_ip,
                host_keys=host_key.public_key.apply(lambda key: [key]),
                private_ip=vlan_address(args.member).partition("/")[0] if args.member else None,
                root_volume_gb=instance.specs.apply(lambda specs: specs[0].disk * MIB // GB),
                ssh_user="root",
                ready_when=[power, attachment],
                started=power.started,
                objects=[],
                hints={
                    "zone": region,
                    "server_id": instance.id,
                    "security_group": firewall.id,
                    "console_url": Output.concat("https://cloud.linode.com/linodes/", instance.id),
                },
            ),
        )


def _host(args: GpuNodeArgs, node: settings.LinodeNode, host_key: userdata.HostKey) -> userdata.HostPart:
    host = userdata.HostPart.linode(node, args.secrets, host_key, node.driver)
    return replace(host, network=args.network, serves=args.member is None)


def _interfaces(member: Member | None) -> dict[str, Any]:
    """A public address, and a place on the cluster's VLAN beside it, which no firewall filters."""
    if member is None:
        return {}
    vlan = {"purpose": "vlan", "label": member.network, "ipam_address": vlan_address(member)}
    return {
        # A VLAN as part of the machine, whatever the account's default is.
        "interface_generation": "legacy_config",
        "interfaces": [linode.InstanceInterfaceArgs(**each) for each in ({"purpose": "public"}, vlan)],
    }


def vlan_address(member: Member) -> str:
    """A member's address on its VLAN, with the prefix: nobody hands addresses out there."""
    network = ipaddress.ip_network(member.cluster.network)
    return f"{network[FIRST_ON_VLAN + member.index]}/{network.prefixlen}"


def vlan_label(stack: str, cluster: str) -> str:
    """Names a VLAN; who names it first makes it."""
    return label(stack, cluster, LONGEST_VLAN_LABEL)


def inbound(opening: Opening) -> linode.FirewallInboundArgs:
    """The rule that lets its ranges reach its port."""
    versions = by_version(opening.cidrs)
    return linode.FirewallInboundArgs(
        label=opening.name,
        action="ACCEPT",
        protocol="TCP",
        ports=str(opening.port),
        # An empty list is refused.
        ipv4s=versions[4] or None,
        ipv6s=versions[6] or None,
    )


def label(stack: str, node: str, longest: int) -> str:
    """`stack-node` as Linode's labels are: short, and no punctuation twice in a row or at an end.

    What had to be changed gets a digest of the whole, so that different names stay different.
    """
    whole = f"{stack}-{node}"
    fit = re.sub(r"[-_.]{2,}", "-", whole).strip("-_.")
    if fit == whole and len(whole) <= longest:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:6]
    return f"{fit[: longest - 7].rstrip('-_.')}-{digest}"


def node_tag(stack: str, node: str) -> str:
    """`vllm-fleet-node=stack/node`, with the stack's end cut off where a tag would be too long."""
    room = LONGEST_TAG - len(f"{NODE_TAG}=/{node}")
    return f"{NODE_TAG}={stack[:room]}/{node}"
