"""Keys and ways to the nodes: who is let in, how a key is changed, who would be locked out, jump hosts."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fleets import Fleet

from fleet.ssh_key import public_key
from simcloud.jump_host import JumpHost, running_jump_host
from simcloud.testing import SimCloud


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def opens(fleet: Fleet, key: Path) -> bool:
    """Whether a key opens the node, by the command that its output gives."""
    known = str(fleet.config["access"]["ssh_private_key_path"])
    command = fleet.outputs()["nodes"]["a"]["ssh_command"].replace(known, str(key))
    done = subprocess.run(
        f"{command} -o BatchMode=yes true", shell=True, timeout=60, capture_output=True, check=False
    )
    return done.returncode == 0


def test_a_key_is_changed_by_way_of_the_authorized_keys_and_never_at_once(
    fleet: Fleet, tmp_path: Path
) -> None:
    first, second, third = (
        Path(fleet.config["access"]["ssh_private_key_path"]),
        make_key(tmp_path / "second"),
        make_key(tmp_path / "third"),
    )
    access = fleet.config["access"]
    fleet.run("up")
    assert (opens(fleet, first), opens(fleet, second)) == (True, False)
    machine, seen = fleet.parts(), fleet.seen()

    access["ssh_private_key_path"] = str(second)
    for command in ("preview", "up"):
        refused = fleet.run(command, expect_failure=True).stdout
        assert "which does not open what runs: a" in refused
        assert "add the new public key to access.authorized_keys" in refused
    assert fleet.written(after=seen) == []

    access |= {
        "ssh_private_key_path": str(first),
        "authorized_keys": [f"{public_key(key)} {key.name}@example" for key in (second, third)],
    }
    done = fleet.run("up")
    assert done.operations == {"a-operators": ["create"]}
    assert all(opens(fleet, key) for key in (first, second, third))

    access |= {"ssh_private_key_path": str(second), "authorized_keys": [public_key(second)]}
    fleet.run("up")
    assert (opens(fleet, second), opens(fleet, third)) == (True, False)
    assert fleet.parts() == machine
    assert fleet.run("up").operations == {}

    # Without the list nothing would open the running machine: the second key is no other's.
    access["authorized_keys"] = []
    access["ssh_private_key_path"] = str(first)
    fleet.run("destroy")
    assert fleet.left() == []


def test_who_would_be_locked_out_is_warned_and_a_longer_wait_is_no_new_release(fleet: Fleet) -> None:
    fleet.run("up")
    assert fleet.outputs()["nodes"]["a"]["reached_from"] == "127.0.0.1"
    fleet.config["access"]["ssh_cidrs"] = ["203.0.113.7/32"]
    warned = fleet.run("preview").stdout
    assert "a was last reached from 127.0.0.1, which is in none of 203.0.113.7/32" in warned
    assert "Add 127.0.0.1/32" in warned

    fleet.config["access"]["ssh_cidrs"] = ["127.0.0.0/8"]
    assert "locks you out" not in fleet.run("preview").stdout
    fleet.config["health"]["ready_timeout_s"] = 70
    promised = fleet.run("preview").operations
    assert promised["a-serving-gate"] == ["update"]
    assert fleet.run("up").operations == promised


# --- without a public address -----------------------------------------------------------------------------


@pytest.fixture
def hop(fleet: Fleet) -> Iterator[JumpHost]:
    """A jump host that the fleet's own key opens."""
    key = Path(fleet.config["access"]["ssh_private_key_path"])
    with running_jump_host(fleet.cloud, public_key(key)) as hop:
        yield hop


def scaleway_api(cloud: SimCloud, path: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"X-Auth-Token": cloud.secret_key}
    made: dict[str, Any] = (
        httpx.post(f"{cloud.scaleway_url}/{path}", json=body, headers=headers).raise_for_status().json()
    )
    return made


def scaleway_network(cloud: SimCloud) -> str:
    path = "vpc/v2/regions/fr-par/private-networks"
    return str(scaleway_api(cloud, path, {"name": "own", "subnets": ["10.77.0.0/24"]})["id"])


def attach_gateway(cloud: SimCloud, network: str) -> None:
    zone = "vpc-gw/v2/zones/fr-par-1"
    gateway = scaleway_api(cloud, f"{zone}/gateways", {"type": "VPC-GW-S"})["id"]
    attached = {"gateway_id": gateway, "private_network_id": network, "push_default_route": True}
    scaleway_api(cloud, f"{zone}/gateway-networks", attached)


def aws_subnet(cloud: SimCloud, *, nat: bool) -> str:
    """A subnet of a VPC of its own that routes to a NAT gateway, or to an internet gateway."""
    console = cloud.console("ec2")
    vpc = console.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    zone = {"Name": "instance-type", "Values": ["g6.xlarge"]}
    offered = console.describe_instance_type_offerings(LocationType="availability-zone", Filters=[zone])
    place = {"AvailabilityZone": offered["InstanceTypeOfferings"][0]["Location"]}
    subnet = console.create_subnet(VpcId=vpc, CidrBlock="10.9.0.0/24", **place)["Subnet"]["SubnetId"]
    table = console.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    console.associate_route_table(RouteTableId=table, SubnetId=subnet)
    if nat:
        made = console.create_nat_gateway(SubnetId=subnet, ConnectivityType="private")
        way = {"NatGatewayId": made["NatGateway"]["NatGatewayId"]}
    else:
        gateway = console.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        console.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
        way = {"GatewayId": gateway}
    console.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", **way)
    return str(subnet)


def answers_by_the_jump_host_alone(fleet: Fleet, hop: JumpHost, subnet: str) -> None:
    """The node's address is a private one, to which nothing leads but the jump host."""
    node = fleet.outputs()["nodes"]["a"]
    assert (node["status"], node["public_ip"]) == ("ready", None)
    assert node["address"].startswith(subnet)
    assert node["ssh"]["host"] == node["address"]
    assert set(hop.led_to) == {node["address"]}
    assert opens(fleet, Path(fleet.config["access"]["ssh_private_key_path"]))
    straight = ["ssh", "-o", "ConnectTimeout=2", "-o", "BatchMode=yes", "-p", str(node["ssh"]["port"])]
    assert subprocess.run([*straight, node["address"]], check=False, capture_output=True).returncode == 255
    assert fleet.run("up").operations == {}
    assert fleet.drift() is None
    assert fleet.looked_at() == (0, [])


def test_a_scaleway_node_loses_its_public_address_by_a_machine_that_is_reached_through_the_jump_host(
    fleet: Fleet, hop: JumpHost
) -> None:
    fleet.run("up")
    (first,) = fleet.cloud.inventory("server")
    with_address = fleet.outputs()["cost_per_hour"]
    network = scaleway_network(fleet.cloud)
    node = fleet.config["nodes"][0]
    node |= {"public_ip": False, "private_network": "00000000-0000-4000-8000-000000000000"}
    assert "access.jump_host: is missing" in fleet.run("preview", expect_failure=True).stdout

    fleet.config["access"]["jump_host"] = hop.setting
    refused = fleet.run("preview", expect_failure=True).stdout
    assert f"a: private_network: {node['private_network']} does not exist in fr-par" in refused
    node["private_network"] = network
    promised = fleet.run("preview")
    assert "no Public Gateway gives" in promised.stdout
    assert (
        "a gets a new machine without a public address; the one that serves is removed once"
        in promised.stdout
    )
    attach_gateway(fleet.cloud, network)
    promised = fleet.run("preview")
    assert "no Public Gateway gives" not in promised.stdout
    done = fleet.run("up")
    assert done.operations == promised.operations
    (second,) = fleet.cloud.inventory("server")
    assert second["id"] != first["id"]
    assert fleet.cloud.inventory("ip") == []
    answers_by_the_jump_host_alone(fleet, hop, "10.77.0.")
    assert with_address - fleet.outputs()["cost_per_hour"] == pytest.approx(0.005)

    del node["private_network"]
    node["public_ip"] = True
    del fleet.config["access"]["jump_host"]
    assert "a gets a new machine with a public address" in fleet.run("up").stdout
    assert fleet.outputs()["nodes"]["a"]["public_ip"].startswith("127.0.")
    fleet.run("destroy")
    assert {thing["kind"] for thing in fleet.cloud.inventory() if thing["kind"] != "ssh_key"} == {
        "private_network",
        "public_gateway",
    }


@pytest.mark.trials
@pytest.mark.parametrize("fleet", ["aws"], indirect=True)
def test_an_aws_node_loses_its_public_address_by_a_machine_that_is_reached_through_the_jump_host(
    fleet: Fleet, hop: JumpHost
) -> None:
    fleet.run("up")
    (first,) = fleet.cloud.inventory("server")
    with_address = fleet.outputs()["cost_per_hour"]
    node = fleet.config["nodes"][0]
    node |= {"public_ip": False, "subnet": aws_subnet(fleet.cloud, nat=False)}
    fleet.config["access"]["jump_host"] = hop.setting
    refused = fleet.run("preview", expect_failure=True).stdout
    assert "which lets out machines with a public address alone" in refused
    node["subnet"] = aws_subnet(fleet.cloud, nat=True)
    promised = fleet.run("preview")
    assert (
        "a gets a new machine without a public address; the one that serves is removed once"
        in promised.stdout
    )
    assert fleet.run("up").operations == promised.operations
    (second,) = fleet.cloud.inventory("server")
    assert second["id"] != first["id"]
    answers_by_the_jump_host_alone(fleet, hop, "10.9.0.")
    assert with_address - fleet.outputs()["cost_per_hour"] == pytest.approx(0.005)
    fleet.cloud.console("ec2").stop_instances(InstanceIds=[second["id"]])
    address = fleet.outputs()["nodes"]["a"]["address"]
    fleet.run("up", "--refresh")
    assert fleet.outputs()["nodes"]["a"]["address"] == address
    assert fleet.statuses() == {"ready"}
    fleet.run("destroy")
    assert fleet.cloud.inventory("server") == []
