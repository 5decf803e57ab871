"""Whether a role may do what it asks: IAM's evaluation, for calls with the keys of an assumed role.

moto's own evaluation takes a condition on a missing key as met and knows no resources of EC2, so it would
pass what AWS refuses. This one knows the conditions that the project's policies use, and refuses any other.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from simcloud.aws.protocol import AwsRequest

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """One right that a call needs."""

    action: str
    resource: str = "*"
    context: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.action} on {self.resource}"


def permitted(policies: Iterable[Document], asked: Asked) -> bool:
    """Whether some statement allows it and none denies it."""
    matching = [
        statement["Effect"]
        for policy in policies
        for statement in _listed(policy["Statement"])
        if _matches(statement, asked)
    ]
    return "Allow" in matching and "Deny" not in matching


def needed(request: AwsRequest, ec2: Any, profile_role: Any) -> Iterator[Asked]:
    """The rights that a call needs.

    Args:
        request: the call.
        ec2: moto's backend of the region.
        profile_role: gives the ARN of the role of an instance profile by its name or ARN.
    """
    action = f"{request.service}:{request.call.name}"
    place = f"arn:aws:ec2:{request.region}:{ec2.account_id}"
    match request.call.name:
        case "RunInstances":
            yield from _launch(request, ec2, place, profile_role)
        case "TerminateInstances" | "StopInstances" | "StartInstances" | "RebootInstances":
            for instance_id in request.listed("InstanceId"):
                tags = {tag["key"]: tag["value"] for tag in ec2.describe_tags({"resource-id": [instance_id]})}
                context = {f"aws:ResourceTag/{key}": value for key, value in tags.items()}
                yield Asked(action, f"{place}:instance/{instance_id}", context)
        case "CreateTags":
            context = _request_tags(request.json, r"Tag\.(\d+)\.Key")
            for resource_id in request.listed("ResourceId"):
                kind = {"i": "instance", "vol": "volume"}.get(resource_id.partition("-")[0], "*")
                yield Asked(action, f"{place}:{kind}/{resource_id}", context)
        case _ if request.service == "logs":
            group, stream = request.json.get("logGroupName"), request.json.get("logStreamName", "*")
            place = f"arn:aws:logs:{request.region}:{ec2.account_id}"
            yield Asked(action, f"{place}:log-group:{group}:log-stream:{stream}")
        case _:
            yield Asked(action)


def _launch(request: AwsRequest, ec2: Any, place: str, profile_role: Any) -> Iterator[Asked]:
    given = request.json
    made_from = template(given, ec2)
    data = made_from.latest_version().data if made_from else {}
    context = _request_tags(given, r"TagSpecification\.\d+\.Tag\.(\d+)\.Key")
    for specification in data.get("TagSpecifications") or data.get("TagSpecification") or []:
        for tag in specification.get("Tags") or specification.get("Tag") or []:
            context.setdefault(f"aws:RequestTag/{tag['Key']}", tag["Value"])  # the request's own win
    if made_from:
        context["ec2:LaunchTemplate"] = f"{place}:launch-template/{made_from.id}"
    own_groups = request.listed("SecurityGroupId") or request.listed(r"NetworkInterface\.1\.SecurityGroupId")
    groups = own_groups or data.get("SecurityGroupIds") or data.get("SecurityGroupId") or []
    image = given.get("ImageId")
    subnet = given.get("SubnetId") or given.get("NetworkInterface.1.SubnetId") or "*"

    def launched(kind: str, id_: str, from_template: bool) -> Asked:
        owner = place if kind != "image" else f"arn:aws:ec2:{request.region}:"
        known = {"ec2:IsLaunchTemplateResource": str(from_template).lower()}
        return Asked("ec2:RunInstances", f"{owner}:{kind}/{id_}", context | known)

    # EC2 knows the type of an instance alone, not of what it is launched with.
    machine = launched("instance", "*", False)
    type_ = str(given.get("InstanceType") or data.get("InstanceType"))
    yield replace(machine, context={**machine.context, "ec2:InstanceType": type_})
    yield launched("volume", "*", False)
    yield launched("network-interface", "*", False)
    yield launched("subnet", subnet, False)
    yield launched("image", str(image or data.get("ImageId")), image is None)
    for group in groups:
        yield launched("security-group", group, not own_groups)
    if made_from:
        yield launched("launch-template", made_from.id, False)
    if (data.get("InstanceMarketOptions") or {}).get("MarketType") == "spot":
        yield launched("spot-instances-request", "*", False)
    if any(key.startswith("aws:RequestTag/") for key in context):
        for kind in ("instance", "volume"):
            yield Asked("ec2:CreateTags", f"{place}:{kind}/*", context | {"ec2:CreateAction": "RunInstances"})
    profile = given.get("IamInstanceProfile.Name") or given.get("IamInstanceProfile.Arn")
    of_template = data.get("IamInstanceProfile") or {}
    profile = profile or of_template.get("Name") or of_template.get("Arn")
    if profile:
        yield Asked("iam:PassRole", profile_role(profile), {"iam:PassedToService": "ec2.amazonaws.com"})


def template(given: Mapping[str, Any], ec2: Any) -> Any:
    """The launch template that a launch names, or None."""
    if id_ := given.get("LaunchTemplate.LaunchTemplateId"):
        return ec2.get_launch_template(id_)
    if name := given.get("LaunchTemplate.LaunchTemplateName"):
        return ec2.get_launch_template_by_name(name)
    return None


def _request_tags(given: Mapping[str, Any], pattern: str) -> dict[str, str]:
    return {
        f"aws:RequestTag/{value}": str(given.get(key.removesuffix("Key") + "Value", ""))
        for key, value in given.items()
        if re.fullmatch(pattern, key)
    }


def _matches(statement: Document, asked: Asked) -> bool:
    return (
        any(fnmatch.fnmatchcase(asked.action, pattern) for pattern in _listed(statement["Action"]))
        and any(_covers(pattern, asked.resource) for pattern in _listed(statement["Resource"]))
        and all(
            _holds(operator, asked.context.get(key), _listed(expected))
            for operator, conditions in (statement.get("Condition") or {}).items()
            for key, expected in conditions.items()
        )
    )


def _covers(pattern: str, resource: str) -> bool:
    # What is about to be made has no id yet: `instance/*` is asked for, and only `instance/*` covers it.
    return pattern == resource or fnmatch.fnmatchcase(resource, pattern)


def _holds(operator: str, actual: str | None, expected: list[str]) -> bool:
    if actual is None:
        return False
    match operator:
        case "StringEquals" | "ArnEquals" | "Bool":
            return actual in expected
        case "StringLike" | "ArnLike":
            return any(fnmatch.fnmatchcase(actual, pattern) for pattern in expected)
    raise NotImplementedError(f"the embedded AWS does not know the condition operator {operator}")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def documents(iam: Any, role_name: str) -> list[Document]:
    """The policies of a role: its own and those attached to it."""
    role = iam.get_role(role_name)
    own = [json.loads(document) for document in role.policies.values()]
    return own + [json.loads(policy.document) for policy in role.managed_policies.values()]
