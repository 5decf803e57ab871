"""What becomes of machines and firewalls that are there before another is made, on the embedded Linode."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from components.linode.api import LinodeClient
from components.linode.credentials import Credentials
from components.linode.owned import LinodeInventory
from components.linode.succession import (
    ANY_BOOT,
    LostMachine,
    Wanted,
    WantedMachine,
    is_noted,
    make_way_for_firewall,
    make_way_for_machine,
    note,
)
from components.ownership import NotOurs
from simcloud.linode import DEV_TOKEN
from simcloud.testing import SimCloud

REGION, PLAN, IMAGE = "us-ord", "g2-gpu-rtx4000a1-s", "linode/ubuntu24.04"
OPEN = {"inbound": [], "outbound": [], "inbound_policy": "ACCEPT", "outbound_policy": "ACCEPT"}
KEY, OTHER_KEY = "ssh-ed25519 AAAAone=", "ssh-ed25519 AAAAother="


@pytest.fixture
def client(cloud: SimCloud) -> LinodeClient:
    return LinodeClient(Credentials(DEV_TOKEN, f"{cloud.linode_url}/v4"))


def post(cloud: SimCloud, path: str, body: Any) -> int:
    headers = {"Authorization": f"Bearer {DEV_TOKEN}"}
    made = httpx.post(f"{cloud.linode_url}/v4{path}", json=body, headers=headers).raise_for_status()
    return int(made.json()["id"])


def tags(owner: str = "mine", node: str = "dev/a", boot: str = "") -> list[str]:
    own = [f"vllm-fleet-boot={boot}"] if boot else []
    return [f"vllm-fleet-owner={owner}", f"vllm-fleet-node={node}", *own]


def machine(
    cloud: SimCloud, client: LinodeClient, label: str, tagged: list[str], *, noted: bool, plan: str = PLAN
) -> int:
    body = {"label": label, "region": REGION, "type": plan, "image": IMAGE, "tags": tagged, "root_pass": "x"}
    made = post(cloud, "/linode/instances", {**body, "booted": False})
    deadline = time.monotonic() + 30
    while (found := client.find_instance(made)) is None or found.status == "provisioning":
        assert time.monotonic() < deadline
    if noted:
        note(client, made, KEY)
    return made


def firewall(cloud: SimCloud, label: str, tagged: list[str]) -> int:
    return post(cloud, "/networking/firewalls", {"label": label, "tags": tagged, "rules": OPEN})


def wanted(**changes: Any) -> WantedMachine:
    given: Mapping[str, Any] = {
        "node": "a",
        "label": "dev/a",
        "owner": "mine",
        "name": "dev-a-new",
        "boot": "new",
        "former_boots": ("old",),
        "made_from": (REGION, PLAN, IMAGE),
        "protect": False,
    }
    return WantedMachine(**{**given, **changes})


def machines(client: LinodeClient) -> dict[int, str]:
    found = [*client.instances("vllm-fleet-owner=mine"), *client.instances("vllm-fleet-owner=theirs")]
    return {each.id: each.label for each in found}


def test_what_an_interrupted_creation_left_is_removed(cloud: SimCloud, client: LinodeClient) -> None:
    for boot in ("new", "old", "older", ""):
        machine(cloud, client, f"dev-a-{boot}x", tags(boot=boot), noted=False)
    other = machine(cloud, client, "dev-b", tags(node="dev/b"), noted=False)
    make_way_for_machine(client, wanted())
    assert list(machines(client)) == [other]


@pytest.mark.parametrize("former", [("old",), (ANY_BOOT,)])
def test_the_predecessor_is_left_alone(
    cloud: SimCloud, client: LinodeClient, former: tuple[str, ...]
) -> None:
    serving = machine(cloud, client, "dev-a-old", tags(boot="old"), noted=True)
    make_way_for_machine(client, wanted(former_boots=former))
    assert machines(client) == {serving: "dev-a-old"}


def test_a_predecessor_that_was_changed_by_hand_gives_up_its_label(
    cloud: SimCloud, client: LinodeClient
) -> None:
    serving = machine(cloud, client, "dev-a-new", tags(boot="new"), noted=True, plan="g2-gpu-rtx4000a1-m")
    make_way_for_machine(client, wanted())
    assert machines(client) == {serving: f"replaced-{serving}"}


@pytest.mark.parametrize(
    ("boot", "former"), [("new", ("old",)), ("lost", ("old",)), ("old", ()), ("", ("old",))]
)
def test_a_machine_that_state_has_lost_is_named_with_the_ways_out(
    cloud: SimCloud, client: LinodeClient, boot: str, former: tuple[str, ...]
) -> None:
    lost = machine(cloud, client, "dev-a-lost", tags(boot=boot), noted=True)
    left = machine(cloud, client, "dev-a-left", tags(boot="new"), noted=False)
    with pytest.raises(LostMachine) as refused:
        make_way_for_machine(client, wanted(former_boots=former))
    for part in (f"instance {lost} (dev-a-lost)", "Nothing was created", "fleet adopt a", "fleet destroy a"):
        assert part in str(refused.value)
    assert set(machines(client)) == {lost, left}


@pytest.mark.parametrize("noted", [True, False])
def test_another_stack_s_machine_of_the_same_name_is_refused(
    cloud: SimCloud, client: LinodeClient, noted: bool
) -> None:
    theirs = machine(cloud, client, "dev-a-theirs", tags(owner="theirs"), noted=noted)
    with pytest.raises(NotOurs) as refused:
        make_way_for_machine(client, wanted())
    for part in (f"instance {theirs}", "fleet adopt a", "pulumi stack init"):
        assert part in str(refused.value)
    assert list(machines(client)) == [theirs]


def test_a_stranger_s_machine_with_the_label_is_refused(cloud: SimCloud, client: LinodeClient) -> None:
    stranger = machine(cloud, client, "dev-a-new", ["a-tag"], noted=False)
    with pytest.raises(NotOurs, match="labels are unique in an account") as refused:
        make_way_for_machine(client, wanted())
    assert f"instance {stranger} (dev-a-new)" in str(refused.value)
    assert "another stack name" in str(refused.value)


def test_nothing_of_a_protected_node_is_removed(cloud: SimCloud, client: LinodeClient) -> None:
    left = machine(cloud, client, "dev-a-new", tags(boot="new"), noted=False)
    with pytest.raises(LostMachine, match=rf"protected, and instance {left} "):
        make_way_for_machine(client, wanted(protect=True))
    assert list(machines(client)) == [left]


def test_a_note_keeps_what_people_wrote_and_the_key_of_whoever_noted_first(
    cloud: SimCloud, client: LinodeClient
) -> None:
    made = machine(cloud, client, "dev-a", tags(), noted=False)
    profile = client.profile(made)
    assert profile is not None
    client.annotate(made, profile, "ask Kim before a reboot")
    assert not is_noted(client, made)
    assert note(client, made, KEY) == KEY
    assert note(client, made, OTHER_KEY) == KEY
    assert is_noted(client, made)
    again = client.profile(made)
    assert again is not None
    assert again.comments.splitlines() == ["ask Kim before a reboot", "vllm-fleet: in state", KEY]


def test_a_firewall_makes_way_and_keeps_the_machine_behind_it(cloud: SimCloud, client: LinodeClient) -> None:
    made = machine(cloud, client, "dev-a", tags(), noted=True)
    wall = firewall(cloud, "dev-a", tags())
    client.put_behind(wall, made)
    firewall(cloud, "left", tags())
    others = [firewall(cloud, "dev-b", tags(node="dev/b")), firewall(cloud, "dev-c", tags(owner="theirs"))]
    make_way_for_firewall(client, Wanted("a", "dev/a", "mine", "dev-a"))
    found = {each.id: each.label for each in client.firewalls()}
    assert found == {wall: f"replaced-{wall}", others[0]: "dev-b", others[1]: "dev-c"}
    assert client.behind_firewall(wall) == {made}


class TestInventory:
    @pytest.fixture
    def inventory(self, client: LinodeClient) -> LinodeInventory:
        return LinodeInventory(client, REGION)

    def test_an_owner_s_objects_are_listed_and_removed_and_nobody_else_s(
        self, cloud: SimCloud, client: LinodeClient, inventory: LinodeInventory
    ) -> None:
        mine = machine(cloud, client, "dev-a", tags(), noted=True)
        wall = firewall(cloud, "dev-a", tags())
        theirs = machine(cloud, client, "dev-b", tags(owner="theirs", node="dev/b"), noted=True)
        found = inventory.owned("mine")
        assert [(each.kind, each.id, each.node) for each in found] == [
            ("server", str(mine), "a"),
            ("firewall", str(wall), "a"),
        ]
        assert found[0].type == PLAN
        elsewhere = LinodeInventory(client, "us-sea").owned("mine")
        assert [each.id for each in elsewhere] == [str(wall)]
        inventory.remove(found)
        inventory.remove(found)
        assert [thing["id"] for thing in cloud.inventory()] == [str(theirs)]

    def test_a_node_s_machine_is_found_whoever_owns_it_and_given_another_owner(
        self, cloud: SimCloud, client: LinodeClient, inventory: LinodeInventory
    ) -> None:
        machine(cloud, client, "dev-a", [*tags(owner="theirs"), "kept"], noted=True)
        firewall(cloud, "dev-a", tags(owner="theirs"))
        machine(cloud, client, "dev-b", tags(owner="theirs", node="dev/b"), noted=True)
        assert [each.name for each in inventory.labelled(["dev/a", "dev/c"])] == ["dev-a"]
        inventory.adopt([each for each in inventory.owned("theirs") if each.node == "a"], "mine")
        assert {each.kind for each in inventory.owned("mine")} == {"server", "firewall"}
        assert [each.name for each in inventory.owned("theirs")] == ["dev-b"]
        assert "kept" in client.instances("vllm-fleet-owner=mine")[0].tags
