"""Private networks of a region's VPC: where the machines of a cluster meet, and where a node without a public
address is reached.

Security groups filter public traffic alone: within the network everything may talk, from outside nothing can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi import Input, Output
from pulumi.dynamic import CreateResult, ReadResult, Resource, UpdateResult

from components.dynamic import gone
from components.scaleway.credentials import Credentials
from components.scaleway.owned import client_of, timeouts_of
from components.scaleway.resources import ScalewayProvider
from components.scaleway.way_out import NoSuchNetwork, way_out
from components.tags import NODE_TAG, OWNER_TAG

ADDRESS_DEADLINE_S = 120.0
"""IPAM gives an address as the interface is made; minutes would be odd."""


class PrivateNetworkProvider(ScalewayProvider):
    replace_on = frozenset({"zone", "subnet"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        network = self.client(props).create_private_network(
            props["label"],
            subnet=props["subnet"],
            tags=[f"{OWNER_TAG}={props['owner']}", f"{NODE_TAG}={props['cluster']}"],
        )
        return CreateResult(network.id, props)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        found = self.client(props).find_private_network(id_)
        return ReadResult(id_, props) if found else gone()

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(news)


class PrivateNetwork(Resource, module="scaleway", name="PrivateNetwork"):
    """A network with one IPv4 subnet, in the region of a zone."""

    def __init__(
        self,
        name: str,
        *,
        zone: str,
        label: str,
        cluster: str,
        owner: Input[str],
        subnet: str,
        opts: pulumi.ResourceOptions,
    ) -> None:
        props: dict[str, Any] = {
            "zone": zone,
            "label": label,
            "cluster": cluster,
            "owner": owner,
            "subnet": subnet,
        }
        super().__init__(PrivateNetworkProvider(), name, props, opts)


class PrivateNicProvider(ScalewayProvider):
    replace_on = frozenset({"zone", "server_id", "private_network_id"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        client = self.client(props)
        nic = client.create_private_nic(props["server_id"], props["private_network_id"])
        address = client.wait_private_address(nic.id, deadline_s=ADDRESS_DEADLINE_S)
        return CreateResult(nic.id, {**props, "address": address})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        found = self.client(props).find_private_nic(props["server_id"], id_)
        return ReadResult(id_, props) if found else gone()

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult({**news, "address": olds["address"]})


class PrivateNic(Resource, module="scaleway", name="PrivateNic"):
    """A server's interface in a private network, made before its first start."""

    address: Output[str]
    """IPv4, IPAM's choice; it stays while the interface does, and the machine gets it by DHCP."""

    def __init__(
        self,
        name: str,
        *,
        zone: str,
        node: str,
        server_id: Input[str],
        private_network_id: Input[str],
        opts: pulumi.ResourceOptions,
    ) -> None:
        props: dict[str, Any] = {
            "zone": zone,
            "node": node,
            "server_id": server_id,
            "private_network_id": private_network_id,
            "address": None,
        }
        super().__init__(PrivateNicProvider(), name, props, opts)


def way_out_check(name: str, node: pulumi.Resource) -> pulumi.ResourceHook:
    """A hook for the creation of a server in a private network, at preview too: whether that leads anywhere.

    What is warned of is said of `node`; see `components.scaleway.way_out`.
    """

    async def hook(args: pulumi.ResourceHookArgs) -> None:
        if said := await asyncio.to_thread(look, args.new_inputs or {}):
            pulumi.log.warn(f"private_network: {said}", node)

    def look(inputs: Mapping[str, Any]) -> str | None:
        setting = pulumi.Config("scaleway").get
        timeouts = timeouts_of(lambda key: setting(key.removeprefix("scaleway:")))
        client = client_of(Credentials.of_stack(setting), inputs["zone"], timeouts)
        try:
            return way_out(client, inputs["private_network_id"])
        except NoSuchNetwork as error:
            raise NoSuchNetwork(f"{inputs['node']}: {error}") from None

    return pulumi.ResourceHook(name, hook, pulumi.ResourceHookOptions(on_dry_run=True))
