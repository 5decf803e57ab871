"""A release: the two files a node serves from, and what can be read off them."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml

from fleet import gateway, vllm_arguments
from fleet.engine import tasks
from fleet.fit.versions import VllmVersion
from fleet.layout import COMPOSE_PATH, ENV_PATH, TASK_KEY
from fleet.served_files import MOUNT

SERVICE = "vllm"
"""The service of the compose file that serves the model."""

PLAIN_VARIABLES = {"PORT", "NVIDIA_VISIBLE_DEVICES"}
"""Variables of `.env` that may be shown; every other value is taken for a secret."""

_ENV_LINE = re.compile(r"^\s*([A-Za-z_]\w*)=(?:'([^']*)'|\"([^\"]*)\"|(.*?))\s*$", re.MULTILINE)


class Unreadable(ValueError):
    """A compose file that does not say what it serves; the message says what is missing."""


@dataclass(frozen=True)
class Release:
    """The serving files of a node, byte for byte."""

    compose: bytes
    environment: bytes = field(repr=False)
    """Content of `.env`. Secret."""

    @cached_property
    def digest(self) -> str:
        """Names all that is served. The keys take part, so that a new key is a new release."""
        content = hashlib.sha256()
        for path, data in ((ENV_PATH, self.environment), (COMPOSE_PATH, self.compose)):
            content.update(path.encode() + b"\0" + data + b"\0")
        return content.hexdigest()[:16]

    @cached_property
    def variables(self) -> Mapping[str, str]:
        """What `.env` sets. Secret."""
        found = _ENV_LINE.finditer(self.environment.decode(errors="replace"))
        return {match[1]: match[2] or match[3] or match[4] or "" for match in found}

    @property
    def task(self) -> str:
        """What the model is served for. Raises Unreadable."""
        task = self._document.get(TASK_KEY, tasks.GENERATE)
        if task not in tasks.TASKS:
            raise Unreadable(f"the compose file's {TASK_KEY} is {task!r}, none of {', '.join(tasks.TASKS)}")
        return str(task)

    @property
    def services(self) -> Mapping[str, Any]:
        """The services of the compose file. Raises Unreadable."""
        return dict(self._document["services"])

    @cached_property
    def _document(self) -> Mapping[str, Any]:
        """The compose file. Raises Unreadable."""
        try:
            document = yaml.safe_load(self.compose)
            services = document["services"]
            services[SERVICE]["image"], services[SERVICE]["container_name"]
        except (yaml.YAMLError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise Unreadable(
                f"the compose file has no service {SERVICE} that can be read: {reason}"
            ) from None
        return dict(document)

    @property
    def image(self) -> str:
        """vLLM's image."""
        return str(self.services[SERVICE]["image"])

    @property
    def images(self) -> list[str]:
        """The image of every service."""
        return [str(service.get("image", "")) for service in self.services.values()]

    @property
    def files(self) -> str:
        """The digest of the files that are delivered with it; empty for none."""
        for volume in self.services[SERVICE].get("volumes") or ():
            source, _, target = str(volume).partition(":")
            if target.partition(":")[0] == MOUNT:
                return source.rpartition("/")[2]
        return ""

    @property
    def container(self) -> str:
        """Name of vLLM's container."""
        return str(self.services[SERVICE]["container_name"])

    @property
    def words(self) -> list[str]:
        """vLLM's arguments. Raises Unreadable."""
        return [str(word).replace("$$", "$") for word in self.services[SERVICE].get("command") or []]

    @property
    def vllm_version(self) -> VllmVersion | None:
        """The vLLM release of the image, where its tag says it."""
        return vllm_arguments.version_of(self.image)

    @cached_property
    def flags(self) -> dict[str, str]:
        """vLLM's arguments: flag → value, empty for a switch; `--no-…` for one that is switched off."""
        found = vllm_arguments.parse(self.words, self.vllm_version).arguments
        return {each.name: each.value or "" for each in found}

    @property
    def model(self) -> str:
        """The model vLLM loads."""
        return self.flags.get("--model", "")

    @property
    def served_model(self) -> str:
        """The name clients ask for."""
        return self.flags.get("--served-model-name", "").split(" ")[0] or self.model

    @property
    def more_served(self) -> tuple[str, ...]:
        """The names beside it that have to answer: those of LoRA adapters."""
        return vllm_arguments.adapters(vllm_arguments.parse(self.words, self.vllm_version))

    @property
    def port(self) -> int:
        """Port on the node's loopback. Raises Unreadable."""
        port = self.variables.get("PORT", "")
        if not port.isdecimal():
            raise Unreadable(".env sets no PORT")
        return int(port)

    @property
    def visible_devices(self) -> str:
        """The GPUs the container sees: `all`, or indices with commas."""
        return self.variables.get("NVIDIA_VISIBLE_DEVICES", "all")

    @property
    def has_gateway(self) -> bool:
        """Whether a gateway stands before vLLM."""
        return gateway.SERVICE in self.services

    @property
    def api_key(self) -> str:
        """Key of vLLM's clients. Secret."""
        return self.variables.get("VLLM_API_KEY", "")

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that must never be shown."""
        return tuple(value for name, value in self.variables.items() if name not in PLAIN_VARIABLES and value)


def differences(old: Release, new: Release) -> Iterator[str]:
    """How `new` differs from `old`: changed flags in a line each, then both files as a unified diff.

    Secrets are masked; a changed one is shown as changed.
    """
    try:
        before, after = old.flags, new.flags
    except Unreadable:
        before, after = {}, {}
    for flag in sorted(before.keys() | after.keys()):
        was, now = (flags.get(flag, None) for flags in (before, after))
        if was != now:
            yield f"{flag}: {_shown(was)} → {_shown(now)}"
    yield from _unified("docker-compose.yml", old.compose.decode(errors="replace"), new.compose.decode())
    yield from _unified(".env", _masked(old, other=None), _masked(new, other=old))


def _shown(value: str | None) -> str:
    return "not set" if value is None else value or "on"


def _unified(name: str, old: str, new: str) -> Iterator[str]:
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), f"{name} served", f"{name} wanted", "", "", 2, ""
    )
    yield from lines


def _masked(release: Release, other: Release | None) -> str:
    lines = []
    for name, value in release.variables.items():
        changed = other is not None and name in other.variables and other.variables[name] != value
        shown = value if name in PLAIN_VARIABLES else "*** (changed)" if changed else "***"
        lines.append(f"{name}={shown}")
    return "\n".join(lines)
