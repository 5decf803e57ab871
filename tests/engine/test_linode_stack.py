"""What is Linode's own about a node on Linode; what every node promises is tried in test_contract.py."""

from __future__ import annotations

import re

import pytest
from clouds import linode
from fleets import Fleet

pytestmark = pytest.mark.parametrize("fleet", ["linode"], indirect=True)


def test_everything_of_a_node_carries_its_owner_and_a_label_that_linode_takes(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.run("up")
    for path in ("/linode/instances", "/networking/firewalls"):
        (thing,) = linode(fleet.cloud, "GET", path)["data"]
        assert re.fullmatch(r"test-a-[0-9a-f]{8}", thing["label"])
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
    # The node's retirement and the stack's may both delete what is in use no more.
    assert list(dict.fromkeys(fleet.written(after=seen))) == [
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
    errors = " ".join(text for _, text in fleet.run("up", expect_failure=True).errors)
    assert f"instance {orphan['id']} ({orphan['label']}) carries its owner's id" in errors
    assert [each["id"] for each in linode(fleet.cloud, "GET", "/linode/instances")["data"]] == [orphan["id"]]
    fleet.config["nodes"][0]["protect"] = False
    fleet.run("up")
    (own,) = linode(fleet.cloud, "GET", "/linode/instances")["data"]
    assert own["id"] != orphan["id"]


SPOILT = ("409", "closed", "html_502", "garbage", "wrong_shape", "nulls", "truncated")


@pytest.mark.faults
def test_replies_that_are_not_linode_s_make_no_second_machine_and_leave_nothing(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    calls = {call: each for call, each in fleet.promises.creating.items() if call != "list_configs"}
    pairs = [(call, kind) for call in calls for kind in SPOILT]
    met = {f"n{number}": pair for number, pair in enumerate(pairs)}
    fleet.nodes(*met)
    for node, (call, kind) in met.items():
        fleet.cloud.set_fault(call, kind, node=node)
    first = fleet.run("up", "--refresh=false", expect_failure=True)
    for node, (call, kind) in met.items():
        errors = " ".join(text for name, text in first.errors if name.startswith(f"{node}-"))
        # What makes something is not sent twice where it may have taken effect.
        fails = call.startswith("create") and kind != "409"
        assert (calls[call].said in errors) == fails, f"{kind} on {call}: {errors}"
        assert ("Fix: " in errors) == fails
    assert "Traceback" not in first.stdout and "Error:" not in first.stdout.replace("error:", "")
    assert fleet.cloud.faults()["planted"] == []
    assert {count for parts in fleet.parts().values() for count in parts.values()} == {1}
    fleet.run("up")
    assert fleet.parts() == fleet.whole(*met)

    for call in fleet.promises.deleting:
        for kind in SPOILT:
            fleet.cloud.set_fault(call, kind)
    fleet.run("destroy", "--refresh=false")
    assert fleet.left() == []


def test_what_was_just_made_may_lag_behind(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.nodes("walls", "machines", "both")
    for call, node in {
        ("create_firewall", "walls"),
        ("create_instance", "machines"),
        ("create_firewall", "both"),
        ("create_instance", "both"),
    }:
        fleet.cloud.set_fault(call, "lag", node=node)
    first = fleet.start("up").wait()
    assert {count for parts in fleet.parts().values() for count in parts.values()} == {1}
    assert "Traceback" not in first.stdout
    fleet.run("up")
    assert fleet.parts() == fleet.whole("walls", "machines", "both")
    assert fleet.run("up").operations == {}
    fleet.run("destroy")
    assert fleet.left() == []


def test_a_machine_is_replaced_on_purpose_by_its_first_boot_and_not_by_itself(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.run("up")
    (before,) = linode(fleet.cloud, "GET", "/linode/instances")["data"]
    urns = {each["urn"].rpartition("::")[2]: each["urn"] for each in fleet.stack.state()}
    refused = fleet.run("up", "--replace", urns["a-server"], expect_failure=True)
    assert "the URN of a-first-boot" in refused.stdout
    assert [each["id"] for each in linode(fleet.cloud, "GET", "/linode/instances")["data"]] == [before["id"]]
    fleet.run("up", "--replace", urns["a-first-boot"])
    (after,) = linode(fleet.cloud, "GET", "/linode/instances")["data"]
    assert after["id"] != before["id"]
    assert fleet.drift() is None


def test_the_note_survives_what_the_provider_writes_in_place(fleet: Fleet) -> None:
    fleet.config["health"]["enabled"] = False
    fleet.run("up")
    fleet.config["nodes"][0]["tags"] = ["team=a"]
    fleet.run("up", "--refresh=false")
    (machine,) = linode(fleet.cloud, "GET", "/linode/instances")["data"]
    (profile,) = linode(fleet.cloud, "GET", f"/linode/instances/{machine['id']}/configs")["data"]
    assert "vllm-fleet: in state" in profile["comments"].splitlines()
    assert "ssh-ed25519 " in profile["comments"]
