"""Private networks on Scaleway: the embedded cloud judged by the vendor's SDK, and our client on it."""

from __future__ import annotations

import pytest
from scaleway import Client, ScalewayException
from scaleway.instance.v1.custom_api import InstanceUtilsV1API
from scaleway.ipam.v1 import IpamV1API
from scaleway.vpc.v2 import VpcV2API
from scaleway.vpcgw.v2 import VpcgwV2API

from components.scaleway import probe
from components.scaleway.api import ScalewayClient
from components.scaleway.credentials import Credentials
from components.scaleway.way_out import NoSuchNetwork, way_out
from fleet.check import CloudRequest, Finding, Status
from fleet.settings import ScalewayNode
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


def network_of(vendor: Client) -> str:
    made = VpcV2API(vendor).create_private_network(
        default_route_propagation_enabled=False, name="n", subnets=["10.77.0.0/24"]
    )
    return str(made.id)


def attach(vendor: Client, network: str, *, default_route: bool, zone: str = "fr-par-1") -> None:
    gateways = VpcgwV2API(vendor)
    gateway = gateways.create_gateway(zone=zone, type_="VPC-GW-S", enable_smtp=False, enable_bastion=False)
    gateways.create_gateway_network(
        zone=zone,
        gateway_id=gateway.id,
        private_network_id=network,
        enable_masquerade=False,
        push_default_route=default_route,
    )


def client_of(cloud: SimCloud) -> ScalewayClient:
    return ScalewayClient(Credentials(cloud.secret_key, cloud.project, api_url=cloud.scaleway_url), ZONE)


def test_a_gateway_of_any_zone_of_the_region_leads_out_if_it_gives_a_default_route(
    cloud: SimCloud, vendor: Client
) -> None:
    network, other = network_of(vendor), network_of(vendor)
    with client_of(cloud) as client:
        assert "no Public Gateway gives" in str(way_out(client, network))
        attach(vendor, network, default_route=False)
        assert not client.leads_out(network)
        attach(vendor, network, default_route=True)
        assert way_out(client, network) is None
        assert not client.leads_out(other)
        attached = VpcgwV2API(vendor).list_gateway_networks(zone="fr-par-1", private_network_ids=[network])
        # A default route asks for NAT by itself.
        assert [each.masquerade_enabled for each in attached.gateway_networks] == [False, True]
        with pytest.raises(ScalewayException):
            VpcV2API(vendor).delete_private_network(private_network_id=network)
        with pytest.raises(NoSuchNetwork, match=r"does not exist in fr-par\. Fix: name one of: scw vpc"):
            way_out(client, "00000000-0000-4000-8000-000000000000")
        cloud.deny("list_gateway_networks")
        assert "the key may not see. Fix: give it VPCGatewayReadOnly" in str(way_out(client, network))


def test_the_check_of_a_cloud_says_whether_a_private_network_leads_out(
    cloud: SimCloud, vendor: Client
) -> None:
    network = network_of(vendor)

    def found(network: str) -> Finding:
        node = ScalewayNode.model_validate(
            {
                "name": "a",
                "cloud": "scaleway",
                "serving": {"model": "Qwen/Qwen3-8B-AWQ"},
                "public_ip": False,
                "private_network": network,
            }
        )
        config = {
            "secretKey": cloud.secret_key,
            "projectId": cloud.project,
            "apiUrl": cloud.scaleway_url,
        }
        findings = probe.probe(CloudRequest(config, (node,), frozenset(), None))
        (finding,) = [finding for finding in findings if finding.name == "private network"]
        return finding

    missing = found("00000000-0000-4000-8000-000000000000")
    assert (missing.status, missing.fix) == (
        Status.FAILED,
        "name one of: scw vpc private-network list region=fr-par",
    )
    closed = found(network)
    assert closed.status == Status.WARNING
    assert f"private-network-id={network} enable-masquerade=true push-default-route=true" in closed.fix
    attach(vendor, network, default_route=True)
    assert found(network).status == Status.OK


def test_a_server_without_a_public_address_runs_with_its_private_one_alone(
    cloud: SimCloud, vendor: Client
) -> None:
    network = network_of(vendor)
    with client_of(cloud) as client:
        made = client.create_server(
            "a", commercial_type="L4-1-24G", image=GPU_IMAGE, marks=["m"], dynamic_ip_required=False
        )
        nic = client.create_private_nic(made.id, network)
        address = client.wait_private_address(nic.id, deadline_s=10)
        client.server_action(made.id, "poweron")
        running = client.wait_server(made.id, until={"running"}, deadline_s=10)
        assert running.public_ip is None
        assert cloud.inventory("ip") == []
        assert list(cloud.private_addresses()) == [address]
