"""What is decided about a machine on AWS before the engine acts, judged on the embedded AWS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from components.aws import ec2, owned
from components.aws.api import AwsError, CredentialsError, client
from components.aws.resources import FirstBootProvider, machine_in_state
from fleet.aws import Credentials
from simcloud import aws
from simcloud.testing import SimCloud, running_simcloud

UBUNTU, PLAIN = "ami-0d1a0000000000003", "ami-0b120000000000001"
MADE = {
    "owner": "o",
    "label": "test/a",
    "node": "a",
    "region": "us-east-1",
    "type": "g6.xlarge",
    "digest": "d1",
    "user_data": "first",
    "ami": None,
    "newest_ami": "ami-1",
    "subnet": None,
    "public_ip": True,
    "root_volume_gb": 200,
    "made_with": {"ami": "ami-1", "subnet": "subnet-1"},
    "made_user_data": "first",
    "host_key": "ssh-ed25519 AAAA",
    "mark": "m",
}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCloud]:
    with running_simcloud(tmp_path_factory.mktemp("cloud"), nodes="none") as running:
        yield running


@pytest.fixture(scope="module")
def api(cloud: SimCloud) -> Any:
    return cloud.console("ec2")


@pytest.mark.parametrize(
    "changes",
    [
        {"newest_ami": "ami-2"},
        {"user_data": "of another model, with another key"},
        {"ami": "ami-1"},  # naming the image that it has
        {"subnet": "subnet-1"},
        {"type": "g6.2xlarge"},
    ],
)
def test_a_machine_is_not_made_anew_for_what_nobody_asked_for(changes: dict[str, Any]) -> None:
    found = FirstBootProvider().diff(
        "id", MADE, {**MADE, "made_with": None, "made_user_data": None, **changes}
    )
    assert found.replaces == []


def test_a_machine_made_before_public_ip_was_a_setting_has_a_public_address() -> None:
    olds = {key: value for key, value in MADE.items() if key != "public_ip"}
    assert FirstBootProvider().diff("id", olds, {**MADE, "public_ip": True}).replaces == []
    assert FirstBootProvider().diff("id", olds, {**MADE, "public_ip": False}).replaces == ["public_ip"]


@pytest.mark.parametrize(
    "changes", [{"ami": "ami-2"}, {"digest": "d2"}, {"subnet": "subnet-2"}, {"public_ip": False}]
)
def test_a_machine_is_made_anew_for_an_image_host_part_subnet_or_address_that_is_asked_for(
    changes: dict[str, Any],
) -> None:
    assert FirstBootProvider().diff("id", MADE, {**MADE, **changes}).replaces == list(changes)


def test_a_volume_that_would_shrink_is_refused_with_the_size_it_has() -> None:
    failures = FirstBootProvider().check(MADE, {**MADE, "root_volume_gb": 150}).failures
    assert [failure.property for failure in failures] == ["root_volume_gb"]
    assert "Set root_volume_gb: 200, or more" in failures[0].reason
    assert FirstBootProvider().check(MADE, {**MADE, "root_volume_gb": 300}).failures == []
    assert FirstBootProvider().check({}, MADE).failures == []


def test_the_region_of_a_node_is_that_of_the_provider() -> None:
    with pytest.raises(CredentialsError, match="pulumi config set aws:region eu-west-1"):
        client({"region": "us-east-1"}.get, "ec2", "eu-west-1")


def test_credentials_show_no_secret() -> None:
    given = Credentials.of({"accessKey": "A", "secretKey": "planted", "token": "planted"}.get)
    assert "planted" not in repr(given)


def test_a_launch_that_ec2_would_take_is_let_through(api: Any) -> None:
    subnet = ec2.default_subnet(api, "g6.xlarge")
    ec2.check_place(api, "a: ", type_="g6.xlarge", subnet=subnet, public=True)
    ec2.check_place(api, "a: ", type_="g6.xlarge", subnet=None, public=True)
    ec2.check_image(api, "a: ", type_="g6.xlarge", ami=UBUNTU)


def test_a_subnet_in_a_zone_without_the_type_names_the_zones_that_have_it(api: Any) -> None:
    zones = ec2.offered_zones(api, "g6.xlarge")
    subnets = {each["AvailabilityZone"]: each["SubnetId"] for each in api.describe_subnets()["Subnets"]}
    without = next(subnet for zone, subnet in subnets.items() if zone not in zones)
    said = rf"^jobs.subnets: {without} is in .*, which does not offer g6.xlarge; name a subnet in {zones[0]}"
    with pytest.raises(ec2.Ec2Error, match=said):
        ec2.check_place(api, "jobs.", type_="g6.xlarge", subnet=without, public=None, key="subnets")


def test_a_type_or_subnet_that_the_region_does_not_have_is_refused(api: Any) -> None:
    with pytest.raises(ec2.Ec2Error, match=r"^a: type: g9.xlarge is offered nowhere in us-east-1; choose"):
        ec2.check_place(api, "a: ", type_="g9.xlarge", subnet=None, public=True)
    with pytest.raises(ec2.Ec2Error, match=r"^a: subnet: subnet-0 does not exist in us-east-1; name one of"):
        ec2.check_place(api, "a: ", type_="g6.xlarge", subnet="subnet-0", public=True)


def test_an_image_without_the_driver_is_refused(api: Any) -> None:
    with pytest.raises(ec2.Ec2Error, match=r"ami: .* carries no NVIDIA driver"):
        ec2.check_image(api, "a: ", type_="g6.xlarge", ami=PLAIN)


def test_a_file_system_of_another_vpc_is_refused(cloud: SimCloud, api: Any) -> None:
    efs = cloud.console("efs")
    vpc = api.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    other = api.create_subnet(VpcId=vpc, CidrBlock="10.9.0.0/24")["Subnet"]["SubnetId"]
    system = efs.create_file_system(CreationToken="other")["FileSystemId"]
    with pytest.raises(ec2.Ec2Error, match="has no mount target"):
        ec2.check_share(efs, api, system, [other])
    efs.create_mount_target(FileSystemId=system, SubnetId=other)
    ec2.check_share(efs, api, system, [other])
    with pytest.raises(ec2.Ec2Error, match=rf"jobs.file_system: {system} is mounted in {vpc}"):
        ec2.check_share(efs, api, system, [])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            "403",
            "AWS refused: UnauthorizedOperation: You are not .*Fix: give the credentials this permission",
        ),
        ("quota", "AWS refused: LimitExceeded: .*Fix: raise the limit in Service Quotas"),
        ("404", "AWS refused: InvalidGroup.NotFound: .*Fix: correct what AWS names, then run"),
        ("unreachable", "no reply from AWS .*Fix: check the network, aws:region and the credentials"),
    ],
)
def test_a_failed_call_is_told_with_its_name_and_its_fix(cloud: SimCloud, fault: str, said: str) -> None:
    url = cloud.aws_url if fault != "unreachable" else "http://127.0.0.1:9"
    settings = {
        "accessKey": aws.DEV_ACCESS_KEY,
        "secretKey": aws.DEV_SECRET_KEY,
        "endpoints": json.dumps([{"ec2": url}]),
    }
    api = client(settings.get, "ec2", "us-east-1")
    api.meta.events.unregister("needs-retry.ec2", unique_id="retry-config-ec2")  # at once
    if fault in ("403", "quota"):
        cloud.set_fault("DescribeSecurityGroups", fault)
    with pytest.raises(AwsError, match=rf"^ec2 DescribeSecurityGroups: {said}"):
        api.describe_security_groups(GroupIds=["sg-0123456789abcdef0"])


def test_an_existing_control_instance_is_given_the_role_once_and_never_loses_another(
    cloud: SimCloud, api: Any
) -> None:
    iam = cloud.console("iam")
    for name in ("control", "other"):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    launched = api.run_instances(ImageId=UBUNTU, InstanceType="t3.large", MinCount=1, MaxCount=1)
    instance = launched["Instances"][0]["InstanceId"]
    first = ec2.give_profile(api, instance, "control")
    assert ec2.give_profile(api, instance, "control") == first
    with pytest.raises(ec2.Ec2Error, match="has the instance profile control"):
        ec2.give_profile(api, instance, "other")


USER_DATA = "#cloud-config\nssh_keys:\n  ed25519_public: ssh-ed25519 AAAA of the machine\n"


def launched_for(api: Any, label: str, mark: str, *, once_in_state: bool) -> Any:
    given = {
        "vllm-fleet-owner": "o",
        "vllm-fleet-node": label,
        "vllm-fleet-boot": mark,
        "vllm-fleet-host": "d0",
    }
    tags = [{"Key": key, "Value": value} for key, value in given.items()]
    machine = api.run_instances(
        ImageId=UBUNTU,
        InstanceType="g6.xlarge",
        MinCount=1,
        MaxCount=1,
        UserData=USER_DATA,
        SubnetId=api.describe_subnets()["Subnets"][0]["SubnetId"],
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )["Instances"][0]
    if once_in_state:
        owned.mark_as_stored(api, machine)
    return machine


def test_a_first_boot_describes_the_machine_that_was_adopted(
    cloud: SimCloud, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FirstBootProvider, "ec2", lambda *_: api)
    props = {**MADE, "label": "test/adopted", "mark": "decided-anew"}
    assert FirstBootProvider().read("id", props).outs == props
    launched_for(api, "test/adopted", "never-in-state", once_in_state=False)
    assert FirstBootProvider().read("id", props).outs == props
    machine = launched_for(api, "test/adopted", "its-own", once_in_state=True)
    seen = FirstBootProvider().read("id", props).outs
    assert seen is not None
    assert (seen["mark"], seen["digest"]) == ("its-own", "d0")
    assert seen["made_with"] == {"ami": UBUNTU, "subnet": machine["SubnetId"]}
    assert seen["host_key"] == "ssh-ed25519 AAAA of the machine"
    # The one it was decided for is there: it stays.
    launched_for(api, "test/adopted", "decided-anew", once_in_state=False)
    assert FirstBootProvider().read("id", props).outs == props


async def test_a_state_that_is_being_written_is_read_once_it_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine truncates a state in a file before it writes it: a reader may find it empty."""
    urn, half_written = "urn:pulumi:test::fleet::aws:ec2/instance:Instance::a-server", 2
    asked = []

    async def invoke(function: str, arguments: dict[str, Any]) -> dict[str, Any]:
        asked.append(function)
        if len(asked) <= half_written:
            raise Exception("failed to load checkpoint: EOF")
        return {"outputs": {urn: {"outputs": {"arn": "arn:aws:ec2:us-east-1:1:instance/i-1"}}}}

    monkeypatch.setattr("pulumi.runtime.invoke_async", invoke)

    assert await machine_in_state(urn) == "i-1"
    assert asked == ["pulumi:pulumi:readStackResourceOutputs"] * (half_written + 1)
