"""The engine dies at any moment of an update: the next converges on one server, destroy leaves nothing."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from fleets import Fleet, each_cloud_in_turn


def killed_at(fleet: Fleet, moments: Mapping[str, tuple[str, str]], *others: str) -> None:
    """Kill an update while each node is at a moment of its own; what was held goes on afterwards.

    Of the `others`, each is then at its gate: its model never loads.
    """
    fleet.nodes(*moments, *others)
    # Nobody gives up on a held call.
    fleet.provider["scaleway:timeout"] = 120
    fleet.stack.env |= {"LINODE_READ_TIMEOUT_S": "120", "AWS_READ_TIMEOUT_S": "120"}
    for node, (call, moment) in moments.items():
        fleet.cloud.set_fault(call, moment, node=node)
    for node in others:
        fleet.cloud.set_node_fault(node, "hang_loading")
    update = fleet.start("up")

    def there() -> bool:
        events = update.event_log.read_text().splitlines() if update.event_log.exists() else []
        started = [line for line in events if "resourcePreEvent" in line]
        held = {each["node"] for each in fleet.cloud.faults()["held"]}
        return held == moments.keys() and all(
            any(f"::{node}-serving-gate" in line for line in started) for node in others
        )

    update.wait_until(there, "each node to be at its moment")
    update.kill()
    fleet.cloud.release()
    for node in others:
        fleet.cloud.set_node_fault(node, None)
    fleet.stack.unlock()


def moments_of(fleet: Fleet) -> dict[str, tuple[str, str]]:
    """Each moment with the name of a node to try it on."""
    return {f"m{number}": moment for number, moment in enumerate(fleet.promises.moments)}


@each_cloud_in_turn(pytest.mark.kills)
def test_an_update_killed_at_any_moment_is_taken_up_by_the_next(fleet: Fleet) -> None:
    moments = moments_of(fleet)
    killed_at(fleet, moments, "at-its-gate")
    fleet.run("up")
    assert fleet.statuses() == {"ready"}
    assert fleet.parts() == fleet.whole(*moments, "at-its-gate")
    assert fleet.drift() is None
    fleet.run("destroy")
    assert fleet.left() == []


@each_cloud_in_turn(pytest.mark.kills)
def test_destroy_after_a_kill_also_removes_what_never_reached_the_state(fleet: Fleet) -> None:
    moments = {node: moment for node, moment in moments_of(fleet).items() if moment[1] == "hold_after"}
    killed_at(fleet, moments)
    assert "server" in {line.split()[0] for line in fleet.left()}
    fleet.run("destroy")
    assert fleet.left() == []


@each_cloud_in_turn(pytest.mark.kills)
def test_another_machine_asked_for_after_a_kill_is_the_only_one(fleet: Fleet) -> None:
    killed_at(fleet, {"a": (fleet.promises.create_server, "hold_after")})
    fleet.config["nodes"][0] |= fleet.promises.host_part
    fleet.run("up")
    assert fleet.parts() == fleet.whole("a")
    assert fleet.drift() is None
