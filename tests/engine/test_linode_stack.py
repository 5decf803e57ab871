"""What is Linode's own about a node on Linode; what every node promises is tried in test_contract.py."""

from __future__ import annotations

import pytest
from clouds import linode
from fleets import Fleet

pytestmark = pytest.mark.parametrize("fleet", ["linode"], indirect=True)


def test_everything_of_a_node_carries_its_owner_and_a_label_that_linode_takes(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.run("up")
    for path in ("/linode/instances", "/networking/firewalls"):
        (thing,) = linode(fleet.cloud, "GET", path)["data"]
        assert thing["label"] == "test-a"
        assert sum(tag.startswith("vllm-fleet-owner=") for tag in thing["tags"]) == 1
        assert "vllm-fleet-node=test/a" in thing["tags"]


def test_a_preview_says_in_words_that_there_is_no_stock(fleet: Fleet) -> None:
    fleet.cloud.set_stock("us-ord", "g2-gpu-rtx4000a1-s", "false", cloud="linode")
    said = fleet.run("preview").stdout
    assert "Linode has no g2-gpu-rtx4000a1-s left in us-ord" in said
    assert fleet.cloud.calls("create_instance") == []
    # Advice alone: an API that does not answer stops nothing.
    fleet.cloud.set_fault("list_region_availability", "403")
    assert "no g2-gpu" not in fleet.run("preview").stdout


def test_a_firewall_that_is_replaced_leaves_no_machine_open(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.run("up")
    seen = fleet.seen()
    (urn,) = (each["urn"] for each in fleet.stack.state() if each["urn"].endswith("::a-firewall"))
    fleet.run("up", "--replace", urn)
    assert fleet.written(after=seen) == [
        "update_firewall",  # the old one gives up its label
        "create_firewall",
        "update_instance_firewalls",
        "delete_firewall",
    ]
    assert fleet.promises.doors(fleet.cloud, "a") == {(10022, "127.0.0.1/32")}
    assert fleet.drift() is None


def test_what_is_in_the_way_of_a_protected_node_is_named_and_not_touched(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.config["nodes"][0]["protect"] = True
    fleet.cloud.set_fault("create_instance", "lost_reply", node="a")
    fleet.run("up", expect_failure=True)
    (orphan,) = linode(fleet.cloud, "GET", "/linode/instances")["data"]
    errors = str(fleet.run("up", expect_failure=True).errors)
    assert f"instance {orphan['id']} (test-a) carries its owner tag but is not in the state" in errors
    assert [each["id"] for each in linode(fleet.cloud, "GET", "/linode/instances")["data"]] == [orphan["id"]]
    fleet.config["nodes"][0]["protect"] = False
    fleet.run("up")
    (own,) = linode(fleet.cloud, "GET", "/linode/instances")["data"]
    assert own["id"] != orphan["id"]
