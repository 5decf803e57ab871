"""What the control instance's role may do, tried on the embedded AWS with keys of that role."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from fleet.jobs import policies
from simcloud.testing import SimCloud, running_simcloud

REGION, ACCOUNT = "us-east-1", "123456789012"
AMI = "ami-0d1a0000000000002"
TAGS = [{"Key": policies.PIPELINE_TAG, "Value": "jobs"}]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCloud]:
    with running_simcloud(tmp_path_factory.mktemp("cloud"), nodes="none") as running:
        yield running


class Pipeline:
    """The objects of a pipeline, and clients with the control role's keys."""

    def __init__(self, cloud: SimCloud) -> None:
        self.ec2, self.iam = cloud.console("ec2"), cloud.console("iam")
        iam = self.iam
        subnets = self.ec2.describe_subnets()["Subnets"]
        self.subnet, self.other_subnet = subnets[0]["SubnetId"], subnets[1]["SubnetId"]
        vpc = subnets[0]["VpcId"]
        self.group, self.other_group = (
            self.ec2.create_security_group(GroupName=name, Description=name, VpcId=vpc)["GroupId"]
            for name in ("job", "other")
        )
        for name in ("job", "other", "control"):
            iam.create_role(RoleName=name, AssumeRolePolicyDocument=policies.trust_policy())
        for name in ("job", "other"):
            iam.create_instance_profile(InstanceProfileName=name)
            iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        data = self.data = {
            "ImageId": AMI,
            "InstanceType": "g6e.xlarge",
            "SecurityGroupIds": [self.group],
            "IamInstanceProfile": {"Name": "job"},
            "TagSpecifications": [{"ResourceType": kind, "Tags": TAGS} for kind in ("instance", "volume")],
        }
        untagged = {name: value for name, value in data.items() if name != "TagSpecifications"}
        self.template, self.other_template = (
            self.ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=content)[
                "LaunchTemplate"
            ]["LaunchTemplateId"]
            for name, content in (("jobs", data), ("other", untagged))
        )
        self.scope = policies.Scope(
            partition="aws",
            region=REGION,
            account=ACCOUNT,
            pipeline="jobs",
            launch_template=self.template,
            types=["g6e.xlarge", "g6.2xlarge", "g6.xlarge"],
            subnets=[self.subnet],
            security_groups=[self.group],
            job_role=f"arn:aws:iam::{ACCOUNT}:role/job",
            log_group="/jobs",
        )
        self.rights()
        given = cloud.console("sts").assume_role(
            RoleArn=f"arn:aws:iam::{ACCOUNT}:role/control", RoleSessionName="test"
        )["Credentials"]
        keys = {
            "aws_access_key_id": given["AccessKeyId"],
            "aws_secret_access_key": given["SecretAccessKey"],
            "aws_session_token": given["SessionToken"],
        }
        self.control, self.control_iam = cloud.console("ec2", **keys), cloud.console("iam", **keys)

    def template_says(self, **changes: Any) -> None:
        """Give the template a new version."""
        self.ec2.create_launch_template_version(
            LaunchTemplateId=self.template, LaunchTemplateData=self.data | changes
        )

    def rights(self, **changes: Any) -> None:
        """Give the control role the rights of a pipeline like this one."""
        document = policies.control_policy(replace(self.scope, **changes))
        self.iam.put_role_policy(RoleName="control", PolicyName="control", PolicyDocument=document)

    def launch(self, **changes: Any) -> str:
        wanted: dict[str, Any] = {
            "LaunchTemplate": {"LaunchTemplateId": self.template},
            "SubnetId": self.subnet,
            "MinCount": 1,
            "MaxCount": 1,
        }
        given = {name: value for name, value in (wanted | changes).items() if value is not None}
        return str(self.control.run_instances(**given)["Instances"][0]["InstanceId"])


@pytest.fixture(scope="module")
def pipeline(cloud: SimCloud) -> Pipeline:
    return Pipeline(cloud)


def test_the_control_role_starts_watches_tags_and_ends_its_own_jobs(pipeline: Pipeline) -> None:
    job = [{"ResourceType": "instance", "Tags": [{"Key": "vllm-fleet-job", "Value": "1"}]}]
    id_ = pipeline.launch(InstanceType="g6.xlarge", UserData="x", TagSpecifications=job)
    pipeline.control.describe_instances(InstanceIds=[id_])
    pipeline.control.describe_instance_status(InstanceIds=[id_])
    pipeline.control.terminate_instances(InstanceIds=[id_])


def test_spare_capacity_needs_a_right_of_its_own(pipeline: Pipeline) -> None:
    pipeline.template_says(InstanceMarketOptions={"MarketType": "spot"})
    with refused():
        pipeline.launch()
    pipeline.rights(spot=True)
    id_ = pipeline.launch()
    pipeline.control.terminate_instances(InstanceIds=[id_])
    pipeline.rights()
    pipeline.template_says()


@pytest.mark.parametrize(
    "changes",
    [
        {"LaunchTemplate": None, "ImageId": AMI},
        {
            "LaunchTemplate": None,
            "ImageId": AMI,
            "TagSpecifications": [{"ResourceType": "instance", "Tags": TAGS}],
        },
        {"InstanceType": "p5.48xlarge"},
        {"LaunchTemplate": "other"},
        {"SubnetId": "other"},
        {"SecurityGroupIds": "other"},
        {"ImageId": "ami-0b120000000000001"},
        {"IamInstanceProfile": {"Name": "other"}},
        {"TagSpecifications": [{"ResourceType": "instance", "Tags": [{**TAGS[0], "Value": "theirs"}]}]},
    ],
    ids="+".join,
)
def test_a_launch_outside_the_template_tag_network_image_or_role_is_refused(
    pipeline: Pipeline, changes: dict[str, Any]
) -> None:
    others = {
        "LaunchTemplate": {"LaunchTemplateId": pipeline.other_template},
        "SubnetId": pipeline.other_subnet,
        "SecurityGroupIds": [pipeline.other_group],
    }
    given = {name: others[name] if value == "other" else value for name, value in changes.items()}
    with refused():
        pipeline.launch(**given)


def test_neither_another_instance_nor_its_tags_nor_another_call_is_allowed(pipeline: Pipeline) -> None:
    someones = pipeline.ec2.run_instances(
        ImageId=AMI, InstanceType="g6.xlarge", MinCount=1, MaxCount=1, SubnetId=pipeline.subnet
    )["Instances"][0]["InstanceId"]
    with refused():
        pipeline.control.terminate_instances(InstanceIds=[someones])
    with refused():  # the way round: to make it one's own first
        pipeline.control.create_tags(Resources=[someones], Tags=TAGS)
    with refused():
        pipeline.control.stop_instances(InstanceIds=[someones])
    with refused():
        pipeline.control_iam.get_role(RoleName="control")


def refused() -> Any:
    return pytest.raises(ClientError, match=r"UnauthorizedOperation|AccessDenied")


def test_a_job_may_write_its_log_and_nothing_else() -> None:
    arn = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/jobs:*"
    statements = json.loads(policies.job_policy(arn))["Statement"]
    assert [each["Action"] for each in statements] == [["logs:CreateLogStream", "logs:PutLogEvents"]]
    assert statements[0]["Resource"] == f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/jobs:log-stream:*"
