"""A node on AWS: what the contract of all clouds does not say, with the real engine on the embedded AWS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import fleets
import pytest
from fleets import Fleet
from harness import Stack

from simcloud import aws
from simcloud.testing import running_simcloud

OLDER_AMI, NEWEST_AMI = "ami-0d1a0000000000001", "ami-0d1a0000000000003"
PLAIN_AMI = "ami-0b120000000000001"


@pytest.fixture
def fleet(pulumi: Callable[..., Stack], tmp_path: Path) -> Iterator[Fleet]:
    key = fleets.ssh_key(tmp_path / "id_ed25519")
    folder = fleets.project_folder(tmp_path / "project")
    with running_simcloud(tmp_path / "cloud", ssh_port=fleets.SSH_PORT) as cloud:
        fleet = Fleet(pulumi(folder=folder), cloud, key, "scaleway")
        fleet.config["nodes"] = [{"name": "a", "cloud": "aws", "type": "g6.xlarge", "root_volume_gb": 200}]
        fleet.provider = {
            "aws:region": "us-east-1",
            "aws:accessKey": aws.DEV_ACCESS_KEY,
            "aws:secretKey": aws.DEV_SECRET_KEY,
            "aws:endpoints": [dict.fromkeys(("ec2", "iam", "ssm", "sts", "efs", "logs"), cloud.aws_url)],
        }
        yield fleet
        cloud.clear_faults()
        fleet.stack.close()


def ec2(fleet: Fleet) -> Any:
    """The console of someone else."""
    return boto3.client(
        "ec2",
        endpoint_url=fleet.cloud.aws_url,
        region_name="us-east-1",
        aws_access_key_id=aws.DEV_ACCESS_KEY,
        aws_secret_access_key=aws.DEV_SECRET_KEY,
    )


def server(fleet: Fleet) -> Any:
    found = ec2(fleet).describe_instances(InstanceIds=[fleet.outputs()["nodes"]["a"]["id"]])
    return found["Reservations"][0]["Instances"][0]


def test_the_machine_is_closed_encrypted_and_known_from_its_first_second(fleet: Fleet) -> None:
    result = fleet.run("up")
    node = fleet.outputs()["nodes"]["a"]
    assert (node["status"], node["root_volume_gb"]) == ("ready", 200)
    stages = [int(line.split("%")[0].split()[-1]) for line in result.stdout.splitlines() if " % " in line]
    assert {0, 20, 25, 30, 40, 45, 50, 60, 70, 80, 90, 95, 100} <= set(stages)

    machine = server(fleet)
    assert machine["ImageId"] == NEWEST_AMI
    assert machine["MetadataOptions"]["HttpTokens"] == "required"
    assert machine["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    volume = ec2(fleet).describe_volumes()["Volumes"][0]
    assert (volume["VolumeType"], volume["Size"], volume["Encrypted"]) == ("gp3", 200, True)
    for tags in (machine["Tags"], volume["Tags"]):
        assert {"vllm-fleet-owner", "vllm-fleet-node", "Name"} <= {tag["Key"] for tag in tags}
    groups = ec2(fleet).describe_security_groups(
        GroupIds=[machine["NetworkInterfaces"][0]["Groups"][0]["GroupId"]]
    )
    rules = groups["SecurityGroups"][0]["IpPermissions"]
    assert [(rule["FromPort"], rule["IpRanges"][0]["CidrIp"]) for rule in rules] == [(10022, "127.0.0.1/32")]

    # The user data holds the private host key.
    state = {each["urn"].rsplit("::", 1)[-1]: each for each in fleet.stack.state()}
    boot, server_state = state["a-first-boot"], state["a-server"]
    held = [boot["inputs"]["user_data"], boot["outputs"]["user_data"], boot["outputs"]["made_user_data"]]
    for value in [*held, server_state["inputs"]["userDataBase64"], server_state["outputs"]["userDataBase64"]]:
        assert isinstance(value, dict), "not encrypted in the state"

    assert fleet.run("up").operations == {}
    assert fleet.drift() is None

    fleet.config["nodes"][0]["root_volume_gb"] = 300
    assert fleet.run("up").operations["a-server"] == ["update"]
    assert server(fleet)["InstanceId"] == machine["InstanceId"]
    assert fleet.outputs()["nodes"]["a"]["root_volume_gb"] == 300
    fleet.config["nodes"][0]["root_volume_gb"] = 200
    assert "a volume only grows" in " ".join(fleet.run("up", expect_failure=True).stdout.split())
    fleet.config["nodes"][0]["root_volume_gb"] = 300

    fleet.run("destroy")
    assert fleet.left() == []


def test_a_newer_image_is_offered_and_a_change_behind_its_back_is_mended(fleet: Fleet) -> None:
    fleet.config["nodes"][0]["ami"] = OLDER_AMI
    fleet.run("up")
    before = server(fleet)
    assert before["ImageId"] == OLDER_AMI
    assert f"{NEWEST_AMI} is newer than its image {OLDER_AMI}" in fleet.run("preview").stdout

    console = ec2(fleet)
    console.stop_instances(InstanceIds=[before["InstanceId"]])
    group = before["NetworkInterfaces"][0]["Groups"][0]["GroupId"]
    world = {"IpProtocol": "tcp", "FromPort": 8000, "ToPort": 8000, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    console.authorize_security_group_ingress(GroupId=group, IpPermissions=[world])
    found = fleet.drift()
    assert found is not None
    assert {"a-power", "a-security-group"} <= found.drifted
    # The image that is left out is not the newest: it is the one the machine was made with.
    del fleet.config["nodes"][0]["ami"]
    mended = fleet.run("up")
    assert "a-serving-gate" in mended.operations, "a machine started again has to prove itself again"
    assert fleet.drift() is None
    after = server(fleet)
    assert (after["InstanceId"], after["State"]["Name"]) == (before["InstanceId"], "running")
    assert len(console.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]) == 1

    console.terminate_instances(InstanceIds=[before["InstanceId"]])
    fleet.run("up")
    assert server(fleet)["ImageId"] == OLDER_AMI

    fleet.config["nodes"][0]["ami"] = NEWEST_AMI
    assert "replace" in " ".join(fleet.run("up").operations["a-server"])
    assert server(fleet)["ImageId"] == NEWEST_AMI
    assert len(fleet.cloud.inventory("server")) == 1


def test_a_killed_run_leaves_one_machine_after_the_next_and_none_after_destroy(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.cloud.set_fault("RunInstances", "hold_after")
    running = fleet.start("up")
    fleet.cloud.wait_until_held("RunInstances")
    running.kill()
    fleet.cloud.clear_faults()
    fleet.stack.unlock()
    assert len(fleet.cloud.inventory("server")) == 1
    fleet.run("up")
    assert len(fleet.cloud.inventory("server")) == 1
    fleet.run("destroy")
    assert fleet.left() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ami": PLAIN_AMI}, "carries no NVIDIA driver; use a Deep Learning Base GPU AMI"),
        ({"subnet": "subnet-0123456789abcdef0"}, "does not exist in this region"),
        ({"region": "eu-west-1"}, "is not the us-east-1 of aws:region"),
    ],
)
def test_what_ec2_would_refuse_is_said_at_preview(fleet: Fleet, changes: dict[str, Any], said: str) -> None:
    fleet.config["nodes"][0].update(changes)
    assert said in " ".join(fleet.run("preview", expect_failure=True).stdout.split())
    assert fleet.left() == []
