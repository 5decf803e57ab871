"""Calls of our own clients of AWS, each met by every way a reply can fail; judged by the embedded AWS."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from components.aws.api import AwsError, client
from fleet import aws as plain
from fleet.aws import Credentials
from simcloud import aws
from simcloud.testing import SimCloud, running_simcloud

PASSING = ("429", "500", "503", "reset", "lost_reply", "closed", "html_502", "truncated")
SPOILT = ("garbage", "wrong_shape", "nulls")
ATTEMPTS = 3


def ids(file_systems: Any) -> list[str]:
    return [each["FileSystemId"] for each in file_systems["FileSystems"]]


CALLS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "DescribeInstances": ("ec2", lambda api: api.describe_instances()["Reservations"]),
    "DescribeVolumes": ("ec2", lambda api: api.describe_volumes()["Volumes"]),
    "DescribeAddresses": ("ec2", lambda api: api.describe_addresses()["Addresses"]),
    "DescribeSecurityGroups": ("ec2", lambda api: api.describe_security_groups()["SecurityGroups"]),
    "DescribeNetworkInterfaces": ("ec2", lambda api: api.describe_network_interfaces()["NetworkInterfaces"]),
    "DescribeKeyPairs": ("ec2", lambda api: api.describe_key_pairs()["KeyPairs"]),
    "DescribeSubnets": ("ec2", lambda api: api.describe_subnets()["Subnets"]),
    "DescribeImages": ("ec2", lambda api: api.describe_images()["Images"]),
    "DescribeInstanceTypeOfferings": (
        "ec2",
        lambda api: api.describe_instance_type_offerings(LocationType="availability-zone")[
            "InstanceTypeOfferings"
        ],
    ),
    "GetCallerIdentity": ("sts", lambda api: api.get_caller_identity()["Arn"]),
    "GetParameter": (
        "ssm",
        lambda api: api.get_parameter(
            Name="/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
        )["Parameter"]["Value"],
    ),
    "DescribeFileSystems": ("efs", lambda api: ids(api.describe_file_systems())),
    "DescribeMountTargets": (
        "efs",
        lambda api: api.describe_mount_targets(
            FileSystemId=api.describe_file_systems()["FileSystems"][0]["FileSystemId"]
        )["MountTargets"],
    ),
    "GetServiceQuota": (
        "service-quotas",
        lambda api: api.get_service_quota(ServiceCode="ec2", QuotaCode="L-DB2E81BA")["Quota"]["Value"],
    ),
}
"""Service and call, for each call that reads."""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCloud]:
    with running_simcloud(tmp_path_factory.mktemp("cloud"), nodes="none") as running:
        ec2, efs = running.console("ec2"), running.console("efs")
        subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
        ec2.run_instances(ImageId="ami-0d1a0000000000003", InstanceType="g6.xlarge", MinCount=1, MaxCount=1)
        ec2.allocate_address(Domain="vpc")
        ec2.create_key_pair(KeyName="one")
        share = efs.create_file_system(CreationToken="one")["FileSystemId"]
        efs.create_mount_target(FileSystemId=share, SubnetId=subnet)
        yield running


def settings(cloud: SimCloud) -> Callable[[str], str | None]:
    services = ("ec2", "sts", "ssm", "efs", "servicequotas", "iam")
    given = {
        "accessKey": aws.DEV_ACCESS_KEY,
        "secretKey": aws.DEV_SECRET_KEY,
        "endpoints": json.dumps([dict.fromkeys(services, cloud.aws_url)]),
    }
    return given.get


def api_of(cloud: SimCloud, service: str) -> Any:
    return client(settings(cloud), service, "us-east-1", attempts=ATTEMPTS)


@pytest.fixture(autouse=True)
def no_faults_are_left(cloud: SimCloud) -> Iterator[None]:
    yield
    cloud.clear_faults()


@pytest.mark.parametrize("call", CALLS)
def test_a_failure_that_passes_is_not_noticed(cloud: SimCloud, call: str) -> None:
    service, ask = CALLS[call]
    api = api_of(cloud, service)
    whole = ask(api)
    assert whole, "the embedded cloud has one of each"
    for fault in (*PASSING, *SPOILT):
        cloud.set_fault(call, fault)
        assert ask(api) == whole, fault
        assert cloud.faults()["planted"] == [], f"{fault} was not met"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", ["403", "quota", "404", "409", *SPOILT, "closed", "html_502"])
def test_a_failure_that_lasts_is_told_with_the_call_and_the_fix(
    cloud: SimCloud, call: str, fault: str
) -> None:
    service, ask = CALLS[call]
    api = api_of(cloud, service)
    cloud.set_fault(call, fault, times=1000)
    with pytest.raises(AwsError) as caught:
        ask(api)
    said = str(caught.value)
    assert f" {call}: " in said
    assert "Fix: " in said
    assert "<html" not in said.lower()
    assert caught.value.passing == (fault in (*SPOILT, "closed", "html_502"))


@pytest.mark.parametrize("fault", SPOILT)
def test_commands_about_jobs_meet_an_error_of_botocores_own(cloud: SimCloud, fault: str) -> None:
    credentials = Credentials.of(settings(cloud))
    api = plain.client("ec2", "us-east-1", credentials, attempts=ATTEMPTS)
    cloud.set_fault("DescribeInstances", fault, times=1000)
    with pytest.raises((ClientError, BotoCoreError), match="DescribeInstances"):
        api.describe_instances()
