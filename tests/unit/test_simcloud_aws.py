"""The embedded AWS, judged by the vendor's own client."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError

from simcloud.testing import SimCloud, running_simcloud

ONCE = Config(retries={"total_max_attempts": 1})
UBUNTU = "ami-0d1a0000000000003"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGqDL2uu2vYdbMQtRIzRPCe7nPLdTm1BrxtX1lA1dVYz me"
TAGS = [{"Key": "Name", "Value": "a"}, {"Key": "vllm-fleet-node", "Value": "test/a"}]
LOST = (ConnectionClosedError, EndpointConnectionError)


@pytest.fixture
def ec2(cloud: SimCloud) -> Any:
    return cloud.console("ec2", config=ONCE)


def launch(ec2: Any, **changes: Any) -> Any:
    volume = {"VolumeSize": 200, "VolumeType": "gp3", "Iops": 4000, "Throughput": 250, "Encrypted": True}
    wanted = {
        "ImageId": UBUNTU,
        "InstanceType": "g6.xlarge",
        "MinCount": 1,
        "MaxCount": 1,
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": volume}],
        "TagSpecifications": [{"ResourceType": "instance", "Tags": TAGS}],
        "SubnetId": ec2.describe_subnets()["Subnets"][0]["SubnetId"],
    }
    return ec2.run_instances(**wanted | changes)["Instances"][0]


def code(caught: pytest.ExceptionInfo[ClientError]) -> str:
    return str(caught.value.response["Error"]["Code"])


def root_volume(ec2: Any, instance: Any) -> Any:
    attached = [{"Name": "attachment.instance-id", "Values": [instance["InstanceId"]]}]
    return ec2.describe_volumes(Filters=attached)["Volumes"][0]


def test_an_instance_is_reached_at_a_loopback_address_of_its_own(cloud: SimCloud, ec2: Any) -> None:
    addresses = {launch(ec2)["InstanceId"] for _ in range(2)}
    found = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    assert {instance["InstanceId"] for instance in found} == addresses
    assert len({instance["PublicIpAddress"] for instance in found}) == 2
    assert all(instance["PublicIpAddress"].startswith("127.0.") for instance in found)
    server = cloud.inventory("server")[0]
    assert (server["node"], server["zone"], server["state"]) == ("a", "us-east-1a", "running")


def test_the_root_volume_is_what_was_asked_for_grows_and_never_shrinks(ec2: Any) -> None:
    instance = launch(ec2)
    volume = root_volume(ec2, instance)
    assert (volume["Size"], volume["Iops"], volume["Throughput"], volume["Encrypted"]) == (
        200,
        4000,
        250,
        True,
    )
    ec2.modify_volume(VolumeId=volume["VolumeId"], Size=300)
    assert root_volume(ec2, instance)["Size"] == 300
    with pytest.raises(ClientError) as caught:
        ec2.modify_volume(VolumeId=volume["VolumeId"], Size=200)
    assert code(caught) == "InvalidParameterValue"


def test_metadata_options_that_a_request_leaves_out_stay(ec2: Any) -> None:
    options = {"HttpTokens": "required", "HttpEndpoint": "enabled", "HttpPutResponseHopLimit": 1}
    instance = launch(ec2, MetadataOptions=options)["InstanceId"]
    ec2.modify_instance_metadata_options(InstanceId=instance, HttpPutResponseHopLimit=2)
    (found,) = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"]
    assert {**found["MetadataOptions"], **options, "HttpPutResponseHopLimit": 2} == found["MetadataOptions"]


def test_a_fault_of_a_node_is_met_by_every_call_upon_its_objects(cloud: SimCloud, ec2: Any) -> None:
    volume = root_volume(ec2, launch(ec2))["VolumeId"]
    cloud.set_fault("DescribeVolumes", "403", node="a")
    ec2.describe_volumes()
    with pytest.raises(ClientError) as caught:
        ec2.describe_volumes(VolumeIds=[volume])
    assert code(caught) == "UnauthorizedOperation"


def test_a_client_token_starts_one_instance_however_often_it_is_sent(cloud: SimCloud, ec2: Any) -> None:
    cloud.set_fault("RunInstances", "lost_reply")
    with pytest.raises(LOST):
        launch(ec2, ClientToken="once")
    first, second = launch(ec2, ClientToken="once"), launch(ec2, ClientToken="once")
    assert first["InstanceId"] == second["InstanceId"]
    assert len(cloud.inventory("server")) == 1
    with pytest.raises(ClientError) as caught:
        launch(ec2, ClientToken="once", InstanceType="g5.xlarge")
    assert code(caught) == "IdempotentParameterMismatch"


def test_a_protected_instance_is_not_terminated_until_protection_is_lifted(ec2: Any) -> None:
    id_ = launch(ec2, DisableApiTermination=True)["InstanceId"]
    with pytest.raises(ClientError) as caught:
        ec2.terminate_instances(InstanceIds=[id_])
    assert code(caught) == "OperationNotPermitted"
    ec2.modify_instance_attribute(InstanceId=id_, DisableApiTermination={"Value": False})
    ec2.terminate_instances(InstanceIds=[id_])


def test_a_group_in_use_is_not_deleted(ec2: Any) -> None:
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="g", Description="d", VpcId=vpc)["GroupId"]
    id_ = launch(ec2, SecurityGroupIds=[group])["InstanceId"]
    with pytest.raises(ClientError) as caught:
        ec2.delete_security_group(GroupId=group)
    assert code(caught) == "DependencyViolation"
    ec2.terminate_instances(InstanceIds=[id_])
    ec2.delete_security_group(GroupId=group)


def test_a_group_that_its_machine_has_left_is_deleted(ec2: Any) -> None:
    subnet = ec2.describe_subnets()["Subnets"][0]
    old, new = (
        ec2.create_security_group(GroupName=name, Description="d", VpcId=subnet["VpcId"])["GroupId"]
        for name in ("old", "new")
    )
    id_ = launch(ec2, SubnetId=subnet["SubnetId"], SecurityGroupIds=[old])["InstanceId"]
    ec2.modify_instance_attribute(InstanceId=id_, Groups=[new])
    ec2.delete_security_group(GroupId=old)
    (nic,) = ec2.describe_network_interfaces()["NetworkInterfaces"]
    assert [each["GroupId"] for each in nic["Groups"]] == [new]


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"ImageId": "ami-0ffffffffffffffff"}, "InvalidAMIID.NotFound"),
        ({"InstanceType": "g9.xlarge"}, "InvalidInstanceType.NotFound"),
        ({"KeyName": "mine"}, "InvalidKeyPair.NotFound"),
    ],
)
def test_what_does_not_exist_is_refused_at_launch(ec2: Any, changes: Any, refused: str) -> None:
    with pytest.raises(ClientError) as caught:
        launch(ec2, **changes)
    assert code(caught) == refused


@pytest.mark.parametrize(
    ("service", "call", "arguments", "fault", "expected"),
    [
        ("ec2", "RunInstances", None, "429", ("RequestLimitExceeded", 503)),
        ("ec2", "RunInstances", None, "500", ("InternalError", 500)),
        ("ec2", "RunInstances", None, "503", ("Unavailable", 503)),
        ("ec2", "RunInstances", None, "403", ("UnauthorizedOperation", 403)),
        ("ec2", "RunInstances", None, "quota", ("VcpuLimitExceeded", 400)),
        ("ec2", "RunInstances", None, "out_of_stock", ("InsufficientInstanceCapacity", 500)),
        ("ec2", "DescribeVolumes", {"VolumeIds": ["vol-1"]}, "404", ("InvalidVolume.NotFound", 400)),
        ("ec2", "DeleteKeyPair", {"KeyName": "k"}, "409", ("IncorrectState", 400)),
        ("iam", "GetRole", {"RoleName": "r"}, "404", ("NoSuchEntity", 404)),
        ("iam", "GetRole", {"RoleName": "r"}, "409", ("ConcurrentModification", 409)),
        ("iam", "GetRole", {"RoleName": "r"}, "429", ("Throttling", 400)),
        ("ssm", "GetParameter", {"Name": "n"}, "403", ("AccessDeniedException", 403)),
        ("efs", "DescribeFileSystems", {}, "503", ("ServiceUnavailable", 503)),
    ],
)
def test_a_fault_is_worded_as_its_service_words_it(
    cloud: SimCloud, service: str, call: str, arguments: Any, fault: str, expected: Any
) -> None:
    cloud.set_fault(call, fault)
    api = cloud.console(service, config=ONCE)
    method = "".join(f"_{c.lower()}" if c.isupper() else c for c in call).lstrip("_")
    with pytest.raises(ClientError) as caught:
        launch(api) if arguments is None else getattr(api, method)(**arguments)
    assert (code(caught), caught.value.response["ResponseMetadata"]["HTTPStatusCode"]) == expected


def test_what_was_made_lags_behind(cloud: SimCloud, ec2: Any) -> None:
    cloud.set_fault("RunInstances", "lag", misses=2)
    made = launch(ec2)["InstanceId"]
    with pytest.raises(ClientError) as caught:
        ec2.describe_instances(InstanceIds=[made])
    assert code(caught) == "InvalidInstanceID.NotFound"
    assert ec2.describe_instances()["Reservations"] == []
    assert ec2.describe_instances()["Reservations"][0]["Instances"][0]["InstanceId"] == made


def test_a_type_that_is_out_in_one_zone_starts_in_another(cloud: SimCloud, ec2: Any) -> None:
    cloud.set_stock("us-east-1a", "g6.xlarge", "shortage", cloud="aws")
    subnets = {each["AvailabilityZone"]: each["SubnetId"] for each in ec2.describe_subnets()["Subnets"]}
    with pytest.raises(ClientError) as caught:
        launch(ec2, SubnetId=subnets["us-east-1a"])
    assert code(caught) == "InsufficientInstanceCapacity"
    launch(ec2, SubnetId=subnets["us-east-1b"])


def test_an_unknown_access_key_is_refused(cloud: SimCloud) -> None:
    with pytest.raises(ClientError) as caught:
        cloud.console("ec2", aws_access_key_id="AKIASOMEBODYELSE0000").describe_vpcs()
    assert code(caught) == "AuthFailure"


def test_the_log_names_calls_and_nodes_and_keeps_no_user_data(cloud: SimCloud, ec2: Any) -> None:
    launch(ec2, UserData="planted secret")
    entry = cloud.calls("RunInstances")[0]
    assert (entry["node"], entry["status"], entry["body"]["InstanceType"]) == ("a", 200, "g6.xlarge")
    assert "sha256" in entry["body"]["UserData"]
    assert "cGxhbnRlZCBzZWNyZXQ" not in (cloud.state / "log.jsonl").read_text()


def test_the_images_a_gpu_node_starts_from_are_there(cloud: SimCloud, ec2: Any) -> None:
    name = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
    ami = cloud.console("ssm").get_parameter(Name=name)["Parameter"]["Value"]
    image = ec2.describe_images(ImageIds=[ami])["Images"][0]
    assert image["Name"].startswith("Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04)")
    newest = [{"Name": "name", "Values": ["Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *"]}]
    assert len(ec2.describe_images(Owners=["898082745236"], Filters=newest)["Images"]) == 2


def test_reset_leaves_nothing_but_the_default_network(cloud: SimCloud, ec2: Any) -> None:
    launch(ec2)
    ec2.import_key_pair(KeyName="k", PublicKeyMaterial=KEY.encode())
    cloud.console("iam").create_role(RoleName="r", AssumeRolePolicyDocument="{}")
    cloud.console("efs").create_file_system(CreationToken="t")
    cloud.console("logs").create_log_group(logGroupName="/l")
    kinds = {thing["kind"] for thing in cloud.inventory()}
    assert kinds == {"server", "volume", "key_pair", "role", "file_system", "log_group"}
    cloud.reset()
    assert cloud.inventory() == []
    assert len(ec2.describe_vpcs()["Vpcs"]) == 1


def test_a_machine_runs_from_launch_to_termination(tmp_path: Path) -> None:
    with running_simcloud(tmp_path, ssh_port=10922) as cloud:
        ec2 = cloud.console("ec2")
        ec2.import_key_pair(KeyName="k", PublicKeyMaterial=KEY.encode())
        id_ = launch(ec2, KeyName="k", UserData="#cloud-config\n")["InstanceId"]

        def address() -> str:
            found = ec2.describe_instances(InstanceIds=[id_])["Reservations"][0]["Instances"][0]
            return str(found["PublicIpAddress"])

        first = address()
        until(lambda: listens(first))
        ec2.stop_instances(InstanceIds=[id_])
        until(lambda: not listens(first))
        ec2.start_instances(InstanceIds=[id_])
        second = address()
        assert second != first  # as on AWS, where an address is an instance's only while it runs
        until(lambda: listens(second))
        ec2.terminate_instances(InstanceIds=[id_])
        until(lambda: not listens(second))
        assert cloud.inventory("server") == []


def listens(address: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, 10922)) == 0


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
