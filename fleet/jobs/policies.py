"""The rights of the control instance and of the job instances, as IAM policy documents.

The control instance starts, watches and ends job instances. Each right is as narrow as EC2 can check it (its
service authorization reference says by which resources and condition keys): it launches from one template,
in the pipeline's subnets and groups, only its types, only what carries the pipeline's tag; it ends only what
carries that tag; it hands over one role. How many machines a launch may ask for, IAM cannot state: the
account's quota of vCPUs bounds them, and each ends by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PIPELINE_TAG = "vllm-fleet-jobs"
"""On every job instance and its volume: the name of the pipeline that may end it."""

Document = dict[str, Any]


@dataclass(frozen=True)
class Scope:
    """What a control instance may use."""

    partition: str
    """`aws`, or another one of Amazon's."""
    region: str
    account: str
    pipeline: str
    """Value of the tag."""
    launch_template: str
    """Id of the template."""
    types: Sequence[str]
    """Instance types of jobs."""
    subnets: Sequence[str]
    """Ids of the subnets."""
    security_groups: Sequence[str]
    """Ids of the job instances' groups."""
    job_role: str
    """ARN of the role that job instances get."""
    log_group: str
    """Name of the log group of the jobs."""
    spot: bool = False
    """Whether jobs run on spare capacity."""

    def arn(self, resource: str) -> str:
        """Of something of EC2 in the account."""
        return f"arn:{self.partition}:ec2:{self.region}:{self.account}:{resource}"


def control_policy(scope: Scope) -> str:
    """What the control instance may do, as JSON."""
    tag = {PIPELINE_TAG: scope.pipeline}
    template = {"ArnEquals": {"ec2:LaunchTemplate": scope.arn(f"launch-template/{scope.launch_template}")}}
    machine, volume = scope.arn("instance/*"), scope.arn("volume/*")
    tagged = _equals("aws:RequestTag", tag)
    of_its_types = {"StringEquals": {**tagged["StringEquals"], "ec2:InstanceType": list(scope.types)}}
    used = [
        *(scope.arn(f"subnet/{each}") for each in scope.subnets),
        scope.arn("network-interface/*"),
        scope.arn(f"launch-template/{scope.launch_template}"),
        *([scope.arn("spot-instances-request/*")] if scope.spot else []),
    ]
    fixed = [
        *(scope.arn(f"security-group/{each}") for each in scope.security_groups),
        # Images belong to other accounts: their ARNs name none.
        f"arn:{scope.partition}:ec2:{scope.region}::image/*",
    ]
    of_template = {"Bool": {"ec2:IsLaunchTemplateResource": "true"}}
    return _document(
        _allow("LaunchTagged", "ec2:RunInstances", machine, template | of_its_types),
        _allow("LaunchTaggedVolumes", "ec2:RunInstances", volume, template | tagged),
        _allow("LaunchFromTheTemplate", "ec2:RunInstances", used, template),
        _allow("LaunchWithItsImageAndGroups", "ec2:RunInstances", fixed, template | of_template),
        _allow(
            "TagAtLaunch",
            "ec2:CreateTags",
            [machine, volume],
            {"StringEquals": {"ec2:CreateAction": "RunInstances", **_keys("aws:RequestTag", tag)}},
        ),
        # EC2 cannot limit what is described.
        _allow("Look", ["ec2:DescribeInstances", "ec2:DescribeInstanceStatus"], "*"),
        _allow(
            "EndItsOwn",
            "ec2:TerminateInstances",
            machine,
            _equals("aws:ResourceTag", tag),
        ),
        _allow(
            "HandOverTheJobRole",
            "iam:PassRole",
            scope.job_role,
            {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}},
        ),
        _allow(
            "ReadTheJobsLogs",
            ["logs:GetLogEvents", "logs:FilterLogEvents", "logs:DescribeLogStreams"],
            f"arn:{scope.partition}:logs:{scope.region}:{scope.account}:log-group:{scope.log_group}:*",
        ),
    )


def job_policy(log_group_arn: str) -> str:
    """What a job instance may do, as JSON: write its log. It ends by shutting down, which needs no right."""
    streams = f"{log_group_arn.removesuffix(':*')}:log-stream:*"
    return _document(
        _allow("WriteItsLog", ["logs:CreateLogStream", "logs:PutLogEvents"], streams),
    )


def trust_policy() -> str:
    """That EC2 may give a role to instances, as JSON."""
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "ec2.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }
    return _document(statement)


def _document(*statements: Document) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def _allow(
    sid: str, actions: str | list[str], resources: str | list[str], condition: Document | None = None
) -> Document:
    statement: Document = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
    return statement | ({"Condition": condition} if condition else {})


def _keys(prefix: str, tags: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}/{key}": value for key, value in tags.items()}


def _equals(prefix: str, tags: Mapping[str, str]) -> Document:
    return {"StringEquals": _keys(prefix, tags)}
