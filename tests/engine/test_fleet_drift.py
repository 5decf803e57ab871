"""`fleet drift` on a stack of this project: it names what was changed, nothing else, and writes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
from clouds import CLOUDS
from fleets import Fleet, node_config
from harness import wait_for

from fleet.ssh import Target, connect


def change_outside(fleet: Fleet) -> None:
    """What someone does in the console: `a` is changed, `b` is switched off, `c` is terminated."""

    def call(method: str, path: str, body: Any = None) -> Any:
        url = f"{fleet.cloud.scaleway_url}/{path}"
        reply = httpx.request(method, url, json=body, headers={"X-Auth-Token": fleet.cloud.secret_key})
        reply.raise_for_status()
        return reply.json() if reply.content else None

    def thing(kind: str, node: str) -> str:
        ids = [each["id"] for each in fleet.cloud.inventory(kind) if node in (each["node"], each["name"])]
        return str(ids[0])

    zone = "instance/v1/zones/fr-par-2"
    group = f"{zone}/security_groups/{thing('security_group', 'test-a')}"
    rule = {"action": "accept", "protocol": "TCP", "direction": "inbound", "ip_range": "0.0.0.0/0"}
    call("PUT", f"{group}/rules", {"rules": [{**rule, "dest_port_from": 8000, "position": 1}]})
    call("PATCH", group, {"inbound_default_policy": "accept", "tags": []})
    call("PATCH", f"{zone}/servers/{thing('server', 'a')}", {"name": "mine now"})
    call("PATCH", f"block/v1/zones/fr-par-2/volumes/{thing('volume', 'a')}", {"size": 250 * 10**9})
    servers = {name: f"{zone}/servers/{thing('server', name)}" for name in ("b", "c")}
    call("POST", f"{servers['b']}/action", {"action": "poweroff"})
    call("POST", f"{servers['c']}/action", {"action": "terminate"})
    wait_for(lambda: call("GET", servers["b"])["server"]["state"] == "stopped", "b to be off")
    wait_for(lambda: "c" not in [each["node"] for each in fleet.cloud.inventory("server")], "c to be gone")


def change_elsewhere(fleet: Fleet) -> None:
    """The same on other clouds: `d` is on Linode, `e` on AWS."""
    for cloud, node, names in (
        ("linode", "d", ("all-let-in", "detached", "renamed")),
        ("aws", "e", ("port-opened", "metadata-exposed", "renamed", "grown")),
    ):
        for change in CLOUDS[cloud].changes:
            if change.node in names:
                change.make(fleet.cloud, node)


def change_inside(nodes: dict[str, Any]) -> None:
    """What someone does on the nodes by hand."""

    async def change() -> None:
        async with connect(Target.parse(nodes["a"]["ssh"])) as node:
            compose = (await node.read_file("/opt/llm/docker-compose.yml")).replace(b"'0.9'", b"'0.8'")
            await node.write_file("/opt/llm/docker-compose.yml", compose)
            await node.run(["apt-mark", "unhold", "docker.io"])
            await node.run(["systemctl", "disable", "vllm.service"])
        async with connect(Target.parse(nodes["d"]["ssh"])) as node:
            await node.run(["chmod", "644", "/opt/llm/.env"])
        async with connect(Target.parse(nodes["e"]["ssh"])) as node:
            await node.run(["docker", "stop", "vllm"])

    asyncio.run(change())


def test_what_was_changed_is_named_and_looking_writes_nothing(fleet: Fleet, tmp_path: Path) -> None:
    fleet.nodes("a", "b", "c")
    fleet.config["nodes"] += [node_config("linode", "d"), node_config("aws", "e")]
    fleet.run("up")
    nodes = fleet.outputs()["nodes"]
    seen = fleet.seen()
    for _ in range(3):
        assert fleet.looked_at() == (0, [])
    assert fleet.written(after=seen) == []

    change_outside(fleet)
    change_elsewhere(fleet)
    change_inside(nodes)
    seen = fleet.seen()
    report, known = tmp_path / "drift.md", tmp_path / "seen.json"
    code, found = fleet.looked_at("--markdown", str(report), "--seen", str(known))
    assert code == 3
    named = {(each["node"], each["resource"], each["property"]) for each in found}
    changed = {
        ("a", "a-security-group", "rules"),
        ("a", "a-security-group", "inbound_default_policy"),
        ("a", "a-security-group", "tags"),
        ("a", "a-security-group", "owned"),
        ("a", "a-server", "name"),
        ("a", "a-root-volume", "size_gb"),
        ("a", "/opt/llm/docker-compose.yml", "services.vllm.command --gpu-memory-utilization"),
        ("a", "package docker.io", "hold"),
        ("a", "vllm.service", "UnitFileState"),
        ("b", "b-power", "state"),
        ("c", "c-server", "exists"),
        ("d", "d-firewall", "inbounds"),
        ("d", "d-firewall", "inboundPolicy"),
        ("d", "d-firewall-attachment", "attached"),
        ("d", "d-server", "label"),
        ("d", "/opt/llm/.env", "mode"),
        ("e", "e-security-group", "ingress"),
        ("e", "e-server", "metadataOptions"),
        ("e", "e-server", "tags"),
        ("e", "e-server", "rootBlockDevice"),
        ("e", "container vllm", "state"),
    }
    consequences = {
        ("b", "b-power", "public_ip"),
        ("b", "ssh", "session"),
        ("c", "c-power", "exists"),
        ("c", "c-host-keys", "exists"),
        ("c", "ssh", "session"),
        ("e", "e-first-boot", "root_volume_gb"),
    }
    assert named == changed | consequences
    heading = 1
    assert report.read_text().count("\n| ") == heading + len(found)

    report.unlink()
    code, again = fleet.looked_at("--markdown", str(report), "--seen", str(known))
    assert (code, {each["new"] for each in again}) == (3, {False})
    assert not report.exists(), "what was reported is not reported again"
    assert fleet.written(after=seen) == []
