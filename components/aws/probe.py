"""AWS's part of `fleet check`: may these credentials do what the stack needs, and is there room for it?

Nothing is changed. EC2 itself offers to only try a call (`DryRun`); IAM, which does not, is asked to change a
role that does not exist.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from botocore import xform_name
from botocore.exceptions import BotoCoreError

from components.aws import ec2
from components.aws.api import NOT_PERMITTED, NOT_VALID, AwsError, client
from fleet.aws import CredentialsError
from fleet.catalog import catalog
from fleet.check import CloudRequest, Finding, Status, latency
from fleet.settings import AwsNode

CLOUD = "aws"
STATUS_PAGE = "health.aws.amazon.com/health/status"
NOWHERE = "0123456789abcdef0"
"""The end of an id that no object has."""

SERVICE_QUOTAS = "servicequotas"
"""As aws:endpoints name it."""

ATTEMPTS = 2
"""A check says what is; a deployment tries more often."""

QUOTAS: Mapping[tuple[str, bool], tuple[str, str]] = {
    ("g", False): ("L-DB2E81BA", "Running On-Demand G and VT instances"),
    ("g", True): ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    ("p", False): ("L-417A185B", "Running On-Demand P instances"),
    ("p", True): ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
    ("p5", True): ("L-C4BD4855", "All P5 Spot Instance Requests"),
}
"""Code and name of the limit, in vCPUs, by family and whether on spot (AWS's "Amazon EC2 service quotas")."""

ASKED = ("DryRunOperation", "Invalid", "NoSuchEntity", "ParameterNotFound", "VPCIdNotSpecified")
"""How the codes begin that a call gets which is allowed, and without effect."""

DRY_RUNS: Mapping[str, Mapping[str, Any]] = {
    "DescribeInstances": {},
    "StartInstances": {"InstanceIds": [f"i-{NOWHERE}"]},
    "TerminateInstances": {"InstanceIds": [f"i-{NOWHERE}"]},
    "CreateTags": {"Resources": [f"i-{NOWHERE}"], "Tags": [{"Key": "Name", "Value": "none"}]},
    "ModifyVolume": {"VolumeId": f"vol-{NOWHERE}", "Size": 200},
    "CreateSecurityGroup": {"GroupName": "none", "Description": "none"},
    "AuthorizeSecurityGroupIngress": {
        "GroupId": f"sg-{NOWHERE}",
        "IpPermissions": [
            {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "192.0.2.1/32"}]}
        ],
    },
}
"""Actions of EC2 that every node needs, and arguments that name nothing there is."""


def probe(request: CloudRequest) -> list[Finding]:
    """See `fleet.check.CloudProbe`."""
    nodes = [node for node in request.nodes if isinstance(node, AwsNode)]
    findings: list[Finding] = []
    for region in dict.fromkeys(node.region for node in nodes):
        here = [node for node in nodes if node.region == region]
        try:
            findings += _Region(request, region, here).findings()
        except CredentialsError as error:
            findings.append(_failed("credentials", str(error)))
        except BotoCoreError as error:  # a profile that does not exist, a login that has run out
            fix = "correct aws:profile, or log in again: aws sso login"
            findings.append(Finding(CLOUD, "credentials", Status.FAILED, str(error), fix))
    return findings


def _failed(name: str, said: str, subject: str = CLOUD) -> Finding:
    """Of a sentence that ends with its fix."""
    seen, _, fix = said.partition(". Fix: " if ". Fix: " in said else "; ")
    return Finding(subject, name, Status.FAILED, seen, fix)


class _Region:
    """What the stack needs in one region."""

    def __init__(self, request: CloudRequest, region: str, nodes: Sequence[AwsNode]) -> None:
        self._config = request.config
        self._public_key = request.public_key
        self._region = region
        self._nodes = nodes
        self._wanted = [node for node in nodes if node.name not in request.existing]
        """Machines still to be launched."""
        self._subject = f"{CLOUD} {region}"
        self._ec2 = self._client("ec2")

    def _client(self, service: str) -> Any:
        return client(self._config.get, service, self._region, attempts=ATTEMPTS)

    def findings(self) -> list[Finding]:
        sts = self._client("sts")
        started = time.monotonic()
        try:
            who = sts.get_caller_identity()
        except AwsError as error:
            return [self._wrong("credentials" if error.code in NOT_VALID else "API", error)]
        took_ms = (time.monotonic() - started) * 1000
        more: Counter[tuple[str, str]] = Counter()
        for node in self._wanted:
            if limit := _limit(node.type, spot=node.spot is not None):
                more[limit] += node.instance_type().vcpus
        return [
            Finding(self._subject, "credentials", Status.OK, str(who["Arn"])),
            latency(self._subject, sts.meta.endpoint_url, took_ms, STATUS_PAGE),
            self._guarded("permissions", self._permissions),
            *(self._guarded("image", self._image, node) for node in self._wanted),
            *(self._guarded("stock", self._stock, node) for node in self._wanted),
            *(self._guarded("quota", self._quota, *limit, vcpus) for limit, vcpus in more.items()),
        ]

    def _wrong(self, name: str, error: AwsError) -> Finding:
        return Finding(self._subject, name, Status.FAILED, error.seen, error.fix)

    def _guarded(self, name: str, look: Callable[..., Finding], *at: object) -> Finding:
        try:
            return look(*at)
        except AwsError as error:
            return self._wrong(name, error)
        except ec2.Ec2Error as error:
            return _failed(name, str(error), self._subject)

    def _permissions(self) -> Finding:
        denied = [action for action, attempt in self._needed().items() if not _may(attempt)]
        if not denied:
            seen = "may find an image, launch, start, end and tag machines, and what belongs to them"
            return Finding(self._subject, "permissions", Status.OK, seen)
        fix = f"allow in the policy of the user or role: {', '.join(denied)}"
        seen = "the credentials may not do everything that a deployment does"
        return Finding(self._subject, "permissions", Status.FAILED, seen, fix)

    def _needed(self) -> dict[str, Callable[[], object]]:
        """Actions of a deployment, as policies name them, and calls that tell whether they are allowed."""
        node = self._nodes[0]
        launch = {"InstanceType": node.type, "MinCount": 1, "MaxCount": 1, "DryRun": True}
        place = {"SubnetId": node.subnet} if node.subnet else {}
        needed: dict[str, Callable[[], object]] = {
            "ssm:GetParameter": partial(self._ami, node),
            "ec2:RunInstances": lambda: self._ec2.run_instances(ImageId=self._ami(node), **launch, **place),
        }
        dry_runs = dict(DRY_RUNS)
        if self._public_key:
            dry_runs["ImportKeyPair"] = {"KeyName": "none", "PublicKeyMaterial": self._public_key.encode()}
        if any(each.elastic_ip for each in self._nodes):
            dry_runs["AllocateAddress"] = {"Domain": "vpc"}
        for action, arguments in dry_runs.items():
            call = getattr(self._ec2, xform_name(action))
            needed[f"ec2:{action}"] = partial(call, **arguments, DryRun=True)
        if any(each.session_manager for each in self._nodes):
            put, role = self._client("iam").put_role_policy, f"vllm-fleet-{NOWHERE}"
            needed["iam:PutRolePolicy"] = partial(put, RoleName=role, PolicyName="none", PolicyDocument="{}")
        return needed

    def _ami(self, node: AwsNode) -> str:
        """The image that the node would be launched from. Raises Ec2Error if there is none."""
        if node.ami:
            return node.ami
        source = node.ami_source
        if source.parameter:
            return str(self._client("ssm").get_parameter(Name=source.parameter)["Parameter"]["Value"])
        named = [{"Name": "name", "Values": [source.name]}]
        images = self._ec2.describe_images(Owners=[source.owner], Filters=named)["Images"]
        if not images:
            raise ec2.Ec2Error(
                f"{node.name}: ami_source: {source.owner} has no image called {source.name} in this region; "
                "correct owner or name"
            )
        return str(max(images, key=lambda image: image["CreationDate"])["ImageId"])

    def _image(self, node: AwsNode) -> Finding:
        ami = self._ami(node)
        name = ec2.check_image(self._ec2, f"{node.name}: ", type_=node.type, ami=ami)
        return Finding(self._subject, "image", Status.OK, f"{ami}, {name}")

    def _stock(self, node: AwsNode) -> Finding:
        zones = ec2.check_place(
            self._ec2, f"{node.name}: ", type_=node.type, subnet=node.subnet, public=node.public_ip
        )
        seen = f"{node.type} is offered in {', '.join(zones)}; whether one is free, AWS tells at launch alone"
        return Finding(self._subject, "stock", Status.OK, seen)

    def _quota(self, code: str, name: str, more: int) -> Finding:
        """`more` vCPUs are still to be launched."""
        endpoints = self._config.get("endpoints")
        if endpoints and SERVICE_QUOTAS not in endpoints:
            seen = f"aws:endpoints names no {SERVICE_QUOTAS}"
            return Finding(self._subject, "quota", Status.UNKNOWN, seen)
        quotas = self._client("service-quotas")
        try:
            limit = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
        except AwsError as error:
            if error.code not in NOT_PERMITTED:
                raise
            seen = "the credentials may not read quotas; servicequotas:GetServiceQuota would let them"
            return Finding(self._subject, "quota", Status.UNKNOWN, seen)
        used = sum(_vcpus(each) for each in self._running() if _limit_of(each) == (code, name))
        seen = f"{name}: {used} of {limit:g} vCPUs in use, {more} more wanted"
        if used + more <= limit:
            return Finding(self._subject, "quota", Status.OK, seen)
        fix = f"ask for more at Service Quotas: {code} in {self._region}; it takes hours to days"
        return Finding(self._subject, "quota", Status.FAILED, seen, fix)

    def _running(self) -> list[dict[str, Any]]:
        states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        pages = self._ec2.get_paginator("describe_instances").paginate(Filters=states)
        return [each for page in pages for one in page["Reservations"] for each in one["Instances"]]


def _may(attempt: Callable[[], object]) -> bool:
    """Whether a call is allowed. Raises AwsError where that could not be found out."""
    try:
        attempt()
    except AwsError as error:
        if error.code in NOT_PERMITTED:
            return False
        # Whatever else EC2 has against the arguments, it has let us ask.
        if not error.code.startswith(ASKED):
            raise
    return True


def _limit(type_: str, *, spot: bool) -> tuple[str, str] | None:
    """Code and name of the quota that a type counts for; None for one that is not a GPU's."""
    family = type_.partition(".")[0]
    kind = "p5" if spot and family.startswith("p5") else family[0]
    return QUOTAS.get((kind, spot))


def _limit_of(instance: Mapping[str, Any]) -> tuple[str, str] | None:
    return _limit(instance["InstanceType"], spot=instance.get("InstanceLifecycle") == "spot")


def _vcpus(instance: Mapping[str, Any]) -> int:
    known = catalog().find(CLOUD, instance["InstanceType"])
    return known.vcpus if known else 0
