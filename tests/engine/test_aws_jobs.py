"""The pipeline of GPU jobs, by the real engine on the embedded AWS."""

from __future__ import annotations

import json
import re

import pytest
from fleets import Fleet
from harness import wait_for
from test_fleet_commands import ended, fleet_command


def run(fleet: Fleet, *words: str) -> str:
    status, said = ended(fleet_command(fleet, *words))
    assert status == 0, said
    return said


@pytest.mark.parametrize("fleet", ["aws"], indirect=True)
def test_a_pipeline_is_made_runs_jobs_and_is_gone_after_destroy(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.config["jobs"] = {"name": "jobs", "control": {"protect": False}}
    fleet.run("up")
    jobs = fleet.outputs()["jobs"]
    ec2, iam = fleet.cloud.console("ec2"), fleet.cloud.console("iam")

    version = ec2.describe_launch_template_versions(
        LaunchTemplateId=jobs["launch_template_id"], Versions=["$Default"]
    )["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    assert version["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert version["MetadataOptions"]["HttpTokens"] == "required"
    assert version["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
    control = ec2.describe_instances(InstanceIds=[jobs["control_instance_id"]])["Reservations"][0][
        "Instances"
    ][0]
    assert (control["InstanceType"], control["MetadataOptions"]["HttpTokens"]) == ("t3.large", "required")

    share = fleet.cloud.console("efs").describe_file_systems()["FileSystems"][0]
    assert (share["FileSystemId"], share["Encrypted"]) == (jobs["file_system_id"], True)
    groups = {
        each["GroupName"].rpartition("-")[0]: each
        for each in ec2.describe_security_groups()["SecurityGroups"]
    }
    rules = groups["test-jobs-share"]["IpPermissions"]
    assert [(rule["FromPort"], rule["ToPort"], rule["IpRanges"]) for rule in rules] == [(2049, 2049, [])]
    allowed = {pair["GroupId"] for rule in rules for pair in rule["UserIdGroupPairs"]}
    assert allowed == {groups["test-jobs-control"]["GroupId"], groups["test-jobs-job"]["GroupId"]}
    assert groups["test-jobs-job"]["IpPermissions"] == []

    document = iam.get_role_policy(RoleName="test-jobs-control", PolicyName="control")["PolicyDocument"]
    assert jobs["launch_template_id"] in json.dumps(document)
    logs = fleet.cloud.console("logs").describe_log_groups()["logGroups"]
    assert [(each["logGroupName"], each["retentionInDays"]) for each in logs] == [(jobs["log_group"], 30)]

    share = fleet.cloud.state / "shares" / jobs["file_system_id"]
    (share / "app").mkdir(parents=True)
    script = "echo begun $1; while [ ! -e go-$1 ]; do sleep 0.1; done; echo the end"
    (share / "app/work.sh").write_text(script)
    (share / "go-1").touch()
    said = run(
        fleet, "job", "run", "app/work.sh", "--max-cost", "0.50", "--stack", fleet.stack.name, "--", "1"
    )
    assert "off after 16 min, $0.4963 at most" in said
    assert "begun 1" in said
    assert "the end" in said
    assert re.search(r"job-\w+: succeeded; 1.0 of 16 min, \$0.0310", said)

    following = fleet_command(fleet, "job", "run", "--token", "2", "app/work.sh", "--", "2")
    wait_for(lambda: any("begun 2" in log.read_text() for log in share.glob("jobs/*/log")), "the second job")
    following.kill()
    following.wait()
    (share / "go-2").touch()
    marked = [{"Name": "tag-key", "Values": ["vllm-fleet-job"]}]

    def states() -> list[str]:
        found = ec2.describe_instances(Filters=marked)["Reservations"]
        return [each["State"]["Name"] for one in found for each in one["Instances"]]

    wait_for(lambda: states() == ["terminated"] * 2, "both machines to be off")
    listed = json.loads(run(fleet, "job", "list", "--json", "--stack", fleet.stack.name))
    assert [(job["status"], job["result"]["reason"]) for job in listed] == [("succeeded", "succeeded")] * 2
    ids = [job["instance_id"] for job in listed]
    attached = [{"Name": "attachment.instance-id", "Values": ids}]
    assert ec2.describe_volumes(Filters=attached)["Volumes"] == []

    assert fleet.run("up").operations == {}
    assert fleet.drift() is None
    fleet.run("destroy")
    assert fleet.left() == []
