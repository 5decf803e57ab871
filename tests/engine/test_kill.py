"""The engine dies at any moment of an update: the next converges on one server, destroy leaves nothing."""

from __future__ import annotations

import httpx
import pytest
from fleets import Fleet
from test_faults import at_most_one_server_each

# Each call is held before its effect, or after it and before its reply: the two sides of a crash.
MOMENTS = [
    ("create_security_group", "hold"),
    ("create_security_group", "hold_after"),
    ("set_rules", "hold_after"),
    ("create_server", "hold"),
    ("create_server", "hold_after"),
    ("set_user_data", "hold"),
    ("set_user_data", "hold_after"),
    ("update_volume", "hold_after"),
    ("update_server", "hold_after"),
    ("server_action", "hold"),
    ("server_action", "hold_after"),
    ("get_user_data", "hold"),
]


@pytest.mark.parametrize(("call", "moment"), MOMENTS)
def test_an_update_killed_at_any_moment_is_taken_up_by_the_next(fleet: Fleet, call: str, moment: str) -> None:
    fleet.cloud.set_fault(call, moment, node="a")
    update = fleet.start("up")
    fleet.cloud.wait_until_held(call)
    update.kill()
    fleet.cloud.release()

    fleet.stack.unlock()
    fleet.run("up")
    assert fleet.outputs()["nodes"]["a"]["status"] == "ready"
    at_most_one_server_each(fleet)
    fleet.run("destroy")
    assert fleet.left() == []


@pytest.mark.parametrize("call", ["create_server", "set_user_data"])
def test_destroy_after_a_kill_also_removes_what_never_reached_the_state(fleet: Fleet, call: str) -> None:
    fleet.cloud.set_fault(call, "hold_after", node="a")
    update = fleet.start("up")
    fleet.cloud.wait_until_held(call)
    update.kill()
    fleet.cloud.release()
    assert "server test-a" in fleet.left()

    fleet.stack.unlock()
    fleet.run("destroy")
    assert fleet.left() == []


def test_a_server_made_by_a_request_that_took_effect_too_late_is_removed_by_the_next_up(fleet: Fleet) -> None:
    fleet.run("up")
    request = fleet.cloud.calls("create_server")[0]
    httpx.post(
        f"{fleet.cloud.base_url}{request['path']}",
        json=request["body"],
        headers={"X-Auth-Token": fleet.cloud.secret_key},
    ).raise_for_status()
    found = fleet.drift()
    assert found is not None
    assert "a-owner" in found.drifted

    fleet.run("up")
    at_most_one_server_each(fleet)
    assert fleet.drift() is None


def test_a_changed_type_after_a_kill_leaves_one_server_of_the_new_type(fleet: Fleet) -> None:
    fleet.cloud.set_fault("create_server", "hold_after", node="a")
    update = fleet.start("up")
    fleet.cloud.wait_until_held("create_server")
    update.kill()
    fleet.cloud.release()

    fleet.stack.unlock()
    fleet.config["nodes"][0]["type"] = "L40S-1-48G"
    fleet.run("up")
    at_most_one_server_each(fleet)
    assert fleet.outputs()["nodes"]["a"]["type"] == "L40S-1-48G"


def test_a_changed_type_makes_the_new_server_before_the_old_one_goes(fleet: Fleet) -> None:
    fleet.run("up")
    fleet.config["nodes"][0]["type"] = "H100-1-80G"
    fleet.run("up")
    order = [
        entry["call"] for entry in fleet.cloud.calls() if entry["call"] in ("create_server", "delete_volume")
    ]
    assert order == ["create_server", "create_server", "delete_volume"]
    at_most_one_server_each(fleet)
    assert fleet.drift() is None
