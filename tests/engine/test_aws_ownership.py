"""What is AWS's own about who owns a machine: its provider cannot take up what state has lost, so nothing is
bought before somebody has decided; and what lives in the account besides machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fleets import Fleet
from test_retirement import LOST, servers

from fleet.jobs.policies import PIPELINE_TAG

pytestmark = pytest.mark.parametrize("fleet", ["aws"], indirect=True)

UBUNTU = "ami-0d1a0000000000003"


def tags(**given: str) -> list[dict[str, str]]:
    return [{"Key": key.replace("_", "-"), "Value": value} for key, value in given.items()]


def owner_of(fleet: Fleet) -> str:
    (owner,) = [each["id"] for each in fleet.stack.state() if each["urn"].endswith("::owner")]
    return str(owner)


def urn_of(fleet: Fleet, name: str) -> str:
    (urn,) = [each["urn"] for each in fleet.stack.state() if each["urn"].endswith(f"::{name}")]
    return str(urn)


def meet_a_false_not_found(fleet: Fleet) -> None:
    fleet.cloud.set_fault("DescribeInstances", "404", node="a")
    fleet.run("refresh", "--target", urn_of(fleet, "a-server"))
    assert not [each for each in fleet.stack.state() if each["urn"].endswith("::a-server")]


@pytest.mark.parametrize(
    "lose",
    [
        *(pytest.param(lose, id=name, marks=pytest.mark.trials) for name, lose in LOST.items()),
        pytest.param(meet_a_false_not_found, id="a false NotFound in a refresh"),
    ],
)
def test_a_lost_machine_is_seen_everywhere_and_adopted_before_another_is_bought(
    fleet: Fleet, lose: Callable[[Fleet], None]
) -> None:
    fleet.run("up")
    before, parts = servers(fleet), fleet.parts()
    lose(fleet)
    seen = fleet.seen()
    for _ in range(2):
        refused = fleet.run("up", expect_failure=True)
        for said in (before["a"][0], "`fleet adopt a`", "`fleet destroy a`"):
            assert said in refused.stdout
    assert "RunInstances" not in fleet.written(after=seen)
    bill = json.loads(fleet.command("cost-report", "--json").stdout)["nodes"]

    assert [each["node"] for each in bill if each["status"] == "not in the state, billed"] == ["a"]
    assert fleet.looked_at("--no-nodes")[0] == 3

    adopted = fleet.command("adopt", "a", "--yes")
    assert adopted.returncode == 0, adopted.stdout + adopted.stderr
    done = fleet.run("up")
    assert "create-replacement" not in done.operations.get("a-server", [])
    # The user data that was read back holds the private host key.
    (boot,) = [each for each in fleet.stack.state() if each["urn"].endswith("::a-first-boot")]
    assert isinstance(boot["outputs"]["made_user_data"], dict), "not encrypted in the state"
    assert servers(fleet) == before
    assert fleet.parts() == parts
    assert fleet.statuses() == {"ready"}
    assert fleet.drift() is None
    assert fleet.run("up").operations == {}
    fleet.run("destroy")
    assert fleet.left() == []


def test_a_lost_machine_can_be_destroyed_instead(fleet: Fleet) -> None:
    fleet.run("up")
    before = servers(fleet)
    LOST["state delete"](fleet)
    fleet.run("up", expect_failure=True)
    done = fleet.command("destroy", "a", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert fleet.left() == []
    fleet.run("up")
    assert servers(fleet)["a"] != before["a"]
    assert fleet.parts() == fleet.whole("a")


def test_what_bills_beside_the_machines_is_surplus_and_removed_and_what_is_not_the_fleets_stays(
    fleet: Fleet,
) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.config["nodes"][0] |= {"elastic_ip": True, "session_manager": True}
    fleet.run("up")
    ec2, iam = fleet.cloud.console("ec2"), fleet.cloud.console("iam")
    whole = fleet.whole("a")["a"]
    path = f"/vllm-fleet/{owner_of(fleet)}/test/a/"
    roles = {each["RoleName"] for each in iam.list_roles(PathPrefix=path)["Roles"]}
    assert len(roles) == 1
    marks = tags(vllm_fleet_owner=owner_of(fleet), vllm_fleet_node="test/a")
    ec2.create_volume(
        AvailabilityZone="us-east-1a",
        Size=200,
        TagSpecifications=[{"ResourceType": "volume", "Tags": marks}],
    )
    ec2.allocate_address(Domain="vpc", TagSpecifications=[{"ResourceType": "elastic-ip", "Tags": marks}])
    job = [*tags(vllm_fleet_node="test/jobs"), {"Key": PIPELINE_TAG, "Value": "test-jobs"}]
    launched = ec2.run_instances(
        ImageId=UBUNTU,
        InstanceType="t3.large",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": job}],
    )["Instances"][0]["InstanceId"]

    found = fleet.drift()
    assert found is not None
    assert "retirement" in found.drifted
    fleet.run("up")
    assert fleet.parts()["a"] == {**whole, "ip": 1}
    # One that is not wanted any more is given back.
    fleet.config["nodes"][0] |= {"elastic_ip": False, "session_manager": False}
    fleet.run("up")
    fleet.run("up")
    assert fleet.parts()["a"] == whole
    assert not roles & {each["RoleName"] for each in iam.list_roles()["Roles"]}
    fleet.run("destroy")
    assert {thing["id"] for thing in fleet.cloud.inventory("server")} == {launched}


def test_a_machine_that_is_protected_by_hand_stays_with_its_reason_and_goes_afterwards(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.run("up")
    ((machine,),) = servers(fleet).values()
    ec2 = fleet.cloud.console("ec2")

    def protect(value: bool) -> None:
        ec2.modify_instance_attribute(InstanceId=machine, DisableApiTermination={"Value": value})

    protect(True)
    refused = " ".join(fleet.run("destroy", "--refresh=false", expect_failure=True).stdout.split())
    assert f"instance {machine} is protected against termination" in refused
    assert f"--no-disable-api-termination --instance-id {machine}" in refused
    assert fleet.parts() == fleet.whole("a")
    protect(False)
    fleet.run("destroy")
    assert fleet.left() == []


SPOILT = (
    *("404", "409", "closed", "html_502", "garbage", "wrong_shape", "nulls", "truncated"),
    *("lag", "list_lag"),
)


@pytest.mark.faults
def test_no_reply_however_false_or_spoilt_leads_to_a_second_machine_or_a_leak(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    nodes = {fault: f"n{index}" for index, fault in enumerate(SPOILT)}
    fleet.nodes(*nodes.values())
    for fault, node in nodes.items():
        for call in ("CreateSecurityGroup", "ImportKeyPair", "RunInstances", "CreateTags"):
            fleet.cloud.set_fault(call, fault, node=node)
    for _ in range(4):
        done = fleet.start("up").wait()
        said = [text for _, text in done.errors]
        assert not [text for text in said if "Traceback" in text or "Exception calling application" in text]
        assert {len(machines) for machines in servers(fleet).values()} <= {1}
        if done.code == 0:
            break
    fleet.cloud.clear_faults()
    fleet.run("up")
    assert fleet.parts() == fleet.whole(*nodes.values())
    assert fleet.drift() is None
    fleet.run("destroy")
    assert fleet.left() == []


MOMENTS = [
    ("TerminateInstances", "hold"),
    ("TerminateInstances", "hold_after"),
    ("DeleteSecurityGroup", "hold"),
    ("DeleteKeyPair", "hold_after"),
]


def killed(fleet: Fleet, command: str, call: str, moment: str, *flags: str) -> None:
    fleet.stack.env["AWS_READ_TIMEOUT_S"] = "120"
    fleet.cloud.set_fault(call, moment)
    running = fleet.start(command, *flags)
    running.wait_until(lambda: fleet.cloud.faults()["held"], f"{call} to be held")
    running.kill()
    fleet.cloud.release()
    fleet.cloud.clear_faults()
    fleet.stack.unlock()


@pytest.mark.kills
def test_a_destroy_killed_at_any_moment_is_finished_by_the_next(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    for call, moment in MOMENTS:
        fleet.run("up")
        killed(fleet, "destroy", call, moment)
        fleet.run("destroy")
        assert fleet.left() == [], (call, moment)


@pytest.mark.kills
def test_a_replacement_killed_at_any_moment_ends_with_one_machine(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.run("up")
    host_part: dict[str, Any] = dict(fleet.promises.host_part)
    images = [host_part["ami"], UBUNTU]
    moments = [
        ("RunInstances", "hold"),
        ("RunInstances", "hold_after"),
        ("CreateTags", "hold"),
        ("TerminateInstances", "hold"),
        ("TerminateInstances", "hold_after"),
    ]
    for index, (call, moment) in enumerate(moments):
        ((before,),) = servers(fleet).values()
        fleet.config["nodes"][0]["ami"] = images[index % 2]
        killed(fleet, "up", call, moment, "--refresh=false")
        if call != "TerminateInstances":
            assert before in servers(fleet)["a"], (call, moment)
        fleet.run("up")
        assert fleet.parts() == fleet.whole("a"), (call, moment)
        assert before not in servers(fleet)["a"]
    assert fleet.drift() is None
