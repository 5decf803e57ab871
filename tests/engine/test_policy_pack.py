"""The policy pack under the real engine: what breaks a policy stops a preview, what keeps it passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fleets import Fleet
from harness import ROOT, Result

from policy import rules

POLICY_PACK = ("--policy-pack", str(ROOT / "policy"))
IN_DEVELOPMENT = ("--policy-pack-config", str(ROOT / "policy" / "config.dev.json"))

# Policies read what is declared: components declare any type, and need no provider to be tried with.
DECLARED = """
    import json
    import pulumi
    from pulumi_command import local

    def declare(type_, name, **props):
        pulumi.ComponentResource(type_, name, props, pulumi.ResourceOptions(protect={protect}))

    compose = json.dumps({{"services": {{"vllm": {{
        "image": "vllm/vllm-openai:{tag}", "command": ["--gpu-memory-utilization", "{utilization}"]}}}}}})
    local.Command("rollout", create="true", stdin=json.dumps({{"compose": compose}}))
    files = {files}
    declare(
        "pulumi-python:dynamic/scaleway:Server", "server", owner={owner!r}, tags=["vllm-fleet-node=prod/a"],
        user_data="#cloud-config\\n" + json.dumps({{"write_files": [
            {{"path": path, "content": content}} for path, content in files.items()]}}),
    )
    declare("pulumi-python:dynamic/scaleway:RootVolume", "volume", size_gb={size_gb})
    declare("pulumi-python:dynamic/scaleway:SecurityGroup", "group", owner="x",
            tags=["vllm-fleet-node=prod/a"], rules=[{{"protocol": "TCP", "cidr": {cidr!r}, "port": {ports}}}])
    declare("aws:ec2/instance:Instance", "ec2", tags={{"vllm-fleet-owner": "x"}},
            rootBlockDevice={{"encrypted": {encrypted}}}, metadataOptions={{"httpTokens": {tokens!r}}})
    pulumi.export("cost_per_hour", {cost})
    pulumi.export("currency", "EUR")
    """
BAD = DECLARED.format(
    protect=False,
    tag="latest",
    utilization=0.99,
    files={"/opt/llm/docker-compose.yml": "services: {}", "/opt/llm/.env": "PORT='8000'"},
    owner="",
    size_gb=100,
    cidr="0.0.0.0/0",
    ports=[1, 65535],
    encrypted=False,
    tokens="optional",
    cost=1000,
)
GOOD = DECLARED.format(
    protect=True,
    tag="v0.9.2",
    utilization=0.9,
    files={
        "/opt/llm/docker-compose.yml": "services: {}",
        "/etc/apt/apt.conf.d/52": 'Unattended-Upgrade::Package-Blacklist { "nvidia-"; }',
        "/usr/local/lib/setup.sh": "apt-mark hold nvidia-driver",
    },
    owner="x",
    size_gb=150,
    cidr="203.0.113.7/32",
    ports=22,
    encrypted=True,
    tokens="required",
    cost=1,
)
IN_PRODUCTION = ("--policy-pack-config", str(ROOT / "policy" / "config.prod.json"))
EVERY_POLICY = {rule.__name__.replace("_", "-") for rule in (*rules.RESOURCE_RULES, rules.within_budget)}


def fired(result: Result) -> dict[str, str]:
    """Policies that the engine found broken, with how strictly each is meant."""
    events = [event["policyEvent"] for event in result.events if "policyEvent" in event]
    return {event["policyName"]: event["enforcementLevel"] for event in events}


def test_every_policy_stops_a_production_stack_that_breaks_it(pulumi: Callable[..., Any]) -> None:
    stack = pulumi(BAD)
    stack.name = "prod"
    stack.ask("stack", "init")
    refused = stack.run("preview", *POLICY_PACK, *IN_PRODUCTION, expect_failure=True)
    assert fired(refused) == dict.fromkeys(EVERY_POLICY, "mandatory")
    assert "vllm: image 'vllm/vllm-openai:latest' moves under you; pin a release tag" in refused.stdout

    stack.program(GOOD)
    assert fired(stack.run("preview", *POLICY_PACK, *IN_PRODUCTION)) == {}


def test_in_development_policies_advise(pulumi: Callable[..., Any]) -> None:
    advised = pulumi(BAD).run("preview", *POLICY_PACK, *IN_DEVELOPMENT)
    # A budget and protection are for environments that have them.
    elsewhere = {"within-budget", "production-protected"}
    assert fired(advised) == dict.fromkeys(EVERY_POLICY - elsewhere, "advisory")


def test_a_node_of_this_project_keeps_every_policy(fleet: Fleet) -> None:
    shown = fleet.run("preview", *POLICY_PACK)
    assert fired(shown) == {}
    assert "can't run policy" not in shown.stdout
