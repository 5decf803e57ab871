"""What is Linode's own about a node on Linode; what every node promises is tried in test_contract.py."""

from __future__ import annotations

import itertools
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fleets
import httpx
import pytest
from fleets import Fleet
from harness import Stack

from simcloud.linode import DEV_TOKEN
from simcloud.testing import running_simcloud

SERVER, FIREWALL = "a-server", "a-firewall"


@pytest.fixture
def fleet(pulumi: Callable[..., Stack], tmp_path: Path) -> Iterator[Fleet]:
    """This project's stack on an embedded Linode without delays."""
    key = fleets.ssh_key(tmp_path / "id_ed25519")
    folder = fleets.project_folder(tmp_path / "project")
    with running_simcloud(tmp_path / "cloud", ssh_port=fleets.SSH_PORT) as cloud:
        env = {**cloud.environment, "LINODE_READ_TIMEOUT_S": "2"}
        fleet = Fleet(pulumi(folder=folder, env=env), cloud, key, "linode")
        yield fleet
        cloud.clear_faults()
        fleet.stack.close()


def api(fleet: Fleet, method: str, path: str, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {DEV_TOKEN}"}
    reply = httpx.request(method, f"{fleet.cloud.linode_url}/v4{path}", json=body, headers=headers)
    return reply.raise_for_status().json()


def instances(fleet: Fleet) -> list[Any]:
    found: list[Any] = api(fleet, "GET", "/linode/instances")["data"]
    return found


def test_a_node_comes_up_behind_a_closed_firewall_with_a_known_host_key_and_leaves_nothing(
    fleet: Fleet,
) -> None:
    result = fleet.run("up")
    node = fleet.outputs()["nodes"]["a"]
    assert (node["status"], node["type"]) == ("ready", "g2-gpu-rtx4000a1-s")
    # The plan's own disk, 512 GiB.
    assert node["root_volume_gb"] == 549
    assert "100 % READY" in result.stdout
    [instance] = instances(fleet)
    [firewall] = api(fleet, "GET", f"/linode/instances/{instance['id']}/firewalls")["data"]
    rules = firewall["rules"]
    assert (rules["inbound_policy"], len(rules["inbound"])) == ("DROP", 1)
    assert rules["inbound"][0]["addresses"] == {"ipv4": ["127.0.0.1/32"]}
    assert rules["inbound"][0]["ports"] == str(fleets.SSH_PORT)
    for thing in (instance, firewall):
        assert thing["label"] == "test-a"
        assert sum(tag.startswith("vllm-fleet-owner=") for tag in thing["tags"]) == 1
        assert "vllm-fleet-node=test/a" in thing["tags"]
    # The command as printed trusts the key that the machine was given, and no other.
    shell = subprocess.run(
        f"{node['ssh_command']} true", shell=True, capture_output=True, text=True, timeout=60, check=False
    )
    assert shell.returncode == 0, shell.stderr

    assert fleet.run("up").changes == {}
    assert fleet.drift() is None
    state = str(fleet.stack.state())
    assert "PRIVATE KEY" not in state
    assert DEV_TOKEN not in state
    fleet.run("destroy")
    assert fleet.left() == []


def test_drift_is_found_and_mended(fleet: Fleet) -> None:
    fleet.run("up")
    [instance] = instances(fleet)
    [firewall] = api(fleet, "GET", "/networking/firewalls")["data"]
    one, wall = f"/linode/instances/{instance['id']}", f"/networking/firewalls/{firewall['id']}"
    [device] = api(fleet, "GET", f"{wall}/devices")["data"]
    open_door = {"inbound": [], "outbound": [], "inbound_policy": "ACCEPT", "outbound_policy": "ACCEPT"}

    def drifts(resource: str, method: str, path: str, body: Any = None) -> None:
        api(fleet, method, path, body)
        found = fleet.drift()
        assert found is not None
        assert resource in found.drifted
        fleet.run("up")
        assert fleet.drift() is None

    drifts(FIREWALL, "PUT", f"{wall}/rules", open_door)
    drifts("a-firewall-attachment", "DELETE", f"{wall}/devices/{device['id']}")
    drifts(SERVER, "POST", f"{one}/shutdown", {})
    drifts(FIREWALL, "DELETE", wall)
    # A new firewall took its place; the machine stayed and is behind it.
    assert [each["id"] for each in instances(fleet)] == [instance["id"]]
    assert len(api(fleet, "GET", f"{one}/firewalls")["data"]) == 1
    drifts(SERVER, "DELETE", one)
    assert fleet.outputs()["nodes"]["a"]["status"] == "ready"


def test_only_a_change_of_the_host_part_replaces_the_machine(fleet: Fleet) -> None:
    fleet.run("up")
    [first] = instances(fleet)
    fleet.config["serving"]["max_model_len"] = 8192
    fleet.config["access"]["ssh_cidrs"] = ["127.0.0.0/8"]
    fleet.config["nodes"][0]["tags"] = ["team-a"]
    done = fleet.run("up").operations
    assert done[SERVER] == done[FIREWALL] == ["update"]
    assert [each["id"] for each in instances(fleet)] == [first["id"]]

    fleet.config["nodes"][0]["driver_branch"] = 570
    preview = fleet.run("preview")
    assert "delete-replaced" in preview.operations[SERVER]
    fleet.run("up")
    [second] = instances(fleet)
    assert second["id"] != first["id"]
    assert fleet.outputs()["nodes"]["a"]["status"] == "ready"
    assert fleet.drift() is None


MOMENTS = [
    ("create_firewall", "hold"),
    ("create_firewall", "hold_after"),
    ("create_instance", "hold"),
    ("create_instance", "hold_after"),
    ("get_instance", "hold"),
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
    assert sorted(fleet.left()) == ["firewall test-a", "server test-a"]
    fleet.run("destroy")
    assert fleet.left() == []


def test_destroy_after_a_kill_also_removes_what_never_reached_the_state(fleet: Fleet) -> None:
    fleet.cloud.set_fault("create_instance", "hold_after", node="a")
    update = fleet.start("up")
    fleet.cloud.wait_until_held("create_instance")
    update.kill()
    fleet.cloud.release()
    assert "server test-a" in fleet.left()

    fleet.stack.unlock()
    fleet.run("destroy")
    assert fleet.left() == []


def test_a_preview_says_in_words_that_there_is_no_stock(fleet: Fleet) -> None:
    fleet.cloud.set_stock("us-ord", "g2-gpu-rtx4000a1-s", "false", cloud="linode")
    said = fleet.run("preview").stdout
    assert "Linode has no g2-gpu-rtx4000a1-s left in us-ord" in said
    assert fleet.cloud.calls("create_instance") == []
    # Advice alone: an API that does not answer stops nothing.
    fleet.cloud.set_fault("list_region_availability", "403")
    assert "no g2-gpu" not in fleet.run("preview").stdout


PASSING = ["429", "503"]
UNCLEAR = ["500", "timeout", "reset", "lost_reply"]
LASTING = ["403", "quota", "out_of_stock"]
CREATING = ["create_firewall", "create_instance"]
LOOKING = ["get_instance", "list_firewall_devices"]


def test_a_failing_call_is_repeated_or_explained_and_the_next_up_and_destroy_converge(fleet: Fleet) -> None:
    kinds = [*PASSING, *UNCLEAR, *LASTING]
    planted = {
        f"n{index}": pair for index, pair in enumerate(itertools.product([*CREATING, *LOOKING], kinds))
    }
    fleet.nodes(*planted)
    for node, (call, kind) in planted.items():
        fleet.cloud.set_fault(call, kind, node=node, times=100 if kind in LASTING else 1)
    for call in ("list_instances", "list_firewalls"):
        fleet.cloud.set_fault(call, "503", times=3)

    first = fleet.run("up", expect_failure=True)
    for node, (call, kind) in planted.items():
        errors = " ".join(text for resource, text in first.errors if resource.startswith(f"{node}-"))
        # Nothing that may have taken effect is sent twice; what only looks is looked at again.
        fails = kind in LASTING or (kind in UNCLEAR and call in CREATING)
        assert ("Mend: " in errors) == fails, f"{node}: {kind} on {call}: {errors or 'no error'}"
    one_of_each(fleet)

    fleet.cloud.clear_faults()
    fleet.run("up")
    assert {node["status"] for node in fleet.outputs()["nodes"].values()} == {"ready"}
    one_of_each(fleet)

    for node, kind in zip(planted, [*PASSING, *UNCLEAR, "403"], strict=False):
        fleet.cloud.set_fault("delete_instance", kind, node=node, times=100 if kind == "403" else 1)
    fleet.stack.start("destroy").wait()
    fleet.cloud.clear_faults()
    fleet.run("destroy")
    assert fleet.left() == []


def one_of_each(fleet: Fleet) -> None:
    counts = Counter(fleet.left())
    assert not [thing for thing, count in counts.items() if count > 1], counts


def test_what_is_in_the_way_of_a_protected_node_is_named_and_not_touched(fleet: Fleet) -> None:
    fleet.config["nodes"][0]["protect"] = True
    fleet.cloud.set_fault("create_instance", "lost_reply", node="a")
    fleet.run("up", expect_failure=True)
    [orphan] = instances(fleet)
    errors = str(fleet.run("up", expect_failure=True).errors)
    assert f"instance {orphan['id']} (test-a) carries its owner tag but is not in the state" in errors
    assert [each["id"] for each in instances(fleet)] == [orphan["id"]]
    fleet.config["nodes"][0]["protect"] = False
    fleet.run("up")
    assert orphan["id"] not in [each["id"] for each in instances(fleet)]
