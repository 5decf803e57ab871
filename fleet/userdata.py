"""What a node boots with: its user data, as a pure function of typed values.

User data carries the host (units, scripts, driver, disk layout) and the first release of what is served.
Later releases reach the running machine over SSH; only a change of the host part replaces it, and
`HostPart.digest` is what changes then.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet import compose, layout, ray
from fleet import network as networks
from fleet.models.sources import script, written
from fleet.settings import DIRECT, Network, Node, Secrets, Serving

FILES = Path(__file__).parent.parent / "cloudinit"
"""The static files of a node."""

LIMIT_BYTES = {"scaleway": 127 * 1024, "linode": 16 * 1024, "aws": 16 * 1024}
"""Longest user data a cloud takes: Scaleway's instance API documents 127 KiB a key; Linode's metadata service
is safe up to 16 KiB, decoded; EC2 takes 16 KiB, decoded."""

STATIC_FILES = {
    **dict.fromkeys(
        (
            "vllm.service",
            "vllm-env.path",
            "vllm-metadata-guard.service",
            "vllm-prefetch@.service",
            "vllm-agent.service",
            "vllm-setup.service",
        ),
        (layout.UNITS_DIRECTORY, "0644"),
    ),
    **dict.fromkeys(
        ("stages.sh", "setup.sh", "prefetch.sh", "publish-host-keys.sh", "guard-metadata.sh"),
        (layout.SCRIPTS_DIRECTORY, "0755"),
    ),
    "52vllm-fleet": ("/etc/apt/apt.conf.d", "0644"),
    "agent.py": (layout.DIRECTORY, "0644"),
}
"""Files that are the same on every node: name → directory there, mode."""

_EARLY_WEIGHTS = [
    *("cloud-init-per", "instance", "vllm-weights"),
    *("systemd-run", "--no-block", "--property=After=cloud-config.target"),
    *("systemctl", "start", "--no-block", "vllm-prefetch@weights.service"),
]
"""Begins the longest fetch as soon as network and files are there, a stage or two of cloud-init before
`runcmd`. What it starts does not exist yet when it runs, so systemd is told what to wait for."""


class UserDataTooLarge(ValueError):
    """The user data is longer than its cloud takes, even compressed."""


@dataclass(frozen=True)
class AptSource:
    """A package repository, and the key its packages must be signed with."""

    uri: str
    """Of a flat repository; apt puts the machine's architecture for `$(ARCH)`."""
    key: str
    """OpenPGP public key, ASCII-armoured."""

    @classmethod
    def nvidia_container_toolkit(cls) -> AptSource:
        """NVIDIA's own. The key is C95B321B61E88C1809C4F759DDCAE044F796ECB0, as NVIDIA publishes it in
        github.com/NVIDIA/nvidia-docker (branch gh-pages), without its expired subkey."""
        return cls(
            uri="https://nvidia.github.io/libnvidia-container/stable/deb/$(ARCH)/",
            key=(FILES / "nvidia-container-toolkit.asc").read_text(),
        )


@dataclass(frozen=True)
class HostKey:
    """An ed25519 SSH host key made before the machine, so that it is known before the first connection."""

    private: str = field(repr=False)
    """OpenSSH's PEM."""
    public: str
    """One line, as in known_hosts without the host."""


@dataclass(frozen=True)
class HostPart:
    """A node's first boot. One constructor a cloud: the document differs by these fields alone."""

    cloud: str
    hostname: str
    serving: Serving
    """What is served first."""
    driver_branch: int | None = None
    """NVIDIA driver branch to install, with one reboot; None: the image carries a driver."""
    publish_host_keys: bool = False
    """The machine makes its SSH host keys itself and publishes them through the cloud's metadata service."""
    host_key: HostKey | None = None
    """The SSH host key the machine is given."""
    toolkit: AptSource = field(default_factory=AptSource.nvidia_container_toolkit)
    """Where the NVIDIA Container Toolkit comes from, if the image lacks it."""
    environment: str | None = field(default=None, repr=False)
    """Content of `.env`, secrets included; None: it arrives over SSH."""
    registries: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Logins at registries, as Docker's configuration has them; empty: they arrive over SSH."""
    secret_names: tuple[str, ...] = ()
    """Variables of `.env` that vLLM's container is given beside its own."""
    network: Network = DIRECT
    """How the machine reaches the internet."""
    serves: bool = True
    """Whether the node serves by itself; what a member of a Ray cluster does, it is told over SSH."""

    @classmethod
    def scaleway(cls, node: Node, secrets: Secrets) -> HostPart:
        """A GPU OS image brings driver, Docker and container toolkit; the machine publishes its host keys."""
        return cls(
            "scaleway",
            node.name,
            node.serving,
            publish_host_keys=True,
            **_secret_parts(node.serving, secrets),
        )

    @classmethod
    def linode(
        cls, node: Node, secrets: Secrets, host_key: HostKey, driver_branch: int | None = 580
    ) -> HostPart:
        """A plain Ubuntu image: Docker, driver and container toolkit are installed, with one reboot."""
        return cls(
            "linode",
            node.name,
            node.serving,
            driver_branch=driver_branch,
            host_key=host_key,
            **_secret_parts(node.serving, secrets),
        )

    @classmethod
    def aws(cls, node: Node, secrets: Secrets, host_key: HostKey) -> HostPart:
        """A Deep Learning Base image brings driver, Docker and container toolkit."""
        return cls(
            "aws",
            node.name,
            node.serving,
            host_key=host_key,
            **_secret_parts(node.serving, secrets),
        )

    @property
    def holds_secrets(self) -> bool:
        """Whether the user data is to be a secret wherever it is kept or shown."""
        return self.host_key is not None or self.environment is not None

    def user_data(self) -> str:
        """What the cloud's API is given: on Scaleway the document itself, elsewhere its base64.

        Compressed (gzip, which cloud-init undoes) only where it would not fit otherwise. Raises
        UserDataTooLarge.
        """
        document = _dump(self._document()).encode()
        if self.cloud == "scaleway":
            return self._fitting(document).decode()
        if len(document) > LIMIT_BYTES[self.cloud]:
            document = gzip.compress(document, mtime=0)
        return base64.b64encode(self._fitting(document)).decode()

    def digest(self) -> str:
        """Names the host part: neither what is served, nor the image, nor any key or secret takes part."""
        released = self._released()
        host = {
            "files": [file for file in self._files() if file["path"] not in released],
            "commands": self._commands(),
        }
        return hashlib.sha256(json.dumps(host, sort_keys=True).encode()).hexdigest()[:16]

    def _fitting(self, data: bytes) -> bytes:
        limit = LIMIT_BYTES[self.cloud]
        if len(data) > limit:
            raise UserDataTooLarge(
                f"user data of {self.hostname}: {len(data)} bytes are more than the {limit} that "
                f"{self.cloud} takes; shorten serving.args, serving.extra_args, serving.environment or "
                "network.ca_certificates"
            )
        return data

    def _document(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "hostname": self.hostname,
            "preserve_hostname": False,
            # By key, from the addresses of access.ssh_cidrs: the only way in. An EC2 image has a user for it.
            "disable_root": self.cloud == "aws",
            "ssh_pwauth": False,
            # Partition and file system take the whole root volume, at this and at every later boot.
            "growpart": {"mode": "auto", "devices": ["/"]},
            "resize_rootfs": True,
            # setup.sh updates the package lists when it installs something; nothing else is upgraded.
            "package_update": False,
            "package_upgrade": False,
            "write_files": self._files(),
            **self._commands(),
        }
        if self.host_key:
            document["ssh_deletekeys"] = True
            document["ssh_keys"] = {
                "ed25519_private": self.host_key.private,
                "ed25519_public": self.host_key.public,
            }
        return document

    def _commands(self) -> dict[str, Any]:
        publish = [[f"{layout.SCRIPTS_DIRECTORY}/publish-host-keys.sh"]] if self.publish_host_keys else []
        connect = [] if self.network == DIRECT else [["systemctl", "start", networks.UNIT]]
        commands: dict[str, Any] = {
            "bootcmd": [_EARLY_WEIGHTS],
            "runcmd": [*publish, *connect, [f"{layout.SCRIPTS_DIRECTORY}/setup.sh"]],
        }
        if self.driver_branch is not None:
            commands["power_state"] = {
                "mode": "reboot",
                "message": "vllm-fleet: loading the NVIDIA driver",
                "condition": ["/usr/bin/test", "-e", layout.REBOOT_MARK_PATH],
            }
        return commands

    def _files(self) -> list[dict[str, str]]:
        released = [_file(path, content, mode) for path, (content, mode) in self._released().items()]
        return [
            *(
                _file(f"{directory}/{name}", (FILES / name).read_text(), mode)
                for name, (directory, mode) in STATIC_FILES.items()
            ),
            # Apart from apt's own folders: setup.sh puts them there where the image lacks the toolkit.
            _file(f"{layout.SCRIPTS_DIRECTORY}/nvidia-container-toolkit.asc", self.toolkit.key),
            _file(f"{layout.SCRIPTS_DIRECTORY}/nvidia-container-toolkit.sources", _deb822(self.toolkit)),
            _file(layout.PREFETCH_SCRIPT_PATH, script()),
            _file(layout.HOST_SETTINGS_PATH, f"DRIVER_BRANCH={self.driver_branch or ''}\n"),
            *(_file(path, content, mode) for path, (content, mode) in self._network_files().items()),
            *released,
        ]

    def _network_files(self) -> dict[str, tuple[str, str]]:
        # A machine of a Ray cluster fetches the weights itself; its units come later, over SSH.
        units = () if self.serves else (ray.HEAD_UNIT, ray.WORKER_UNIT, ray.SERVE_UNIT)
        return {**networks.node_files(self.network), **networks.unit_files(self.network, *units)}

    def _released(self) -> dict[str, tuple[str, str]]:
        """Files of the first release, by path: content and mode. A later release does not come this way."""
        if not self.serves:
            return {layout.PREFETCH_SETTINGS_PATH: ("IMAGES=()\nWEIGHTS=''\nENVIRONMENT=()\n", "0644")}
        files = {
            layout.PREFETCH_SETTINGS_PATH: (self._prefetch_settings(), "0644"),
            layout.COMPOSE_PATH: (
                compose.compose_file(self.serving, secret_names=self.secret_names, network=self.network),
                "0644",
            ),
        }
        if self.environment is not None:
            files[layout.ENV_PATH] = (self.environment, "0600")
        if self.registries:
            logins = {host: {"auth": login} for host, login in self.registries.items()}
            files[layout.DOCKER_CONFIG_PATH] = (json.dumps({"auths": logins}, indent=2) + "\n", "0600")
        return files

    def _prefetch_settings(self) -> str:
        """What prefetch.sh fetches, as bash reads it."""
        serving = self.serving
        images = [serving.image, *([serving.webui_image] if serving.webui else [])]
        environment = {
            "HF_HOME": layout.MODELS_DIRECTORY,
            **networks.environment(self.network),
            **serving.environment,
        }
        return (
            f"IMAGES=({shlex.join(images)})\n"
            f"WEIGHTS={shlex.quote(written(serving.weights))}\n"
            f"ENVIRONMENT=({shlex.join(f'{name}={value}' for name, value in environment.items())})\n"
        )


def _secret_parts(serving: Serving, secrets: Secrets) -> dict[str, Any]:
    """What of a HostPart the secrets make."""
    names = {"secret_names": tuple(secrets.environment)}
    if secrets.delivery == "ssh":
        return names
    lines = {**compose.plain_environment(serving), **compose.secret_environment(secrets)}
    return {
        **names,
        "environment": compose.env_file(lines),
        "registries": compose.registry_logins(secrets),
    }


def _deb822(source: AptSource) -> str:
    key = "/etc/apt/keyrings/nvidia-container-toolkit.asc"
    return f"Types: deb\nURIs: {source.uri}\nSuites: /\nSigned-By: {key}\n"


def _file(path: str, content: str, mode: str = "0644") -> dict[str, str]:
    return {"path": path, "permissions": mode, "content": content}


def _dump(document: dict[str, Any]) -> str:
    return f"#cloud-config\n{compose.dump(document)}"
