"""What a preview promises is what the update then does: for every setting that can be changed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fleets import Fleet, every_cloud, node_config

Operations = dict[str, Counter[str]]
"""How often each operation meets a resource, by the resource's name; unchanged ones are left out."""

NODE_CHANGES: Mapping[str, Mapping[str, Any]] = {
    "tags": {"tags": ["team=ml"]},
    "protect": {"protect": True},
    "ttl": {"ttl_hours": 5},
    "max-model-len": {"serving": {"max_model_len": 8192}},
    "image": {"serving": {"image": "vllm/vllm-openai:v0.10.0"}},
    "environment": {"serving": {"environment": {"VLLM_LOGGING_LEVEL": "DEBUG"}}},
    "extra-args": {"serving": {"extra_args": ["--enable-prefix-caching"]}},
    "port": {"serving": {"port": 8001}},
    "webui": {"serving": {"webui": True}},
    "phases": {"provision": {"environment": {"CITY": "Lyon"}}},
}
"""Settings of a node, each tried on a node of its own."""

CLOUD_CHANGES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "scaleway": {
        "size": {"root_volume_gb": 250},
        "type": {"type": "L4-2-24G"},
        "zone": {"zone": "fr-par-1"},
    },
    "linode": {
        "driver": {"driver_branch": 570},
        "type": {"type": "g2-gpu-rtx4000a2-s"},
    },
    "aws": {
        "size": {"root_volume_gb": 250},
        "throughput": {"volume_throughput": 250},
        "iops": {"volume_iops": 4000},
        "elastic-ip": {"elastic_ip": True},
        "ami": {"ami": "ami-0d1a0000000000001"},
    },
}

STACK_CHANGES: Mapping[str, Mapping[str, Any]] = {
    "a door for another operator": {"access": {"ssh_cidrs": ["127.0.0.1/32", "192.0.2.7/32"]}},
    "other deadlines": {"health": {"ready_timeout_s": 90, "ssh_timeout_s": 61}},
    "a stricter rollout": {"rollout": {"min_free_disk_gb": 20}},
    "a budget": {"budget": {"max_cost_per_hour": 90.0}},
    "dashboards": {"observability": {"enabled": True}},
    "another model": {"serving": {"model": "Qwen/Qwen3-4B-AWQ"}},
}
"""Settings of the stack, one after the other on one node."""


def promised(fleet: Fleet) -> Operations:
    """What `pulumi preview --json` says that an update would do."""
    fleet.write()
    steps = json.loads(fleet.stack.ask("preview", "--json"))["steps"]
    return counted((step["urn"], step["op"]) for step in steps)


def counted(steps: Any) -> Operations:
    found: Operations = {}
    for urn, operation in steps:
        if "pulumi:providers:" not in urn and operation not in ("same", "refresh", "read"):
            found.setdefault(urn.rpartition("::")[2], Counter())[operation] += 1
    return found


def done(fleet: Fleet) -> Operations:
    """What `pulumi up` does, by the engine's own events."""
    events = [event.get("resourcePreEvent", {}).get("metadata") for event in fleet.run("up").events]
    return counted((each["urn"], each["op"]) for each in events if each)


@every_cloud
def test_an_update_does_what_its_preview_promised_for_each_setting_of_a_node(fleet: Fleet) -> None:
    changes = {**NODE_CHANGES, **CLOUD_CHANGES[fleet.cloud_name]}
    fleet.nodes(*changes)
    fleet.config["rollout"] = {"max_unavailable": len(changes)}
    fleet.run("up")
    fleet.config["nodes"] = [
        {**node_config(fleet.cloud_name, name), **change} for name, change in changes.items()
    ]
    promises = promised(fleet)
    assert done(fleet) == promises
    replaced = {name.partition("-server")[0] for name, ops in promises.items() if "replace" in ops}
    assert not replaced & set(NODE_CHANGES), "no such setting needs another machine"
    assert promised(fleet) == {}


@every_cloud
def test_an_update_does_what_its_preview_promised_for_each_setting_of_the_stack(fleet: Fleet) -> None:
    fleet.run("up")
    for name, change in STACK_CHANGES.items():
        for section, values in change.items():
            fleet.config[section] = {**fleet.config.get(section, {}), **values}
        promises = promised(fleet)
        assert done(fleet) == promises, name
    assert promised(fleet) == {}
