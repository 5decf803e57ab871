"""A GPU node on Scaleway."""

from __future__ import annotations

from dataclasses import replace

import pulumi
from pulumi import Output, ResourceHookBinding, ResourceOptions

from components.node import GpuNode, GpuNodeArgs, Machine
from components.scaleway.private_network import PrivateNic, way_out_check
from components.scaleway.resources import HostKeys, Power, RootVolume, SecurityGroup, Server
from components.scaleway.stock import stock_check
from components.tags import NODE_TAG
from fleet import settings, userdata


class ScalewayGpuNode(GpuNode):
    """Security group → server, created stopped → root volume grown → power on → host keys → serving.

    The order is Scaleway's validated one: the volume that an image brings is 20 GB, and it must have its size
    before the first start. SSH keys come from the Scaleway project.
    """

    def __init__(self, name: str, args: GpuNodeArgs, opts: ResourceOptions | None = None) -> None:
        super().__init__("vllm-fleet:scaleway:GpuNode", name, None, opts)
        node = args.node
        assert isinstance(node, settings.ScalewayNode)
        zone = str(node.zone)
        label = f"{pulumi.get_stack()}-{node.name}"
        whose = f"{pulumi.get_stack()}/{node.name}"
        tags = [f"{NODE_TAG}={whose}", *node.tags]
        host = replace(
            userdata.HostPart.scaleway(node, args.secrets), network=args.network, serves=args.member is None
        )

        group = SecurityGroup(
            f"{name}-security-group",
            zone=zone,
            node=node.name,
            owner=args.owner.id,
            label=label,
            tags=tags,
            openings=args.openings,
            opts=ResourceOptions(parent=self),
        )
        server = Server(
            f"{name}-server",
            zone=zone,
            node=node.name,
            owner=args.owner.id,
            label=label,
            tags=tags,
            commercial_type=node.type,
            image=node.image,
            security_group_id=group.id,
            user_data=Output.secret(host.user_data()) if host.holds_secrets else host.user_data(),
            host_digest=host.digest(),
            private_network_id=node.private_network,
            opts=ResourceOptions(
                parent=self,
                # The machine holds everything that costs hours to rebuild.
                protect=node.protect,
                additional_secret_outputs=["user_data"] if host.holds_secrets else None,
                hooks=ResourceHookBinding(
                    before_create=[
                        stock_check(f"{name}-server", self),
                        *([way_out_check(f"{name}-way-out", self)] if node.private_network else []),
                    ]
                ),
            ),
        )
        volume = RootVolume(
            f"{name}-root-volume",
            zone=zone,
            node=node.name,
            owner=args.owner.id,
            tags=tags,
            server_id=server.id,
            size_gb=node.root_volume_gb,
            opts=ResourceOptions(parent=self),
        )
        network = args.member.network if args.member else node.private_network
        nic = (
            PrivateNic(
                f"{name}-private-nic",
                zone=zone,
                node=node.name,
                server_id=server.id,
                private_network_id=network,
                opts=ResourceOptions(parent=self),
            )
            if network
            else None
        )
        power = Power(
            f"{name}-power",
            zone=zone,
            node=node.name,
            server_id=server.id,
            private_ip=nic.address if nic and not node.public_ip else None,
            # The volume has to have its size before the first start; that is also when interfaces are found.
            opts=ResourceOptions(parent=self, depends_on=[volume, *([nic] if nic else [])]),
        )
        keys = HostKeys(
            f"{name}-host-keys",
            zone=zone,
            node=node.name,
            server_id=server.id,
            deadline_s=args.health.ssh_timeout_s,
            opts=ResourceOptions(parent=self, depends_on=[power]),
        )
        self._serve(
            name,
            args,
            Machine(
                server_id=server.id,
                public_ip=power.public_ip if node.public_ip else None,
                host_keys=keys.keys,
                root_volume_gb=volume.size_gb.apply(int),
                ssh_user="root",
                ready_when=[power, keys],
                started=power.started,
                objects=[server.id, volume.id, group.id],
                private_ip=nic.address if nic else None,
                hints={
                    "zone": zone,
                    "server_id": server.id,
                    "security_group": group.id,
                    "console_url": Output.concat(
                        "https://console.scaleway.com/instance/servers/", zone, "/", server.id
                    ),
                },
            ),
        )
