"""What AWS's provider is configured with holds for our own client too, or is refused before any call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from components.aws import api, ec2, probe
from components.aws.api import AwsError, client
from fleet import aws as own
from fleet.aws import Credentials, CredentialsError
from fleet.check import CloudRequest
from fleet.settings import AwsNode
from simcloud import aws
from simcloud.testing import SimCloud

ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/deploy"
OTHER_ROLE = f"arn:aws:iam::{ACCOUNT}:role/other"
SERVICES = ("ec2", "sts", "iam", "ssm")


@pytest.fixture
def cloud(emulator: SimCloud) -> SimCloud:
    emulator.reset()
    own._account.cache_clear()
    api._client.cache_clear()
    for role in (ROLE, OTHER_ROLE):
        emulator.console("iam").create_role(
            RoleName=role.rpartition("/")[2], AssumeRolePolicyDocument="{}", Path="/"
        )
    may = {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"}
    emulator.console("iam").put_role_policy(
        RoleName="other",
        PolicyName="on",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [may]}),
    )
    return emulator


def config(cloud: SimCloud, **settings: object) -> dict[str, str]:
    """As `pulumi config` has it: structures are JSON."""
    given = {
        "region": "us-east-1",
        "accessKey": aws.DEV_ACCESS_KEY,
        "secretKey": aws.DEV_SECRET_KEY,
        "endpoints": [dict.fromkeys(SERVICES, cloud.aws_url)],
        **settings,
    }
    return {key: each if isinstance(each, str) else json.dumps(each) for key, each in given.items()}


def caller(settings: Mapping[str, str]) -> str:
    return str(client(settings.get, "sts", "us-east-1").get_caller_identity()["Arn"])


@pytest.mark.parametrize(
    "settings",
    [
        {"assumeRoles": [{"roleArn": ROLE}]},
        {"assumeRoles": {"roleArn": ROLE}},
        {"assumeRole": {"roleArn": ROLE}},
        {"assumeRoles": [{"roleArn": OTHER_ROLE}, {"roleArn": ROLE, "sessionName": "second"}]},
        {
            "assumeRoles": [
                {"roleArn": ROLE, "duration": "1h", "externalId": "word", "policyArns": [], "tags": {}}
            ]
        },
    ],
)
def test_calls_are_made_in_the_role_that_the_provider_takes_on(
    cloud: SimCloud, settings: dict[str, object]
) -> None:
    assert ":assumed-role/deploy/" in caller(config(cloud, **settings))


def test_a_call_has_the_roles_rights_and_not_the_keys(cloud: SimCloud) -> None:
    given = config(cloud, assumeRoles=[{"roleArn": ROLE, "externalId": "outside"}])
    api_of_role = client(given.get, "ec2", "us-east-1")
    with pytest.raises(AwsError, match="UnauthorizedOperation"):
        api_of_role.describe_instances()
    may = {"Effect": "Allow", "Action": "ec2:DescribeInstances", "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [may]})
    cloud.console("iam").put_role_policy(RoleName="deploy", PolicyName="look", PolicyDocument=document)
    assert api_of_role.describe_instances()["Reservations"] == []


def test_the_jobs_commands_are_in_the_role_too(cloud: SimCloud) -> None:
    credentials = Credentials.of(config(cloud, assumeRoles=[{"roleArn": ROLE}]).get)
    who = own.client("sts", "us-east-1", credentials).get_caller_identity()
    assert ":assumed-role/deploy/" in who["Arn"]


def test_fleet_check_looks_in_the_role(cloud: SimCloud) -> None:
    node = AwsNode.model_construct(name="a", region="us-east-1", type="g6.xlarge")
    request = CloudRequest(
        config=config(cloud, assumeRoles=[{"roleArn": ROLE}]),
        nodes=(node,),
        existing=frozenset({"a"}),
        public_key=None,
    )
    there = probe._Region(request, "us-east-1", [node])
    assert ":assumed-role/deploy/" in there._client("sts").get_caller_identity()["Arn"]


def test_sts_is_asked_for_all_that_is_said_of_the_role() -> None:
    given = {
        "roleArn": ROLE,
        "sessionName": "fleet",
        "externalId": "shared word",
        "duration": "1h30m",
        "policy": "{}",
        "policyArns": ["arn:aws:iam::aws:policy/ReadOnlyAccess"],
        "sourceIdentity": "me",
        "tags": {"team": "ml"},
        "transitiveTagKeys": ["team"],
    }
    (role,) = Credentials.of({"assumeRoles": json.dumps([given])}.get).roles
    assert json.loads(role.request) == {
        "RoleArn": ROLE,
        "RoleSessionName": "fleet",
        "ExternalId": "shared word",
        "DurationSeconds": 5400,
        "Policy": "{}",
        "PolicyArns": [{"arn": "arn:aws:iam::aws:policy/ReadOnlyAccess"}],
        "SourceIdentity": "me",
        "Tags": [{"Key": "team", "Value": "ml"}],
        "TransitiveTagKeys": ["team"],
    }
    assert "shared word" not in repr(role)


def test_a_role_that_cannot_be_taken_on_is_told_with_its_key_and_fix(cloud: SimCloud) -> None:
    cloud.set_fault("AssumeRole", "403")
    said = rf"^aws:assumeRoles\[0\].roleArn: {ROLE} cannot be taken on: AWS refused: AccessDenied: .*Fix: let"
    with pytest.raises(AwsError, match=said):
        caller(config(cloud, assumeRoles=[{"roleArn": ROLE}]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"allowedAccountIds": [ACCOUNT]}, None),
        ({"forbiddenAccountIds": ["999999999999"]}, None),
        ({"allowedAccountIds": ["999999999999"]}, f"aws:allowedAccountIds: the credentials are of {ACCOUNT}"),
        ({"forbiddenAccountIds": [ACCOUNT]}, f"aws:forbiddenAccountIds: the credentials are of {ACCOUNT}"),
    ],
)
def test_an_account_that_must_not_be_touched_is_not(
    cloud: SimCloud, settings: dict[str, object], said: str | None
) -> None:
    given = config(cloud, **settings)
    if said is None:
        client(given.get, "ec2", "us-east-1").describe_vpcs()
        return
    with pytest.raises(CredentialsError, match=rf"^{said}.*Fix: "):
        client(given.get, "ec2", "us-east-1")


def test_the_shared_files_that_the_provider_reads_are_read(cloud: SimCloud, tmp_path: Path) -> None:
    credentials = tmp_path / "keys"
    credentials.write_text(
        f"[deploy]\naws_access_key_id = {aws.DEV_ACCESS_KEY}\naws_secret_access_key = {aws.DEV_SECRET_KEY}\n"
    )
    named = {
        "profile": "deploy",
        "sharedCredentialsFiles": [str(credentials)],
        "accessKey": "",
        "secretKey": "",
    }
    assert ACCOUNT in caller(config(cloud, **named))
    shared = tmp_path / "config"
    shared.write_text(credentials.read_text().replace("[deploy]", "[profile deploy]"))
    named = {"profile": "deploy", "sharedConfigFiles": [str(shared)], "accessKey": "", "secretKey": ""}
    assert ACCOUNT in caller(config(cloud, **named))


def test_tries_and_addresses_are_those_of_the_provider() -> None:
    given = {
        "maxRetries": "2",
        "retryMode": "adaptive",
        "useFipsEndpoint": "true",
        "useDualstackEndpoint": "true",
    }
    keys = {"accessKey": "A", "secretKey": "B"}
    made = own.client("ec2", "us-east-1", Credentials.of({**keys, **given}.get))
    assert made.meta.config.retries["total_max_attempts"] == 2
    assert made.meta.config.retries["mode"] == "adaptive"
    assert made.meta.endpoint_url == "https://ec2-fips.us-east-1.api.aws"


REFUSED: list[tuple[str, object]] = [
    ("assumeRoleWithWebIdentity", {"roleArn": ROLE, "webIdentityToken": "planted"}),
    ("httpProxy", "http://user:planted@proxy:3128"),
    ("httpsProxy", "http://user:planted@proxy:3128"),
    ("noProxy", "localhost"),
    ("insecure", "true"),
    ("ec2MetadataServiceEndpoint", "http://192.0.2.1"),
    ("ec2MetadataServiceEndpointMode", "IPv6"),
    ("tokenBucketRateLimiterCapacity", "5"),
    ("userAgents", [{"productName": "x"}]),
    ("maxRetries", "many"),
    ("retryMode", "legacy"),
    ("useFipsEndpoint", "yes"),
    ("customCaBundle", "/nonexistent/ca.pem"),
    ("sharedConfigFiles", ["/nonexistent/config"]),
    ("sharedCredentialsFiles", ["a", "b"]),
    ("allowedAccountIds", ["12"]),
    ("forbiddenAccountIds", [12]),
    ("defaultTags", {"tags": {"cost": 1}}),
    ("defaultTags", ["x"]),
    ("ignoreTags", {"keyPrefixes": ["vllm-"]}),
    ("ignoreTags", {"keys": ["vllm-fleet-owner"]}),
    ("endpoints", ["http://127.0.0.1"]),
    ("assumeRoles", [{"roleArn": "deploy"}]),
    ("assumeRoles", [{}]),
    ("assumeRoles", "x"),
    ("assumeRoles", "7"),
    ("assumeRoles", [None]),
    ("assumeRoles", ["deploy"]),
    ("assumeRoles", [{"roleArn": ROLE, "mfaSerial": "x"}]),
    ("assumeRoles", [{"roleArn": ROLE, "duration": "1d"}]),
    ("assumeRoles", [{"roleArn": ROLE, "durationSeconds": 60}]),
    ("assumeRoles", [{"roleArn": ROLE, "externalId": 7}]),
    ("assumeRoles", [{"roleArn": ROLE, "policyArns": "x"}]),
    ("assumeRoles", [{"roleArn": ROLE, "tags": {"a": 1}}]),
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_what_our_own_calls_cannot_hold_is_refused_with_its_key_and_a_fix(key: str, value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    with pytest.raises(CredentialsError, match=rf"^aws:{key}.*\. Fix: ") as refusal:
        Credentials.of({key: text}.get)
    assert "planted" not in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("insecure", "false"),
        ("skipCredentialsValidation", "true"),
        ("skipRegionValidation", "true"),
        ("skipRequestingAccountId", "true"),
        ("s3UsePathStyle", "true"),
        ("ignoreTags", {"keyPrefixes": ["kubernetes.io/"], "keys": ["cost"]}),
        ("assumeRoles", []),
    ],
)
def test_what_does_not_concern_our_own_calls_is_let_through(key: str, value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    assert Credentials.of({key: text}.get) == Credentials()


def test_a_role_is_named_once() -> None:
    role = json.dumps([{"roleArn": ROLE}])
    with pytest.raises(CredentialsError, match="beside aws:assumeRoles"):
        Credentials.of({"assumeRole": role, "assumeRoles": role}.get)


def test_default_tags_are_known() -> None:
    given = Credentials.of({"defaultTags": json.dumps({"tags": {"cost": "ml", "team": "a"}})}.get)
    assert dict(given.default_tags) == {"cost": "ml", "team": "a"}


NOWHERE = "has no route to the internet"
IGW, NAT = "routes to the internet gateway igw-", "routes to the NAT gateway nat-"
WAYS: list[tuple[str, str | None, str | None]] = [
    ("no table of its own", NOWHERE, NOWHERE),
    ("no table of its own, main with a gateway", None, IGW),
    ("own table without a route", NOWHERE, NOWHERE),
    ("own table without a route, main with a gateway", NOWHERE, NOWHERE),
    ("own table with a gateway", None, IGW),
    ("own table with a NAT gateway", NAT, None),
    ("own table with a gateway for a part", NOWHERE, NOWHERE),
]
"""What is said of a machine with a public address, and of one without; None: it is let through."""


@pytest.mark.parametrize("public", [True, False, None])
@pytest.mark.parametrize(("way", "said_of_public", "said_of_private"), WAYS)
def test_a_subnet_without_a_way_to_the_internet_is_refused(
    cloud: SimCloud, way: str, said_of_public: str | None, said_of_private: str | None, public: bool | None
) -> None:
    console = cloud.console("ec2")
    vpc = console.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    zone = ec2.offered_zones(console, "g6.xlarge")[0]
    made = console.create_subnet(VpcId=vpc, CidrBlock="10.9.0.0/24", AvailabilityZone=zone)
    subnet = made["Subnet"]["SubnetId"]
    gateway = console.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    console.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    main = [{"Name": "association.main", "Values": ["true"]}, {"Name": "vpc-id", "Values": [vpc]}]
    table = console.describe_route_tables(Filters=main)["RouteTables"][0]["RouteTableId"]
    if "main with a gateway" in way:
        console.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    if way.startswith("own table"):
        table = console.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
        console.associate_route_table(RouteTableId=table, SubnetId=subnet)
    to: dict[str, Any] = {"GatewayId": gateway}
    if "NAT" in way:
        nat = console.create_nat_gateway(SubnetId=subnet, ConnectivityType="private")
        to = {"NatGatewayId": nat["NatGateway"]["NatGatewayId"]}
    if way.startswith("own table with a"):
        part = "192.0.2.0/24" if "part" in way else "0.0.0.0/0"
        if "without" not in way:
            console.create_route(RouteTableId=table, DestinationCidrBlock=part, **to)
    # Where either will do, only what leads nowhere is refused.
    either = NOWHERE if said_of_public == said_of_private == NOWHERE else None
    said = {True: said_of_public, False: said_of_private, None: either}[public]
    if said is None:
        ec2.check_place(console, "a: ", type_="g6.xlarge", subnet=subnet, public=public)
        return
    message = rf"^a: subnet: {subnet} {said}.*\(route table {table}\).*Fix: name a"
    with pytest.raises(ec2.Ec2Error, match=message):
        ec2.check_place(console, "a: ", type_="g6.xlarge", subnet=subnet, public=public)


def test_credentials_that_may_not_read_route_tables_are_no_obstacle(cloud: SimCloud) -> None:
    ec2_api = client(config(cloud).get, "ec2", "us-east-1")
    subnet = ec2.default_subnet(ec2_api, "g6.xlarge")
    cloud.set_fault("DescribeRouteTables", "403")
    ec2.check_place(ec2_api, "a: ", type_="g6.xlarge", subnet=subnet, public=True)
