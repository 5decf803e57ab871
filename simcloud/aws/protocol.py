"""AWS's wire formats: which call a request is, and how each service words a refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from simcloud.cloud import ApiError, Call, Json, Received, Reply

CALLS = frozenset(
    name
    for names in (
        # EC2
        "RunInstances StartInstances StopInstances RebootInstances TerminateInstances DescribeInstances",
        "DescribeInstanceStatus DescribeInstanceAttribute ModifyInstanceAttribute DescribeInstanceTypes",
        "ModifyInstanceMetadataOptions DescribeInstanceTypeOfferings DescribeImages DescribeVolumes",
        "ModifyVolume DescribeVpcs DescribeSubnets DescribeRouteTables DescribeNetworkInterfaces",
        "GetConsoleOutput DeleteVolume",
        "CancelSpotInstanceRequests",
        "CreateSecurityGroup DescribeSecurityGroups DeleteSecurityGroup DescribeSecurityGroupRules",
        "AuthorizeSecurityGroupIngress AuthorizeSecurityGroupEgress ModifySecurityGroupRules",
        "RevokeSecurityGroupIngress RevokeSecurityGroupEgress ImportKeyPair DescribeKeyPairs DeleteKeyPair",
        "AllocateAddress DescribeAddresses AssociateAddress DisassociateAddress ReleaseAddress",
        "CreateTags DeleteTags CreateLaunchTemplate CreateLaunchTemplateVersion DescribeLaunchTemplates",
        "DescribeLaunchTemplateVersions ModifyLaunchTemplate DeleteLaunchTemplate",
        # IAM and STS
        "CreateRole GetRole DeleteRole UpdateAssumeRolePolicy TagRole UntagRole ListInstanceProfilesForRole",
        "PutRolePolicy GetRolePolicy DeleteRolePolicy ListRolePolicies AttachRolePolicy DetachRolePolicy",
        "ListAttachedRolePolicies CreateInstanceProfile GetInstanceProfile DeleteInstanceProfile",
        "AddRoleToInstanceProfile RemoveRoleFromInstanceProfile GetCallerIdentity AssumeRole",
        "ListRoles ListInstanceProfiles",
        # Systems Manager and CloudWatch Logs
        "GetParameter CreateLogGroup DescribeLogGroups DeleteLogGroup PutRetentionPolicy",
        "DeleteRetentionPolicy CreateLogStream DescribeLogStreams PutLogEvents GetLogEvents",
        # EFS
        "CreateFileSystem DescribeFileSystems DeleteFileSystem CreateMountTarget DescribeMountTargets",
        "DeleteMountTarget DescribeMountTargetSecurityGroups ModifyMountTargetSecurityGroups",
        # Service Quotas
        "GetServiceQuota",
    )
    for name in names.split()
)
"""The calls that this project and its provider make: faults can be planted on these. moto answers more."""

REST_CALLS = [
    ("POST", r"file-systems", "CreateFileSystem"),
    ("GET", r"file-systems", "DescribeFileSystems"),
    ("DELETE", r"file-systems/[^/]+", "DeleteFileSystem"),
    ("GET", r"file-systems/[^/]+/lifecycle-configuration", "DescribeLifecycleConfiguration"),
    ("GET", r"file-systems/[^/]+/backup-policy", "DescribeBackupPolicy"),
    ("POST", r"mount-targets", "CreateMountTarget"),
    ("GET", r"mount-targets", "DescribeMountTargets"),
    ("DELETE", r"mount-targets/[^/]+", "DeleteMountTarget"),
    ("GET", r"mount-targets/[^/]+/security-groups", "DescribeMountTargetSecurityGroups"),
    ("PUT", r"mount-targets/[^/]+/security-groups", "ModifyMountTargetSecurityGroups"),
]
"""EFS names its calls by method and path, below its version."""

SECRET_PARAMETERS = frozenset({"UserData", "LaunchTemplateData.UserData", "Value"})


@dataclass(frozen=True)
class AwsRequest(Received):
    """A request with its service, region and parameters."""

    service: str = ""
    region: str = ""
    access_key: str = ""
    method: str = ""

    @cached_property
    def json(self) -> Json:
        """The parameters: EC2's and IAM's come as a form, the others' as JSON."""
        if self.raw[:1] == b"{":
            body: Json = json.loads(self.raw)
            return body
        return dict(parse_qsl(self.raw.decode(errors="replace"), keep_blank_values=True))

    def listed(self, name: str) -> list[str]:
        """The values of a list parameter of a form: `name.1`, `name.2`, …"""
        return [value for key, value in self.json.items() if re.fullmatch(rf"{name}\.\d+", key)]


def recognize(received: Received, method: str, handler: Call) -> AwsRequest:
    """The request with the call it names; one that names none keeps the given call."""
    scope = re.search(r"Credential=([^/,]+)/\d+/([^/]+)/([^/]+)/", received.headers.get("authorization", ""))
    access_key, region, service = scope.groups() if scope else ("", "", "")
    request = AwsRequest(
        **{name: getattr(received, name) for name in Received.__dataclass_fields__},
        service=service,
        region=region,
        access_key=access_key,
        method=method,
    )
    name = _name(request, method)
    if not name:
        return request
    return replace(request, call=replace(handler, name=name, secret_fields=SECRET_PARAMETERS))


def _name(request: AwsRequest, method: str) -> str | None:
    target: str = request.headers.get("x-amz-target", "").rpartition(".")[2]
    if target:
        return target
    if request.service == "elasticfilesystem":
        below = request.path.partition("/2015-02-01/")[2].rstrip("/")
        return next(
            (name for verb, path, name in REST_CALLS if verb == method and re.fullmatch(path, below)), None
        )
    action = request.json.get("Action")
    return str(action) if action else None


CODES: Mapping[str, Mapping[str, str]] = {
    "AccessDenied": {
        "ec2": "UnauthorizedOperation",
        "ssm": "AccessDeniedException",
        "logs": "AccessDeniedException",
    },
    "Throttling": {
        "ec2": "RequestLimitExceeded",
        "ssm": "ThrottlingException",
        "logs": "ThrottlingException",
    },
    "InvalidClientTokenId": {"ec2": "AuthFailure", "ssm": "UnrecognizedClientException"},
    "InternalFailure": {"ec2": "InternalError"},
    "ServiceUnavailable": {"ec2": "Unavailable"},
}
"""The same refusal has another code in some services."""


def refusal(request: AwsRequest, status: int, code: str, message: str) -> ApiError:
    """A refusal as the request's service words it."""
    code = CODES.get(code, {}).get(request.service, code)
    match request.service:
        case "ec2":
            body = (
                '<?xml version="1.0" encoding="UTF-8"?>\n<Response><Errors><Error>'
                f"<Code>{code}</Code><Message>{escape(message)}</Message>"
                "</Error></Errors><RequestID>00000000-0000-4000-8000-000000000000</RequestID></Response>"
            )
            return ApiError(Reply(status, body.encode(), {"Content-Type": "text/xml"}))
        case "iam" | "sts":
            body = (
                f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code>"
                f"<Message>{escape(message)}</Message></Error>"
                "<RequestId>00000000-0000-4000-8000-000000000000</RequestId></ErrorResponse>"
            )
            return ApiError(Reply(status, body.encode(), {"Content-Type": "text/xml"}))
        case "elasticfilesystem":
            headers = {"x-amzn-ErrorType": code}
            return ApiError(Reply(status, {"ErrorCode": code, "Message": message}, headers))
        case _:
            headers = {"Content-Type": "application/x-amz-json-1.1"}
            return ApiError(Reply(status, {"__type": code, "message": message}, headers))


NOT_FOUND = [
    ("InstanceId", "InvalidInstanceID.NotFound", "The instance ID '{id}' does not exist"),
    ("VolumeId", "InvalidVolume.NotFound", "The volume '{id}' does not exist."),
    ("GroupId", "InvalidGroup.NotFound", "The security group '{id}' does not exist"),
    ("SecurityGroupId", "InvalidGroup.NotFound", "The security group '{id}' does not exist"),
    ("KeyName", "InvalidKeyPair.NotFound", "The key pair '{id}' does not exist"),
    ("AssociationId", "InvalidAssociationID.NotFound", "The association ID '{id}' does not exist"),
    ("AllocationId", "InvalidAllocationID.NotFound", "The allocation ID '{id}' does not exist"),
    ("SubnetId", "InvalidSubnetID.NotFound", "The subnet ID '{id}' does not exist"),
    ("VpcId", "InvalidVpcID.NotFound", "The vpc ID '{id}' does not exist"),
    ("ResourceId", "InvalidID", "The ID '{id}' is not valid"),
]
"""Parameter (or its first of a list), code and message of EC2's refusals of what does not exist."""

Refusal = tuple[int, str, str]
"""Status, code and message."""


def not_found_of(request: AwsRequest) -> Refusal:
    """That what the request is about does not exist, as its service says it."""
    if request.service == "ec2":
        for parameter, code, message in NOT_FOUND:
            named = request.json.get(parameter) or next(iter(request.listed(parameter)), None)
            if named:
                return 400, code, message.format(id=named)
        return 400, "InvalidParameterValue", "A resource of the request does not exist"
    codes = {"iam": "NoSuchEntity", "elasticfilesystem": "FileSystemNotFound", "ssm": "ParameterNotFound"}
    return 404, codes.get(request.service, "ResourceNotFoundException"), "The resource does not exist."


def conflict_of(request: AwsRequest) -> Refusal:
    """That what the request is about is just changing, as its service says it."""
    if request.service == "ec2":
        return 400, "IncorrectState", "The resource is not in a valid state for the requested operation."
    codes = {"iam": "ConcurrentModification", "elasticfilesystem": "IncorrectFileSystemLifeCycleState"}
    return 409, codes.get(request.service, "OperationAbortedException"), "Please try again."
