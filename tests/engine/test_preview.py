"""Know before you pay: what the real engine's preview says and refuses, and what ends when its time is up."""

from __future__ import annotations

import pytest
import yaml
from fleets import Fleet, node_config
from typer.testing import CliRunner

from fleet.cli import app


def written(fleet: Fleet, since: int = 0) -> list[str]:
    """The calls that changed something in the cloud; the test's own SSH key apart."""
    calls = fleet.cloud.calls(after=since)
    return [call["call"] for call in calls if call["method"] != "GET" and "ssh_key" not in call["call"]]


def said(output: str) -> str:
    return " ".join(output.split())


def test_a_misfit_stops_before_any_write_until_it_is_overridden(fleet: Fleet) -> None:
    fleet.config["serving"]["model"] = "Qwen/Qwen3-32B"
    for command in ("preview", "up"):
        output = said(fleet.run(command, expect_failure=True).stdout)
        assert "nodes[0].serving: Qwen/Qwen3-32B does not fit L4-1-24G: the weights take" in output
        assert "or on H100-1-80G" in output
    assert written(fleet) == []

    fleet.config["fit"] = {"override": "measured by hand"}
    output = said(fleet.run("preview").stdout)
    assert "does not fit L4-1-24G" in output
    assert "overridden: measured by hand" in output


def test_a_stack_over_its_budget_stops_before_any_write_with_the_arithmetic(fleet: Fleet) -> None:
    fleet.nodes("a", "b")
    fleet.config["budget"] = {"max_cost_per_hour": 1.0}
    output = said(fleet.run("up", expect_failure=True).stdout)
    assert "budget.max_cost_per_hour: 1.00 EUR is below the stack's 1.6" in output
    assert "= a 0.8" in output
    assert written(fleet) == []


def test_a_preview_says_what_is_deployed_what_changes_and_what_is_short(fleet: Fleet) -> None:
    first = said(fleet.run("preview").stdout)
    assert "fit: " in first
    assert "1 node, cost: 0.8" in first
    assert "against what is deployed" not in first
    fleet.run("up")

    fleet.cloud.set_stock("fr-par-2", "L4-2-24G", "shortage")
    fleet.config["nodes"].append({**node_config("scaleway", "b"), "type": "L4-2-24G"})
    since = fleet.cloud.log()[-1]["seq"]
    result = fleet.run("preview")
    output = said(result.stdout)
    assert "a month, as deployed" in output
    assert "2 nodes, cost: 2.4" in output
    assert "against what is deployed" in output
    assert "stock: Scaleway has no L4-2-24G left in fr-par-2 just now" in output
    assert written(fleet, since) == []


def test_the_cheapest_server_is_pinned_and_stays(fleet: Fleet) -> None:
    fleet.config["nodes"] = [{"name": "a", "cloud": "cheapest", "clouds": ["scaleway"]}]
    assert "cheapest: L4-1-24G in scaleway fr-par-2" in said(fleet.run("preview").stdout)
    stack_file = fleet.stack.folder / "Pulumi.test.yaml"
    pinned = yaml.safe_load(stack_file.read_text())["config"]["vllm-fleet:nodes"][0]["pinned"]
    assert (pinned["location"], pinned["type"]) == ("fr-par-2", "L4-1-24G")

    # A larger type than the cheapest is deployed: without its pin it is found in the stack's own outputs.
    fleet.config["nodes"][0]["pinned"] = {**pinned, "type": "L4-2-24G", "tensor_parallel_size": 2}
    fleet.run("up")
    del fleet.config["nodes"][0]["pinned"]
    result = fleet.run("preview")
    assert "stays L4-2-24G in scaleway fr-par-2, where it is deployed" in said(result.stdout)
    assert result.changes == {}


def test_reap_destroys_what_is_due_and_nothing_else_however_often_it_is_run(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.nodes("a", "b", "c")
    fleet.config["nodes"][0]["ttl_hours"] = 0.0001
    fleet.config["nodes"][1]["ttl_hours"] = 1000
    fleet.run("up")
    monkeypatch.chdir(fleet.stack.folder)
    for name, value in fleet.stack.env.items():
        monkeypatch.setenv(name, value)

    def reap(*flags: str) -> str:
        result = CliRunner().invoke(app, ["reap", "--stack", "test", *flags])
        assert result.exit_code == 0, result.output
        return result.stdout

    def servers() -> list[str]:
        return sorted(thing["node"] for thing in fleet.cloud.inventory("server"))

    assert "would be destroyed with --yes" in reap()
    assert servers() == ["a", "b", "c"]
    reap("--yes")
    assert servers() == ["b", "c"]
    assert not [thing for thing in fleet.cloud.inventory() if thing.get("node") == "a"]
    assert "Nothing has outlived" in reap("--yes")
    assert servers() == ["b", "c"]
