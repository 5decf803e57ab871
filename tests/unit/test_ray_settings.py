"""Ray clusters in the configuration: machines of one kind under one name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fleet import settings


@pytest.fixture
def stack(tmp_path: Path) -> dict[str, Any]:
    key = tmp_path / "id_ed25519"
    key.write_text("a key")
    key.chmod(0o600)
    return {
        "ray": [{"name": "pool", "cloud": "scaleway", "type": "L4-2-24G", "count": 2}],
        "serving": {"model": "Qwen/Qwen3-8B-AWQ"},
        "access": {"ssh_cidrs": ["203.0.113.7/32"], "ssh_private_key_path": str(key)},
        "secrets": {"api_key": "a-key-of-16-or-more"},
    }


def test_a_cluster_is_a_head_and_workers_of_its_own_kind(stack: dict[str, Any]) -> None:
    parsed = settings.parse({**stack, "nodes": [{"name": "a", "cloud": "scaleway"}]})
    assert [machine.name for machine in parsed.machines] == ["a", "pool-head", "pool-w0", "pool-w1"]
    (cluster,) = parsed.ray
    assert [member.name for member in cluster.members] == ["pool-head", "pool-w0", "pool-w1"]
    assert {(type(member), member.type) for member in cluster.members} == {
        (settings.ScalewayNode, "L4-2-24G")
    }
    assert cluster.head.serving.model == "Qwen/Qwen3-8B-AWQ"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "a" * 26}, "ray[0].name: 'aaaaaaaaaaaaaaaaaaaaaaaaaa' is too long"),
        ({"count": 32}, "ray[0].count: 32 is above the maximum of 31"),
        ({"ray_version": "2.43.0"}, "ray[0].ray_version: '2.43.0' checks no token"),
        ({"network": "198.51.100.0/24"}, "ray[0].network: '198.51.100.0/24' is no private IPv4 network"),
        ({"network": "10.77.0.1/24"}, "ray[0].network: '10.77.0.1/24' has bits set beyond its prefix"),
        ({"cloud": "cheapest"}, "ray[0]: cloud: 'cheapest' is not supported"),
        (
            {"serving": {"image": f"vllm/vllm-openai@sha256:{'0' * 64}"}},
            f"ray[0].serving.image: vllm/vllm-openai@sha256:{'0' * 64} names no vLLM",
        ),
        ({"type": "L4-1"}, "ray[0].type: 'L4-1' is not a GPU type of scaleway"),
    ],
)
def test_a_wrong_cluster_is_refused_with_field_value_and_fix(
    stack: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    stack["ray"][0] |= changes
    with pytest.raises(settings.SettingsError) as caught:
        settings.parse(stack)
    assert said in str(caught.value)


def test_a_machine_of_a_cluster_takes_no_nodes_name(stack: dict[str, Any]) -> None:
    stack["nodes"] = [{"name": "pool-w0", "cloud": "scaleway"}]
    with pytest.raises(settings.SettingsError, match="the name pool-w0 is used 2 times"):
        settings.parse(stack)


def test_a_gateway_that_would_not_reach_the_cluster_is_refused_by_its_name(stack: dict[str, Any]) -> None:
    stack["nodes"] = [{"name": "a", "cloud": "scaleway"}]
    stack["expose"] = {"domain": "llm.example.com", "cidrs": ["203.0.113.0/24"], "tls": "internal"}
    with pytest.raises(
        settings.SettingsError, match=r"expose: .* Ray cluster pool; .*fleet tunnel pool-head"
    ):
        settings.parse(stack)
    stack["ray"][0]["serve"] = False
    assert settings.parse(stack).expose


def test_a_stack_has_a_node_or_a_cluster(stack: dict[str, Any]) -> None:
    stack |= {"nodes": [], "ray": []}
    with pytest.raises(settings.SettingsError, match="nodes: is empty; give at least one"):
        settings.parse(stack)


def test_what_watches_a_machine_keeps_its_ports(stack: dict[str, Any]) -> None:
    stack["observability"] = {"enabled": True}
    stack["serving"]["port"] = 9090
    with pytest.raises(settings.SettingsError, match="9090 of pool-head is Prometheus's while observability"):
        settings.parse(stack)
