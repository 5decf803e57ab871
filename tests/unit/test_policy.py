"""The policies: each fires on what it forbids and stays silent on what it allows."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pulumi_policy import PolicyResourceOptions, ResourceValidationArgs
from pulumi_policy.policy import PolicyCustomTimeouts
from pulumi_policy.proxy import UNKNOWN_STRING_VALUE, unknown_checking_proxy

from fleet import cloudconfig, settings, userdata
from policy import rules
from policy.subject import UNKNOWN, Subject

SERVER = rules.SCALEWAY_SERVER
GROUP = rules.SCALEWAY_SECURITY_GROUP
VOLUME = rules.SCALEWAY_ROOT_VOLUME
LINODE = rules.LINODE_INSTANCE
FIREWALL = rules.LINODE_FIREWALL
EC2 = rules.AWS_INSTANCE
TEMPLATE = rules.AWS_LAUNCH_TEMPLATE
COMMAND = "command:local:Command"


def container(name: str = "vllm", **definition: Any) -> dict[str, Any]:
    """A rollout that brings one container."""
    return {"stdin": json.dumps({"compose": yaml.safe_dump({"services": {name: definition}})})}


def boot(*files: tuple[str, str]) -> str:
    entries = [{"path": path, "content": content} for path, content in files]
    return "#cloud-config\n" + yaml.safe_dump({"write_files": entries})


def scaleway_rule(cidr: str, port: Any, **more: Any) -> dict[str, Any]:
    return {"rules": [{"protocol": "TCP", "cidr": cidr, "port": port, **more}]}


def linode_rule(cidr: str, ports: str) -> dict[str, Any]:
    return {"inbounds": [{"action": "ACCEPT", "protocol": "TCP", "ports": ports, "ipv4s": [cidr]}]}


def aws_rule(cidr: str, first: int, last: int) -> dict[str, Any]:
    rule = {"protocol": "tcp", "fromPort": first, "toPort": last, "cidrBlocks": [cidr]}
    return {"ingress": [rule]}


HOLD = ("/usr/local/lib/setup.sh", "xargs apt-mark hold")
BLACKLIST = ("/etc/apt/apt.conf.d/52", 'Unattended-Upgrade::Package-Blacklist { "nvidia-"; }')
SERVES = ("/opt/llm/docker-compose.yml", "services: {}")
OWNED = ["vllm-fleet-owner=x", "vllm-fleet-node=dev/a"]

FIRES = [
    (rules.image_pinned, COMMAND, container(image="vllm/vllm-openai:latest")),
    (rules.image_pinned, COMMAND, container(image="vllm/vllm-openai")),
    (
        rules.image_pinned,
        SERVER,
        {"user_data": boot((SERVES[0], "services: {vllm: {image: 'a/b:nightly'}}"))},
    ),
    (rules.gpu_memory_left, COMMAND, container(command=["--gpu-memory-utilization", "0.97"])),
    (rules.gpu_memory_left, COMMAND, container(command=["--gpu-memory-utilization=0.99"])),
    (rules.gpu_memory_left, COMMAND, container(command=["--gpu-memory-utilization", "most"])),
    (rules.ssh_from_known_addresses, GROUP, scaleway_rule("0.0.0.0/0", 22)),
    (rules.ssh_from_known_addresses, GROUP, scaleway_rule("::/0", [1, 65535])),
    (rules.ssh_from_known_addresses, GROUP, {"inbound_default_policy": "accept", "rules": []}),
    (rules.ssh_from_known_addresses, FIREWALL, linode_rule("0.0.0.0/1", "20-30, 443")),
    (rules.ssh_from_known_addresses, rules.AWS_SECURITY_GROUP, aws_rule("0.0.0.0/0", 0, 65535)),
    (
        rules.ssh_from_known_addresses,
        "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule",
        {"ipProtocol": "-1", "cidrIpv6": "::/0"},
    ),
    (rules.vllm_behind_gateway, GROUP, scaleway_rule("203.0.113.7/32", 8000)),
    (rules.vllm_behind_gateway, FIREWALL, linode_rule("203.0.113.7/32", "3000")),
    (rules.vllm_behind_gateway, rules.AWS_SECURITY_GROUP, aws_rule("10.0.0.0/8", 7000, 9000)),
    (rules.vllm_behind_gateway, COMMAND, container(ports=["8000:8000"])),
    (rules.vllm_behind_gateway, COMMAND, container(ports=["443:8000"])),
    (rules.vllm_behind_gateway, COMMAND, container("gateway", ports=["8081:8081"])),
    (rules.vllm_behind_gateway, COMMAND, container(ports=[{"published": 8000, "target": 8000}])),
    (rules.volumes_encrypted, EC2, {"rootBlockDevice": {"volumeSize": 200.0}}),
    (rules.volumes_encrypted, EC2, {}),
    (rules.volumes_encrypted, TEMPLATE, {"blockDeviceMappings": [{"ebs": {"encrypted": "false"}}]}),
    (rules.volumes_encrypted, rules.AWS_FILE_SYSTEM, {"encrypted": False}),
    (rules.metadata_needs_token, EC2, {"metadataOptions": {"httpTokens": "optional"}}),
    (rules.metadata_needs_token, TEMPLATE, {}),
    (rules.owner_tagged, SERVER, {"tags": OWNED[1:]}),
    (rules.owner_tagged, SERVER, {"tags": [], "owner": "x"}),
    (rules.owner_tagged, LINODE, {"tags": ["vllm-fleet-node=dev/a"]}),
    (rules.owner_tagged, EC2, {"tags": {"Name": "a"}}),
    (rules.root_volume_large_enough, VOLUME, {"size_gb": 120.0}),
    (rules.user_data_without_secrets, SERVER, {"user_data": boot(("/opt/llm/.env", "PORT='8000'"))}),
    (
        rules.user_data_without_secrets,
        SERVER,
        {"user_data": boot(("/etc/x", "VLLM_API_KEY='0123456789abcdef0'"))},
    ),
    (
        rules.user_data_without_secrets,
        EC2,
        {"userData": "#!/bin/sh\nexport TOKEN=hf_abcdefghijklmnopqrst\n"},
    ),
    (rules.driver_held, SERVER, {"user_data": boot(SERVES, HOLD)}),
    (rules.driver_held, SERVER, {"user_data": boot(SERVES, BLACKLIST)}),
]

SILENT = [
    (rules.image_pinned, COMMAND, container(image="vllm/vllm-openai:v0.9.2")),
    (rules.image_pinned, COMMAND, container(image="a/b@sha256:" + "0" * 64)),
    (rules.image_pinned, COMMAND, {"stdin": "not a spec"}),
    (rules.image_pinned, COMMAND, {"stdin": UNKNOWN}),
    (rules.gpu_memory_left, COMMAND, container(command=["--gpu-memory-utilization", "0.95"])),
    (rules.gpu_memory_left, COMMAND, container(command=["--max-model-len", "16384"])),
    (rules.ssh_from_known_addresses, GROUP, scaleway_rule("203.0.113.7/32", 22)),
    (rules.ssh_from_known_addresses, GROUP, scaleway_rule("0.0.0.0/0", 443)),
    (rules.ssh_from_known_addresses, GROUP, scaleway_rule("0.0.0.0/0", 22, action="drop")),
    (rules.ssh_from_known_addresses, GROUP, scaleway_rule("0.0.0.0/0", 22, direction="outbound")),
    (rules.ssh_from_known_addresses, FIREWALL, linode_rule("198.51.100.0/24", "22")),
    (
        rules.ssh_from_known_addresses,
        FIREWALL,
        {"inbounds": [{"action": "ACCEPT", "protocol": "ICMP", "ipv4s": ["0.0.0.0/0"]}]},
    ),
    (rules.ssh_from_known_addresses, rules.AWS_SECURITY_GROUP, {"ingress": [UNKNOWN]}),
    (rules.vllm_behind_gateway, GROUP, scaleway_rule("0.0.0.0/0", [80, 443])),
    (rules.vllm_behind_gateway, COMMAND, container(ports=["127.0.0.1:${PORT}:${PORT}"])),
    (rules.vllm_behind_gateway, COMMAND, container("gateway", ports=["443:443", "80:80/tcp"])),
    (rules.volumes_encrypted, EC2, {"rootBlockDevice": {"encrypted": True}}),
    (rules.volumes_encrypted, EC2, {"rootBlockDevice": UNKNOWN}),
    (rules.volumes_encrypted, TEMPLATE, {"blockDeviceMappings": [{"ebs": {"encrypted": "true"}}]}),
    (rules.volumes_encrypted, VOLUME, {}),
    (rules.metadata_needs_token, EC2, {"metadataOptions": {"httpTokens": "required"}}),
    (rules.metadata_needs_token, EC2, {"metadataOptions": UNKNOWN}),
    (rules.metadata_needs_token, SERVER, {}),
    (rules.owner_tagged, SERVER, {"tags": OWNED[1:], "owner": UNKNOWN}),
    (rules.owner_tagged, LINODE, {"tags": OWNED}),
    (rules.owner_tagged, LINODE, {"tags": [UNKNOWN, OWNED[1]]}),
    (rules.owner_tagged, EC2, {"tags": {"vllm-fleet-owner": "x"}}),
    (rules.owner_tagged, EC2, {"tags": {"vllm-fleet-node": "prod/jobs"}}),
    (rules.owner_tagged, COMMAND, {}),
    (rules.root_volume_large_enough, VOLUME, {"size_gb": 150.0}),
    (rules.root_volume_large_enough, VOLUME, {"size_gb": UNKNOWN}),
    (rules.user_data_without_secrets, SERVER, {"user_data": boot(("/etc/x", "API_KEY=${VLLM_API_KEY}"))}),
    (rules.user_data_without_secrets, SERVER, {"user_data": UNKNOWN}),
    (rules.driver_held, SERVER, {"user_data": boot(SERVES, HOLD, BLACKLIST)}),
    (rules.driver_held, EC2, {"userData": "#!/bin/sh\n"}),
    (rules.production_protected, COMMAND, {}),
]


def broken(rule: Callable[[Subject], Iterator[str]], type_: str, props: Mapping[str, Any]) -> list[str]:
    return list(rule(Subject(type_, "a", props, stack="dev")))


@pytest.mark.parametrize(("rule", "type_", "props"), FIRES)
def test_a_policy_fires(rule: Any, type_: str, props: Any) -> None:
    violations = broken(rule, type_, props)
    assert violations
    assert all("; " in each for each in violations), "it says what is wrong; and how to fix it"


@pytest.mark.parametrize(("rule", "type_", "props"), SILENT)
def test_a_policy_stays_silent(rule: Any, type_: str, props: Any) -> None:
    assert broken(rule, type_, props) == []


@pytest.mark.parametrize("stack", ["prod", "production", "prod-eu"])
@pytest.mark.parametrize("machine", sorted(rules.MACHINES))
def test_a_machine_of_production_must_be_protected(stack: str, machine: str) -> None:
    open_to_deletion = Subject(machine, "a", {}, stack=stack)
    assert list(rules.production_protected(open_to_deletion))
    assert not list(rules.production_protected(Subject(machine, "a", {}, stack=stack, protected=True)))
    assert not list(rules.production_protected(Subject(machine, "a", {}, stack="product-demo")))


@pytest.mark.parametrize(
    ("limits", "cost", "said"),
    [
        ({"max_cost_per_hour": 1.5}, 2.0, "max_cost_per_hour: 1.5 EUR is below 2.0000; "),
        (
            {"max_cost_per_month": 1000.0},
            2.0,
            "max_cost_per_month: 1000 EUR is below 2.0000 * 730 h = 1460.00; ",
        ),
        (
            {"max_cost_per_hour": 5.0},
            None,
            "max_cost_per_hour: 5 cannot be kept: the stack's cost is unknown; ",
        ),
        ({"max_cost_per_hour": 5.0, "currency": "USD"}, 2.0, "the stack is billed in EUR; "),
        ({"max_cost_per_hour": 2.0, "max_cost_per_month": 1460.0}, 2.0, None),
        ({"max_cost_per_hour": 2.0}, UNKNOWN, None),
        ({}, None, None),
    ],
)
def test_a_stack_stays_within_the_limit_of_its_environment(limits: Any, cost: Any, said: str | None) -> None:
    props = {"cost_per_hour": cost, "currency": "EUR"}
    found = list(rules.within_budget(Subject("pulumi:pulumi:Stack", "s", props, config=limits)))
    assert said in found[0] if said else found == []


@pytest.mark.parametrize("cloud", ["scaleway", "linode"])
@pytest.mark.parametrize("delivery", ["ssh", "cloud-init"])
def test_our_own_user_data_breaks_a_policy_only_when_it_carries_the_secrets(
    cloud: str, delivery: str, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.touch(mode=0o600)
    stack = settings.parse(
        {
            "nodes": [{"name": "a", "cloud": "scaleway"}],
            "serving": {"model": "Qwen/Qwen3-8B-AWQ"},
            "access": {"ssh_cidrs": ["203.0.113.7/32"], "ssh_private_key_path": str(key)},
            "secrets": {"api_key": "planted-api-key-0123456789", "delivery": delivery},
        }
    )
    if cloud == "scaleway":
        host = userdata.HostPart.scaleway(stack.nodes[0], stack.secrets)
        subject = Subject(SERVER, "a", {"user_data": host.user_data()})
    else:
        host = userdata.HostPart.linode(
            stack.nodes[0], stack.secrets, userdata.HostKey("PRIVATE", "ssh-ed25519 AAAA")
        )
        subject = Subject(LINODE, "a", {"metadatas": [{"userData": host.user_data()}]})
    assert cloudconfig.written_files(subject.user_data()), "it is read, whatever the cloud's encoding"
    with_secret = delivery == "cloud-init"
    assert bool(list(rules.user_data_without_secrets(subject))) is with_secret
    others = set(rules.RESOURCE_RULES) - {rules.user_data_without_secrets, rules.owner_tagged}
    assert [violation for rule in others for violation in rule(subject)] == []
    assert "planted-api-key" not in str(list(rules.user_data_without_secrets(subject)))


def test_compressed_user_data_is_read() -> None:
    packed = base64.b64encode(gzip.compress(boot(SERVES).encode())).decode()
    assert list(rules.driver_held(Subject(LINODE, "a", {"metadatas": [{"userData": packed}]})))


def test_what_a_preview_cannot_know_is_marked_and_breaks_nothing() -> None:
    given = {"tags": [UNKNOWN_STRING_VALUE], "owner": UNKNOWN_STRING_VALUE, "rules": [{"port": 22.0}]}
    options = PolicyResourceOptions(True, [], None, [], PolicyCustomTimeouts(0, 0, 0), [])
    urn = "urn:pulumi:prod::vllm-fleet::t::a-server"
    args = ResourceValidationArgs(SERVER, unknown_checking_proxy(given), urn, "a-server", options, None)
    subject = Subject.of(args, {})
    assert subject.props == {"tags": [UNKNOWN], "owner": UNKNOWN, "rules": [{"port": 22.0}]}
    assert (subject.stack, subject.protected) == ("prod", True)
    assert [violation for rule in rules.RESOURCE_RULES for violation in rule(subject)] == []
