"""The pipeline of GPU jobs, by the real engine on the embedded AWS."""

from __future__ import annotations

import json
from typing import Any

import boto3
from fleets import Fleet
from test_aws_node import fleet  # noqa: F401 - a fixture

from simcloud import aws


def console(fleet: Fleet, service: str) -> Any:  # noqa: F811
    return boto3.client(
        service,
        endpoint_url=fleet.cloud.aws_url,
        region_name="us-east-1",
        aws_access_key_id=aws.DEV_ACCESS_KEY,
        aws_secret_access_key=aws.DEV_SECRET_KEY,
    )


def test_a_pipeline_is_made_unchanged_by_a_second_up_and_gone_after_destroy(fleet: Fleet) -> None:  # noqa: F811
    fleet.config["health"]["enabled"] = False
    fleet.config["jobs"] = {"name": "jobs", "control": {"protect": False}}
    fleet.run("up")
    jobs = fleet.outputs()["jobs"]
    ec2, iam = console(fleet, "ec2"), console(fleet, "iam")

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

    share = console(fleet, "efs").describe_file_systems()["FileSystems"][0]
    assert (share["FileSystemId"], share["Encrypted"]) == (jobs["file_system_id"], True)
    groups = {each["GroupName"]: each for each in ec2.describe_security_groups()["SecurityGroups"]}
    rules = groups["test-jobs-share"]["IpPermissions"]
    assert [(rule["FromPort"], rule["ToPort"], rule["IpRanges"]) for rule in rules] == [(2049, 2049, [])]
    allowed = {pair["GroupId"] for rule in rules for pair in rule["UserIdGroupPairs"]}
    assert allowed == {groups["test-jobs-control"]["GroupId"], groups["test-jobs-job"]["GroupId"]}
    assert groups["test-jobs-job"]["IpPermissions"] == []

    document = iam.get_role_policy(RoleName="test-jobs-control", PolicyName="control")["PolicyDocument"]
    assert jobs["launch_template_id"] in json.dumps(document)
    logs = console(fleet, "logs").describe_log_groups()["logGroups"]
    assert [(each["logGroupName"], each["retentionInDays"]) for each in logs] == [(jobs["log_group"], 30)]

    assert fleet.run("up").operations == {}
    assert fleet.drift() is None
    fleet.run("destroy")
    assert fleet.left() == []
