"""A Ray cluster with the real engine on an embedded cloud: made, changed in size, fixed, removed."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fleets import Fleet
from harness import wait_for

from fleet import ray
from simcloud import aws
from simcloud.linode import DEV_TOKEN


@pytest.fixture
def cluster(fleet: Fleet) -> dict[str, Any]:
    """The configuration of a cluster of two workers with two L4 each, and nothing beside it."""
    fleet.config["nodes"] = []
    fleet.config["ray"] = [
        {"name": "pool", "cloud": "scaleway", "zone": "fr-par-2", "type": "L4-2-24G", "count": 2}
    ]
    found: dict[str, Any] = fleet.config["ray"][0]
    return found


def launch_line(fleet: Fleet) -> list[str]:
    """What vLLM was started with, as the head has it."""
    server = fleet.outputs()["nodes"]["pool-head"]["id"]
    file = fleet.cloud.state / "nodes" / server / "root" / ray.ARGUMENTS_PATH.lstrip("/")
    words: list[str] = json.loads(file.read_text())
    return words


def value_of(flag: str, words: list[str]) -> str:
    return words[words.index(flag) + 1]


def test_a_cluster_serves_over_all_its_machines_and_only_what_must_changes_with_its_size(
    fleet: Fleet, cluster: dict[str, Any]
) -> None:
    fleet.run("up")
    outputs = fleet.outputs()
    assert outputs["ray"]["pool"] == {
        "head": "pool-head",
        "workers": ["pool-w0", "pool-w1"],
        "status": "ready",
    }
    assert outputs["nodes"]["pool-head"]["ports"] == {"vllm": 8000, "ray": 8265}
    assert "127.0.0.1:8265:127.0.0.1:8265" in outputs["nodes"]["pool-head"]["tunnel_command"]
    assert outputs["nodes"]["pool-w0"]["status"] == "in cluster pool"
    words = launch_line(fleet)
    assert (value_of("--host", words), value_of("--distributed-executor-backend", words)) == (
        "127.0.0.1",
        "ray",
    )
    ranks = int(value_of("--tensor-parallel-size", words)) * int(value_of("--pipeline-parallel-size", words))
    assert ranks == 6, "a rank on each GPU of three machines"
    assert fleet.run("up").operations == {}
    assert fleet.drift() is None

    model = fleet.config["serving"]["model"]
    fleet.config["serving"]["model"] = "fault/bad-flag"
    failed = fleet.run("up", expect_failure=True).stdout
    assert "vLLM refuses its arguments" in failed
    assert "rolled back; what served before serves, gated in" in failed
    assert launch_line(fleet) == words
    fleet.config["serving"]["model"] = model
    assert fleet.run("up").operations == {}, "what it had before is what it has"

    cluster["count"] = 3
    grown = fleet.run("up").operations
    assert {name for name in grown if name.startswith("pool") and "w2" not in name} == {
        "pool-serve",
        "pool-gate",
    }
    assert value_of("--pipeline-parallel-size", launch_line(fleet)) == "4"

    # Someone deletes a worker behind the program's back.
    gone = fleet.outputs()["nodes"]["pool-w1"]["id"]
    reply = httpx.post(
        f"{fleet.cloud.scaleway_url}/instance/v1/zones/fr-par-2/servers/{gone}/action",
        json={"action": "terminate"},
        headers={"X-Auth-Token": fleet.cloud.secret_key},
    )
    assert reply.status_code == 202
    wait_for(lambda: gone not in [each["id"] for each in fleet.cloud.inventory("server")], "it to be gone")
    fixed = fleet.run("up").operations
    assert fixed["pool-w1-server"] == ["create"]
    assert not {name for name in fixed if name.startswith(("pool-head", "pool-w0", "pool-w2"))}
    assert fleet.outputs()["ray"]["pool"]["status"] == "ready"

    cluster["count"] = 1
    shrunk = fleet.run("up").operations
    assert not {name for name in shrunk if name.startswith(("pool-head", "pool-w0"))}
    assert {name for name, done in shrunk.items() if done == ["delete"] and name.endswith("-server")} == {
        "pool-w1-server",
        "pool-w2-server",
    }
    assert value_of("--pipeline-parallel-size", launch_line(fleet)) == "2"
    fleet.run("destroy")
    assert fleet.left() == []


@pytest.mark.parametrize(
    ("cloud", "place"),
    [
        ("linode", {"region": "us-ord", "type": "g2-gpu-rtx4000a1-s"}),
        ("aws", {"region": "us-east-1", "type": "g6.xlarge"}),
    ],
)
def test_a_cluster_meets_on_its_clouds_own_private_network(
    fleet: Fleet, cluster: dict[str, Any], cloud: str, place: dict[str, str]
) -> None:
    fleet.provider |= {
        "linode:url": fleet.cloud.linode_url,
        "linode:token": DEV_TOKEN,
        "aws:region": "us-east-1",
        "aws:accessKey": aws.DEV_ACCESS_KEY,
        "aws:secretKey": aws.DEV_SECRET_KEY,
        "aws:endpoints": [dict.fromkeys(("ec2", "iam", "ssm", "sts"), fleet.cloud.aws_url)],
    }
    fleet.config["ray"] = [{"name": "pool", "cloud": cloud, "count": 1, **place}]
    fleet.config["observability"] = {"enabled": True}
    fleet.run("up")
    assert fleet.outputs()["ray"]["pool"]["status"] == "ready"
    ports = fleet.outputs()["nodes"]["pool-head"]["ports"]
    assert ports == {"vllm": 8000, "ray": 8265, "grafana": 3001, "prometheus": 9090}
    assert fleet.drift() is None
    fleet.run("destroy")
    assert fleet.left() == []
