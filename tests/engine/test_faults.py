"""Every call × every way it can fail: done after retries, or an error that says which call, of what, and what
to do; never two servers; nothing left after destroy."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from fleets import Fleet

CREATING = [
    "list_security_groups",
    "create_security_group",
    "set_rules",
    "get_security_group",
    "list_rules",
    "list_servers",
    "create_server",
    "get_server",
    "set_user_data",
    "get_volume",
    "update_volume",
    "update_server",
    "server_action",
    "get_user_data",
]
DELETING = [
    "get_server",
    "server_action",
    "get_volume",
    "delete_volume",
    "delete_security_group",
    "list_servers",
    "list_volumes",
    "list_ips",
    "list_security_groups",
]
PASSING = ["429", "500", "503", "timeout", "reset", "lost_reply"]
LASTING = ["403", "quota", "out_of_stock"]

# Nodes are independent of each other, so one update tries many faults, each on a node of its own.
PAIRS = list(itertools.product(CREATING, PASSING + LASTING))
SHARDS = 6


@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_failing_call_is_retried_or_explained_and_the_next_up_and_destroy_converge(
    fleet: Fleet, shard: int
) -> None:
    planted = {f"n{index}": pair for index, pair in enumerate(PAIRS[shard::SHARDS])}
    fleet.nodes(*planted)
    for node, (call, kind) in planted.items():
        fleet.cloud.set_fault(call, kind, node=node, times=1 if kind in PASSING else 100)
    lasting = {node for node, (_, kind) in planted.items() if kind in LASTING}

    first = fleet.run("up", expect_failure=bool(lasting))
    assert untouched(fleet) == []
    for node, (call, kind) in planted.items():
        errors = " ".join(text for resource, text in first.errors if resource.startswith(f"{node}-"))
        if node in lasting:
            assert call in errors, f"{node}: {kind} on {call} was not named in: {errors}"
            assert "Mend: " in errors
        else:
            assert errors == "", f"{node}: {kind} on {call} should have passed, but: {errors}"
    at_most_one_server_each(fleet)

    fleet.cloud.clear_faults()
    fleet.run("up")
    assert {node["status"] for node in fleet.outputs()["nodes"].values()} == {"ready"}
    at_most_one_server_each(fleet)

    for node, (call, kind) in zip(planted, shard_of_deletions(shard), strict=False):
        fleet.cloud.set_fault(call, kind, node=node, times=1 if kind in PASSING else 100)
    fleet.stack.start("destroy").wait()
    fleet.cloud.clear_faults()
    fleet.run("destroy")
    assert fleet.left() == []


def shard_of_deletions(shard: int) -> list[tuple[str, str]]:
    return list(itertools.product(DELETING, PASSING + LASTING))[shard::SHARDS]


def untouched(fleet: Fleet) -> list[object]:
    """Planted faults that no call has met: a test of nothing."""
    return [fault for fault in fleet.cloud.faults()["planted"] if fault["times"] in (1, 100)]


def at_most_one_server_each(fleet: Fleet) -> None:
    for kind in ("server", "volume", "security_group"):
        counts = Counter(
            thing["name"] if kind != "volume" else thing["node"] for thing in fleet.cloud.inventory(kind)
        )
        assert not [name for name, count in counts.items() if count > 1], f"more than one {kind}: {counts}"
