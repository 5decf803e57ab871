"""`fleet check`: each broken situation is named with its fix, and where nothing is broken nothing is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import httpx
import pytest
from light_fleet import light_fleet
from test_light_nodes import KEY, user_data
from test_tunnel import deliver

import fleet.check
from components.scaleway.probe import probe
from fleet import settings
from fleet.check import READY, CloudRequest, Finding, Status, check_node, exit_status
from fleet.commands.check import look
from simcloud.testing import SimCloud, running_simcloud

PUBLIC_KEY = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
LOCAL_IMAGE = "08176977-2d0e-4db0-a604-f81daa390f81"
NO_IMAGE = "00000000-1111-4111-8111-111111111111"


def failed(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings if finding.status == Status.FAILED}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer counts as slow: how fast this machine is, is no finding here."""
    monkeypatch.setattr(fleet.check, "SLOW_MS", float("inf"))


# --- Scaleway ---


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCloud]:
    with running_simcloud(tmp_path_factory.mktemp("cloud"), nodes="none") as cloud:
        yield cloud


@pytest.fixture
def cloud(running: SimCloud, monkeypatch: pytest.MonkeyPatch) -> SimCloud:
    """With our key registered, and nothing of this machine's own Scaleway set-up to be seen."""
    for name in ("SCW_ACCESS_KEY", "SCW_SECRET_KEY", "SCW_DEFAULT_PROJECT_ID", "SCW_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SCW_CONFIG_PATH", "/nowhere")
    running.reset()
    running.deny()
    running.set_quotas()
    running.set_stock("fr-par-2", "L4-1-24G", "available")
    body = {"name": "me", "public_key": PUBLIC_KEY, "project_id": running.project}
    headers = {"X-Auth-Token": running.secret_key}
    httpx.post(f"{running.scaleway_url}/iam/v1alpha1/ssh-keys", json=body, headers=headers).raise_for_status()
    return running


def request(cloud: SimCloud, *, existing: bool = False, **node: Any) -> CloudRequest:
    declared = settings.ScalewayNode.model_validate(
        {"name": "l4-a", "cloud": "scaleway", "serving": {"model": "Qwen/Qwen3-8B-AWQ"}, **node}
    )
    return CloudRequest(
        config={"secretKey": cloud.secret_key, "projectId": cloud.project, "apiUrl": cloud.scaleway_url},
        nodes=(declared,),
        existing=frozenset({"l4-a"} if existing else ()),
        public_key=PUBLIC_KEY,
    )


def test_a_cloud_that_is_in_order_has_no_failure_and_nothing_is_changed(cloud: SimCloud) -> None:
    findings = probe(request(cloud))
    assert {finding.status for finding in findings} == {Status.OK}
    assert exit_status(findings) == 0
    names = {finding.name for finding in findings}
    assert names == {"credentials", "API", "SSH key", "permissions", "image", "stock", "quota"}
    assert cloud.inventory("server") == []
    done = [call["call"] for call in cloud.calls() if call["method"] != "GET" and call["status"] < 300]
    assert done == ["create_ssh_key"]  # the fixture's own


Break = Callable[[SimCloud, CloudRequest], CloudRequest | None]


def with_config(**changes: str) -> Break:
    def change(_: SimCloud, asked: CloudRequest) -> CloudRequest:
        return dataclasses.replace(asked, config={**asked.config, **changes})

    return change


@pytest.mark.parametrize(
    ("breaks", "name", "seen", "fix"),
    [
        (with_config(secretKey=""), "credentials", "secret key is not set", "pulumi config set --secret"),
        (with_config(secretKey="x" * 36), "credentials", "authentication failed", "check secret_key"),
        (with_config(projectId=""), "credentials", "project id is not set", "SCW_DEFAULT_PROJECT_ID"),
        (with_config(apiUrl="http://127.0.0.1:9"), "API", "unreachable", ""),
        (lambda c, _: c.deny("list_ssh_keys"), "permissions", "list_ssh_keys", "SSHKeysReadOnly"),
        (lambda c, _: c.deny("update_volume"), "permissions", "grow volumes", "BlockStorageFullAccess"),
        (lambda c, _: c.deny("server_action"), "permissions", "start servers", "InstancesFullAccess"),
        (
            lambda _, asked: dataclasses.replace(asked, public_key="ssh-ed25519 AAAAother"),
            "SSH key",
            "not among the project's SSH keys",
            "scw iam ssh-key create",
        ),
        (
            lambda c, _: c.set_stock("fr-par-2", "L4-1-24G", "shortage"),
            "stock",
            "L4-1-24G: shortage",
            "choose another zone or type",
        ),
        (
            lambda c, _: c.set_quotas(cp_servers_type_L4_1_24G=0),
            "quota",
            "0 of 0 in use in this zone, 1 more wanted",
            "raise cp_servers_type_L4_1_24G",
        ),
        (lambda c, _: request(c, image=NO_IMAGE), "image", "there is no image", "scw instance image list"),
        (
            lambda c, _: request(c, image=LOCAL_IMAGE),
            "image",
            "root of type l_ssd",
            "remove the node's image",
        ),
    ],
    ids=[
        *("no-secret", "wrong-secret", "no-project", "unreachable", "no-ssh-keys-permission"),
        *("no-volume-permission", "no-start-permission", "stranger-key", "out-of-stock", "quota-used-up"),
        *("no-image", "local-image"),
    ],
)
def test_each_broken_situation_of_the_cloud_is_named_with_its_fix(
    cloud: SimCloud, breaks: Break, name: str, seen: str, fix: str
) -> None:
    asked = request(cloud)
    findings = probe(breaks(cloud, asked) or asked)
    found = failed(findings)
    assert found.keys() == {name}
    assert seen in found[name].seen
    assert found[name].fix
    assert fix in found[name].fix
    assert exit_status(findings) == 1
    assert cloud.secret_key not in repr(findings)


def test_a_node_that_exists_needs_neither_stock_nor_quota(cloud: SimCloud) -> None:
    cloud.set_stock("fr-par-2", "L4-1-24G", "shortage")
    cloud.set_quotas(cp_servers_type_L4_1_24G=0)
    assert failed(probe(request(cloud, existing=True))) == {}


# --- Nodes ---


async def test_a_node_that_is_in_order_has_no_failure(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 1, user_data()) as fleet:
        await deliver(fleet)
        await check_node(fleet.nodes[0], KEY)  # the model may still be loading
        findings = await check_node(fleet.nodes[0], KEY)
    assert failed(findings) == {}
    names = [finding.name for finding in findings]
    assert names == ["SSH", "disk", "driver", "containers", "restarts", "readiness"]
    assert {finding.status for finding in findings} == {Status.OK}
    assert "as pinned" in findings[0].seen


@pytest.mark.parametrize(
    ("fault", "name", "seen", "fix"),
    [
        ("disk_full", "disk", "disk is full", "raise root_volume_gb"),
        ("driver_missing", "driver", "driver does not answer", "nvidia-smi"),
        ("docker_dead", "containers", "dockerd does not run", "journalctl -u docker"),
        ("exit_loop", "readiness", "keeps exiting", "docker logs"),
        ("hung", "readiness", "generates nothing", "restart vllm.service"),
        ("key_refused", "readiness", "refuses the API key", "restart vllm.service"),
        ("no_auth", "readiness", "answers without a key", "VLLM_API_KEY"),
        ("wrong_model", "readiness", "another model", "docker logs"),
    ],
)
async def test_each_broken_situation_of_a_node_is_named_with_its_fix(
    tmp_path: Path, fault: str, name: str, seen: str, fix: str
) -> None:
    async with light_fleet(tmp_path, 1, user_data(), fault=fault) as fleet:
        await deliver(fleet)
        findings = await check_node(fleet.nodes[0], KEY, dataclasses.replace(READY, token_s=2.0))
    found = failed(findings)
    assert seen in found[name].seen
    assert fix in found[name].fix
    assert KEY not in repr(findings)


@pytest.mark.parametrize(
    ("changes", "seen", "fix"),
    [
        ({"port": 9}, "refuses SSH on port 9", "scw instance server get"),
        ({"user": "nobody"}, "accepts no key we offer", "not among the cloud's SSH keys"),
        ({"host_keys": (PUBLIC_KEY,)}, "host key differs", "user-data get"),
    ],
    ids=["refused", "key", "host-key"],
)
async def test_a_node_that_does_not_let_us_in_says_why(
    tmp_path: Path, changes: dict[str, Any], seen: str, fix: str
) -> None:
    async with light_fleet(tmp_path, 1) as fleet:
        fleet.change(0, **changes)
        (finding,) = await check_node(fleet.nodes[0], KEY)
    assert (finding.name, finding.status) == ("SSH", Status.FAILED)
    assert seen in finding.seen
    assert fix in finding.fix


# --- The command ---


async def test_a_wrong_configuration_is_a_finding_and_nodes_are_still_looked_at(tmp_path: Path) -> None:
    config = {"vllm-fleet:nodes": {"value": json.dumps([{"name": "L4_A", "cloud": "scaleway"}])}}
    findings = await look(config, {}, clouds=True, on_nodes=True)
    assert [finding.subject for finding in findings] == ["configuration"]
    assert "serving" in findings[0].seen
    assert exit_status(findings) == 1
