"""What a preview promises is what the update then does: for every setting that can be changed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from fleets import Fleet, node_config

Operations = dict[str, Counter[str]]
"""How often each operation meets a resource, by the resource's name; unchanged ones are left out."""

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

UNTOLD = frozenset({"same", "refresh", "read", "create-replacement", "delete-replaced"})
"""No changes, and the steps of a replacement, which a preview sums up as `replace`."""

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
    "files": {"serving": {"files": {"Pulumi.yaml": "Pulumi.yaml"}}},
    "phases": {"provision": {"environment": {"CITY": "Lyon"}}},
}
"""Settings of a node that need no other machine."""
AT_ONCE = 4
"""How many of them are tried at a time, each on a node of its own."""

CLOUD_CHANGES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "scaleway": {
        "type": {"type": "L4-2-24G"},
        "zone": {"zone": "fr-par-1"},
        "size": {"root_volume_gb": 250},
    },
    "linode": {
        "driver": {"driver_branch": 570},
        "type": {"type": "g2-gpu-rtx4000a2-s"},
    },
    "aws": {
        "throughput": {"volume_throughput": 250},
        "elastic-ip": {"elastic_ip": True},
        "iops": {"volume_iops": 4000},
        "ami": {"ami": "ami-0d1a0000000000001"},
        "size": {"root_volume_gb": 250},
    },
}
"""Settings of a cloud's own; volumes only grow, so their sizes are the last."""

tried = pytest.mark.parametrize("fleet", ["scaleway"], indirect=True)
"""The clouds that were seen to keep these promises."""

STACK_CHANGES: Mapping[str, Mapping[str, Any]] = {
    "a door for another operator": {"access": {"ssh_cidrs": ["127.0.0.1/32", "192.0.2.7/32"]}},
    "another operator's key": {"access": {"authorized_keys": [KEY]}},
    "a longer wait": {"health": {"ready_timeout_s": 90}},
    "more room for the first deployment": {"rollout": {"min_free_disk_gb": 90}},
    "a limit": {"budget": {"max_cost_per_hour": 50, "currency": "EUR"}},
}
"""Settings of the stack, one after the other on one node."""


def promised(fleet: Fleet) -> Operations:
    """What `pulumi preview --json` says that an update would do."""
    fleet.write()
    steps = json.loads(fleet.stack.ask("preview", "--json"))["steps"]
    return counted((step["urn"], step["op"]) for step in steps)


def counted(steps: Iterable[tuple[str, str]]) -> Operations:
    found: Operations = {}
    for urn, operation in steps:
        if "pulumi:providers:" not in urn and operation not in UNTOLD:
            found.setdefault(urn.rpartition("::")[2], Counter())[operation] += 1
    return found


def done(fleet: Fleet) -> Operations:
    """What `pulumi up` does, by the engine's own events."""
    events = [event.get("resourcePreEvent", {}).get("metadata") for event in fleet.run("up").events]
    return counted((each["urn"], each["op"]) for each in events if each)


@tried
def test_an_update_does_what_its_preview_promised_for_each_setting_of_a_node(fleet: Fleet) -> None:
    # Those that may need another machine come last.
    changes = [*NODE_CHANGES.values(), *CLOUD_CHANGES[fleet.cloud_name].values()]
    nodes = [f"n{number}" for number in range(AT_ONCE)]
    fleet.nodes(*nodes)
    fleet.config["rollout"] = {"max_unavailable": AT_ONCE}
    fleet.run("up")
    for first in range(0, len(changes), AT_ONCE):
        given = dict(zip(nodes, changes[first : first + AT_ONCE], strict=False))
        fleet.config["nodes"] = [
            {**node_config(fleet.cloud_name, node), **given.get(node, {})} for node in nodes
        ]
        promises = promised(fleet)
        assert done(fleet) == promises, given
        light = {node for node, change in given.items() if change in NODE_CHANGES.values()}
        machines = {f"{node}-server" for node in light} | {f"{node}-root-volume" for node in light}
        assert not machines & {name for name, operations in promises.items() if "replace" in operations}
    assert promised(fleet) == {}


@tried
def test_an_update_does_what_its_preview_promised_for_each_setting_of_the_stack(fleet: Fleet) -> None:
    fleet.run("up")
    for name, change in STACK_CHANGES.items():
        for section, values in change.items():
            fleet.config[section] = {**fleet.config.get(section, {}), **values}
        promises = promised(fleet)
        assert done(fleet) == promises, name
    assert promised(fleet) == {}
