"""Drift: each change behind the program's back is found under its right name, and nothing else ever is."""

from __future__ import annotations

import asyncio
import json
import shlex
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from light_fleet import LightFleet, light_fleet, until
from typer.testing import CliRunner

from fleet import compose, masking, settings, userdata
from fleet.cli import app
from fleet.commands import pulumi
from fleet.drift import Drift, fingerprint
from fleet.drift.cloud import cloud_drift
from fleet.drift.node import Expected, expected_nodes, look, look_at_all
from fleet.drift.report import Seen, document, markdown
from fleet.gateway import Gateway
from fleet.ssh import Connection, connect

API_KEY = "planted-api-key-0123456789"
DRIVER = "nvidia-driver-580-server"


def stack(directory: Path) -> settings.StackSettings:
    key = directory / "key"
    key.touch(mode=0o600)
    return settings.parse(
        {
            "nodes": [{"name": "n-0", "cloud": "scaleway"}],
            "serving": {"model": "Qwen/Qwen3-8B-AWQ", "environment": {"PRICE": "5$"}},
            "access": {"ssh_cidrs": ["203.0.113.7/32"], "ssh_private_key_path": str(key)},
            "secrets": {"api_key": API_KEY},
        }
    )


def exported(config: settings.StackSettings, fleet: LightFleet) -> dict[str, Any]:
    """What `pulumi stack export --show-secrets` says of the node."""
    node, target = config.nodes[0], fleet.target(0)
    host = userdata.HostPart.scaleway(node, config.secrets)
    component = "urn:pulumi:test::vllm-fleet::vllm-fleet:scaleway:GpuNode::n-0"
    spec = {
        "node": "n-0",
        "target": {
            "host": target.host,
            "port": target.port,
            "user": "root",
            "private_key_path": str(target.private_key_path),
            "host_keys": list(target.host_keys),
        },
        "compose": compose.compose_file(node.serving),
        "environment": compose.env_file(compose.plain_environment(node.serving)),
    }
    secret = compose.env_file(compose.secret_environment(config.secrets))
    resources = [
        {"urn": component, "type": "vllm-fleet:scaleway:GpuNode"},
        {
            "urn": f"{component}$server",
            "type": "pulumi-python:dynamic/scaleway:Server",
            "parent": component,
            "inputs": {"user_data": host.user_data()},
        },
        {
            "urn": f"{component}$rollout",
            "type": "command:local:Command",
            "parent": component,
            "inputs": {
                "create": ".venv/bin/python -m fleet.rollout",
                "stdin": {"4dab": "1b47", "plaintext": json.dumps(json.dumps(spec))},
                "environment": {
                    "FLEET_SECRET_ENVIRONMENT": {"4dab": "1b47", "plaintext": json.dumps(secret)}
                },
            },
        },
    ]
    return {"deployment": {"resources": resources}}


@asynccontextmanager
async def serving_node(directory: Path) -> AsyncIterator[tuple[LightFleet, Expected, Connection]]:
    """A node set up and serving, as the state says it does."""
    config = stack(directory)
    host = userdata.HostPart.scaleway(config.nodes[0], config.secrets)
    async with light_fleet(directory, 1, host.user_data().encode()) as fleet:
        (expected,) = expected_nodes(exported(config, fleet))
        async with connect(expected.target) as node:
            await node.run(["cloud-init", "status", "--wait"])
            await node.write_file("/opt/llm/.env", expected.environment.encode(), mode=0o600)
            await until(lambda: settled(node))
            yield fleet, expected, node


async def settled(node: Connection) -> bool:
    seen = await node.run(["docker", "inspect", "-f", "{{.State.Status}}", "vllm"], check=False)
    unit = await node.run(["systemctl", "is-active", "vllm.service"], check=False)
    return (seen.stdout.strip(), unit.stdout.strip()) == ("running", "active")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[tuple[LightFleet, Expected, Connection]]:
    async with serving_node(tmp_path) as served:
        yield served


async def test_an_untouched_node_shows_no_drift_however_often_one_looks(node: Any) -> None:
    _, expected, _ = node
    for _ in range(20):
        assert await look(expected) == []


async def test_the_commit_that_the_gate_saw_is_expected(node: Any, tmp_path: Path) -> None:
    state = exported(stack(tmp_path), node[0])
    ref = {"name": "acme/model@main", "path": "/var/lib/llm/models/hub/models--acme--model/refs/main"}
    (rollout,) = (each for each in state["deployment"]["resources"] if each["urn"].endswith("$rollout"))
    spec = json.loads(json.loads(rollout["inputs"]["stdin"]["plaintext"]))
    gate = {
        "urn": "gate",
        "type": "command:local:Command",
        "inputs": {
            "create": ".venv/bin/python -m fleet.gate",
            "stdin": json.dumps({"node": spec["node"], "refs": [ref]}),
        },
        "outputs": {"stdout": json.dumps({"commits": {ref["name"]: "c" * 40}})},
    }
    state["deployment"]["resources"].append(gate)
    (expected,) = expected_nodes(state)
    assert expected.commits == {ref["name"]: "c" * 40}
    assert expected.refs == {ref["name"]: ref["path"]}


async def test_weights_whose_branch_has_moved_are_drift(node: Any) -> None:
    _, expected, connection = node
    path = "/var/lib/llm/models/hub/models--acme--model/refs/main"
    expected = replace(expected, commits={"acme/model@main": "c" * 40}, refs={"acme/model@main": path})
    await connection.run(["install", "-d", str(Path(path).parent)])
    await connection.write_file(path, b"c" * 40)
    assert await look(expected) == []
    await connection.write_file(path, b"d" * 40)
    (drift,) = await look(expected)
    assert (drift.resource, drift.was, drift.now) == ("weights acme/model@main", "c" * 12, "d" * 12)


COMPOSE = "/opt/llm/docker-compose.yml"
UNIT = "/etc/systemd/system/vllm.service"

MUTATIONS = [
    ("a flag changed in the compose file", {COMPOSE: ("'16384'", "'8192'")}, [],
     {(COMPOSE, "services.vllm.command --max-model-len", "16384", "8192")}),
    ("an image changed in the compose file", {COMPOSE: ("v0.33.0", "v0.9.1")}, [],
     {(COMPOSE, "services.vllm.image", "vllm/vllm-openai:v0.33.0", "vllm/vllm-openai:v0.9.1")}),
    ("a port opened in the compose file", {COMPOSE: ("127.0.0.1:${PORT}:", "0.0.0.0:${PORT}:")}, [],
     {(COMPOSE, "services.vllm.ports", '["127.0.0.1:${PORT}:${PORT}"]', '["0.0.0.0:${PORT}:${PORT}"]')}),
    ("a compose file that says the same in other words", {COMPOSE: ("name: llm", "# by hand\nname: llm")}, [],
     {(COMPOSE, "content")}),
    ("the compose file removed", {}, [f"rm {COMPOSE}"], {(COMPOSE, "exists", "yes", "no")}),
    ("another key in .env", {"/opt/llm/.env": (API_KEY, "another-key-0123456789")}, [],
     {("/opt/llm/.env", "content")}),
    (".env readable by all", {}, ["chmod 644 /opt/llm/.env"], {("/opt/llm/.env", "mode", "600", "644")}),
    ("a unit file edited", {UNIT: ("TimeoutStopSec=2min", "TimeoutStopSec=9min")}, [], {(UNIT, "content")}),
    ("the unit disabled", {}, ["systemctl disable vllm.service"],
     {("vllm.service", "UnitFileState", "enabled", "disabled")}),
    ("the agent stopped", {}, ["systemctl stop vllm-agent.service"],
     {("vllm-agent.service", "ActiveState", "active", "inactive")}),
    ("a package released", {}, [f"apt-mark unhold {DRIVER}"],
     {(f"package {DRIVER}", "hold", "on hold", "may be upgraded")}),
    ("the container stopped", {}, ["docker stop vllm"], {("container vllm", "state", "running", "exited")}),
    ("the container removed", {}, ["docker rm -f vllm"],
     {("container vllm", "state", "running", "there is none")}),
    ("unattended upgrades allowed", {}, ["rm /etc/apt/apt.conf.d/52vllm-fleet"],
     {("/etc/apt/apt.conf.d/52vllm-fleet", "exists", "yes", "no")}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("edits", "commands", "found"), [pytest.param(*rest, id=name) for name, *rest in MUTATIONS]
)
async def test_a_change_inside_a_node_is_found_under_its_name(
    node: Any, edits: dict[str, tuple[str, str]], commands: list[str], found: set[tuple[str, ...]]
) -> None:
    _, expected, connection = node
    for path, (old, new) in edits.items():
        text = (await connection.read_file(path)).decode()
        assert old in text
        mode = 0o600 if path.endswith(".env") else 0o644
        await connection.write_file(path, text.replace(old, new).encode(), mode=mode)
    for command in commands:
        await connection.run(shlex.split(command))
    seen = await look(expected)
    assert {(drift.node, drift.where) for drift in seen} == {("n-0", "node")}
    for wanted, drift in zip(sorted(found), seen, strict=True):
        assert (drift.resource, drift.property, drift.was, drift.now)[: len(wanted)] == wanted
    assert API_KEY not in str(seen)
    assert "another-key" not in str(seen)


LEFT_ON_THE_NODE = {
    "the key, in its place": f'      VLLM_API_KEY: "{API_KEY}"\n',
    "another key": "      OTHER_API_KEY: another-key-0123456789\n",
    "a password": "      DB_PASSWORD: planted-pass\n",
    "the key under a harmless name": f"      NOTE: see {API_KEY}\n",
    "the key in base64": f"      NOTE: {b64encode(f'key={API_KEY}'.encode()).decode()}\n",
    "the key in a URL": f"      NOTE: http://h/?key={API_KEY}&x=1\n",
    "a token by its shape": "      NOTE: hf_another0123456789\n",
    "credentials in a URL": "      NOTE: http://me:planted-pass@proxy:3128\n",
}


@pytest.mark.parametrize("what", LEFT_ON_THE_NODE)
async def test_no_secret_found_on_a_node_is_told(
    what: str, node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected, connection = node
    text = (await connection.read_file(COMPOSE)).decode()
    flag = "    - --port\n"
    assert flag in text and "    environment:\n" in text
    text = text.replace("    environment:\n", f"    environment:\n{LEFT_ON_THE_NODE[what]}", 1)
    text = text.replace(
        flag, f"    - --api-key={API_KEY}\n    - --hf-token\n    - hf_another0123456789\n{flag}"
    )
    await connection.write_file(COMPOSE, text.encode(), mode=0o644)
    seen = await look(expected)

    key = {masking._ENVELOPE: "1b47061264138c4ac30d75fd1eb44270", "plaintext": json.dumps(API_KEY)}
    told = {"op": "update", "urn": "urn:x::y", "type": "a:b:C", "old": {}, "new": {"outputs": {"x": API_KEY}}}
    monkeypatch.setattr(pulumi, "refresh_events", lambda **_: [{"resOutputsEvent": {"metadata": told}}])
    monkeypatch.setattr(
        pulumi, "read", lambda *_, **__: {"deployment": {"resources": [{"type": "t", "outputs": key}]}}
    )
    monkeypatch.setattr(pulumi, "config", lambda *_: {})

    async def looked(_: object) -> list[Drift]:
        return seen

    monkeypatch.setattr("fleet.commands.drift.look_at_all", looked)
    encoded = b64encode(API_KEY.encode()).decode()[4:12]
    report, known = tmp_path / "drift.md", tmp_path / "seen.json"
    call = ["drift", "--stack", "test", "--markdown", str(report), "--seen", str(known)]
    for flags in (["--json"], []):
        done = await asyncio.to_thread(CliRunner().invoke, app, [*call, *flags])
        assert done.exit_code == 3
        known.unlink()
        for place in (done.output, report.read_text()):
            for secret in (API_KEY[4:], "another", "planted-pass", encoded):
                assert secret not in place
        assert "services.vllm.command --api-key" in report.read_text()


async def test_an_edited_configuration_of_the_gateway_is_told_by_its_digest(node: Any) -> None:
    _, expected, connection = node
    expose = settings.Expose.model_validate({"domain": "llm.example.com", "cidrs": ["0.0.0.0/0"]})
    serving = settings.Serving(model="Qwen/Qwen3-8B-AWQ")
    wanted = compose.compose_file(serving, Gateway(expose, False, "", "", ()))
    await connection.write_file(COMPOSE, wanted.replace("max_size 10MB", "max_size 90MB").encode())
    seen = await look(replace(expected, compose=wanted))
    (edited,) = [drift for drift in seen if drift.resource == COMPOSE]
    assert edited.property == "configs.gateway_caddyfile.content"
    assert edited.was.startswith("sha256:") and edited.now != edited.was
    assert ("container caddy", "there is none") in {(drift.resource, drift.now) for drift in seen}


async def test_a_container_that_runs_with_other_flags_than_its_file_says_is_found(node: Any) -> None:
    _, expected, connection = node
    text = (await connection.read_file(COMPOSE)).decode()
    changed = text.replace("'16384'", "'8192'").replace("v0.33.0", "v0.9.1")
    await connection.write_file(COMPOSE, changed.encode())
    await connection.run(["systemctl", "restart", "vllm.service"])
    await connection.write_file(COMPOSE, text.encode())
    assert {(drift.resource, drift.property, drift.now) for drift in await look(expected)} == {
        ("container vllm", "--max-model-len", "8192"),
        ("container vllm", "image", "vllm/vllm-openai:v0.9.1"),
    }


async def test_a_container_that_keeps_restarting_is_found(node: Any) -> None:
    fleet, expected, connection = node
    await fleet.backend.inject("n-0", "exit_loop")
    await connection.run(["systemctl", "restart", "vllm.service"])

    async def restarted() -> bool:
        seen = await connection.run(["docker", "inspect", "-f", "{{.RestartCount}}", "vllm"])
        return int(seen.stdout) > 0

    await until(restarted)
    found = {(drift.resource, drift.property, drift.was) for drift in await look(expected)}
    assert ("container vllm", "restarts", "0") in found


async def test_a_node_that_does_not_answer_or_is_another_one_is_drift(node: Any) -> None:
    fleet, expected, _ = node
    stranger = replace(expected, node="n-1", target=replace(expected.target, host_keys=(OTHER_KEY,)))
    await_nothing = replace(expected, node="n-2", target=replace(expected.target, port=1))
    found = await look_at_all([expected, stranger, await_nothing])
    assert [(drift.node, drift.resource, drift.property) for drift in found] == [
        ("n-1", "ssh", "host key"),
        ("n-2", "ssh", "session"),
    ]
    assert found[1].now == "refused"
    await fleet.backend.close()


OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAto236WDLO1yYYSrFvcc6lRDxa6euCg4lmlqmfV8fJo"


async def test_after_a_dry_run_what_is_served_is_not_compared(node: Any) -> None:
    _, expected, connection = node
    await connection.run(["docker", "stop", "vllm"])
    assert await look(replace(expected, dry_run=True)) == []


# --- the cloud -------------------------------------------------------------------------------------------


def event(op: str, name: str, was: Any, now: Any, **more: Any) -> dict[str, Any]:
    urn = f"urn:pulumi:test::vllm-fleet::vllm-fleet:scaleway:GpuNode$t::{name}"
    parent = "urn:pulumi:test::vllm-fleet::vllm-fleet:scaleway:GpuNode::a"
    metadata = {
        "op": op,
        "urn": urn,
        "type": "t",
        "old": {"outputs": was, "parent": parent},
        "new": None if now is None else {"outputs": now, "parent": parent},
        **more,
    }
    return {"resOutputsEvent": {"metadata": metadata}}


def test_each_changed_property_of_a_refresh_is_named() -> None:
    events = [
        {"preludeEvent": {}},
        event("same", "a-owner", {"zone": "x"}, {"zone": "x"}),
        event("update", "a-power", {"state": "running", "ip": "1"}, {"state": "stopped"}),
        event(
            "update",
            "a-group",
            {"rules": [{"port": 22}], "__provider": "x"},
            {"rules": [], "__provider": "y"},
        ),
        event("delete", "a-server", {"name": "a"}, None),
        event(
            "update",
            "a-vm",
            {"tags": [], "seen": 1},
            {"tags": ["x"], "seen": 2},
            detailedDiff={"tags[0]": {}},
        ),
    ]
    found = list(cloud_drift(events))
    assert [(drift.resource, drift.property, drift.was, drift.now) for drift in found] == [
        ("a-power", "ip", "1", "not set"),
        ("a-power", "state", "running", "stopped"),
        ("a-group", "rules", '[{"port": 22}]', "[]"),
        ("a-server", "exists", "yes", "no"),
        ("a-vm", "tags", "[]", '["x"]'),
    ]
    assert {drift.node for drift in found} == {"a"}


# --- the report ------------------------------------------------------------------------------------------

POWER = Drift("cloud", "a", "a-power", "state", "running", "stopped")
RULES = Drift("cloud", "a", "a-group", "rules", "[1|2]", "[]")
NOW = datetime(2026, 11, 1, tzinfo=UTC)


def test_each_distinct_drift_is_new_once_and_again_when_it_comes_back(tmp_path: Path) -> None:
    def reported(*drifts: Drift) -> list[Drift]:
        seen = Seen(tmp_path / "kept" / "seen.json")
        new = seen.new(drifts)
        seen.keep(drifts, NOW)
        return new

    assert reported(POWER) == [POWER]
    assert reported(POWER, RULES) == [RULES]
    assert reported(POWER, RULES) == []
    assert reported(RULES) == []
    assert reported(POWER, RULES) == [POWER]
    changed = replace(RULES, now="[3]")
    assert reported(changed) == [changed]


def test_the_report_names_resource_and_property_and_no_cell_breaks_the_table() -> None:
    text = markdown("prod", [POWER, RULES])
    assert "| cloud | a | a-power | state | running | stopped |" in text
    assert "| [1\\|2] |" in text
    assert markdown("prod", []) == ""
    rows = document("prod", [POWER, RULES], [RULES])["drift"]
    assert [(row["fingerprint"], row["new"]) for row in rows] == [
        (fingerprint(POWER), False),
        (fingerprint(RULES), True),
    ]
