"""What watches a node: Prometheus, NVIDIA's exporter and Grafana, as a compose project of their own.

All of it listens on the node's loopback alone and is reached through the tunnel. It is apart from what
serves: neither a rollout nor a change here ever touches the other. `python -m fleet.observability` reads a
spec on standard input and brings a node to it; with `remove` it takes everything away again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet import layout, lifeline
from fleet import spec as specs
from fleet.progress import Progress, Stage
from fleet.rollout.session import Session
from fleet.ssh import SshError, Target

if TYPE_CHECKING:
    from fleet.settings import Observability

FILES = Path(__file__).parent.parent / "cloudinit" / "observability"
DIRECTORY = "/opt/monitoring"
PROMETHEUS_PORT, DCGM_PORT, GRAFANA_PORT = 9090, 9400, 3001
PORTS = {"grafana": GRAFANA_PORT, "prometheus": PROMETHEUS_PORT}
"""What a tunnel opens, by name."""
NOBODY = "65534:65534"
"""User and group that Prometheus's own image runs as."""
GRAFANA_USER = "472:0"
"""The same of Grafana's."""
START_TIMEOUT_S = 900.0
"""For some 1.2 GB of images."""
REMOVE_TIMEOUT_S = 20.0
"""A node that is about to go, or gone, is not waited for."""


def compose_document(settings: Observability) -> dict[str, Any]:
    """The compose project. Host networking: what is watched listens on the node's loopback too."""
    common = {"network_mode": "host", "restart": "unless-stopped", "logging": _LOGGING}
    return {
        "name": "monitoring",
        "services": {
            "prometheus": {
                "image": settings.prometheus_image,
                "container_name": "prometheus",
                **common,
                "user": NOBODY,
                "command": [
                    "--config.file=/etc/prometheus/prometheus.yml",
                    "--storage.tsdb.path=/prometheus",
                    f"--storage.tsdb.retention.time={settings.retention_days}d",
                    f"--web.listen-address=127.0.0.1:{PROMETHEUS_PORT}",
                ],
                "volumes": [
                    *(
                        f"./{name}:/etc/prometheus/{name}:ro"
                        for name in ("prometheus.yml", "alerts.yml", "targets.json")
                    ),
                    "prometheus:/prometheus",
                ],
            },
            "dcgm-exporter": {
                "image": settings.dcgm_image,
                "container_name": "dcgm-exporter",
                **common,
                "runtime": "nvidia",
                # DCGM's profiling counters need it.
                "cap_add": ["SYS_ADMIN"],
                "environment": {
                    "DCGM_EXPORTER_LISTEN": f"127.0.0.1:{DCGM_PORT}",
                    "NVIDIA_VISIBLE_DEVICES": "all",
                },
            },
            "grafana": {
                "image": settings.grafana_image,
                "container_name": "grafana",
                **common,
                "user": GRAFANA_USER,
                "environment": {
                    "GF_SERVER_HTTP_ADDR": "127.0.0.1",
                    "GF_SERVER_HTTP_PORT": str(GRAFANA_PORT),
                    # Who has come through the tunnel may look, and nobody may change: there is no password.
                    "GF_AUTH_ANONYMOUS_ENABLED": "true",
                    "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
                    "GF_AUTH_DISABLE_LOGIN_FORM": "true",
                    "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION": "true",
                    "GF_ANALYTICS_REPORTING_ENABLED": "false",
                    "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
                    "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": "/etc/grafana/dashboards/vllm-node.json",
                },
                "volumes": [
                    "./grafana/datasource.yml:/etc/grafana/provisioning/datasources/datasource.yml:ro",
                    "./grafana/dashboards.yml:/etc/grafana/provisioning/dashboards/dashboards.yml:ro",
                    "./grafana/vllm-node.json:/etc/grafana/dashboards/vllm-node.json:ro",
                    "grafana:/var/lib/grafana",
                ],
            },
        },
        "volumes": {"prometheus": {}, "grafana": {}},
    }


_LOGGING = {"driver": "json-file", "options": {"max-size": "10m", "max-file": "2"}}


def files(node: str, vllm_port: int | None, settings: Observability) -> dict[str, str]:
    """Everything below `/opt/monitoring`, by path there. `vllm_port` is None where none serves."""
    watched = {"agent": layout.AGENT_PORT, "dcgm": DCGM_PORT, **({"vllm": vllm_port} if vllm_port else {})}
    targets = [
        {"targets": [f"127.0.0.1:{port}"], "labels": {"what": what, "node": node}}
        for what, port in watched.items()
    ]
    static = {
        str(path.relative_to(FILES)): path.read_text() for path in sorted(FILES.rglob("*")) if path.is_file()
    }
    return {
        # JSON is YAML, and needs no library to write.
        "docker-compose.yml": _json(compose_document(settings)),
        "targets.json": _json(targets),
        **static,
    }


def _json(document: object) -> str:
    return json.dumps(document, indent=2) + "\n"


@dataclass(frozen=True)
class Timeouts:
    """In seconds."""

    ssh_s: float = 180.0


@dataclass(frozen=True)
class WatchSpec:
    """A node and what is to be below its `/opt/monitoring`."""

    node: str
    target: Target
    files: tuple[File, ...]
    timeouts: Timeouts = field(default_factory=Timeouts)


@dataclass(frozen=True)
class File:
    """One file, by its path below the directory."""

    path: str
    content: str


async def deploy(spec: WatchSpec, progress: Progress) -> None:
    """Bring a node's files to the spec and start what they describe. Raises SshError."""
    async with Session(spec.target, spec.timeouts.ssh_s, progress) as session:
        changed = False
        for file in spec.files:
            path, data = f"{DIRECTORY}/{file.path}", file.content.encode()
            if await session.read_file(path) != data:
                await session.write_file(path, data, mode=0o644)
                changed = True
        # A file that is mounted by itself is read again only by a new container.
        anew = ["--force-recreate"] if changed else []
        await session.run([*_COMPOSE, "up", "-d", "--remove-orphans", *anew], timeout_s=START_TIMEOUT_S)
    progress.note(Stage.READY, f"Grafana on {GRAFANA_PORT}, Prometheus on {PROMETHEUS_PORT}, by the tunnel")


async def remove(spec: WatchSpec, progress: Progress) -> None:
    """Take it away, with its data. Raises SshError."""
    async with Session(spec.target, REMOVE_TIMEOUT_S, progress) as session:
        await session.run([*_COMPOSE, "down", "--volumes"], timeout_s=120.0)
        await session.run(["rm", "-rf", DIRECTORY])


_COMPOSE = ("docker", "compose", "--project-directory", DIRECTORY)


def described(files: Mapping[str, str]) -> list[dict[str, str]]:
    """Files as a spec has them."""
    return [{"path": path, "content": content} for path, content in files.items()]


def main(arguments: list[str]) -> int:
    """Deploy, or `remove`: which never fails, since the node may be gone."""
    spec = specs.parse(WatchSpec, json.load(sys.stdin))
    progress = Progress(spec.node)
    try:
        lifeline.run(remove(spec, progress) if arguments == ["remove"] else deploy(spec, progress))
    except KeyboardInterrupt:
        sys.stderr.write(f"{spec.node}: monitoring: interrupted\n")
        return lifeline.INTERRUPTED
    except SshError as error:
        sys.stderr.write(f"{spec.node}: monitoring: {error}\n")
        return 0 if arguments == ["remove"] else 1
    sys.stdout.write(json.dumps({"node": spec.node}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
