"""Private networks on Scaleway: the embedded cloud judged by the vendor's SDK, and our client on it."""

from __future__ import annotations

import pytest
from scaleway import Client, ScalewayException
from scaleway.instance.v1.custom_api import InstanceUtilsV1API
from scaleway.ipam.v1 import IpamV1API
from scaleway.vpc.v2 import VpcV2API

from components.scaleway.api import ScalewayClient
from components.scaleway.credentials import Credentials
from simcloud.testing import SimCloud

ZONE, REGION = "fr-par-2", "fr-par"
GPU_IMAGE = "5c3d28db-33ce-4997-8572-f49506339283"


@pytest.fixture
def vendor(cloud: SimCloud) -> Client:
    return Client(
        access_key="SCWXXXXXXXXXXXXXXXXX",
        secret_key=cloud.secret_key,
        api_url=cloud.scaleway_url,
        default_project_id=cloud.project,
        default_zone=ZONE,
        default_region=REGION,
    )


def server(vendor: Client) -> str:
    instance = InstanceUtilsV1API(vendor)
    made = instance.create_server(name="a", commercial_type="L4-1-24G", image=GPU_IMAGE)
    assert made.server
    return made.server.id


def test_a_server_in_a_network_has_an_address_of_its_subnet(vendor: Client) -> None:
    vpc, instance, ipam = VpcV2API(vendor), InstanceUtilsV1API(vendor), IpamV1API(vendor)
    network = vpc.create_private_network(
        default_route_propagation_enabled=False, name="n", subnets=["10.77.0.0/24"]
    )
    nics = [
        instance.create_private_nic(server_id=server(vendor), private_network_id=network.id).private_nic
        for _ in range(2)
    ]
    found = {
        ip.resource.id: ip.address
        for nic in nics
        if nic
        for ip in ipam.list_i_ps(order_by=None, resource_id=nic.id).ips
        if ip.resource
    }
    assert sorted(found.values()) == ["10.77.0.2/24", "10.77.0.3/24"]
    with pytest.raises(ScalewayException) as caught:
        vpc.delete_private_network(private_network_id=network.id)
    assert caught.value.status_code == 412
    for nic in nics:
        assert nic
        instance.delete_private_nic(server_id=nic.server_id, private_nic_id=nic.id)
    vpc.delete_private_network(private_network_id=network.id)
    assert vpc.list_private_networks(order_by=None).private_networks == []


def test_what_a_lost_reply_left_is_taken_up_and_not_made_twice(cloud: SimCloud, vendor: Client) -> None:
    credentials = Credentials(cloud.secret_key, cloud.project, api_url=cloud.scaleway_url)
    with ScalewayClient(credentials, ZONE) as client:
        for call in ("create_private_network", "create_private_nic"):
            cloud.set_fault(call, "lost_reply")
        network = client.create_private_network("n", subnet="10.77.1.0/24", tags=["owner=1"])
        nic = client.create_private_nic(server(vendor), network.id)
        assert client.wait_private_address(nic.id, deadline_s=10) == "10.77.1.2"
        assert [thing["name"] for thing in cloud.inventory("private_network")] == ["n"]
        assert client.create_private_nic(nic.server_id, network.id) == nic
        client.delete_private_nic(nic.server_id, nic.id)
        client.delete_private_nic(nic.server_id, nic.id)
        assert client.find_private_nic(nic.server_id, nic.id) is None
        client.delete_private_network(network.id)
        assert client.find_private_network(network.id) is None
