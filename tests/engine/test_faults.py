"""Every call × every way it can fail: done after retries, or an error that says which call, of what, and what
to do; never two servers; nothing left after destroy.

The calls that make, grow, start and delete a node on Scaleway are this program's own, and so is their
patience. On Linode and AWS the providers make most of them, here stand-ins over the vendors' clients: which
of their calls are sent again is theirs to decide. What is ours there, and shown here, is that whatever they
leave behind is found again by the next run, and that it is one machine in the end.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from clouds import LASTING, PASSING, READ_TIMEOUT_S, Call
from fleets import Fleet, each_cloud_in_turn
from harness import Result

FOR_EVER = 1000
"""Times that a fault is met: as often as anybody tries."""


@each_cloud_in_turn(pytest.mark.faults)
def test_a_failing_call_is_repeated_or_explained_and_up_and_destroy_converge(fleet: Fleet) -> None:
    calls = fleet.promises.creating
    fleet.cloud.console("ec2").describe_regions()  # loaded by now, it replies at once
    fleet.stack.env["AWS_READ_TIMEOUT_S"] = READ_TIMEOUT_S
    # Nodes are independent of each other: one update tries each call on a node of its own.
    nodes = {call: call.lower().replace("_", "-") for call in calls}
    fleet.nodes(*nodes.values())
    for faults in rounds(calls):
        plant(fleet, faults, nodes)
        # Without the look at what is there, so that the faults are met by what the update does.
        command = fleet.start("up", "--refresh=false")
        explained(command.wait(), faults, calls, nodes)
        met(fleet)
        one_at_most(fleet)
    assert fleet.run("up").operations == {}
    assert fleet.statuses() == {"ready"}
    assert fleet.parts() == fleet.whole(*nodes.values())

    if fleet.promises.removed_by_owner:
        removed_in_spite_of(fleet)
        return
    calls = fleet.promises.deleting
    nodes = dict(zip(calls, nodes.values(), strict=False))
    for faults in rounds(calls):
        plant(fleet, faults, nodes)
        command = fleet.start("destroy", "--refresh=false")
        explained(command.wait(), faults, calls, nodes)
        met(fleet)
    assert fleet.left() == []


def test_false_and_spoilt_replies_cost_nothing_from_a_nodes_creation_to_its_end(fleet: Fleet) -> None:
    for call, fault in (("create_security_group", "garbage"), ("create_server", "html_502")):
        fleet.cloud.set_fault(call, "lag", misses=2)
        fleet.cloud.set_fault(call, fault)
    fleet.run("up")
    made = {thing["id"] for thing in fleet.cloud.inventory()}
    for call in ("get_server", "get_volume", "get_security_group"):
        fleet.cloud.set_fault(call, "404", times=2)
    assert fleet.run("up").operations == {}
    assert fleet.drift() is None
    assert {thing["id"] for thing in fleet.cloud.inventory()} == made
    for call, fault in (("server_action", "404"), ("delete_volume", "truncated"), ("list_servers", "nulls")):
        fleet.cloud.set_fault(call, fault)
    fleet.run("destroy")
    assert fleet.left() == []
    met(fleet)


def removed_in_spite_of(fleet: Fleet) -> None:
    """Destroy is one resource's work: whatever stays is named, and the next destroy goes on from there."""
    for index, (name, call) in enumerate(fleet.promises.deleting.items()):
        fault = call.fails[index % len(call.fails)]
        fleet.cloud.set_fault(name, fault, times=FOR_EVER)
        refused = fleet.start("destroy", "--refresh=false").wait()
        errors = " ".join(text for _, text in refused.errors)
        assert call.said in errors, f"{fault} on {name} was not named in: {errors}"
        assert "Fix: " in errors
        assert fleet.left() != []
        fleet.cloud.clear_faults()
    for name, call in fleet.promises.deleting.items():
        for fault in (kind for kind in PASSING if kind not in call.fails):
            fleet.cloud.set_fault(name, fault)
    fleet.run("destroy", "--refresh=false")
    assert fleet.left() == []


def rounds(calls: Mapping[str, Call]) -> list[dict[str, list[str]]]:
    """The faults that each call meets in one command after another.

    Each of the commands but the last meets one fault that ends in an error, after some that pass: from the
    error it is seen that those did. A reply that is lost comes last of all, for what took effect is not tried
    again.
    """
    commands = max(len(call.fails) for call in calls.values())
    found: list[dict[str, list[str]]] = [{} for _ in range(commands + 1)]
    for name, call in calls.items():
        passing = [kind for kind in PASSING if kind not in call.fails]
        for index, faults in enumerate(reversed(found)):
            last = [] if index == 0 else [call.fails[(commands - index) % len(call.fails)]]
            faults[name] = passing[-2:] + last
            del passing[-2:]
        assert passing == [], f"{name}: too few commands for {passing}"
    return found


def plant(fleet: Fleet, faults: Mapping[str, list[str]], nodes: Mapping[str, str]) -> None:
    fleet.cloud.clear_faults()
    for call, kinds in faults.items():
        for kind in kinds:
            fleet.cloud.set_fault(call, kind, node=nodes[call], times=FOR_EVER if kind in LASTING else 1)


def explained(
    result: Result, faults: Mapping[str, list[str]], calls: Mapping[str, Call], nodes: Mapping[str, str]
) -> None:
    """Who met what lasts says so with the call and the fix; nobody else says anything."""
    for call, kinds in faults.items():
        errors = " ".join(text for name, text in result.errors if name.startswith(f"{nodes[call]}-"))
        if kinds[-1] in calls[call].fails:
            # The vendor's plugin and our own client each name a call in their own way.
            named = calls[call].said in errors or call in errors
            assert named, f"{kinds} on {call} was not named in: {errors}"
            assert "Fix: " in errors
        else:
            assert errors == "", f"{kinds} on {call} should have passed, but: {errors}"


def met(fleet: Fleet) -> None:
    """No fault was planted for nothing."""
    planted = fleet.cloud.faults()["planted"]
    assert [fault for fault in planted if fault["times"] in (1, FOR_EVER)] == []


def one_at_most(fleet: Fleet) -> None:
    for node, parts in fleet.parts().items():
        assert set(parts.values()) == {1}, f"{node}: {parts}"
