"""`fleet check` on Linode and AWS: each broken situation of the account is named with its fix."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest

import fleet.check
from components.aws import probe as aws_probe
from components.linode import probe as linode_probe
from fleet import settings
from fleet.check import CloudProbe, CloudRequest, Finding, Status, exit_status
from simcloud import aws
from simcloud.linode import DEV_TOKEN
from simcloud.testing import SimCloud, running_simcloud

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
MODEL = {"serving": {"model": "Qwen/Qwen3-8B-AWQ"}}
READS = ("Describe", "Get", "List")

PROBES: Mapping[str, CloudProbe] = {"linode": linode_probe.probe, "aws": aws_probe.probe}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer counts as slow: how fast this machine is, is no finding here."""
    monkeypatch.setattr(fleet.check, "SLOW_MS", float("inf"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCloud]:
    with running_simcloud(tmp_path_factory.mktemp("cloud"), nodes="none") as cloud:
        aws_probe.probe(request(cloud, "aws"))  # the embedded AWS loads when it is first asked, which is slow
        yield cloud


@pytest.fixture
def cloud(running: SimCloud, monkeypatch: pytest.MonkeyPatch) -> SimCloud:
    """As it is at first, and nothing of this machine's own accounts to be seen."""
    for name in ("LINODE_TOKEN", "LINODE_URL", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    running.reset()
    running.deny()
    running.set_quotas()
    running.set_stock("us-ord", "g2-gpu-rtx4000a1-s", "true", cloud="linode")
    return running


def request(cloud: SimCloud, name: str, **node: Any) -> CloudRequest:
    if name == "linode":
        config = {"token": DEV_TOKEN, "url": cloud.linode_url}
        declared: Any = settings.LinodeNode.model_validate(
            {"name": "a", "cloud": "linode", "region": "us-ord", **MODEL, **node}
        )
    else:
        services = ("ec2", "iam", "ssm", "sts", "servicequotas")
        config = {
            "accessKey": aws.DEV_ACCESS_KEY,
            "secretKey": aws.DEV_SECRET_KEY,
            "endpoints": json.dumps([dict.fromkeys(services, cloud.aws_url)]),
        }
        declared = settings.AwsNode.model_validate({"name": "a", "cloud": "aws", **MODEL, **node})
    return CloudRequest(config=config, nodes=(declared,), existing=frozenset(), public_key=PUBLIC_KEY)


def failed(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings if finding.status == Status.FAILED}


@pytest.mark.parametrize(
    ("name", "unknown"),
    # Linode has no call that tells the limit.
    [("linode", {"quota"}), ("aws", set())],
)
def test_an_account_in_order_has_no_failure_and_nothing_is_changed(
    cloud: SimCloud, name: str, unknown: set[str]
) -> None:
    before = cloud.inventory()
    more = {"elastic_ip": True, "session_manager": True} if name == "aws" else {}
    findings = PROBES[name](request(cloud, name, **more))
    assert exit_status(findings) == 0
    assert {finding.name for finding in findings} == {
        *("credentials", "API", "permissions", "image", "stock", "quota")
    }
    assert {finding.name for finding in findings if finding.status != Status.OK} == unknown
    assert cloud.inventory() == before
    written = [
        call
        for call in cloud.calls()
        if call["method"] != "GET" and not call["call"].startswith(READS) and call["status"] < 300
    ]
    assert written == []


Break = Callable[[SimCloud, CloudRequest], CloudRequest | None]


def with_config(**changes: str) -> Break:
    def change(_: SimCloud, asked: CloudRequest) -> CloudRequest:
        return dataclasses.replace(asked, config={**asked.config, **changes})

    return change


def with_node(name: str, **changes: Any) -> Break:
    return lambda cloud, _: request(cloud, name, **changes)


def elsewhere(_: SimCloud, asked: CloudRequest) -> CloudRequest:
    services = json.loads(asked.config["endpoints"])[0]
    endpoints = json.dumps([dict.fromkeys(services, "http://127.0.0.1:9")])
    return dataclasses.replace(asked, config={**asked.config, "endpoints": endpoints})


LINODE: list[tuple[str, Break, str, str, str]] = [
    # what it is called, what breaks it, the finding, what it says, its fix
    ("no-token", with_config(token=""), "credentials", "access token is not set", "pulumi config set"),
    ("wrong-token", with_config(token="x" * 64), "credentials", "Invalid Token", "set linode:token"),
    ("unreachable", with_config(url="http://127.0.0.1:9"), "API", "no reply", "check the network"),
    (
        "may-not-create",
        lambda cloud, _: cloud.deny("create_instance"),
        "permissions",
        "may not create servers",
        "read and write access to Linodes",
    ),
    (
        "may-not-read",
        lambda cloud, _: cloud.deny("list_instances", "list_firewalls"),
        "permissions",
        "may not read servers, read firewalls",
        "read and write access to Linodes and Firewalls",
    ),
    (
        "out-of-stock",
        lambda cloud, _: cloud.set_stock("us-ord", "g2-gpu-rtx4000a1-s", "false", cloud="linode"),
        "stock",
        "g2-gpu-rtx4000a1-s: none left, 1 wanted",
        "choose another region or type",
    ),
    (
        "no-image",
        with_node("linode", image="linode/ubuntu99.04"),
        "image",
        "there is no image",
        "linode-cli images list",
    ),
    (
        "bare-image",
        with_node("linode", image="linode/slackware15.0"),
        "image",
        "has no cloud-init",
        "remove the node's image",
    ),
]
AWS: list[tuple[str, Break, str, str, str]] = [
    ("no-key", with_config(accessKey="", secretKey=""), "credentials", "are not set", "aws:profile"),
    ("wrong-key", with_config(accessKey="AKIAOTHER"), "credentials", "InvalidClientTokenId", "valid"),
    ("no-profile", with_config(profile="none"), "credentials", "(none) could not be found", "aws:profile"),
    (
        "other-region",
        with_config(region="eu-west-3"),
        "credentials",
        "us-east-1 is not the eu-west-3 of aws:region",
        "pulumi config set aws:region us-east-1",
    ),
    ("unreachable", elsewhere, "API", "no reply from AWS", "check the network"),
    (
        "may-not-launch",
        lambda cloud, _: cloud.deny("RunInstances", "ImportKeyPair"),
        "permissions",
        "may not do everything",
        "ec2:RunInstances, ec2:ImportKeyPair",
    ),
    (
        "not-offered",
        with_node("aws", type="p5e.48xlarge"),
        "stock",
        "p5e.48xlarge is offered nowhere in us-east-1",
        "choose another type or region",
    ),
    (
        "quota-used-up",
        lambda cloud, _: cloud.set_quotas(**{"L-DB2E81BA": 2}),
        "quota",
        "Running On-Demand G and VT instances: 0 of 2 vCPUs in use, 4 more wanted",
        "Service Quotas: L-DB2E81BA in us-east-1",
    ),
    (
        "no-image",
        with_node("aws", ami="ami-0ffffffffffffffff"),
        "image",
        "ami-0ffffffffffffffff does not exist",
        "leave it out",
    ),
    (
        "image-without-driver",
        with_node("aws", ami="ami-0b120000000000001"),
        "image",
        "carries no NVIDIA driver",
        "Deep Learning Base GPU AMI",
    ),
]


@pytest.mark.parametrize(
    ("name", "breaks", "finding", "seen", "fix"),
    [
        pytest.param(name, *row, id=f"{name}-{case}")
        for name, rows in (("linode", LINODE), ("aws", AWS))
        for case, *row in rows
    ],
)
def test_each_broken_situation_of_an_account_is_named_with_its_fix(
    cloud: SimCloud, name: str, breaks: Break, finding: str, seen: str, fix: str
) -> None:
    asked = request(cloud, name)
    findings = PROBES[name](breaks(cloud, asked) or asked)
    found = failed(findings)
    assert found.keys() == {finding}
    assert seen in found[finding].seen
    assert fix in found[finding].fix
    assert exit_status(findings) == 1
    assert not [secret for secret in (DEV_TOKEN, aws.DEV_SECRET_KEY) if secret in repr(findings)]


def test_a_valid_token_without_the_scope_needed_lacks_a_permission(
    cloud: SimCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        reason = "Your OAuth token is not authorized to use this endpoint."
        return httpx.Response(401, json={"errors": [{"reason": reason}]})

    real = httpx.Client
    monkeypatch.setattr(
        httpx, "Client", lambda **given: real(**{**given, "transport": httpx.MockTransport(answer)})
    )
    findings = failed(linode_probe.probe(request(cloud, "linode")))
    assert "the token may not read servers" in findings["permissions"].seen


@pytest.mark.parametrize("name", PROBES)
def test_an_api_that_answers_slowly_is_a_warning(
    cloud: SimCloud, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(fleet.check, "SLOW_MS", 0.0)
    (api,) = (found for found in PROBES[name](request(cloud, name)) if found.name == "API")
    assert (api.status, exit_status([api])) == (Status.WARNING, 0)
    assert "which is slow" in api.seen
    assert "status" in api.fix
