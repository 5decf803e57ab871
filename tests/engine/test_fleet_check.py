"""`fleet check` where a user runs it: a node on each cloud, and whatever breaks is named with its fix."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from typing import Any

from clouds import CLOUDS, scaleway
from fleets import SECRETS, Fleet, node_config
from harness import wait_for

from fleet.ssh import Target, connect

TYPES = {"scaleway": "L4-1-24G", "linode": "g2-gpu-rtx4000a1-s"}
G_VCPUS = "L-DB2E81BA"
"""AWS's code of its limit on vCPUs of G instances."""

Expected = Mapping[tuple[str, str], tuple[str, str]]
"""(cloud or node, what was looked at): a part of what was seen, and of the fix."""


def check(fleet: Fleet, *flags: str) -> tuple[int, str]:
    fleet.write()
    done = fleet.command("check", *flags)
    said = done.stdout + done.stderr
    secrets = (*SECRETS.values(), *(secret for each in CLOUDS.values() for secret in each.secrets.values()))
    assert not [secret for secret in secrets if secret in said], "a secret is shown"
    return done.returncode, done.stdout


def named(fleet: Fleet, expected: Expected) -> None:
    """Everything expected is named with its fix, and nothing is wrong with anybody else."""
    code, said = check(fleet, "--json")
    found: list[dict[str, Any]] = json.loads(said)
    failed = {(each["subject"], each["name"]): each for each in found if each["status"] == "failed"}
    assert code == 1
    for at, (seen, fix) in expected.items():
        assert at in failed, f"{at} did not fail:\n{said}"
        assert seen in failed[at]["seen"]
        assert fix in failed[at]["fix"]
    assert {subject for subject, _ in failed} == {subject for subject, _ in expected}
    assert all(each["fix"] for each in failed.values())


def heal(fleet: Fleet) -> None:
    cloud = fleet.cloud
    cloud.deny()
    cloud.set_quotas()
    cloud.set_stock("fr-par-2", TYPES["scaleway"], "available")
    cloud.set_stock("us-ord", TYPES["linode"], "true", cloud="linode")
    for name in ("a", "b", "c"):
        cloud.set_node_fault(name, None)


def test_every_broken_situation_is_named_with_its_fix_and_a_sound_stack_passes(fleet: Fleet) -> None:
    cloud = fleet.cloud
    fleet.config["nodes"] = [
        node_config(name, node) for name, node in (("scaleway", "a"), ("linode", "b"), ("aws", "c"))
    ]
    fleet.run("up")
    # One more of each is about to be made: it needs an image, stock and room in the quota.
    fleet.config["nodes"] += [
        node_config(name, node) for name, node in (("scaleway", "d"), ("linode", "e"), ("aws", "f"))
    ]
    code, said = check(fleet)
    assert code == 0, said

    cloud.deny("update_volume")
    cloud.set_stock("us-ord", TYPES["linode"], "false", cloud="linode")
    cloud.set_quotas(**{G_VCPUS: 4})
    for node, fault in (("a", "disk_full"), ("b", "driver_missing"), ("c", "docker_dead")):
        cloud.set_node_fault(node, fault)
    named(
        fleet,
        {
            ("scaleway fr-par-2", "permissions"): ("may not grow volumes", "BlockStorageFullAccess"),
            ("linode us-ord", "stock"): ("none left", "choose another region or type"),
            ("aws us-east-1", "quota"): ("4 of 4 vCPUs in use, 4 more wanted", f"Quotas: {G_VCPUS}"),
            ("a", "disk"): ("disk is full", "root_volume_gb"),
            ("b", "driver"): ("driver does not answer", "nvidia-smi"),
            ("c", "containers"): ("dockerd does not run", "journalctl -u docker"),
        },
    )

    heal(fleet)
    cloud.deny("RunInstances")
    cloud.set_quotas(cp_servers_type_L4_1_24G=1)
    fleet.stack.ask("config", "set", "--secret", "linode:token", "another-token-0123456789")
    for node, fault in (("a", "wrong_model"), ("c", "key_refused")):
        cloud.set_node_fault(node, fault)
        on(fleet, node, "systemctl", "restart", "vllm.service")
    on(fleet, "b", "docker", "stop", "vllm")
    named(
        fleet,
        {
            ("scaleway fr-par-2", "quota"): ("1 of 1 in use", "raise cp_servers_type_L4_1_24G"),
            ("linode", "credentials"): ("Invalid Token", "set linode:token"),
            ("aws us-east-1", "permissions"): ("may not do everything", "ec2:RunInstances"),
            ("a", "readiness"): ("another model", "docker logs"),
            ("b", "containers"): ("keeps exiting: exited", "docker logs"),
            ("c", "readiness"): ("refuses the API key", "restart vllm.service"),
        },
    )

    heal(fleet)
    fleet.provider["scaleway:apiUrl"] = "http://127.0.0.1:9"
    switch_off(fleet, "scaleway", "a")
    cloud.set_node_fault("a", "host_key_mismatch")  # its address now belongs to another machine
    switch_on_again(fleet, "a")
    switch_off(fleet, "linode", "b")
    named(
        fleet,
        {
            ("scaleway", "API"): ("unreachable", "check the network"),
            ("linode", "credentials"): ("Invalid Token", "set linode:token"),
            ("a", "SSH"): ("host key differs", "user-data"),
            ("b", "SSH"): ("refuses SSH", "linode-cli"),
        },
    )


def on(fleet: Fleet, node: str, *argv: str) -> None:
    """What someone does on the node by hand. A fault of vLLM is one of its next start."""

    async def run() -> None:
        async with connect(Target.parse(fleet.outputs()["nodes"][node]["ssh"])) as machine:
            await machine.run(argv)

    asyncio.run(run())


def switch_off(fleet: Fleet, cloud: str, node: str) -> None:
    next(change for change in CLOUDS[cloud].changes if change.node == "powered-off").make(fleet.cloud, node)


def switch_on_again(fleet: Fleet, node: str) -> None:
    (server,) = [thing for thing in fleet.cloud.inventory("server") if thing["node"] == node]
    path = f"instance/servers/{server['id']}"
    scaleway(fleet.cloud, "POST", f"{path}/action", {"action": "poweron"})
    target = Target.parse(fleet.outputs()["nodes"][node]["ssh"])

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((target.host, target.port)) == 0

    wait_for(listens, f"{node} to listen again")
