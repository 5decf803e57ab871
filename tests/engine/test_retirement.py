"""A machine that serves goes only once its successor serves, whatever the engine is told to do after errors;
what state has lost is found by its owner, taken up or removed, and never bought twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from fleets import Fleet, each_cloud_in_turn, every_cloud, node_config

taking_up = pytest.mark.parametrize("fleet", ["scaleway"], indirect=True)
"""Where the machine is a resource of this program's own, which takes up what it finds."""
refusing = pytest.mark.parametrize("fleet", ["linode"], indirect=True)
"""Where the cloud's own provider makes the machine, and a person has to say which one it is to take."""
LONG = pytest.mark.trials
ON_ERROR = pytest.mark.parametrize(
    "go_on",
    [pytest.param("", marks=LONG, id="stop at errors"), pytest.param("true", id="go on after errors")],
)


def servers(fleet: Fleet) -> dict[str, list[str]]:
    """Ids of the servers that exist, by node."""
    found: dict[str, list[str]] = {}
    for thing in fleet.cloud.inventory("server"):
        found.setdefault(thing["node"], []).append(str(thing["id"]))
    return found


def going_on(fleet: Fleet, go_on: str) -> None:
    fleet.stack.env.pop("PULUMI_CONTINUE_ON_ERROR", None)
    if go_on:
        fleet.stack.env["PULUMI_CONTINUE_ON_ERROR"] = go_on


@every_cloud
@ON_ERROR
def test_a_replaced_machine_stays_until_its_successor_serves(fleet: Fleet, go_on: str) -> None:
    going_on(fleet, go_on)
    fleet.nodes("a", "b")
    fleet.run("up")
    before = servers(fleet)
    fleet.config["nodes"][0] |= fleet.promises.host_part
    fleet.config["health"]["ssh_timeout_s"] = 10
    fleet.cloud.set_node_fault("a", "ssh_closed")
    for _ in range(3):
        failed = fleet.run("up", expect_failure=True)
        assert "a-serving" in " ".join(name for name, _ in failed.errors), failed.stdout
        now = servers(fleet)
        assert before["a"][0] in now["a"], "the machine that serves is gone"
        assert len(now["a"]) == 2, "one successor at a time"
        assert now["b"] == before["b"]
    fleet.cloud.set_node_fault("a", None)
    fleet.config["health"]["ssh_timeout_s"] = 60
    fleet.run("up")
    after = servers(fleet)
    assert before["a"][0] not in after["a"]
    assert fleet.parts() == fleet.whole("a", "b")
    assert fleet.drift() is None


@each_cloud_in_turn(LONG)
@ON_ERROR
def test_a_renamed_node_stays_until_the_new_one_serves(fleet: Fleet, go_on: str) -> None:
    going_on(fleet, go_on)
    fleet.nodes("a", "b")
    fleet.run("up")
    before = servers(fleet)
    fleet.nodes("a", "b2")
    fleet.config["health"]["ssh_timeout_s"] = 10
    fleet.cloud.set_node_fault("b2", "ssh_closed")
    for _ in range(3):
        failed = fleet.run("up", expect_failure=True)
        assert "b2-serving" in " ".join(name for name, _ in failed.errors), failed.stdout
        assert servers(fleet)["b"] == before["b"]
    fleet.cloud.set_node_fault("b2", None)
    fleet.config["health"]["ssh_timeout_s"] = 60
    fleet.run("up")
    assert fleet.parts() == fleet.whole("a", "b2")
    assert fleet.drift() is None
    fleet.run("destroy")
    assert fleet.left() == []


@every_cloud
def test_a_rename_that_says_so_keeps_the_machine(fleet: Fleet) -> None:
    fleet.nodes("a", "b")
    fleet.run("up")
    before = servers(fleet)
    fleet.config["nodes"][1] = {**node_config(fleet.cloud_name, "b2"), "renamed_from": "b"}
    fleet.run("up")
    assert servers(fleet) == {"a": before["a"], "b2": before["b"]}
    assert fleet.parts() == fleet.whole("a", "b2")
    assert fleet.statuses() == {"ready"}
    del fleet.config["nodes"][1]["renamed_from"]
    assert fleet.run("up").operations == {}
    fleet.run("destroy")
    assert fleet.left() == []


@refusing
def test_going_back_leaves_what_serves_until_its_successor_does(fleet: Fleet) -> None:
    fleet.run("up")
    before = servers(fleet)
    fleet.config["nodes"][0] |= fleet.promises.host_part
    fleet.config["health"]["ssh_timeout_s"] = 5
    fleet.cloud.set_node_fault("a", "ssh_closed")
    fleet.run("up", expect_failure=True)
    fleet.nodes("a")
    fleet.run("up", expect_failure=True)
    assert before["a"][0] in servers(fleet)["a"]
    fleet.cloud.set_node_fault("a", None)
    fleet.config["health"]["ssh_timeout_s"] = 60
    fleet.run("up")
    assert fleet.parts() == fleet.whole("a")


@taking_up
def test_going_back_takes_up_the_machine_that_still_serves(fleet: Fleet) -> None:
    fleet.run("up")
    before = servers(fleet)
    fleet.config["nodes"][0] |= fleet.promises.host_part
    fleet.config["health"]["ssh_timeout_s"] = 10
    fleet.cloud.set_node_fault("a", "ssh_closed")
    fleet.run("up", expect_failure=True)
    fleet.cloud.set_node_fault("a", None)
    fleet.config["health"]["ssh_timeout_s"] = 60
    fleet.nodes("a")
    fleet.run("up")
    assert servers(fleet) == before
    assert fleet.parts() == fleet.whole("a")


def forget_the_server(fleet: Fleet) -> None:
    """As `pulumi state delete` does by hand."""
    (urn,) = [each["urn"] for each in fleet.stack.state() if each["urn"].endswith("::a-server")]
    fleet.stack.ask("state", "delete", urn, "--target-dependents", "--yes")


def restore_an_older_state(fleet: Fleet) -> None:
    """As the runbook for a locked stack says; the state is from before there was a node."""
    exported = json.loads(fleet.stack.ask("stack", "export"))
    kept = ("::owner", "::vllm-fleet-test", "::default", "pulumi:providers:")
    deployment = exported["deployment"]
    deployment["resources"] = [
        each for each in deployment["resources"] if any(word in each["urn"] for word in kept)
    ]
    path = fleet.stack.workspace / "older.json"
    path.write_text(json.dumps(exported))
    fleet.stack.ask("stack", "import", "--file", str(path))


def refresh_with_a_false_404(fleet: Fleet) -> None:
    """As an API that lags or errs does: the machine is there, and said not to be."""
    # Whoever asks, the provider among them.
    fleet.cloud.set_fault({"linode": "get_instance"}[fleet.cloud_name], "404", node="a", times=3)
    fleet.run("refresh")
    fleet.cloud.clear_faults()
    assert not [each for each in fleet.stack.state() if each["urn"].endswith("::a-server")]


LOST = {"state delete": forget_the_server, "an older state": restore_an_older_state}
LOST_TO_A_PROVIDER = {**LOST, "a false 404": refresh_with_a_false_404}


def one_every_day(ways: Mapping[str, Callable[[Fleet], None]]) -> pytest.MarkDecorator:
    """Ways to lose a machine, of which the first is tried every day."""
    first, *others = (pytest.param(lose, id=name) for name, lose in ways.items())
    return pytest.mark.parametrize(
        "lose", [first, *(pytest.param(*each.values, id=each.id, marks=LONG) for each in others)]
    )


@refusing
@one_every_day(LOST_TO_A_PROVIDER)
def test_a_server_that_state_has_lost_is_refused_with_the_ways_out_and_adopted(
    fleet: Fleet, lose: Callable[[Fleet], None]
) -> None:
    fleet.run("up")
    before = servers(fleet)
    lose(fleet)
    seen = fleet.seen()
    refused = fleet.run("up", expect_failure=True)
    assert "fleet adopt a" in refused.stdout
    assert "fleet destroy a" in refused.stdout
    assert fleet.promises.create_server not in fleet.written(seen)
    assert servers(fleet) == before

    adopted = fleet.command("adopt", "a", "--yes")
    assert adopted.returncode == 0, adopted.stderr
    fleet.run("up")
    assert servers(fleet) == before
    assert fleet.parts() == fleet.whole("a")
    assert fleet.statuses() == {"ready"}
    assert fleet.drift() is None
    assert fleet.run("up").operations == {}
    fleet.run("destroy")
    assert fleet.left() == []


@refusing
def test_a_server_that_state_has_lost_goes_with_fleet_destroy(fleet: Fleet) -> None:
    fleet.run("up")
    before = servers(fleet)
    forget_the_server(fleet)
    destroyed = fleet.command("destroy", "a", "--yes")
    assert destroyed.returncode == 0, destroyed.stderr
    assert fleet.left() == []
    fleet.run("up")
    assert servers(fleet) != before
    assert fleet.parts() == fleet.whole("a")


@taking_up
@one_every_day(LOST)
def test_a_server_that_state_has_lost_is_taken_up_and_not_bought_again(
    fleet: Fleet, lose: Callable[[Fleet], None]
) -> None:
    fleet.run("up")
    before = servers(fleet)
    lose(fleet)
    fleet.run("up")
    assert servers(fleet) == before
    assert fleet.parts() == fleet.whole("a")
    assert fleet.drift() is None
    fleet.run("destroy")
    assert fleet.left() == []


@every_cloud
@one_every_day(LOST)
def test_destroy_also_removes_what_state_has_lost(fleet: Fleet, lose: Callable[[Fleet], None]) -> None:
    fleet.run("up")
    lose(fleet)
    fleet.run("destroy")
    assert fleet.left() == []


@every_cloud
def test_a_second_checkout_with_the_same_stack_name_buys_nothing(fleet: Fleet) -> None:
    fleet.run("up")
    before = servers(fleet)
    exported: dict[str, Any] = json.loads(fleet.stack.ask("stack", "export"))
    exported["deployment"]["resources"] = []
    path = fleet.stack.workspace / "empty.json"
    path.write_text(json.dumps(exported))
    fleet.stack.ask("stack", "import", "--file", str(path))

    seen = fleet.seen()
    for command in ("preview", "up"):
        refused = fleet.run(command, expect_failure=True)
        assert "fleet adopt a" in refused.stdout
        assert "pulumi stack init" in refused.stdout
    assert fleet.promises.create_server not in fleet.written(seen)
    assert servers(fleet) == before

    adopted = fleet.command("adopt", "a", "--yes")
    assert adopted.returncode == 0, adopted.stderr
    fleet.run("up")
    assert servers(fleet) == before
    assert fleet.parts() == fleet.whole("a")
    fleet.run("destroy")
    assert fleet.left() == []


@each_cloud_in_turn(LONG)
def test_what_state_has_lost_is_shown_by_every_report(fleet: Fleet) -> None:
    fleet.run("up")
    forget_the_server(fleet)
    (lost,) = servers(fleet)["a"]

    report = json.loads(fleet.command("cost-report", "--json").stdout)
    rows = [node for node in report["nodes"] if node["status"] == "not in the state, billed"]
    assert len(rows) == 1, report
    row = rows[0]
    assert (row["node"], row["type"]) == ("a", fleet.promises.node["type"])
    assert report["per_hour"] >= row["per_hour"] > 0

    findings = json.loads(fleet.command("check", "--json", "--no-nodes").stdout)
    surplus = [each["seen"] for each in findings if each["name"] == "surplus"]
    assert any(lost in seen for seen in surplus), findings


@pytest.mark.parametrize("fleet", ["scaleway"], indirect=True)
def test_one_node_can_be_destroyed_by_itself(fleet: Fleet) -> None:
    fleet.nodes("a", "b")
    fleet.run("up")
    listed = fleet.command("destroy", "b")
    assert listed.returncode == 0
    assert "would remove server" in listed.stdout
    assert fleet.parts() == fleet.whole("a", "b")
    done = fleet.command("destroy", "b", "--yes")
    assert done.returncode == 0, done.stderr
    assert fleet.parts() == fleet.whole("a")
    fleet.nodes("a")
    fleet.run("up")
    assert fleet.run("up").operations == {}


@pytest.mark.parametrize("fleet", ["scaleway"], indirect=True)  # elsewhere a disk goes with its machine
def test_a_volume_whose_server_went_first_is_removed_by_the_next_up(fleet: Fleet) -> None:
    """As a destroy leaves it that is killed between the two."""
    fleet.nodes("a", "b")
    fleet.run("up")
    fleet.cloud.set_fault("delete_volume", "hold", node="b")
    removal = fleet.start("destroy")
    removal.wait_until(lambda: fleet.cloud.faults()["held"], "the volume's deletion")
    removal.kill()
    fleet.cloud.release()
    fleet.stack.unlock()
    fleet.nodes("a")
    fleet.run("up")
    assert fleet.parts() == fleet.whole("a")
    fleet.run("destroy")
    assert fleet.left() == []
