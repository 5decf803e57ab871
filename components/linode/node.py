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
from components.linode.owned import node_tag, owner_tag
from components.linode.resources import (
    FirewallAttachment,
    FirstBoot,
    Power,
    before_firewall,
    before_machine,
    stock_check,
)
from components.node import GpuNode, GpuNodeArgs, Machine, Member
from components.ssh_host_key import SshHostKey
from components.tags import BOOT_TAG
from fleet import settings, userdata
from fleet.ssh_key import public_key

LONGEST_INSTANCE_LABEL = 50
"""What Linode's provider takes; the API itself takes 64."""
LONGEST_FIREWALL_LABEL = 32
LONGEST_VLAN_LABEL = 64
FIRST_ON_VLAN = 10
"""The head's address in the network; the lower ones are for people."""
SUFFIX = 9
"""A hyphen and eight digits at the end of a label."""
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

        tags = [args.owner.id.apply(owner_tag), node_tag(f"{stack}/{node.name}"), *node.tags]
        if pulumi.runtime.is_dry_run():
            # Before there is a key there is no user data: one as long tells whether it will fit.
            _host(args, node, userdata.HostKey(token_urlsafe(300), "")).user_data()
        host_key = SshHostKey(f"{name}-host-key", opts=ResourceOptions(parent=self))
        user_data = Output.all(host_key.private_key, host_key.public_key).apply(
            lambda keys: _host(args, node, userdata.HostKey(*keys)).user_data()
        )
        firewall = linode.Firewall(
            f"{name}-firewall",
            label=args.owner.id.apply(
                lambda id_: unique(label(stack, node.name, LONGEST_FIREWALL_LABEL - SUFFIX), id_)
            ),
            tags=tags,
            inbound_policy="DROP",
            inbounds=[inbound(opening) for opening in args.openings],
            outbound_policy="ACCEPT",
            opts=ResourceOptions(
                parent=self,
                retain_on_delete=True,
                hooks=ResourceHookBinding(
                    before_create=[before_firewall(f"{name}-firewall-vacancy", node.name)]
                ),
            ),
        )
        boot = FirstBoot(
            f"{name}-first-boot",
            node=node.name,
            made_from={
                "region": region,
                "type": node.type,
                "image": node.image,
                "host": _host(args, node, userdata.HostKey("", "")).digest(),
                **_vlan(args.member),
            },
            opts=ResourceOptions(parent=self),
        )
        address = boot.generation.apply(lambda number: vlan_address(args.member, int(number)))
        instance = linode.Instance(
            f"{name}-server",
            label=boot.boot.apply(
                lambda boot: unique(label(stack, node.name, LONGEST_INSTANCE_LABEL - SUFFIX), boot)
            ),
            region=region,
            type=node.type,
            image=node.image,
            tags=[*tags, boot.boot.apply(lambda boot: f"{BOOT_TAG}={boot}")],
            booted=True,
            authorized_keys=[public_key(args.access.ssh_private_key_path)],
            # Behind the firewall from its first second.
            firewall_id=firewall.id.apply(int),
            **_interfaces(args.member, address),
            metadatas=[linode.InstanceMetadataArgs(user_data=user_data)],
            opts=ResourceOptions(
                parent=self,
                # The machine holds everything that costs hours to rebuild.
                protect=node.protect,
                # It goes once its successor serves, or with the stack: see components/ownership.py.
                retain_on_delete=True,
                # User data and keys act at the first boot alone, and a firewall can be changed without a
                # new machine (see FirewallAttachment): none of them may replace one. What of the user data
                # shapes the host is in the first boot.
                ignore_changes=["metadatas", "authorized_keys", "firewall_id"],
                replacement_trigger=boot.boot,
                # Linode would move the machine for hours, or resize it and keep the small disk.
                replace_on_changes=["region", "type"],
                hooks=ResourceHookBinding(
                    before_create=[
                        stock_check(f"{name}-stock", region, node.type, self),
                        before_machine(f"{name}-server-vacancy", node.name, boot, protect=node.protect),
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
            f"{name}-power",
            node=node.name,
            instance_id=instance.id,
            known_as=[instance.label, instance.tags],
            host_key=host_key.public_key,
            opts=ResourceOptions(parent=self),
        )
        self._serve(
            name,
            args,
            Machine(
                server_id=instance.id,
                public_ip=public_ip,
                host_keys=power.host_key.apply(lambda key: [key]),
                private_ip=address.apply(lambda cidr: cidr.partition("/")[0]) if args.member else None,
                root_volume_gb=instance.specs.apply(lambda specs: specs[0].disk * MIB // GB),
                ssh_user="root",
                ready_when=[power, attachment],
                started=power.started,
                objects=[instance.id, firewall.id],
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


def _vlan(member: Member | None) -> dict[str, Any]:
    """What of a cluster's VLAN a machine is made with, but for its address there."""
    if member is None:
        return {}
    return {"vlan": member.network, "subnet": member.cluster.network, "index": member.index}


def _interfaces(member: Member | None, address: Output[str]) -> dict[str, Any]:
    """A public address, and a place on the cluster's VLAN beside it, which no firewall filters."""
    if member is None:
        return {}
    vlan = {"purpose": "vlan", "label": member.network, "ipam_address": address}
    return {
        # A VLAN as part of the machine, whatever the account's default is.
        "interface_generation": "legacy_config",
        "interfaces": [linode.InstanceInterfaceArgs(**each) for each in ({"purpose": "public"}, vlan)],
    }


def vlan_address(member: Member | None, generation: int) -> str:
    """A member's address on its VLAN, with the prefix: nobody hands addresses out there.

    A machine and its successor are there together for a while: every other one counts from the end.
    """
    if member is None:
        return ""
    network = ipaddress.ip_network(member.cluster.network)
    place = -2 - member.index if generation % 2 else FIRST_ON_VLAN + member.index
    return f"{network[place]}/{network.prefixlen}"


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


def unique(label: str, token: str) -> str:
    """The label of one object of several with the same name; labels are unique in an account."""
    return f"{label}-{token[: SUFFIX - 1]}"
