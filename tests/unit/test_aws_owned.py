"""What a stack owns on AWS is found and removed whatever the API does; judged by the embedded AWS."""

from __future__ import annotations

import json
from typing import Any

import pytest

from components.aws import ec2, owned
from components.aws.api import client_of
from components.owned import Owned, StillThere
from simcloud import aws
from simcloud.testing import SimCloud

OWNER, LABEL = "0123456789abcdef0123456789abcdef", "test/a"
UBUNTU = "ami-0d1a0000000000003"
PASSING = ("429", "500", "503", "reset", "lost_reply", "closed", "html_502", "truncated")
SPOILT = ("garbage", "wrong_shape", "nulls")
LATER = ("404", "409")
"""A false NotFound, and a state that passes: what is to be removed is removed all the same."""
LASTING = ("403", "500", "409")

REMOVAL = (
    *("DescribeInstances", "TerminateInstances", "DescribeVolumes", "DeleteVolume", "DescribeAddresses"),
    *("DisassociateAddress", "ReleaseAddress", "DescribeSecurityGroups", "DeleteSecurityGroup"),
    *("DescribeKeyPairs", "DeleteKeyPair"),
)
IAM_REMOVAL = (
    *("ListInstanceProfiles", "GetInstanceProfile", "RemoveRoleFromInstanceProfile"),
    *("DeleteInstanceProfile", "ListRoles", "ListRolePolicies", "DeleteRolePolicy", "DeleteRole"),
)
KINDS = ["server", "volume", "volume", "address", "security group", "key pair"]


@pytest.fixture
def cloud(emulator: SimCloud, monkeypatch: pytest.MonkeyPatch) -> SimCloud:
    emulator.reset()
    for name, seconds in (("STATE_DEADLINE_S", 6.0), ("RELEASE_DEADLINE_S", 6.0)):
        monkeypatch.setattr(ec2, name, seconds)
    return emulator


def config(cloud: SimCloud, key: str) -> str | None:
    return {
        "aws:region": "us-east-1",
        "aws:accessKey": aws.DEV_ACCESS_KEY,
        "aws:secretKey": aws.DEV_SECRET_KEY,
        "aws:endpoints": json.dumps([dict.fromkeys(("ec2", "iam"), cloud.aws_url)]),
    }.get(key)


def api_of(cloud: SimCloud, service: str) -> Any:
    return client_of(lambda key: config(cloud, f"aws:{key}"), service, "us-east-1", attempts=3)


def ec2_of(cloud: SimCloud) -> owned.AwsInventory:
    return owned.AwsInventory(api_of(cloud, "ec2"))


def iam_of(cloud: SimCloud) -> owned.IamInventory:
    return owned.IamInventory(api_of(cloud, "iam"))


def marks(kind: str, owner: str = OWNER, label: str = LABEL) -> list[dict[str, Any]]:
    tags = {"vllm-fleet-owner": owner, "vllm-fleet-node": label, "Name": "test-a"}
    return [{"ResourceType": kind, "Tags": [{"Key": key, "Value": tags[key]} for key in tags]}]


def make_one_of_each(cloud: SimCloud, owner: str = OWNER, name: str = "one") -> str:
    """A machine with its volume, another volume, an address at it, a group that it is in, and a key pair."""
    api = cloud.console("ec2")
    group = api.create_security_group(
        GroupName=name, Description=name, TagSpecifications=marks("security-group", owner)
    )["GroupId"]
    api.create_key_pair(KeyName=name, TagSpecifications=marks("key-pair", owner))
    subnet = api.describe_subnets()["Subnets"][0]["SubnetId"]
    made = api.run_instances(
        ImageId=UBUNTU,
        InstanceType="g6.xlarge",
        MinCount=1,
        MaxCount=1,
        SecurityGroupIds=[group],
        SubnetId=subnet,
        TagSpecifications=[*marks("instance", owner), *marks("volume", owner)],
    )
    machine = str(made["Instances"][0]["InstanceId"])
    api.create_volume(AvailabilityZone="us-east-1a", Size=50, TagSpecifications=marks("volume", owner))
    address = api.allocate_address(Domain="vpc", TagSpecifications=marks("elastic-ip", owner))
    api.associate_address(AllocationId=address["AllocationId"], InstanceId=machine)
    return machine


def make_a_role(cloud: SimCloud) -> None:
    iam = cloud.console("iam")
    path = owned.role_path(OWNER, LABEL)
    iam.create_role(RoleName="one", Path=path, AssumeRolePolicyDocument="{}")
    rights = {"Effect": "Allow", "Action": "ssm:GetParameter", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [rights]})
    iam.put_role_policy(RoleName="one", PolicyName="one", PolicyDocument=policy)
    iam.create_instance_profile(InstanceProfileName="one", Path=path)
    iam.add_role_to_instance_profile(InstanceProfileName="one", RoleName="one")


def left(cloud: SimCloud) -> list[str]:
    return [f"{thing['kind']} {thing['name']}" for thing in cloud.inventory()]


def test_everything_with_the_owners_tag_is_found_with_what_it_belongs_to(cloud: SimCloud) -> None:
    machine = make_one_of_each(cloud)
    make_one_of_each(cloud, owner="another", name="other")
    found = ec2_of(cloud).owned(OWNER)
    assert [each.kind for each in found] == KINDS
    assert {(each.owner, each.label, each.node) for each in found} == {(OWNER, LABEL, "a")}
    server, *volumes = found[:3]
    assert (server.id, server.type, server.running) == (machine, "g6.xlarge", True)
    assert sorted((each.belongs_to, each.size_gb) for each in volumes) == [("", 50), (machine, 8)]
    assert [each.owner for each in ec2_of(cloud).labelled([LABEL])] == [OWNER, "another"]
    assert ec2_of(cloud).labelled([]) == []


def test_roles_are_found_by_their_path_and_removed_with_their_policies(cloud: SimCloud) -> None:
    make_a_role(cloud)
    found = iam_of(cloud).owned(OWNER)
    assert [(each.kind, each.id, each.label) for each in found] == [
        ("instance profile", "one", LABEL),
        ("role", "one", LABEL),
    ]
    assert iam_of(cloud).owned("another") == []
    iam_of(cloud).remove(found)
    assert left(cloud) == []


def test_a_key_without_rights_on_roles_has_made_none(cloud: SimCloud) -> None:
    for call in ("ListRoles", "ListInstanceProfiles"):
        cloud.set_fault(call, "403")
    assert iam_of(cloud).owned(OWNER) == []


def remove_all(cloud: SimCloud) -> None:
    ec2_of(cloud).remove(ec2_of(cloud).owned(OWNER))
    iam_of(cloud).remove(iam_of(cloud).owned(OWNER))


@pytest.mark.parametrize("fault", [*PASSING, *SPOILT, *LATER])
def test_what_passes_keeps_nothing_from_being_removed(cloud: SimCloud, fault: str) -> None:
    make_one_of_each(cloud)
    make_a_role(cloud)
    calls = [*REMOVAL, *(IAM_REMOVAL if fault not in LATER else [])]
    if fault in LATER:
        # EC2 answers a look by filters with nothing at most.
        calls = [call for call in calls if not call.startswith("Describe")]
    for call in calls:
        cloud.set_fault(call, fault)
    remove_all(cloud)
    assert cloud.faults()["planted"] == []
    assert left(cloud) == []


@pytest.mark.parametrize("call", [call for call in REMOVAL if not call.startswith("Describe")])
@pytest.mark.parametrize("fault", LASTING)
def test_what_cannot_be_removed_is_named_and_the_next_try_goes_on(
    cloud: SimCloud, call: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_one_of_each(cloud)
    short = monkeypatch.setattr
    short(ec2, "STATE_DEADLINE_S", 0.5)
    short(ec2, "RELEASE_DEADLINE_S", 0.5)
    cloud.set_fault(call, fault, times=1000)
    with pytest.raises(StillThere) as caught:
        remove_all(cloud)
    (problem,) = caught.value.problems
    assert "us-east-1" in problem
    assert "Fix: " in problem
    assert left(cloud) != []
    cloud.clear_faults()
    short(ec2, "STATE_DEADLINE_S", 6.0)
    short(ec2, "RELEASE_DEADLINE_S", 6.0)
    remove_all(cloud)
    assert left(cloud) == []


def test_a_machine_that_stays_keeps_what_it_uses_and_not_what_others_use(cloud: SimCloud) -> None:
    machine = make_one_of_each(cloud)
    api = cloud.console("ec2")
    api.create_key_pair(KeyName="b", TagSpecifications=marks("key-pair", label="test/b"))
    api.modify_instance_attribute(InstanceId=machine, DisableApiTermination={"Value": True})
    with pytest.raises(StillThere) as caught:
        remove_all(cloud)
    (problem,) = caught.value.problems
    assert f"instance {machine} is protected against termination, and bills. Fix: aws ec2" in problem
    assert {each.kind for each in ec2_of(cloud).owned(OWNER)} == set(KINDS)
    assert "key_pair b" not in left(cloud)


class Ec2:
    """EC2 as far as the end of one instance goes, in states that the embedded one passes through at once."""

    def __init__(self, states: list[str], **machine: str) -> None:
        self._states, self._machine = states, machine
        self.asked: list[tuple[str, Any]] = []

    def describe_instances(self, **_: Any) -> dict[str, Any]:
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        machine = {"InstanceId": "i-1", "State": {"Name": state}, **self._machine}
        return {"Reservations": [{"Instances": [machine]}] if state != "not shown" else []}

    def __getattr__(self, name: str) -> Any:
        return lambda **given: self.asked.append((name, *given.values()))


def test_a_persistent_spot_request_is_cancelled_before_it_launches_another_machine() -> None:
    api = Ec2(["running", "shutting-down", "terminated"], SpotInstanceRequestId="sir-1")
    ec2.terminate(api, "i-1")
    assert api.asked == [("cancel_spot_instance_requests", ["sir-1"]), ("terminate_instances", ["i-1"])]


def test_a_machine_that_is_not_shown_for_a_moment_is_not_taken_for_gone() -> None:
    api = Ec2(["not shown", "not shown", "not shown", "running", "terminated"])
    ec2.terminate(api, "i-1")
    assert api.asked == [("terminate_instances", ["i-1"])]
    api = Ec2(["not shown", "running"])
    assert ec2.start(api, "i-1")["State"]["Name"] == "running"


@pytest.mark.parametrize(
    ("operation", "state", "told", "fix"),
    [
        (ec2.terminate, "stopping", "is still stopping after", "stop-instances --force --instance-ids i-1"),
        (ec2.terminate, "shutting-down", "bills nothing for it any more", "a case with AWS's support"),
        (ec2.start, "stopping", "is still stopping after", "stop-instances --force --instance-ids i-1"),
        (ec2.start, "pending", "is still pending after", "look at it in the EC2 console"),
        (ec2.start, "shutting-down", "is shutting-down: ", "run `pulumi up` again: it makes a new one"),
        (ec2.start, "terminated", "is terminated: ", "run `pulumi up` again: it makes a new one"),
    ],
)
def test_a_state_that_lasts_is_told_in_the_words_of_the_operation(
    operation: Any, state: str, told: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ec2, "STATE_DEADLINE_S", 0.2)
    with pytest.raises(ec2.Ec2Error) as caught:
        operation(Ec2([state]), "i-1")
    said = str(caught.value)
    assert said.startswith("instance i-1 is ")
    assert told in said.partition("Fix: ")[0]
    assert fix in said.partition("Fix: ")[2]


def test_a_volume_that_stays_attached_names_its_machine_and_how_to_detach_it(cloud: SimCloud) -> None:
    machine = make_one_of_each(cloud)
    (volume,) = [each for each in ec2_of(cloud).owned(OWNER) if each.belongs_to]
    with pytest.raises(StillThere) as caught:
        ec2_of(cloud).remove([volume])
    assert f"volume {volume.id} is still attached at {machine} after 6 s, and bills" in str(caught.value)
    assert f"aws ec2 detach-volume --force --volume-id {volume.id}" in str(caught.value)


def test_adoption_gives_everything_that_can_be_given_another_owner(cloud: SimCloud) -> None:
    make_one_of_each(cloud, owner="former")
    found: list[Owned] = ec2_of(cloud).owned("former")
    ec2_of(cloud).adopt(found, OWNER)
    assert ec2_of(cloud).owned("former") == []
    assert [each.kind for each in ec2_of(cloud).owned(OWNER)] == KINDS
