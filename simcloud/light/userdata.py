"""What a light node understands of its user data: the parts of `#cloud-config` that leave files and keys."""

from __future__ import annotations

import base64
import gzip
import re
import zlib
from dataclasses import dataclass
from typing import Any

import yaml

GZIP_MAGIC = b"\x1f\x8b"

PACKAGES = ("containerd", "docker.io", "libnvidia-compute-580-server", "nvidia-driver-580-server", "runc")
"""Of what such an image has installed, what a model runs on."""


@dataclass(frozen=True)
class File:
    """One entry of `write_files`."""

    path: str
    content: bytes
    mode: int
    append: bool
    defer: bool


@dataclass(frozen=True)
class CloudConfig:
    """A parsed user data."""

    files: tuple[File, ...] = ()
    authorized_keys: tuple[str, ...] = ()
    host_key: bytes | None = None
    """The private ed25519 host key, in OpenSSH's format, when the user data brings one."""
    held: frozenset[str] = frozenset()
    """Packages that the first boot puts on hold."""
    reboot: Any = None
    """The condition under which the machine restarts once set up: a flag or a command; None is never."""
    errors: tuple[str, ...] = ()
    """Why cloud-init would call the user data invalid."""


def parse(user_data: bytes | None) -> CloudConfig:
    """Read user data, plain or gzipped. Anything but a cloud-config leaves the machine as it is."""
    text = user_data or b""
    try:
        if text.startswith(GZIP_MAGIC):
            text = gzip.decompress(text)
        if not text.startswith(b"#cloud-config"):
            return CloudConfig()
        document = yaml.safe_load(text) or {}
        keys = document.get("ssh_keys") or {}
        users = [user for user in document.get("users") or [] if isinstance(user, dict)]
        power = document.get("power_state") or {}
        files = tuple(_file(entry) for entry in document.get("write_files") or [])
        # A script that looks up the names by itself finds these.
        everything = any(b"xargs apt-mark hold" in file.content for file in files)
        named = {name for command in document.get("runcmd") or [] for name in _held(command)}
        return CloudConfig(
            files=files,
            authorized_keys=tuple(
                key for part in (document, *users) for key in part.get("ssh_authorized_keys") or []
            ),
            host_key=keys["ed25519_private"].encode() if "ed25519_private" in keys else None,
            held=frozenset(PACKAGES if everything else named),
            reboot=power.get("condition", True) if power.get("mode") == "reboot" else None,
        )
    except (
        yaml.YAMLError,
        zlib.error,
        AttributeError,
        EOFError,
        KeyError,
        OSError,
        TypeError,
        ValueError,
    ) as error:
        return CloudConfig(errors=(f"Failed loading yaml blob. {error}",))


def _file(entry: dict[str, Any]) -> File:
    content = entry.get("content", "")
    data = content if isinstance(content, bytes) else str(content).encode()
    encoding = str(entry.get("encoding", "text/plain"))
    if "b64" in encoding or "base64" in encoding:
        data = base64.b64decode(data)
    if encoding.startswith(("gz", "gzip")):
        data = gzip.decompress(data)
    permissions = entry.get("permissions", "0644")
    return File(
        path=entry["path"],
        content=data,
        mode=permissions if isinstance(permissions, int) else int(permissions, 8),
        append=bool(entry.get("append", False)),
        defer=bool(entry.get("defer", False)),
    )


def _held(command: str | list[str]) -> list[str]:
    line = command if isinstance(command, str) else " ".join(map(str, command))
    names = re.search(r"apt-mark hold ([^;&|\n]+)", line)
    return names[1].split() if names else []
