"""What AWS's provider is configured with holds for our own client too, or is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from components.aws.api import CredentialsError
from components.aws.api import client as checked_client
from fleet.aws import NOT_HONOURED, Credentials, SettingError, client
from fleet.jobs import policies
from simcloud import aws
from simcloud.testing import SimCloud, running_simcloud

REGION = "us-east-1"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCloud]:
    with running_simcloud(tmp_path_factory.mktemp("cloud"), nodes="none") as running:
        yield running


def configured(cloud: SimCloud, **more: str) -> Credentials:
    given = {
        "accessKey": aws.DEV_ACCESS_KEY,
        "secretKey": aws.DEV_SECRET_KEY,
        "endpoints": json.dumps([dict.fromkeys(("ec2", "sts"), cloud.aws_url)]),
        **more,
    }
    return Credentials.of(given.get)


@pytest.mark.parametrize("key", ["assumeRoles", "assumeRole"])
def test_a_role_of_the_provider_is_taken_on_by_our_own_client(cloud: SimCloud, key: str) -> None:
    iam = cloud.console("iam")
    name = f"fleet-{key}"
    iam.create_role(RoleName=name, AssumeRolePolicyDocument=policies.trust_policy())
    role: Any = {
        "roleArn": f"arn:aws:iam::123456789012:role/{name}",
        "sessionName": "ci",
        "externalId": "outside",
    }
    setting = json.dumps([role] if key == "assumeRoles" else role)
    ec2 = client("ec2", REGION, configured(cloud, **{key: setting}))
    with pytest.raises(ClientError, match="UnauthorizedOperation"):
        ec2.describe_instances()  # the keys themselves may do everything, the role nothing yet
    may = {"Effect": "Allow", "Action": "ec2:DescribeInstances", "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [may]})
    iam.put_role_policy(RoleName=name, PolicyName="look", PolicyDocument=document)
    assert ec2.describe_instances()["Reservations"] == []


@pytest.mark.parametrize("key", NOT_HONOURED)
def test_a_setting_that_our_own_client_would_not_follow_is_refused(key: str) -> None:
    given = {key: '["x"]'}
    with pytest.raises(SettingError, match=rf"^aws:{key} is followed by AWS's provider .* Fix: "):
        Credentials.of(given.get)
    with pytest.raises(CredentialsError, match=f"aws:{key}"):
        checked_client(given.get, "ec2", REGION)
    assert Credentials.of({key: "false"}.get) == Credentials()


@pytest.mark.parametrize(
    "setting",
    ["x", "7", '["x"]', "[{}]", '[{"sessionName": "a"}]', '[{"roleArn": "a", "policy": "{}"}]', "[null]"],
)
def test_roles_that_cannot_be_followed_are_refused(setting: str) -> None:
    with pytest.raises(SettingError, match=r"^aws:assumeRoles.* Fix: "):
        Credentials.of({"assumeRoles": setting}.get)
