"""What every node promises, whatever its cloud: tried with the real engine on each embedded cloud."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from clouds import CLOUDS
from fleets import SECRETS, SSH_PORT, Fleet, every_cloud, every_ready_cloud, node_config


@every_ready_cloud
def test_a_node_comes_up_ready_with_every_stage_told(ready_fleet: Fleet) -> None:
    node = ready_fleet.outputs()["nodes"]["a"]
    assert (node["cloud"], node["status"]) == (ready_fleet.cloud_name, "ready")
    assert (node["type"], node["model"]) == (ready_fleet.promises.node["type"], "Qwen/Qwen3-8B-AWQ")
    assert node["root_volume_gb"] == ready_fleet.promises.root_volume_gb
    said = ready_fleet.first_up.stdout
    stages = [int(line.split("%")[0].split()[-1]) for line in said.splitlines() if " % " in line]
    assert {0, 20, 25, 30, 40, 45, 50, 60, 70, 80, 90, 95, 100} <= set(stages)
    assert ready_fleet.parts() == ready_fleet.whole("a")


@every_ready_cloud
def test_nothing_but_ssh_is_let_in_and_the_host_is_known(ready_fleet: Fleet) -> None:
    assert ready_fleet.promises.doors(ready_fleet.cloud, "a") == {(SSH_PORT, "127.0.0.1/32")}
    # The command as printed trusts the key that the machine is known by, and no other.
    command = ready_fleet.outputs()["nodes"]["a"]["ssh_command"]
    assert "StrictHostKeyChecking=yes" in command
    shell = subprocess.run(
        f"{command} true", shell=True, capture_output=True, text=True, timeout=60, check=False
    )
    assert shell.returncode == 0, shell.stderr


@every_ready_cloud
def test_a_second_up_changes_nothing_and_asks_nothing_to_be_done(ready_fleet: Fleet) -> None:
    seen = ready_fleet.seen()
    assert ready_fleet.run("up").changes == {}
    assert ready_fleet.run("preview", "--expect-no-changes").changes == {}
    assert ready_fleet.drift() is None
    assert ready_fleet.written(after=seen) == []


@every_ready_cloud
def test_a_root_volume_that_cannot_be_is_refused_before_any_write(ready_fleet: Fleet) -> None:
    seen = ready_fleet.seen()
    before = ready_fleet.config["nodes"][0]
    for size, said in ready_fleet.promises.refused_sizes.items():
        ready_fleet.config["nodes"][0] = {**before, "root_volume_gb": size}
        refused = ready_fleet.run("up", expect_failure=True)
        assert said in " ".join(refused.stdout.split())
    ready_fleet.config["nodes"][0] = before
    assert ready_fleet.written(after=seen) == []


@pytest.mark.parametrize(
    "fleet", ["scaleway", "linode", pytest.param("aws", marks=pytest.mark.trials)], indirect=True
)
def test_a_change_behind_its_back_is_found_named_and_fixed(fleet: Fleet) -> None:
    changes = {change.node: change for change in fleet.promises.changes}
    fleet.nodes(*changes, "untouched")
    fleet.run("up")
    machines = machines_of(fleet)
    for change in changes.values():
        change.make(fleet.cloud, change.node)

    found = fleet.drift()
    assert found is not None, "the changes were not noticed"
    for change in changes.values():
        assert f"{change.node}-{change.part}" in found.drifted
    assert not [name for name in found.drifted if name.startswith("untouched")]

    runs = []
    if follow := {change.node: change.follow for change in changes.values() if change.follow}:
        # A volume never shrinks: here the configuration has to follow, and the rest is fixed all the same.
        runs.append(fleet.run("up", expect_failure=True))
        for node, settings in follow.items():
            errors = " ".join(text for name, text in runs[0].errors if name.startswith(f"{node}-"))
            for key, value in settings.items():
                assert f"Set {key}: {value}" in " ".join(errors.split()), runs[0].errors
    for node in fleet.config["nodes"]:
        node.update(follow.get(node["name"], {}))
    runs.append(fleet.run("up"))
    # What was started again has to prove itself again.
    assert [run for run in runs if "powered-off-serving-gate" in run.operations]
    left = fleet.drift()
    # A vendor's provider learns at its next look that a machine was started after it: state and address.
    assert left is None or left.drifted == {"powered-off-server"}, left.drifted
    assert fleet.statuses() == {"ready"}
    assert fleet.parts() == fleet.whole(*changes, "untouched")
    assert machines_of(fleet).items() - machines.items() == {
        made for made in machines_of(fleet).items() if made[0][0] == "terminated"
    }
    for node in (*changes, "untouched"):
        assert fleet.promises.doors(fleet.cloud, node) == {(SSH_PORT, "127.0.0.1/32")}


def machines_of(fleet: Fleet) -> dict[tuple[str, str], str]:
    """The id of each node's server and volume, by node and kind."""
    kinds = ("server", "volume")
    found = [thing for thing in fleet.cloud.inventory() if thing["kind"] in kinds]
    return {(thing["node"], thing["kind"]): thing["id"] for thing in found}


@every_cloud
def test_what_can_change_in_place_keeps_the_machine_and_only_the_host_part_replaces_it(fleet: Fleet) -> None:
    fleet.run("up")
    before = fleet.outputs()["nodes"]["a"]
    fleet.config["serving"]["max_model_len"] = 8192
    fleet.config["access"]["ssh_cidrs"] = ["127.0.0.0/8"]
    fleet.config["nodes"][0]["tags"] = ["team=a"]
    grown = fleet.promises.root_volume_gb
    if fleet.promises.grows:
        fleet.config["nodes"][0]["root_volume_gb"] = grown = 300
    fleet.run("up")
    after = fleet.outputs()["nodes"]["a"]
    assert after["id"] == before["id"]
    assert (after["status"], after["root_volume_gb"]) == ("ready", grown)
    assert fleet.promises.doors(fleet.cloud, "a") == {(SSH_PORT, "127.0.0.0/8")}

    fleet.config["nodes"][0] |= fleet.promises.host_part
    assert "replace" in fleet.run("preview").operations["a-server"]
    fleet.run("up")
    replaced = fleet.outputs()["nodes"]["a"]
    assert replaced["id"] != before["id"]
    assert replaced["status"] == "ready"
    assert fleet.parts() == fleet.whole("a")

    fleet.run("destroy")
    assert fleet.left() == []


@every_cloud
def test_a_node_that_fails_does_not_stop_its_siblings_and_no_secret_is_anywhere(fleet: Fleet) -> None:
    fleet.nodes("a", "b", "c", "d")
    fleet.cloud.set_fault(fleet.promises.create_server, "quota", node="b", times=100)
    fleet.cloud.set_node_fault("d", "key_refused")
    first = fleet.run("up", expect_failure=True)
    assert {name.partition("-")[0] for name, _ in first.errors} - {"vllm", ""} == {"b", "d"}
    ready = {node for node in "abcd" if re.search(rf"^ *{node} +100 % READY", first.stdout, re.M)}
    assert ready == {"a", "c"}

    fleet.cloud.clear_faults()
    fleet.cloud.set_node_fault("d", None)
    second = fleet.run("up")
    assert not [name for name in second.operations if name.startswith(("a-", "c-"))]
    assert fleet.statuses() == {"ready"}

    said = first.stdout + second.stdout + fleet.run("preview", "--diff").stdout
    state = "".join(path.read_text(errors="replace") for path in _files(fleet.stack.workspace))
    cloud = (fleet.cloud.state / "log.jsonl").read_text()
    keys = [path for path in _files(fleet.cloud.state) if path.name == "ssh_host_ed25519_key"]
    assert len(keys) == 4
    # The first lines are the same for every key.
    private = [line for path in keys for line in path.read_text().splitlines()[2:5]]
    for secret in (*SECRETS.values(), *fleet.promises.secrets.values(), *private):
        for place in (said, json.dumps(said), state, cloud):
            assert secret not in place


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_wrong_configuration_registers_nothing(fleet: Fleet) -> None:
    fleet.config["nodes"] = [node_config(name, name) for name in CLOUDS]
    fleet.config["nodes"][0].update(name="L4_A", root_volume_gb=20)
    fleet.config["serving"]["image"] = "vllm/vllm-openai:latest"
    result = fleet.run("up", expect_failure=True)
    assert "wrong values in the stack configuration" in result.stdout
    assert result.operations.keys() <= {"vllm-fleet-test"}
    assert fleet.written() == []


@pytest.mark.parametrize("fleet", ["scaleway"], indirect=True)
def test_one_stack_holds_nodes_of_every_cloud(fleet: Fleet) -> None:
    fleet.config["nodes"] = [node_config(name, name) for name in CLOUDS]
    fleet.run("up")
    assert fleet.statuses() == {"ready"}
    assert fleet.parts() == {name: dict.fromkeys(cloud.parts, 1) for name, cloud in CLOUDS.items()}
    assert fleet.drift() is None
