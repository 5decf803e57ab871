"""Which nodes a command means, and how they are reached, from the stack's outputs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fleet.cli import app
from fleet.inventory import UNKNOWN, FleetNode, InventoryError, nodes_of, only, select


def entry(cloud: str = "scaleway", **more: Any) -> dict[str, Any]:
    ssh = {
        "host": "203.0.113.7",
        "port": 22,
        "user": "root",
        "private_key_path": "~/.ssh/id_ed25519",
        "host_keys": ["ssh-ed25519 AAAA"],
    }
    return {
        "id": "1111",
        "cloud": cloud,
        "zone": "fr-par-2",
        "type": "L4-1-24G",
        "ssh": ssh,
        "container": "vllm",
        "ports": {"vllm": 8000},
        "model": "m",
        **more,
    }


OUTPUTS = {
    "nodes": {"l4-a": entry(), "l4-b": entry(), "ada": entry("linode"), "l40s": entry()},
    "cost_per_hour": 1,
}


@pytest.fixture
def nodes() -> tuple[FleetNode, ...]:
    return nodes_of(copy.deepcopy(OUTPUTS))


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("l4-a", ["l4-a"]),
        ("l4-*", ["l4-a", "l4-b"]),
        ("@linode", ["ada"]),
        ("ada,l4-a", ["l4-a", "ada"]),
        ("all", ["l4-a", "l4-b", "ada", "l40s"]),
        ("@scaleway,ada", ["l4-a", "l4-b", "ada", "l40s"]),
    ],
)
def test_nodes_are_named_by_name_pattern_cloud_or_all(
    nodes: tuple[FleetNode, ...], wanted: str, names: list[str]
) -> None:
    assert [node.name for node in select(nodes, wanted)] == names


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("l4-aa", "no node is called 'l4-aa'; did you mean l4-a?"),
        ("zzz*", "there are l4-a, l4-b, ada, l40s"),
        ("@aws", "no node is on 'aws'; this stack has nodes on linode, scaleway"),
        ("l4-a,nobody", "no node is called 'nobody'"),
        (",", "no node named"),
    ],
)
def test_a_name_that_means_no_node_is_an_error_with_a_fix(
    nodes: tuple[FleetNode, ...], wanted: str, said: str
) -> None:
    with pytest.raises(InventoryError) as error:
        select(nodes, wanted)
    assert said in str(error.value)


def test_one_node_is_one(nodes: tuple[FleetNode, ...]) -> None:
    assert only(nodes, "ada").name == "ada"
    with pytest.raises(InventoryError, match=r"l4-\* names 2 nodes \(l4-a, l4-b\); name one"):
        only(nodes, "l4-*")


@pytest.mark.parametrize("ssh", [UNKNOWN, {**entry()["ssh"], "host": UNKNOWN}])
def test_a_node_whose_creation_failed_is_listed_but_not_reachable(ssh: object) -> None:
    (node,) = nodes_of({"nodes": {"l4-a": entry(ssh=ssh)}})
    with pytest.raises(InventoryError, match="l4-a has no address or host key"):
        node.reachable()


@pytest.mark.parametrize(
    ("outputs", "said"), [({}, "pulumi up"), ({"nodes": {"a": {"id": "1"}}}, "another version")]
)
def test_a_stack_without_usable_nodes_says_what_to_do(outputs: dict[str, Any], said: str) -> None:
    with pytest.raises(InventoryError, match=said):
        nodes_of(outputs)


def test_the_shell_completes_names_of_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Pulumi.dev.yaml").write_text("config:\n  vllm-fleet:nodes: [{name: l4-a}, {name: ada}]\n")
    (tmp_path / "Pulumi.new.yaml").write_text("encryptionsalt: v1\n")
    monkeypatch.chdir(tmp_path)

    def complete(words: str) -> list[str]:
        asked = {
            "_FLEET_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        return CliRunner().invoke(app, [], prog_name="fleet", env=asked).stdout.split()

    assert complete("fleet ssh l4") == ["l4-a"]
    assert complete("fleet exec ada,l") == ["ada,l4-a"]
    assert complete("fleet logs a") == ["ada", "all"]
