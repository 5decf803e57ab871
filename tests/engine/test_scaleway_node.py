"""What is Scaleway's own about a node on Scaleway; what every node promises is tried in test_contract.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from fleets import Fleet

Entry = dict[str, Any]


def test_the_server_is_made_by_the_validated_sequence(ready_fleet: Fleet) -> None:
    log = ready_fleet.cloud.log()

    def first(wanted: Callable[[Entry], bool]) -> Entry:
        return next(entry for entry in log if wanted(entry))

    def call(name: str) -> Entry:
        return first(lambda entry: entry.get("call") == name)

    def event(what: str) -> Entry:
        return first(lambda entry: entry["type"] == "event" and entry["what"].startswith(what))

    created, action = call("create_server"), call("server_action")
    grown = first(lambda entry: entry.get("call") == "update_volume" and "size" in entry["body"])
    steps = [
        *(created, call("get_server"), grown, event("in_use 200 GB")),
        *(action, event("starting"), event("running"), call("get_user_data")),
    ]
    assert [step["seq"] for step in steps] == sorted(step["seq"] for step in steps)
    body = created["body"]
    assert "volumes" not in body
    assert (body["dynamic_ip_required"], body["boot_type"]) == (True, "local")
    assert {"name", "commercial_type", "project", "image", "tags"} <= body.keys()
    assert grown["body"]["size"] == 200 * 10**9
    assert action["body"] == {"action": "poweron"}
    assert call("set_user_data")["seq"] < action["seq"]


def test_a_server_made_by_a_request_that_took_effect_too_late_is_removed_by_the_next_up(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.run("up")
    request = fleet.cloud.calls("create_server")[0]
    httpx.post(
        f"{fleet.cloud.base_url}{request['path']}",
        json=request["body"],
        headers={"X-Auth-Token": fleet.cloud.secret_key},
    ).raise_for_status()
    found = fleet.drift()
    assert found is not None
    assert "retirement" in found.drifted

    fleet.run("up")
    assert fleet.parts() == fleet.whole("a")
    assert fleet.drift() is None


def test_a_changed_type_makes_the_new_server_before_the_old_one_goes(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.run("up")
    fleet.config["nodes"][0]["type"] = "H100-1-80G"
    fleet.run("up")
    order = [
        call["call"] for call in fleet.cloud.calls() if call["call"] in ("create_server", "delete_volume")
    ]
    assert order == ["create_server", "create_server", "delete_volume"]
    assert fleet.parts() == fleet.whole("a")
    assert fleet.drift() is None
