"""What watches a node: loopback alone, judged by Prometheus's own tools, and on a light node."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from light_fleet import light_fleet
from syrupy.assertion import SnapshotAssertion

from fleet import layout, observability
from fleet.observability import PORTS, File, WatchSpec, deploy, described, remove
from fleet.progress import Progress
from fleet.settings.observability import Observability
from fleet.settings.stack import WATCHING_PORTS
from fleet.ssh import connect
from fleet.tunnel import forwards
from simcloud.vm.host import cached, digest

DOCS = Path(__file__).parents[2]
SETTINGS = Observability(enabled=True)
FILES = observability.files("l4-a", 8000, SETTINGS)


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Debian's, unpacked beside the machine images: nothing is installed."""

    def fetch(directory: Path) -> None:
        subprocess.run(["apt-get", "-qq", "download", "prometheus"], cwd=directory, check=True, timeout=300)
        (package,) = directory.glob("prometheus_*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, directory], check=True, timeout=60)
        package.unlink()

    return cached("prometheus", digest(b"prometheus"), fetch) / "usr/bin/promtool"


def run(*argv: str | Path, cwd: Path) -> None:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_prometheus_accepts_its_configuration_and_the_alerts_fire_when_they_should(
    promtool: Path, tmp_path: Path
) -> None:
    for name in ("prometheus.yml", "alerts.yml", "targets.json"):
        text = FILES[name].replace("/etc/prometheus/", f"{tmp_path}/")
        (tmp_path / name).write_text(text)
    (tmp_path / "test.yaml").write_text(Path(__file__).with_name("observability_alerts.yaml").read_text())
    run(promtool, "check", "config", "prometheus.yml", cwd=tmp_path)
    run(promtool, "test", "rules", "test.yaml", cwd=tmp_path)


def test_each_alert_leads_to_its_runbook() -> None:
    groups = yaml.safe_load(FILES["alerts.yml"])["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 10
    for rule in rules:
        assert (DOCS / rule["annotations"]["runbook"]).is_file(), rule["alert"]


def test_everything_is_published_on_loopback_and_is_pinned() -> None:
    services: dict[str, Any] = json.loads(FILES["docker-compose.yml"])["services"]
    assert services.keys() == {"prometheus", "dcgm-exporter", "grafana"}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert re.search(r":v?\d[\w.-]+$", service["image"])
    assert services["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]
    assert services["grafana"]["ports"] == ["127.0.0.1:3001:3001"]
    grafana = services["grafana"]["environment"]
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert not {layout.WEBUI_PORT, layout.AGENT_PORT, 8000} & set(PORTS.values())


def test_no_container_is_in_the_nodes_network_or_has_rights_that_it_does_not_need() -> None:
    services: dict[str, Any] = json.loads(FILES["docker-compose.yml"])["services"]
    for name, service in services.items():
        assert not service.keys() & {"network_mode", "privileged", "pid", "ipc"}, name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert {name for name, service in services.items() if service.get("cap_add")} == {"dcgm-exporter"}
    assert {name for name, service in services.items() if service.get("read_only")} == {
        "prometheus",
        "grafana",
    }


def test_the_compose_file_is_what_was_reviewed(snapshot: SnapshotAssertion) -> None:
    assert FILES["docker-compose.yml"] == snapshot


def test_a_tunnel_opens_them_beside_vllm() -> None:
    urls = {each.service: each.url for each in forwards({"vllm": 8000, **PORTS})}
    assert urls == {
        "vllm": "http://127.0.0.1:8000/v1",
        "grafana": "http://127.0.0.1:3001",
        "prometheus": "http://127.0.0.1:9090",
    }


def test_the_settings_know_the_ports_it_takes() -> None:
    assert WATCHING_PORTS.keys() == {*PORTS.values(), observability.DCGM_PORT}


def test_the_nodes_own_ports_are_watched_and_a_worker_has_no_vllm() -> None:
    watched = {each["labels"]["what"]: each["targets"] for each in json.loads(FILES["targets.json"])}
    assert watched == {
        "agent": ["198.18.87.1:8080"],
        "dcgm": ["dcgm-exporter:9400"],
        "vllm": ["198.18.87.1:8000"],
    }
    worker = json.loads(observability.files("w0", None, SETTINGS)["targets.json"])
    assert [each["labels"]["what"] for each in worker] == ["agent", "dcgm"]


def test_each_panel_asks_for_a_metric_that_the_node_has() -> None:
    dashboard = json.loads(FILES["grafana/vllm-node.json"])
    asked = {target["expr"] for panel in dashboard["panels"] for target in panel["targets"]}
    names = {name for expr in asked for name in re.findall(r"(?:vllm[:_]|DCGM_)\w+|ALERTS", expr)}
    agent = (observability.FILES.parent / "agent.py").read_text()
    for name in names:
        if name.startswith("vllm_fleet_"):
            measured = name.removeprefix("vllm_fleet_").removeprefix("gpu_")
            assert f'"{measured}"' in agent, name
    boxes = [tuple(panel["gridPos"][key] for key in "xywh") for panel in dashboard["panels"]]
    assert len(set(boxes)) == len(boxes)


async def test_a_node_is_brought_to_it_and_freed_of_it(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 1) as fleet:
        files = tuple(File(**each) for each in described(FILES))
        spec = WatchSpec("n-0", fleet.target(0), files)
        await deploy(spec, Progress("n-0"))
        docker = fleet.backend._machines[fleet.boots[0].server_id].docker
        running = {name: each.started_at for name, each in docker.containers.items()}
        assert running.keys() == {"prometheus", "dcgm-exporter", "grafana"}
        relays = [f"vllm-fleet-watch-{what}.socket" for what in ("agent", "vllm")]
        async with connect(fleet.target(0)) as node:
            active = await node.run(["systemctl", "is-active", *relays])
            assert active.stdout.split() == ["active", "active"]
        await deploy(spec, Progress("n-0"))
        assert {name: each.started_at for name, each in docker.containers.items()} == running
        await remove(spec, Progress("n-0"))
        assert docker.containers == {}
        async with connect(fleet.target(0)) as node:
            left = await node.run(["ls", layout.UNITS_DIRECTORY], check=False)
            assert "vllm-fleet-watch" not in left.stdout
