"""Our own part of Linode's API, judged on the embedded Linode: patience, deadlines, words, and no secret."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from components.linode.api import LinodeClient, Profile
from components.linode.credentials import Credentials, CredentialsError
from components.linode.errors import LinodeError, fix_of
from simcloud.linode import DEV_TOKEN
from simcloud.testing import SimCloud

REGION, PLAN = "us-ord", "g2-gpu-rtx4000a1-s"
MINE, OTHERS = "vllm-fleet-owner=mine", "vllm-fleet-owner=others"
OPEN = {"inbound": [], "outbound": [], "inbound_policy": "ACCEPT", "outbound_policy": "ACCEPT"}


@pytest.fixture
def client(cloud: SimCloud) -> LinodeClient:
    return LinodeClient(Credentials(DEV_TOKEN, f"{cloud.linode_url}/v4"))


def post(cloud: SimCloud, path: str, body: Any) -> Any:
    headers = {"Authorization": f"Bearer {DEV_TOKEN}"}
    return httpx.post(f"{cloud.linode_url}/v4{path}", json=body, headers=headers).raise_for_status().json()


def instance(cloud: SimCloud, label: str, tag: str, **others: Any) -> int:
    body = {"label": label, "region": REGION, "type": PLAN, "tags": [tag], **others}
    return int(post(cloud, "/linode/instances", body)["id"])


def firewall(cloud: SimCloud, label: str, tag: str) -> int:
    return int(post(cloud, "/networking/firewalls", {"label": label, "tags": [tag], "rules": OPEN})["id"])


def test_what_an_owner_has_is_found_by_its_tag_and_nothing_else_is(
    cloud: SimCloud, client: LinodeClient
) -> None:
    mine, wall = instance(cloud, "dev-a", MINE), firewall(cloud, "dev-a", MINE)
    instance(cloud, "dev-b", OTHERS)
    firewall(cloud, "dev-b", OTHERS)
    assert [found.id for found in client.instances(MINE)] == [mine]
    assert [found.id for found in client.firewalls(MINE)] == [wall]


def test_a_machine_is_deleted_once_it_can_be_and_its_label_is_free_when_that_returns(
    cloud: SimCloud, client: LinodeClient
) -> None:
    made = instance(cloud, "dev-a", MINE)  # still being provisioned: busy
    client.delete_instance(made)
    assert cloud.inventory() == []
    client.delete_instance(made)
    instance(cloud, "dev-a", MINE)


def test_a_machine_that_does_not_go_in_time_is_named(cloud: SimCloud, client: LinodeClient) -> None:
    made = instance(cloud, "dev-a", MINE)
    cloud.set_fault("delete_instance", "503", times=1000)
    with pytest.raises(LinodeError, match=rf"DELETE /linode/instances/{made}: still there .* Fix: delete it"):
        client.delete_instance(made, deadline_s=0.3)


def test_a_machine_is_put_behind_a_firewall_and_a_missing_firewall_is_told(
    cloud: SimCloud, client: LinodeClient
) -> None:
    made, wall = instance(cloud, "dev-a", MINE), firewall(cloud, "dev-a", MINE)
    assert client.behind_firewall(wall) == set()
    client.put_behind(wall, made)
    assert client.behind_firewall(wall) == {made}
    other = firewall(cloud, "dev-b", MINE)
    cloud.set_fault("update_instance_firewalls", "lost_reply")
    client.put_behind(other, made)
    assert (client.behind_firewall(wall), client.behind_firewall(other)) == (set(), {made})
    client.delete_firewall(wall)
    client.delete_firewall(wall)
    assert client.behind_firewall(wall) is None


def test_stock_is_yes_no_or_not_said(cloud: SimCloud, client: LinodeClient) -> None:
    assert client.available(REGION, PLAN) is True
    cloud.set_stock(REGION, PLAN, "false", cloud="linode")
    assert client.available(REGION, PLAN) is False
    assert client.available(REGION, "g9-unknown") is None


PASSING = (
    *("409", "429", "500", "503", "timeout", "reset", "closed", "lost_reply"),
    *("html_502", "garbage", "wrong_shape", "nulls", "truncated"),
)
LASTING = {
    "403": "give the token read and write access",
    "quota": "ask Linode for a higher limit",
    "out_of_stock": "choose another region or type",
}
WORDS = {"GET": "run the same command again", "PUT": "nothing was changed", "DELETE": "it may still bill"}
"""What a refusal of an operation advises where nothing better is known."""


@dataclass(frozen=True)
class Made:
    """What a call is tried on."""

    client: LinodeClient
    instance: int
    firewall: int


def profile(made: Made) -> Profile:
    found = made.client.profile(made.instance)
    assert found is not None
    return found


CALLS: Mapping[str, tuple[str, Callable[[Made], object]]] = {
    "list_instances": ("GET", lambda made: [each.id for each in made.client.instances(MINE)]),
    "get_instance": ("GET", lambda made: made.client.find_instance(made.instance)),
    "delete_instance": ("DELETE", lambda made: made.client.delete_instance(made.instance, deadline_s=30)),
    "list_firewalls": ("GET", lambda made: [each.id for each in made.client.firewalls(MINE)]),
    "delete_firewall": ("DELETE", lambda made: made.client.delete_firewall(made.firewall)),
    "list_firewall_devices": ("GET", lambda made: made.client.behind_firewall(made.firewall)),
    "update_instance_firewalls": ("PUT", lambda made: made.client.put_behind(made.firewall, made.instance)),
    "update_instance": ("PUT", lambda made: made.client.update_instance(made.instance, label="dev-z")),
    "list_configs": ("GET", lambda made: made.client.profile(made.instance)),
    "update_config": ("PUT", lambda made: made.client.annotate(made.instance, profile(made), "mine")),
    "update_firewall": ("PUT", lambda made: made.client.update_firewall(made.firewall, label="dev-c")),
    "list_region_availability": ("GET", lambda made: made.client.available(REGION, PLAN)),
    "get_linode_image": ("GET", lambda made: made.client.capabilities("linode/ubuntu24.04")),
}
"""Every call of an API that this program makes by itself, and how it comes to it."""


@pytest.fixture
def made(cloud: SimCloud) -> Made:
    image = {"image": "linode/ubuntu24.04", "root_pass": "x", "booted": False}
    found = Made(quick(cloud), instance(cloud, "dev-a", MINE, **image), firewall(cloud, "dev-a", MINE))
    settled(cloud, found.instance)
    return found


def quick(cloud: SimCloud) -> LinodeClient:
    credentials = Credentials(DEV_TOKEN, f"{cloud.linode_url}/v4")
    return LinodeClient(credentials, read_timeout_s=2.0, first_pause_s=0.01)


def settled(cloud: SimCloud, made: int) -> None:
    deadline = time.monotonic() + 30
    while cloud.inventory("server")[0]["state"] != "offline":
        assert time.monotonic() < deadline
        quick(cloud).find_instance(made)


@pytest.mark.parametrize("call", [call for call in CALLS if not call.startswith("delete")])
def test_a_fault_that_passes_changes_nothing_for_who_called(cloud: SimCloud, made: Made, call: str) -> None:
    method, do = CALLS[call]
    expected = do(made) if method == "GET" else None
    for fault in PASSING:
        cloud.set_fault(call, fault)
        assert do(made) == expected, fault
        assert cloud.faults()["planted"] == [], fault


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("call", [call for call in CALLS if call.startswith("delete")])
def test_a_fault_that_passes_keeps_nothing_from_being_deleted(
    cloud: SimCloud, made: Made, call: str, fault: str
) -> None:
    cloud.set_fault(call, fault)
    CALLS[call][1](made)
    assert cloud.faults()["planted"] == []
    kind = call.removeprefix("delete_").replace("instance", "server")
    assert cloud.inventory(kind) == []


@pytest.mark.parametrize(("call", "fault"), [(call, fault) for call in CALLS for fault in LASTING])
def test_what_does_not_pass_is_told_in_the_words_of_the_operation(
    cloud: SimCloud, made: Made, call: str, fault: str
) -> None:
    method, do = CALLS[call]
    cloud.set_fault(call, fault, times=1000)
    with pytest.raises(LinodeError) as refused:
        do(made)
    assert str(refused.value).startswith(f"{method} /")
    assert LASTING[fault] in str(refused.value)


@pytest.mark.parametrize("method", WORDS)
def test_a_value_that_is_refused_is_told_in_the_words_of_the_operation(method: str) -> None:
    assert WORDS[method] in fix_of(method, 400, "must be something else")
    assert WORDS["DELETE"] not in fix_of("PUT", 400, "must be something else")


def test_a_reply_that_is_not_linode_s_names_the_call_and_no_python(cloud: SimCloud, made: Made) -> None:
    hasty = LinodeClient(Credentials(DEV_TOKEN, f"{cloud.linode_url}/v4"), patience_s=0.1)
    for fault in ("garbage", "wrong_shape", "nulls"):
        cloud.set_fault("list_instances", fault, times=1000)
        with pytest.raises(LinodeError, match=r"GET /linode/instances: the reply is not as Linode's API"):
            hasty.instances(MINE)
        cloud.clear_faults()


def test_one_404_alone_is_no_proof_that_a_machine_is_gone(cloud: SimCloud, made: Made) -> None:
    cloud.set_fault("get_instance", "404")
    found = made.client.find_instance(made.instance)
    assert found is not None and found.id == made.instance
    cloud.set_fault("get_instance", "404")
    made.client.delete_instance(made.instance)
    assert cloud.inventory("server") == []
    assert made.client.find_instance(made.instance) is None


def test_what_was_just_made_is_waited_for(cloud: SimCloud, made: Made) -> None:
    cloud.set_fault("update_instance_firewalls", "404", times=2)
    cloud.set_fault("list_firewall_devices", "404", times=2)
    made.client.put_behind(made.firewall, made.instance)
    assert made.client.behind_firewall(made.firewall, exists=True) == {made.instance}
    assert made.client.behind_firewall(1) is None


def test_a_refusal_names_the_call_linode_s_reason_and_the_fix_and_no_secret(
    cloud: SimCloud, client: LinodeClient
) -> None:
    cloud.deny("list_firewalls")
    with pytest.raises(LinodeError) as refused:
        client.firewalls(MINE)
    assert str(refused.value) == (
        "GET /networking/firewalls: Linode refused (403): Unauthorized. "
        "Fix: give the token read and write access to Linodes and Firewalls, and read access to Events"
    )
    secret = LinodeClient(Credentials("planted-token", f"{cloud.linode_url}/v4"))
    with pytest.raises(LinodeError, match="Invalid Token") as refused:
        secret.firewalls(MINE)
    assert "planted" not in f"{refused.value!r}{refused.value}{Credentials('planted', 'https://a.b')!r}"


class TestCredentials:
    def resolve(self, config: dict[str, str], environ: dict[str, str]) -> Credentials:
        return Credentials.resolve(config.get, environ)

    def test_configuration_comes_before_the_environment(self) -> None:
        environ = {
            "LINODE_TOKEN": "e",
            "LINODE_URL": "https://other.example/",
            "LINODE_API_VERSION": "v4beta",
        }
        assert self.resolve({"token": "c"}, environ) == Credentials("c", "https://other.example/v4beta")
        assert self.resolve({"token": "c"}, {}) == Credentials("c", "https://api.linode.com/v4")

    @pytest.mark.parametrize(
        ("config", "says"),
        [
            ({}, "is not set; run `pulumi config set --secret linode:token`"),
            ({"token": "a b"}, "holds spaces"),
            ({"token": "t", "url": "api.linode.com"}, "is no plain URL"),
            ({"token": "t", "url": "http://api.linode.com"}, "unencrypted; use https"),
        ],
    )
    def test_what_would_fail_or_leak_later_is_refused(self, config: dict[str, str], says: str) -> None:
        with pytest.raises(CredentialsError, match=says):
            self.resolve(config, {})
