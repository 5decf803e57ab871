"""Our own part of Linode's API, judged on the embedded Linode: patience, deadlines, words, and no secret."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from components.linode.api import LinodeClient, LinodeError
from components.linode.credentials import Credentials, CredentialsError
from components.linode.resources import make_way
from simcloud.linode import DEV_TOKEN
from simcloud.testing import SimCloud, running_simcloud

REGION, PLAN = "us-ord", "g2-gpu-rtx4000a1-s"
MINE, OTHERS = "vllm-fleet-owner=mine", "vllm-fleet-owner=others"
OPEN = {"inbound": [], "outbound": [], "inbound_policy": "ACCEPT", "outbound_policy": "ACCEPT"}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCloud]:
    with running_simcloud(tmp_path_factory.mktemp("cloud"), nodes="none") as running:
        yield running


@pytest.fixture
def cloud(emulator: SimCloud) -> SimCloud:
    emulator.reset()
    return emulator


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
    with pytest.raises(
        LinodeError, match=rf"DELETE /linode/instances/{made}: still there .* Mend: delete it"
    ):
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


@pytest.mark.parametrize("fault", ["429", "500", "503", "reset", "lost_reply"])
def test_a_look_is_repeated_until_it_succeeds(cloud: SimCloud, client: LinodeClient, fault: str) -> None:
    made = instance(cloud, "dev-a", MINE)
    cloud.set_fault("list_instances", fault, times=2)
    assert [found.id for found in client.instances(MINE)] == [made]


def test_a_firewall_makes_way_and_keeps_the_machine_behind_it(cloud: SimCloud, client: LinodeClient) -> None:
    made, wall = instance(cloud, "dev-a", MINE), firewall(cloud, "dev-a", MINE)
    client.put_behind(wall, made)
    firewall(cloud, "left", MINE)
    make_way(client, MINE)
    assert [(found.id, found.label) for found in client.firewalls(MINE)] == [(wall, f"replaced-{wall}")]
    assert client.behind_firewall(wall) == {made}


def test_a_refusal_names_the_call_linode_s_reason_and_the_mend_and_no_secret(
    cloud: SimCloud, client: LinodeClient
) -> None:
    cloud.deny("list_firewalls")
    with pytest.raises(LinodeError) as refused:
        client.firewalls(MINE)
    assert str(refused.value) == (
        "GET /networking/firewalls: Linode refused (403): Unauthorized. "
        "Mend: give the token read and write access to Linodes and Firewalls, and read access to Events"
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
