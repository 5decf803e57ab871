"""What watches a node: Prometheus, NVIDIA's exporter and Grafana, as a compose project of their own.

All of it is published on the node's loopback alone and reached through the tunnel. It is apart from what
serves: neither a rollout nor a change here ever touches the other. Its containers have a network of their own
instead of the node's; what Prometheus reads of the node's loopback, systemd hands on at that network's
gateway.
`python -m fleet.observability` reads a spec on standard input and brings a node to it; with `remove` it takes
everything away again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fleet import layout, lifeline
from fleet import spec as specs
from fleet.masking import guarded
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
SUBNET, GATEWAY = "198.18.87.0/28", "198.18.87.1"
"""Of its network. The range is set aside for tests of network devices: no provider's network uses it."""
RELAYS = "vllm-fleet-watch"
"""Units that hand on a port of the node's loopback are named after this, and after what is behind it."""
START_TIMEOUT_S = 900.0
"""For some 1.2 GB of images."""
REMOVE_TIMEOUT_S = 20.0
"""A node that is about to go, or gone, is not waited for."""


def compose_document(settings: Observability) -> dict[str, Any]:
    """The compose project."""
    return {
        "name": "monitoring",
        "services": {
            "prometheus": {
                "image": settings.prometheus_image,
                "container_name": "prometheus",
                **_COMMON,
                "read_only": True,
                "user": NOBODY,
                "ports": [f"127.0.0.1:{PROMETHEUS_PORT}:{PROMETHEUS_PORT}"],
                "command": [
                    "--config.file=/etc/prometheus/prometheus.yml",
                    "--storage.tsdb.path=/prometheus",
                    f"--storage.tsdb.retention.time={settings.retention_days}d",
                    f"--web.listen-address=:{PROMETHEUS_PORT}",
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
                **_COMMON,
                "runtime": "nvidia",
                # DCGM's profiling counters need it.
                "cap_add": ["SYS_ADMIN"],
                "environment": {
                    "DCGM_EXPORTER_LISTEN": f":{DCGM_PORT}",
                    "NVIDIA_VISIBLE_DEVICES": "all",
                },
            },
            "grafana": {
                "image": settings.grafana_image,
                "container_name": "grafana",
                **_COMMON,
                "read_only": True,
                "tmpfs": ["/tmp"],  # noqa: S108  (the container's own)
                "user": GRAFANA_USER,
                "ports": [f"127.0.0.1:{GRAFANA_PORT}:{GRAFANA_PORT}"],
                "environment": {
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
        "networks": {"default": {"ipam": {"config": [{"subnet": SUBNET, "gateway": GATEWAY}]}}},
        "volumes": {"prometheus": {}, "grafana": {}},
    }


_COMMON: dict[str, Any] = {
    "restart": "unless-stopped",
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "2"}},
}


def _watched(vllm_port: int | None) -> dict[str, int]:
    """Ports of the node's loopback that Prometheus reads, by what answers there."""
    return {"agent": layout.AGENT_PORT, **({"vllm": vllm_port} if vllm_port else {})}


def files(node: str, vllm_port: int | None, settings: Observability) -> dict[str, str]:
    """Everything below `/opt/monitoring`, by path there. `vllm_port` is None where none serves."""
    addresses = {
        **{what: f"{GATEWAY}:{port}" for what, port in _watched(vllm_port).items()},
        "dcgm": f"dcgm-exporter:{DCGM_PORT}",
    }
    targets = [
        {"targets": [address], "labels": {"what": what, "node": node}} for what, address in addresses.items()
    ]
    static = {
        str(path.relative_to(FILES)): path.read_text() for path in sorted(FILES.rglob("*")) if path.is_file()
    }
    return {
        # JSON is YAML, and needs no library to write.
        "docker-compose.yml": _json(compose_document(settings)),
        "targets.json": _json(targets),
        **static,
        **{
            f"{layout.UNITS_DIRECTORY}/{RELAYS}-{what}.{kind}": text
            for what, port in _watched(vllm_port).items()
            for kind, text in _relay(what, port).items()
        },
    }


def _relay(what: str, port: int) -> dict[str, str]:
    """The units that hand on a port of the node's loopback to the containers of this project."""
    return {
        "socket": f"""[Unit]
Description=Where this node's monitoring reads the metrics of {what}

[Socket]
ListenStream={GATEWAY}:{port}
# The address comes with Docker's network.
FreeBind=yes

[Install]
WantedBy=sockets.target
""",
        "service": f"""[Unit]
Description=Hands on the metrics of {what} to this node's monitoring

[Service]
ExecStart=/usr/lib/systemd/systemd-socket-proxyd --exit-idle-time=1min 127.0.0.1:{port}
DynamicUser=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
RestrictAddressFamilies=AF_INET AF_UNIX
IPAddressDeny=any
IPAddressAllow=localhost {SUBNET}
""",
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

    def units(self, kind: str) -> list[str]:
        """Names of the systemd units of one kind, as `.socket`, among the files."""
        names = [PurePosixPath(file.path).name for file in self.files]
        return [name for name in names if name.endswith(kind)]


@dataclass(frozen=True)
class File:
    """One file, by its path: below the directory, or absolute."""

    path: str
    content: str


async def deploy(spec: WatchSpec, progress: Progress) -> None:
    """Bring a node's files to the spec and start what they describe. Raises SshError."""
    async with Session(spec.target, spec.timeouts.ssh_s, progress) as session:
        changed = False
        for file in spec.files:
            path, data = str(PurePosixPath(DIRECTORY) / file.path), file.content.encode()
            if await session.read_file(path) != data:
                await session.write_file(path, data, mode=0o644)
                changed = True
        await _relay_metrics(session, spec, changed)
        # A file that is mounted by itself is read again only by a new container.
        anew = ["--force-recreate"] if changed else []
        await session.run([*_COMPOSE, "up", "-d", "--remove-orphans", *anew], timeout_s=START_TIMEOUT_S)
    progress.note(Stage.READY, f"Grafana on {GRAFANA_PORT}, Prometheus on {PROMETHEUS_PORT}, by the tunnel")


async def _relay_metrics(session: Session, spec: WatchSpec, changed: bool) -> None:
    sockets, services = spec.units(".socket"), spec.units(".service")
    if changed:
        await session.run(["systemctl", "daemon-reload"])
        # A socket does not start beside its own running service.
        await session.run(["systemctl", "stop", *sockets, *services])
    await session.run(["systemctl", "enable", "--now", *sockets])


async def remove(spec: WatchSpec, progress: Progress) -> None:
    """Take it away, with its data. Raises SshError."""
    async with Session(spec.target, REMOVE_TIMEOUT_S, progress) as session:
        await session.run([*_COMPOSE, "down", "--volumes"], timeout_s=120.0)
        sockets, services = spec.units(".socket"), spec.units(".service")
        await session.run(["systemctl", "disable", "--now", *sockets], check=False)
        await session.run(["systemctl", "stop", *services], check=False)
        units = [f"{layout.UNITS_DIRECTORY}/{name}" for name in (*sockets, *services)]
        await session.run(["rm", "-rf", DIRECTORY, *units])
        await session.run(["systemctl", "daemon-reload"])


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
    sys.exit(guarded(lambda: main(sys.argv[1:])))
