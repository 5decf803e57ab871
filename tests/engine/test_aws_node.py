"""What is AWS's own about a node on AWS; what every node promises is tried in test_contract.py."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fleets import Fleet

pytestmark = pytest.mark.parametrize("fleet", ["aws"], indirect=True)

OLDER_AMI, NEWEST_AMI = "ami-0d1a0000000000001", "ami-0d1a0000000000003"
PLAIN_AMI = "ami-0b120000000000001"


def server(fleet: Fleet) -> Any:
    found = fleet.cloud.console("ec2").describe_instances(InstanceIds=[fleet.outputs()["nodes"]["a"]["id"]])
    return found["Reservations"][0]["Instances"][0]


def test_the_machine_is_closed_encrypted_and_known_from_its_first_second(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.run("up")
    machine = server(fleet)
    assert machine["ImageId"] == NEWEST_AMI
    assert machine["MetadataOptions"]["HttpTokens"] == "required"
    assert machine["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    (volume,) = fleet.cloud.console("ec2").describe_volumes()["Volumes"]
    assert (volume["VolumeType"], volume["Size"], volume["Encrypted"]) == ("gp3", 200, True)
    for tags in (machine["Tags"], volume["Tags"]):
        assert {"vllm-fleet-owner", "vllm-fleet-node", "Name"} <= {tag["Key"] for tag in tags}

    # The user data holds the private host key.
    state = {each["urn"].rsplit("::", 1)[-1]: each for each in fleet.stack.state()}
    boot, server_state = state["a-first-boot"], state["a-server"]
    held = [boot["inputs"]["user_data"], boot["outputs"]["user_data"], boot["outputs"]["made_user_data"]]
    for value in [*held, server_state["inputs"]["userDataBase64"], server_state["outputs"]["userDataBase64"]]:
        assert isinstance(value, dict), "not encrypted in the state"


def test_a_newer_image_is_offered_and_never_taken_unasked(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.config["nodes"][0]["ami"] = OLDER_AMI
    fleet.run("up")
    before = server(fleet)
    assert before["ImageId"] == OLDER_AMI
    assert f"{NEWEST_AMI} is newer than its image {OLDER_AMI}" in fleet.run("preview").stdout

    # The image that is left out is not the newest: it is the one the machine was made with.
    del fleet.config["nodes"][0]["ami"]
    fleet.run("up")
    assert server(fleet)["InstanceId"] == before["InstanceId"]
    fleet.cloud.console("ec2").terminate_instances(InstanceIds=[before["InstanceId"]])
    fleet.run("up")
    assert server(fleet)["ImageId"] == OLDER_AMI


def test_a_group_that_is_replaced_has_a_machine_in_it_all_the_time(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.run("up")
    before, seen = server(fleet), fleet.seen()
    # The names that objects have in the account begin with the stack's.
    fleet.stack.ask("stack", "rename", "renamed")
    fleet.stack.name = "renamed"
    done = fleet.run("up").operations
    assert done["a-server"] == ["update"]
    after = server(fleet)
    assert (after["InstanceId"], after["LaunchTime"]) == (before["InstanceId"], before["LaunchTime"])
    (had,), (has,) = (each["NetworkInterfaces"][0]["Groups"] for each in (before, after))
    assert (had["GroupName"][:7], has["GroupName"][:10]) == ("test-a-", "renamed-a-")
    steps = ("CreateSecurityGroup", "ModifyInstanceAttribute", "DeleteSecurityGroup")
    assert [call for call in fleet.written(after=seen) if call in steps] == list(steps)
    assert {each["name"] for each in fleet.cloud.inventory("security_group")} == {has["GroupName"]}
    assert fleet.drift() is None
    # Its key pair is another by now, too; the next machine is made with that.
    (key,) = (each["name"] for each in fleet.cloud.inventory("key_pair"))
    assert after["KeyName"] != key
    fleet.config["nodes"][0]["ami"] = OLDER_AMI
    assert fleet.run("up").operations["a-server"][0] == "create-replacement"
    assert server(fleet)["KeyName"] == key


def test_what_aws_would_refuse_is_said_at_preview_with_field_and_fix(fleet: Fleet) -> None:
    ec2, efs = fleet.cloud.console("ec2"), fleet.cloud.console("efs")
    offers = ec2.describe_instance_type_offerings(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": ["g6.xlarge"]}]
    )["InstanceTypeOfferings"]
    zones = {each["Location"] for each in offers}
    elsewhere = next(
        each["SubnetId"]
        for each in ec2.describe_subnets()["Subnets"]
        if each["AvailabilityZone"] not in zones
    )
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    foreign = ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.0.0/24")["Subnet"]["SubnetId"]
    share = efs.create_file_system(CreationToken="foreign")["FileSystemId"]
    efs.create_mount_target(FileSystemId=share, SubnetId=foreign)
    no_driver = rf"ami: {PLAIN_AMI} \(.*\) carries no NVIDIA driver; use a Deep Learning Base GPU AMI"
    plain, (node,) = fleet.config, fleet.config["nodes"]

    def with_node(**changes: Any) -> dict[str, Any]:
        return {**plain, "nodes": [{**node, **changes}]}

    def with_jobs(**changes: Any) -> dict[str, Any]:
        return {**plain, "jobs": changes}

    refused = [
        (with_node(subnet=elsewhere), f"a: subnet: {elsewhere} is in .* name a subnet in us-east-1"),
        (with_node(ami=PLAIN_AMI), f"a: {no_driver}"),
        (with_node(region="eu-west-1"), "a: region: eu-west-1 is not the us-east-1 of aws:region"),
        (with_node(spot={}, protect=True), r"nodes\[0\].protect: true cannot keep .* leave out protect"),
        (with_jobs(ami=PLAIN_AMI), rf"jobs\.{no_driver}"),
        (with_jobs(file_system=share), rf"jobs\.file_system: {share} is mounted in {vpc}, the jobs run in"),
        (with_jobs(subnets=["subnet-00000000"]), r"jobs\.subnets: subnet-00000000 does not exist in us-east"),
        (
            with_jobs(control={"existing": "i-00000000"}),
            r"jobs\.control\.existing: i-00000000 does not exist in us-east-1; leave it out to make one",
        ),
    ]
    before = fleet.left()
    for config, said in refused:
        fleet.config = config
        assert re.search(said, " ".join(fleet.run("preview", expect_failure=True).stdout.split()))
    assert fleet.left() == before
