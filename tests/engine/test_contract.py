"""What every node promises, whatever its cloud: tried with the real engine on an embedded cloud."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fleets import SECRETS, Fleet
from harness import wait_for


def test_up_makes_a_node_ready_and_destroy_leaves_nothing(fleet: Fleet) -> None:
    result = fleet.run("up")
    node = fleet.outputs()["nodes"]["a"]
    assert node["status"] == "ready"
    assert node["root_volume_gb"] == 200
    assert node["model"] == "Qwen/Qwen3-8B-AWQ"
    stages = [int(line.split("%")[0].split()[-1]) for line in result.stdout.splitlines() if " % " in line]
    assert {0, 20, 25, 30, 40, 45, 50, 60, 70, 80, 90, 95, 100} <= set(stages)

    fleet.run("destroy")
    assert fleet.left() == []


def test_the_server_is_made_by_the_validated_sequence(fleet: Fleet) -> None:
    fleet.run("up")
    log = fleet.cloud.log()
    steps = [
        first(log, lambda e: e.get("call") == "create_server"),
        first(log, lambda e: e.get("call") == "get_server"),
        first(log, lambda e: e.get("call") == "update_volume"),
        first(log, lambda e: e["type"] == "event" and e["what"] == "in_use 200 GB"),
        first(log, lambda e: e.get("call") == "server_action"),
        first(log, lambda e: e["type"] == "event" and e["what"].startswith("starting")),
        first(log, lambda e: e["type"] == "event" and e["what"].startswith("running")),
        first(log, lambda e: e.get("call") == "get_user_data"),
    ]
    assert [step["seq"] for step in steps] == sorted(step["seq"] for step in steps)
    created, _, grown, _, action, *_ = steps
    body = created["body"]
    assert "volumes" not in body
    assert (body["dynamic_ip_required"], body["boot_type"]) == (True, "local")
    assert {"name", "commercial_type", "project", "image", "tags"} <= body.keys()
    assert grown["body"]["size"] == 200 * 10**9
    assert action["body"] == {"action": "poweron"}
    assert first(log, lambda e: e.get("call") == "set_user_data")["seq"] < action["seq"]


def first(log: list[dict[str, Any]], wanted: Any) -> dict[str, Any]:
    return next(entry for entry in log if wanted(entry))


def test_a_second_up_changes_nothing_and_asks_nothing_to_be_done(fleet: Fleet) -> None:
    fleet.run("up")
    seen = fleet.cloud.log()[-1]["seq"]
    assert fleet.run("up").changes == {}
    assert fleet.run("preview", "--expect-no-changes").changes == {}
    assert fleet.drift() is None
    assert {entry["method"] for entry in fleet.cloud.calls(after=seen)} == {"GET"}


def _server(fleet: Fleet) -> str:
    return str(fleet.outputs()["nodes"]["a"]["id"])


def _api(fleet: Fleet, method: str, path: str, body: Any = None) -> Any:
    """What someone does in the console."""
    reply = httpx.request(
        method,
        f"{fleet.cloud.scaleway_url}{path}",
        json=body,
        headers={"X-Auth-Token": fleet.cloud.secret_key},
    )
    reply.raise_for_status()
    return reply.json() if reply.content else None


def _power_off(fleet: Fleet) -> None:
    server = f"/instance/v1/zones/fr-par-2/servers/{_server(fleet)}"
    _api(fleet, "POST", f"{server}/action", {"action": "poweroff"})
    _until_state(fleet, server, "stopped")


def _until_state(fleet: Fleet, server: str, state: str) -> None:
    wait_for(lambda: _api(fleet, "GET", server)["server"]["state"] == state, f"the server to be {state}")


def _terminate(fleet: Fleet) -> None:
    server = _server(fleet)
    _api(fleet, "POST", f"/instance/v1/zones/fr-par-2/servers/{server}/action", {"action": "terminate"})
    wait_for(lambda: not fleet.cloud.inventory("server"), "the server to be gone")


def _open_a_port(fleet: Fleet) -> None:
    group = next(thing for thing in fleet.cloud.inventory("security_group") if thing["name"] == "test-a")
    rule = {"action": "accept", "protocol": "TCP", "direction": "inbound", "ip_range": "0.0.0.0/0"}
    path = f"/instance/v1/zones/fr-par-2/security_groups/{group['id']}/rules"
    _api(fleet, "PUT", path, {"rules": [{**rule, "dest_port_from": 8000, "position": 1}]})


def _let_everything_in(fleet: Fleet) -> None:
    group = next(thing for thing in fleet.cloud.inventory("security_group") if thing["name"] == "test-a")
    path = f"/instance/v1/zones/fr-par-2/security_groups/{group['id']}"
    _api(fleet, "PATCH", path, {"inbound_default_policy": "accept"})


def _rename(fleet: Fleet) -> None:
    _api(fleet, "PATCH", f"/instance/v1/zones/fr-par-2/servers/{_server(fleet)}", {"name": "mine now"})


def _grow_behind_its_back(fleet: Fleet) -> None:
    volume = next(thing for thing in fleet.cloud.inventory("volume") if thing["node"] == "a")
    path = f"/block/v1/zones/fr-par-2/volumes/{volume['id']}"
    _api(fleet, "PATCH", path, {"size": 250 * 10**9})
    # While it is being resized, it still shows its former size.
    wait_for(lambda: _api(fleet, "GET", path)["size"] == 250 * 10**9, "the volume to have grown")


@pytest.mark.parametrize(
    ("mutation", "resource"),
    [
        (_open_a_port, "a-security-group"),
        (_let_everything_in, "a-security-group"),
        (_power_off, "a-power"),
        (_rename, "a-server"),
        (_grow_behind_its_back, "a-root-volume"),
        (_terminate, "a-server"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_change_behind_its_back_is_found_named_and_mended(
    fleet: Fleet, mutation: Any, resource: str
) -> None:
    fleet.run("up")
    mutation(fleet)
    found = fleet.drift()
    assert found is not None, "the change was not noticed"
    assert resource in found.drifted

    if mutation is _grow_behind_its_back:  # a volume never shrinks: here the configuration has to follow
        assert "Set root_volume_gb: 250" in " ".join(fleet.run("up", expect_failure=True).stdout.split())
        fleet.config["nodes"][0]["root_volume_gb"] = 250
    mended = fleet.run("up")
    if mutation is _power_off:  # what was started again has to prove itself again
        assert "a-serving-gate" in mended.operations
    assert fleet.drift() is None
    assert fleet.outputs()["nodes"]["a"]["status"] == "ready"
    kinds = [line.split()[0] for line in fleet.left()]
    assert kinds.count("server") == 1
    rules = _api(
        fleet,
        "GET",
        f"/instance/v1/zones/fr-par-2/security_groups/{_group(fleet)}/rules",
    )["rules"]
    assert [rule["dest_port_from"] for rule in rules if rule["editable"]] == [10022]


def _group(fleet: Fleet) -> str:
    return str(
        next(thing for thing in fleet.cloud.inventory("security_group") if thing["name"] == "test-a")["id"]
    )


def test_the_root_volume_grows_in_place_on_the_running_node(fleet: Fleet) -> None:
    fleet.run("up")
    before = _server(fleet)
    fleet.config["nodes"][0]["root_volume_gb"] = 300
    result = fleet.run("up")
    assert result.operations["a-root-volume"] == ["update"]
    assert _server(fleet) == before
    assert fleet.outputs()["nodes"]["a"]["root_volume_gb"] == 300


@pytest.mark.parametrize(("size", "said"), [(120, "working minimum of 150"), (180, "a volume only grows")])
def test_a_smaller_root_volume_is_refused_before_any_write(fleet: Fleet, size: int, said: str) -> None:
    fleet.run("up")
    seen = fleet.cloud.log()[-1]["seq"]
    fleet.config["nodes"][0]["root_volume_gb"] = size
    assert said in " ".join(fleet.run("up", expect_failure=True).stdout.split())
    assert {entry["method"] for entry in fleet.cloud.calls(after=seen)} <= {"GET"}


def test_a_wrong_configuration_registers_nothing(fleet: Fleet) -> None:
    fleet.config["nodes"][0].update(name="L4_A", root_volume_gb=20)
    fleet.config["serving"]["image"] = "vllm/vllm-openai:latest"
    result = fleet.run("up", expect_failure=True)
    assert "3 wrong values in the stack configuration" in result.stdout
    assert result.operations.keys() <= {"vllm-fleet-test"}
    assert fleet.cloud.calls() == [call for call in fleet.cloud.calls() if "ssh_key" in call["call"]]


def test_no_secret_is_in_state_output_or_logs(fleet: Fleet) -> None:
    said = [fleet.run("up").stdout, fleet.run("preview", "--diff").stdout]
    fleet.cloud.set_node_fault("a", "key_refused")
    fleet.config["serving"]["max_model_len"] = 8192
    said.append(fleet.run("up", expect_failure=True).stdout)
    state = "".join(path.read_text(errors="replace") for path in _files(fleet.stack.workspace))
    cloud = (fleet.cloud.state / "log.jsonl").read_text()
    private_keys = [
        p.read_text().splitlines()[1] for p in _files(fleet.cloud.state) if p.name.endswith("host_key")
    ]
    planted = [*SECRETS.values(), fleet.cloud.secret_key, *private_keys]
    for secret in planted:
        assert secret not in json.dumps(said)
        assert secret not in state
        assert secret not in cloud


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_node_that_fails_does_not_stop_its_siblings(fleet: Fleet) -> None:
    fleet.nodes("a", "b", "c")
    fleet.cloud.set_fault("create_server", "quota", node="b", times=100)
    result = fleet.run("up", expect_failure=True)
    assert "quota" in result.stdout
    ready = [
        n
        for n in "abc"
        if f"{n} " in result.stdout
        and any(line.split()[:1] == [n] and "READY" in line for line in result.stdout.splitlines())
    ]
    assert ready == ["a", "c"]

    fleet.cloud.clear_faults()
    assert fleet.run("up").operations.keys() >= {"b-server"}
    assert {node["status"] for node in fleet.outputs()["nodes"].values()} == {"ready"}
