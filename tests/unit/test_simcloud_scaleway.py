"""The embedded Scaleway, judged by the vendor's own SDK; raw HTTP where the reply's exact shape matters."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from scaleway import Client, ScalewayException
from scaleway.block.v1 import BlockV1API
from scaleway.iam.v1alpha1 import IamV1Alpha1API
from scaleway.instance.v1 import SetSecurityGroupRulesRequestRule
from scaleway.instance.v1.custom_api import InstanceUtilsV1API
from starlette.testclient import TestClient

from simcloud.app import make_app
from simcloud.cloud import Cloud, Simulation
from simcloud.nodes import Boot, NodeBackend
from simcloud.scaleway import DEV_SECRET_KEY, Scaleway
from simcloud.testing import SimCloud, running_simcloud

ZONE = "fr-par-2"
GPU_IMAGE = "5c3d28db-33ce-4997-8572-f49506339283"
LOCAL_IMAGE = "08176977-2d0e-4db0-a604-f81daa390f81"
UNKNOWN = "00000000-1111-4111-8111-111111111111"
GB = 10**9


def words(text: str) -> set[str]:
    return set(text.split())


# What real replies of 2026-08 hold.
SERVER_KEYS = words(
    "id name arch commercial_type boot_type organization project hostname image volumes tags state protected"
    " state_detail public_ip public_ips mac_address routed_ip_enabled ipv6 extra_networks dynamic_ip_required"
    " enable_ipv6 private_ip creation_date modification_date bootscript security_group location maintenances"
    " allowed_actions placement_group private_nics zone filesystems end_of_service dns"
)
ROOT_VOLUME_KEYS = {"boot", "volume_type", "id", "state", "zone"}
LOCAL_VOLUME_KEYS = words(
    "boot id name volume_type export_uri organization project server size state creation_date"
    " modification_date tags zone"
)
SERVER_IP_KEYS = words("id address dynamic gateway netmask family provisioning_mode tags state ipam_id")
IMAGE_KEYS = words(
    "id name organization project root_volume extra_volumes public arch creation_date modification_date"
    " default_bootscript from_server state tags zone"
)
BLOCK_VOLUME_KEYS = words(
    "id name type size project_id created_at updated_at references parent_snapshot_id status tags specs"
    " last_detached_at kms_key_id zone"
)
REFERENCE_KEYS = {"id", "product_resource_type", "product_resource_id", "created_at", "type", "status"}
GROUP_KEYS = words(
    "id creation_date modification_date name description organization project servers stateful"
    " inbound_default_policy outbound_default_policy organization_default project_default"
    " enable_default_security state tags zone"
)
RULE_KEYS = words(
    "id protocol direction ip_range dest_ip_range dest_port_from dest_port_to position editable action zone"
)
IP_KEYS = words("id address prefix reverse server organization project zone type state tags ipam_id")
TASK_KEYS = words("id description status href_from href_result started_at terminated_at progress zone")
TYPE_KEYS = words(
    "alt_names arch ncpus ram gpu gpu_info mig_profile volumes_constraint per_volume_constraint"
    " scratch_storage_max_size scratch_storage_max_volumes_count monthly_price hourly_price capabilities"
    " network block_bandwidth"
    " end_of_service"
)


class Sdk:
    """The vendor's client of one emulator."""

    def __init__(self, cloud: SimCloud) -> None:
        client = Client(
            access_key="SCWXXXXXXXXXXXXXXXXX",
            secret_key=cloud.secret_key,
            api_url=cloud.scaleway_url,
            default_project_id=cloud.project,
            default_zone=ZONE,
            default_region="fr-par",
        )
        self.instance = InstanceUtilsV1API(client)
        self.block = BlockV1API(client)
        self.iam = IamV1Alpha1API(client)

    def create(self, name: str = "l4-a", commercial_type: str = "L4-1-24G", **others: Any) -> Any:
        return self.instance.create_server(
            name=name, commercial_type=commercial_type, **{"image": GPU_IMAGE, **others}
        ).server

    def server(self, server_id: str) -> Any:
        return self.instance.get_server(server_id=server_id).server

    def act(self, server_id: str, action: Any) -> None:
        self.instance.server_action(server_id=server_id, action=action)

    def wait_server(self, server_id: str, state: str) -> list[str]:
        return states(lambda: _state(self.server(server_id)), lambda seen: seen.split(":")[0] == state)

    def wait_volume(self, volume_id: str, status: str) -> list[str]:
        return states(lambda: self.block.get_volume(volume_id=volume_id).status, status.__eq__)

    def start(self, server_id: str) -> None:
        self.act(server_id, "poweron")
        self.wait_server(server_id, "running")


def _state(server: Any) -> str:
    return f"{server.state}: {server.state_detail}" if server.state_detail else str(server.state)


def states(look: Callable[[], str], done: Callable[[str], bool]) -> list[str]:
    """The different answers seen until one is the wanted one."""
    seen: list[str] = []
    deadline = time.monotonic() + 30
    while not seen or not done(seen[-1]):
        assert time.monotonic() < deadline, seen
        if (now := look()) not in seen[-1:]:
            seen.append(now)
        time.sleep(0.005)
    return seen


@pytest.fixture
def sdk(cloud: SimCloud) -> Sdk:
    return Sdk(cloud)


@pytest.fixture
def http(cloud: SimCloud) -> Iterator[httpx.Client]:
    headers = {"X-Auth-Token": cloud.secret_key}
    base = f"{cloud.scaleway_url}/instance/v1/zones/{ZONE}"
    with httpx.Client(base_url=base, headers=headers, timeout=10) as client:
        yield client


def body(name: str = "l4-a", **others: Any) -> dict[str, Any]:
    return {"name": name, "commercial_type": "L4-1-24G", "image": GPU_IMAGE, **others}


class TestServers:
    def test_a_server_made_from_an_image_alone_is_stopped_and_has_a_20_gb_block_volume(
        self, sdk: Sdk
    ) -> None:
        server = sdk.create(tags=["a", "b"])
        assert (server.state, server.tags, server.public_ips) == ("stopped", ["a", "b"], [])
        assert server.volumes["0"].volume_type == "sbs_volume"
        volume = sdk.block.get_volume(volume_id=server.volumes["0"].id)
        assert (volume.status, volume.size) == ("creating", 20 * GB)
        assert volume.name == "Ubuntu Noble GPU OS 13 passthrough_sbs_volume_0"

    def test_the_root_grows_before_the_first_start(self, sdk: Sdk) -> None:
        root = sdk.create().volumes["0"].id
        assert sdk.wait_volume(root, "in_use") == ["creating", "in_use"]
        assert sdk.block.update_volume(volume_id=root, size=200 * GB).size == 20 * GB
        assert sdk.wait_volume(root, "in_use") == ["updating", "in_use"]
        assert sdk.block.get_volume(volume_id=root).size == 200 * GB

    def test_a_power_cycle_passes_every_state_and_lends_an_ip_while_running(self, sdk: Sdk) -> None:
        server = sdk.create()
        sdk.act(server.id, "poweron")
        assert sdk.wait_server(server.id, "running") == [
            "starting: allocating node",
            "starting: provisioning node",
            "running: booting kernel",
        ]
        ip = sdk.server(server.id).public_ip
        assert ip.dynamic and ip.address.startswith("127.0.")
        sdk.act(server.id, "poweroff")
        assert sdk.wait_server(server.id, "stopped") == ["stopping: stopping", "stopped"]
        assert sdk.server(server.id).public_ips == []
        sdk.start(server.id)
        assert sdk.server(server.id).public_ip.address == ip.address

    def test_terminating_a_server_leaves_its_volume_which_can_then_be_deleted(
        self, sdk: Sdk, cloud: SimCloud
    ) -> None:
        server = sdk.create()
        root = server.volumes["0"].id
        sdk.start(server.id)
        with pytest.raises(ScalewayException) as refused:
            sdk.block.delete_volume(volume_id=root)
        assert refused.value.status_code == 412
        sdk.act(server.id, "terminate")
        assert sdk.server(server.id).state_detail == "terminating"
        sdk.wait_volume(root, "available")
        with pytest.raises(ScalewayException) as gone:
            sdk.server(server.id)
        assert gone.value.status_code == 404
        assert [thing["kind"] for thing in cloud.inventory()] == ["volume"]
        sdk.block.delete_volume(volume_id=root)
        assert cloud.inventory() == []

    def test_the_volume_of_a_deleted_server_stays_in_use_for_a_while(self, sdk: Sdk) -> None:
        server = sdk.create()
        root = server.volumes["0"].id
        sdk.wait_volume(root, "in_use")
        sdk.instance.delete_server(server_id=server.id)
        assert sdk.wait_volume(root, "available") == ["in_use", "available"]

    def test_an_h100_also_gets_a_scratch_volume(self, http: httpx.Client) -> None:
        server = http.post("/servers", json=body(commercial_type="H100-1-80G")).json()["server"]
        assert set(server["volumes"]["1"]) == LOCAL_VOLUME_KEYS
        assert server["volumes"]["1"]["size"] == 3000 * GB

    def test_user_data_is_kept_byte_for_byte(self, sdk: Sdk, http: httpx.Client) -> None:
        server = sdk.create()
        sent = b"\x1f\x8b\x00\xffraw\r\n"
        sdk.instance.set_server_user_data(server.id, "cloud-init", sent)
        assert sdk.instance.list_server_user_data(server_id=server.id).user_data == ["cloud-init"]
        got = http.get(f"/servers/{server.id}/user_data/cloud-init")
        assert (got.content, got.headers["Content-Type"]) == (sent, "text/plain")
        sdk.instance.delete_server_user_data(server_id=server.id, key="cloud-init")
        missing = http.get(f"/servers/{server.id}/user_data/cloud-init")
        assert (missing.status_code, missing.content) == (404, b"")

    def test_lists_are_paged_and_names_match_by_prefix(self, sdk: Sdk, http: httpx.Client) -> None:
        for number in (1, 2, 100):
            sdk.create(name=f"server{number}", tags=[f"n={number}", "all"])
        assert {s.name for s in sdk.instance.list_servers_all(per_page=2)} == {
            "server1",
            "server2",
            "server100",
        }
        named = sdk.instance.list_servers(name="server1").servers
        assert {server.name for server in named} == {"server1", "server100"}
        tagged = sdk.instance.list_servers(tags=["n=2", "all"]).servers
        assert [server.name for server in tagged] == ["server2"]
        first = http.get("/servers", params={"per_page": 2, "name": "server"})
        assert first.headers["X-Total-Count"] == "3"
        assert first.headers["Link"] == (
            '</servers?page=2&per_page=2&name=server>; rel="next",'
            '</servers?page=2&per_page=2&name=server>; rel="last"'
        )

    def test_a_flexible_ip_takes_the_place_of_the_dynamic_one(self, sdk: Sdk) -> None:
        server = sdk.create()
        ip = sdk.instance.create_ip(type_="routed_ipv4", server=server.id).ip
        sdk.start(server.id)
        assert [(i.address, i.dynamic) for i in sdk.server(server.id).public_ips] == [(ip.address, False)]
        sdk.instance.delete_ip(ip=ip.id)
        assert sdk.server(server.id).public_ip.dynamic


class TestSecurityGroups:
    def test_rules_come_back_as_the_real_api_writes_them(self, sdk: Sdk) -> None:
        group = sdk.instance.create_security_group(
            name="l4-a",
            description="",
            stateful=True,
            inbound_default_policy="drop",
            outbound_default_policy="accept",
        ).security_group

        def rule(ip_range: str, port: int) -> Any:
            return SetSecurityGroupRulesRequestRule(
                action="accept",
                protocol="TCP",
                direction="inbound",
                ip_range=ip_range,
                dest_port_from=port,
                dest_port_to=port,
                position=1,
                editable=True,
                zone=ZONE,
            )

        wanted = [rule("203.0.113.7/32", 22), rule("2001:db8::1/128", 22), rule("198.51.100.0/24", 8000)]
        sdk.instance.set_security_group_rules(security_group_id=group.id, rules=wanted)
        rules = sdk.instance.list_security_group_rules(security_group_id=group.id).rules
        assert [r.ip_range for r in rules if r.editable] == ["203.0.113.7", "2001:db8::1", "198.51.100.0/24"]
        sdk.instance.set_security_group_rules(security_group_id=group.id, rules=[])
        left = sdk.instance.list_security_group_rules(security_group_id=group.id).rules
        assert sorted((r.ip_range, r.dest_port_from, r.editable) for r in left) == [
            (ip_range, port, False) for ip_range in ("0.0.0.0/0", "::/0") for port in (25, 465, 587)
        ]

    def test_a_group_in_use_cannot_be_deleted(self, sdk: Sdk) -> None:
        group = sdk.instance.create_security_group(
            name="l4-a",
            description="",
            stateful=True,
            inbound_default_policy="drop",
            outbound_default_policy="accept",
        ).security_group
        server = sdk.create(security_group=group.id)
        with pytest.raises(ScalewayException) as refused:
            sdk.instance.delete_security_group(security_group_id=group.id)
        assert refused.value.status_code == 409
        sdk.instance.delete_server(server_id=server.id)
        sdk.instance.delete_security_group(security_group_id=group.id)


class TestShapes:
    def test_replies_have_the_keys_of_real_ones(self, cloud: SimCloud, http: httpx.Client) -> None:
        server = http.post("/servers", json=body()).json()["server"]
        root = server["volumes"]["0"]
        assert set(server) == SERVER_KEYS
        assert set(root) == ROOT_VOLUME_KEYS
        assert set(server["image"]) == IMAGE_KEYS
        volume = http.get(f"{cloud.scaleway_url}/block/v1/zones/{ZONE}/volumes/{root['id']}").json()
        assert set(volume) == BLOCK_VOLUME_KEYS
        assert set(volume["references"][0]) == REFERENCE_KEYS
        task = http.post(f"/servers/{server['id']}/action", json={"action": "poweron"})
        assert task.status_code == 202
        assert set(task.json()["task"]) == TASK_KEYS
        assert task.json()["task"]["id"] == "00000000-0000-0000-0000-000000000000"

        def get() -> Any:
            return http.get(f"/servers/{server['id']}").json()["server"]

        states(lambda: get()["state"], "running".__eq__)
        running = get()
        assert set(running) == SERVER_KEYS
        assert set(running["public_ip"]) == SERVER_IP_KEYS
        group = http.post("/security_groups", json={"name": "g"}).json()["security_group"]
        assert set(group) == GROUP_KEYS
        rules = http.get(f"/security_groups/{group['id']}/rules").json()["rules"]
        assert set(rules[0]) == RULE_KEYS
        assert set(http.post("/ips", json={"type": "routed_ipv4"}).json()["ip"]) == IP_KEYS

    def test_the_products_name_prices_gpus_and_stock(self, cloud: SimCloud, http: httpx.Client) -> None:
        cloud.set_stock(ZONE, "L40S-1-48G", "scarce")
        types = http.get("/products/servers").json()["servers"]
        assert set(types["L4-1-24G"]) == TYPE_KEYS
        assert types["L4-1-24G"]["hourly_price"] == 0.7875
        assert types["L4-1-24G"]["monthly_price"] == 574.875
        assert types["H100-SXM-8-80G"]["gpu_info"]["gpu_memory"] == 80 * 2**30
        stock = http.get("/products/servers/availability").json()["servers"]
        assert stock["L40S-1-48G"] == {"availability": "scarce"}
        assert stock["L4-1-24G"] == {"availability": "available"}


REFUSALS: dict[str, tuple[str, str, Any, int, dict[str, Any]]] = {
    "an unknown server": (
        "GET", f"/servers/{UNKNOWN}", None, 404,
        {"type": "not_found", "message": "resource is not found",
         "resource": "instance_server", "resource_id": UNKNOWN},
    ),
    "an unknown image": (
        "POST", "/servers", body(image=UNKNOWN), 404,
        {"type": "not_found", "message": "resource is not found",
         "resource": "instance_image", "resource_id": UNKNOWN},
    ),
    "an unknown IP": (
        "POST", "/servers", body(public_ips=[UNKNOWN]), 404,
        {"type": "not_found", "message": "resource is not found",
         "resource": "instance_ip", "resource_id": UNKNOWN},
    ),
    "an unknown security group": (
        "GET", f"/security_groups/{UNKNOWN}", None, 404,
        {"type": "not_found", "message": "resource is not found",
         "resource": "instance_security_group", "resource_id": UNKNOWN},
    ),
    "a server of nothing": (
        "POST", "/servers", {"name": "a"}, 400,
        {"type": "invalid_arguments", "message": "invalid argument(s)", "details": [
            {"argument_name": name, "reason": "required", "help_message": "required key not provided"}
            for name in ("commercial_type", "image", "volumes")]},
    ),
    "a local image on a GPU type": (
        "POST", "/servers", body(image=LOCAL_IMAGE), 400,
        {"type": "invalid_arguments", "message": "invalid argument(s)", "details": [
            {"argument_name": "volumes", "reason": "constraint",
             "help_message": "L4-1-24G accepts no local volume (l_ssd)"}]},
    ),
    "a local volume on a GPU type": (
        "POST", "/servers", body(volumes={"0": {"volume_type": "l_ssd", "size": 20 * GB}}), 400,
        {"type": "invalid_arguments", "message": "invalid argument(s)", "details": [
            {"argument_name": "volumes", "reason": "constraint",
             "help_message": "L4-1-24G accepts no local volume (l_ssd)"}]},
    ),
}  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize("refusal", REFUSALS)
    def test_is_refused_in_the_real_shape(self, http: httpx.Client, refusal: str) -> None:
        method, path, sent, status, expected = REFUSALS[refusal]
        reply = http.request(method, path, json=sent)
        assert (reply.status_code, reply.json()) == (status, expected)

    def test_a_wrong_token_is_denied(self, http: httpx.Client) -> None:
        reply = http.get("/servers", headers={"X-Auth-Token": UNKNOWN})
        assert reply.status_code == 401
        assert reply.json() == {
            "message": "authentication is denied",
            "method": "api_key",
            "reason": "not_found",
            "type": "denied_authentication",
        }

    def test_an_action_that_the_state_does_not_allow(self, sdk: Sdk, http: httpx.Client) -> None:
        server = sdk.create()
        sdk.act(server.id, "poweron")
        reply = http.post(f"/servers/{server.id}/action", json={"action": "poweron"})
        assert reply.status_code == 400
        assert reply.json() == {
            "help_message": "server should be stopped",
            "message": "precondition is not respected",
            "precondition": "resource_not_usable",
            "type": "precondition_failed",
        }

    def test_volumes_never_shrink_and_do_not_grow_while_they_grow(self, sdk: Sdk) -> None:
        root = sdk.create().volumes["0"].id
        for size in (30 * GB, 10 * GB):
            with pytest.raises(ScalewayException, match="size"):
                sdk.block.update_volume(volume_id=root, size=size)
            sdk.wait_volume(root, "in_use")

    def test_a_permission_that_was_taken_away(self, cloud: SimCloud, sdk: Sdk) -> None:
        root = sdk.create().volumes["0"].id
        cloud.deny("update_volume")
        with pytest.raises(ScalewayException) as refused:
            sdk.block.update_volume(volume_id=root, size=200 * GB)
        assert refused.value.response.json() == {
            "message": "insufficient permissions",
            "type": "permissions_denied",
            "details": [{"resource": "volume", "action": "write"}],
        }

    def test_a_quota_counts_the_servers_of_its_type(self, cloud: SimCloud, sdk: Sdk) -> None:
        cloud.set_quotas(cp_servers_type_L4_1_24G=1)
        sdk.create("one")
        with pytest.raises(ScalewayException) as refused:
            sdk.create("two")
        assert refused.value.status_code == 403
        detail = refused.value.response.json()["details"][0]
        assert (detail["resource"], detail["quota"], detail["current"]) == ("cp_servers_type_L4_1_24G", 1, 1)
        sdk.create("other", "L4-2-24G")

    def test_a_shortage_refuses_new_servers_and_starts(self, cloud: SimCloud, sdk: Sdk) -> None:
        server = sdk.create()
        cloud.set_stock(ZONE, "L4-1-24G", "shortage")
        for attempt in (lambda: sdk.create("late"), lambda: sdk.act(server.id, "poweron")):
            with pytest.raises(ScalewayException) as refused:
                attempt()
            assert refused.value.response.json()["type"] == "out_of_stock"


class TestFaults:
    @pytest.mark.parametrize(
        ("fault", "status", "text"),
        [
            ("429", 429, ""),
            ("500", 500, "internal_server_error"),
            ("503", 503, "no healthy upstream"),
            ("403", 403, "permissions_denied"),
            ("404", 404, "instance_server"),
            ("409", 409, "transient_state"),
            ("quota", 403, "cp_servers_type_L4_1_24G"),
            ("out_of_stock", 503, "out_of_stock"),
        ],
    )
    def test_a_status_is_sent_once_and_nothing_happens(
        self, cloud: SimCloud, http: httpx.Client, fault: str, status: int, text: str
    ) -> None:
        cloud.set_fault("create_server", fault)
        reply = http.post("/servers", json=body())
        assert reply.status_code == status
        assert text in reply.text
        assert "Retry-After" not in reply.headers
        assert cloud.inventory() == []
        assert http.post("/servers", json=body()).status_code == 201

    def test_a_rate_limit_looks_like_the_gateway_s(self, cloud: SimCloud, http: httpx.Client) -> None:
        cloud.set_fault(None, "429")
        reply = http.get("/servers")
        assert (reply.content, reply.headers["X-Envoy-Ratelimited"]) == (b"", "true")

    def test_a_reset_has_no_effect(self, cloud: SimCloud, http: httpx.Client) -> None:
        cloud.set_fault("create_server", "reset")
        with pytest.raises(httpx.ReadError, match="reset by peer"):
            http.post("/servers", json=body())
        assert cloud.inventory() == []

    def test_a_lost_reply_comes_after_the_effect(self, cloud: SimCloud, http: httpx.Client) -> None:
        cloud.set_fault("create_server", "lost_reply")
        with pytest.raises(httpx.ReadError, match="reset by peer"):
            http.post("/servers", json=body())
        assert [server["name"] for server in cloud.inventory("server")] == ["l4-a"]
        assert [(c["status"], c["fault"]) for c in cloud.calls("create_server")] == [(None, "lost_reply")]

    def test_a_timeout_ends_only_when_the_client_gives_up(self, cloud: SimCloud, http: httpx.Client) -> None:
        cloud.set_fault("create_server", "timeout")
        with pytest.raises(httpx.ReadTimeout):
            http.post("/servers", json=body(), timeout=0.3)
        assert cloud.inventory() == []

    def test_a_closed_connection_has_no_effect(self, cloud: SimCloud, http: httpx.Client) -> None:
        cloud.set_fault("create_server", "closed")
        with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
            http.post("/servers", json=body())
        assert cloud.inventory() == []

    @pytest.mark.parametrize(
        ("fault", "status", "said"),
        [
            ("html_502", 502, "<title>502 Bad Gateway"),
            ("garbage", 200, "<!DOCTYPE html>"),
            ("wrong_shape", 201, '["an unexpected shape"]'),
            ("nulls", 201, '"id": null'),
        ],
    )
    def test_a_spoilt_reply_comes_after_the_effect(
        self, cloud: SimCloud, http: httpx.Client, fault: str, status: int, said: str
    ) -> None:
        cloud.set_fault("create_server", fault)
        reply = http.post("/servers", json=body())
        assert (reply.status_code, said in reply.text) == (status, True)
        assert len(cloud.inventory("server")) == 1
        assert http.get("/servers").json()["servers"][0]["name"] == "l4-a"

    def test_a_truncated_reply_comes_after_the_effect(self, cloud: SimCloud, http: httpx.Client) -> None:
        cloud.set_fault("create_server", "truncated")
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
            http.post("/servers", json=body())
        assert len(cloud.inventory("server")) == 1

    def test_what_was_made_lags_behind(self, cloud: SimCloud, http: httpx.Client) -> None:
        cloud.set_fault("create_server", "lag", misses=3)
        made = http.post("/servers", json=body()).json()["server"]["id"]
        assert http.get("/servers").json()["servers"] == []
        assert http.get(f"/servers/{made}").status_code == 404
        assert http.patch(f"/servers/{made}", json={"name": "b"}).status_code == 404
        assert http.get(f"/servers/{made}").json()["server"]["name"] == "l4-a"
        assert len(http.get("/servers").json()["servers"]) == 1

    def test_lists_alone_lag_behind(self, cloud: SimCloud, http: httpx.Client) -> None:
        cloud.set_fault("create_server", "list_lag", misses=1)
        made = http.post("/servers", json=body()).json()["server"]["id"]
        assert http.get(f"/servers/{made}").status_code == 200
        assert [len(http.get("/servers").json()["servers"]) for _ in range(2)] == [0, 1]

    def test_a_lag_comes_on_top_of_another_fault(self, cloud: SimCloud, http: httpx.Client) -> None:
        cloud.set_fault("create_server", "list_lag", misses=1)
        cloud.set_fault("create_server", "lost_reply")
        with pytest.raises(httpx.ReadError):
            http.post("/servers", json=body())
        assert [len(http.get("/servers").json()["servers"]) for _ in range(2)] == [0, 1]

    @pytest.mark.parametrize(("fault", "effect"), [("hold", 0), ("hold_after", 1)])
    def test_a_held_call_waits_for_its_release(
        self, cloud: SimCloud, http: httpx.Client, fault: str, effect: int
    ) -> None:
        cloud.set_fault("create_server", fault)
        replies: list[int] = []
        caller = threading.Thread(
            target=lambda: replies.append(http.post("/servers", json=body()).status_code)
        )
        caller.start()
        cloud.wait_until_held("create_server")
        assert len(cloud.inventory("server")) == effect
        cloud.release()
        caller.join()
        assert replies == [201]
        assert len(cloud.inventory("server")) == 1

    def test_a_client_that_goes_away_takes_its_held_call_with_it(
        self, cloud: SimCloud, http: httpx.Client
    ) -> None:
        cloud.set_fault("create_server", "hold")
        with pytest.raises(httpx.ReadTimeout):
            http.post("/servers", json=body(), timeout=0.3)
        states(lambda: str(cloud.faults()["held"]), "[]".__eq__)
        assert cloud.inventory() == []

    def test_a_fault_hits_one_node_and_skips_what_it_is_told_to(self, cloud: SimCloud, sdk: Sdk) -> None:
        a, b = (sdk.create(f"dev-{n}", tags=[f"vllm-fleet-node=dev/{n}"]) for n in ("a", "b"))
        cloud.set_fault("get_volume", "500", node="b", skip=1, times=2)
        outcomes = {
            name: [_status(sdk, server.volumes["0"].id) for _ in range(4)]
            for name, server in (("a", a), ("b", b))
        }
        assert outcomes == {"a": [200] * 4, "b": [200, 500, 500, 200]}

    def test_a_fault_of_an_unknown_call_is_refused(self, cloud: SimCloud) -> None:
        with pytest.raises(ValueError, match="create_servers"):
            cloud.set_fault("create_servers", "500")


def _status(sdk: Sdk, volume_id: str) -> int:
    try:
        sdk.block.get_volume(volume_id=volume_id)
    except ScalewayException as error:
        return error.status_code or 0
    return 200


class TestLog:
    def test_the_log_proves_the_order_of_requests_and_effects(self, cloud: SimCloud, sdk: Sdk) -> None:
        before = cloud.client.get("/log").json()["last"]
        server = sdk.create(tags=["vllm-fleet-node=dev/l4-a"])
        root = server.volumes["0"].id
        sdk.wait_volume(root, "in_use")
        sdk.block.update_volume(volume_id=root, size=200 * GB)
        sdk.wait_volume(root, "in_use")
        sdk.start(server.id)
        entries = cloud.log(before)
        assert [entry["seq"] for entry in entries] == sorted(entry["seq"] for entry in entries)
        assert {entry["node"] for entry in entries} == {"l4-a"}
        assert "volumes" not in entries[0]["body"]
        told = [entry.get("what") or entry["call"] for entry in entries]
        marks = [
            "create_server",
            "update_volume",
            "in_use 200 GB",
            "server_action",
            "running: booting kernel",
        ]
        assert [told.index(mark) for mark in marks] == sorted(told.index(mark) for mark in marks)

    def test_neither_keys_nor_user_data_are_kept(self, cloud: SimCloud, sdk: Sdk) -> None:
        server = sdk.create()
        sdk.instance.set_server_user_data(server.id, "cloud-init", b"HF_TOKEN=hf_planted")
        assert cloud.calls("set_user_data")[0]["body"]["size"] == 19
        kept = (cloud.state / "log.jsonl").read_text()
        assert "hf_planted" not in kept
        assert DEV_SECRET_KEY not in kept

    def test_calls_that_are_not_emulated_are_seen_in_the_log(
        self, cloud: SimCloud, http: httpx.Client
    ) -> None:
        assert http.post("/placement_groups", json={}).status_code == 404
        assert [call["path"] for call in cloud.calls("unknown")] == [
            f"/scaleway/instance/v1/zones/{ZONE}/placement_groups"
        ]


class TestRestart:
    def test_a_killed_emulator_finishes_what_was_under_way(self, tmp_path: Path) -> None:
        # Slow enough that nothing ends before the kill, fast enough to end soon after it.
        with running_simcloud(tmp_path / "state", nodes="none", speed=0.5) as cloud:
            sdk = Sdk(cloud)
            growing, starting = sdk.create("growing"), sdk.create("starting", "DEV1-S")
            sdk.instance.set_server_user_data(starting.id, "cloud-init", b"#cloud-config\n")
            root = growing.volumes["0"].id
            sdk.wait_volume(root, "in_use")
            sdk.block.update_volume(volume_id=root, size=200 * GB)
            sdk.act(starting.id, "poweron")
            cloud.kill()
            cloud.restart()
            sdk.wait_volume(root, "in_use")
            assert sdk.block.get_volume(volume_id=root).size == 200 * GB
            sdk.wait_server(starting.id, "running")
            assert sdk.instance.get_server_user_data(starting.id, "cloud-init").text == "#cloud-config\n"
            told = [entry.get("what") or entry["call"] for entry in cloud.log()]
            # The numbers go on where they were, and the ends came after the kill.
            assert told[:2] == ["create_server", "creating 20 GB"]
            assert told.index("in_use 200 GB") > told.index("server_action")
            assert told.index("running: booting kernel") > told.index("server_action")

    def test_down_ends_a_detached_emulator_and_removes_its_state(self, tmp_path: Path) -> None:
        state = tmp_path / "state"

        def simcloud(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "simcloud", *arguments, "--state", str(state)]
            return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

        serve = ("serve", "--detach", "--port", "0", "--nodes", "none")
        assert simcloud(*serve).returncode == 0
        try:
            second = simcloud(*serve)
            assert second.returncode == 1
            assert "already" in second.stderr
        finally:
            assert simcloud("down").returncode == 0
        assert not state.exists()
        assert "no simcloud was running" in simcloud("down").stdout


class Recorder(NodeBackend):
    """Remembers what it is asked for."""

    def __init__(self) -> None:
        self.boots: list[Boot] = []
        self.stopped: list[str] = []
        self.faults: list[tuple[str, str | None]] = []

    async def start(self, boot: Boot) -> None:
        self.boots.append(boot)
        await boot.publish("ssh-host-public-keys", b"ssh-ed25519 AAAA node\n")

    async def stop(self, server_id: str) -> None:
        self.stopped.append(server_id)

    async def inject(self, name: str, fault: str | None) -> None:
        self.faults.append((name, fault))

    async def close(self) -> None:
        pass


class TestMachines:
    def test_a_light_node_answers_at_the_public_ip_also_after_the_emulator_was_killed(
        self, tmp_path: Path
    ) -> None:
        port = 10722
        with running_simcloud(tmp_path / "state", nodes="light", ssh_port=port) as cloud:
            sdk = Sdk(cloud)
            server = sdk.create()
            sdk.instance.set_server_user_data(server.id, "cloud-init", b"#cloud-config\n{}\n")
            sdk.start(server.id)
            address = sdk.server(server.id).public_ip.address

            def greeting() -> str:
                try:
                    with socket.create_connection((address, port), timeout=5) as connection:
                        return connection.recv(8).decode()
                except ConnectionError:
                    return "closed"

            states(greeting, "SSH-2.0-".__eq__)
            keys = sdk.instance.get_server_user_data(server.id, "ssh-host-public-keys").text
            assert keys.startswith("ssh-ed25519 ")
            cloud.kill()
            assert greeting() == "closed"
            cloud.restart()
            states(greeting, "SSH-2.0-".__eq__)
            sdk.act(server.id, "terminate")
            states(greeting, "closed".__eq__)

    KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGqDL2uu2vYdbMQtRIzRPCe7nPLdTm1BrxtX1lA1dVYz me"

    def client(self, state: Path, backend: NodeBackend) -> TestClient:
        def clouds(simulation: Simulation) -> list[Cloud]:
            return [Scaleway(simulation)]

        app = make_app(state, clouds=clouds, backend=backend, ssh_port=10022, speed=0)
        return TestClient(app, headers={"X-Auth-Token": DEV_SECRET_KEY})

    def test_a_machine_gets_all_it_needs_and_comes_back_after_a_restart(self, tmp_path: Path) -> None:
        servers = f"/scaleway/instance/v1/zones/{ZONE}/servers"
        first, second = Recorder(), Recorder()
        with self.client(tmp_path, first) as http:
            http.post("/scaleway/iam/v1alpha1/ssh-keys", json={"name": "me", "public_key": self.KEY})
            tags = ["vllm-fleet-node=dev/l4-a"]
            server = http.post(servers, json=body("dev-l4-a", tags=tags)).json()["server"]
            one = f"{servers}/{server['id']}"
            http.patch(f"{one}/user_data/cloud-init", content=b"#cloud-config\n")
            http.put("/_sim/nodes/l4-a/fault", json={"fault": "oom"})
            http.post(f"{one}/action", json={"action": "poweron"})
            states(lambda: http.get(one).json()["server"]["state"], "running".__eq__)
            address = http.get(one).json()["server"]["public_ip"]["address"]
            published = http.get(f"{one}/user_data/ssh-host-public-keys").text
        [boot] = first.boots
        assert (boot.name, boot.address, boot.user_data) == ("l4-a", address, b"#cloud-config\n")
        assert boot.authorized_keys == (self.KEY,)
        assert (boot.gpu_model, boot.gpu_count, boot.gpu_memory_mib, boot.disk_gb) == ("L4", 1, 23034, 20)
        assert boot.directory.is_dir()
        assert published == "ssh-ed25519 AAAA node\n"
        with self.client(tmp_path, second) as http:
            assert [again.address for again in second.boots] == [address]
            assert second.faults == [("l4-a", "oom")]
            http.post(f"{one}/action", json={"action": "terminate"})
            states(lambda: str(http.get(one).status_code), "404".__eq__)
        assert second.stopped == [server["id"]]
        assert not boot.directory.exists()
