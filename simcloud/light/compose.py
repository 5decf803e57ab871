"""Compose projects, read as `docker compose` reads them: interpolation, env files, the keys that exist."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from simcloud.light.disk import Disk

DEFAULT_FILES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")


def _words(text: str) -> list[str]:
    return text.split()


# The Compose Specification's top-level and service elements, as far as Compose 2 accepts them.
_TOP_KEYS = {"name", "version", "services", "networks", "volumes", "configs", "secrets", "include"}
_SERVICE_KEYS = set(
    _words("""
    annotations attach blkio_config build cap_add cap_drop cgroup cgroup_parent command configs
    container_name cpus cpu_shares cpuset credential_spec depends_on deploy develop device_cgroup_rules
    devices dns dns_opt dns_search domainname entrypoint env_file environment expose extends
    external_links extra_hosts gpus group_add healthcheck hostname image init ipc isolation labels links
    logging mac_address mem_limit mem_reservation mem_swappiness memswap_limit network_mode networks
    oom_kill_disable oom_score_adj pid pids_limit platform ports privileged profiles pull_policy
    read_only restart runtime scale secrets security_opt shm_size stdin_open stop_grace_period
    stop_signal storage_opt sysctls tmpfs tty ulimits user userns_mode uts volumes volumes_from
    working_dir
""")
)
_VARIABLE = re.compile(
    r"\$(?:(?P<escaped>\$)|(?P<plain>\w+)|\{(?P<name>\w+)(?:(?P<how>:?[-?+])(?P<word>[^}]*))?\}|(?P<bad>))"
)
_ENV_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=(.*)")


class Invalid(Exception):
    """`docker compose config` refuses the project; the message is its own."""


@dataclass(frozen=True)
class Port:
    """A container port published on the machine."""

    host_ip: str
    """Empty: on every address."""
    published: int
    target: int


@dataclass(frozen=True)
class Service:
    """One service, with every variable resolved."""

    name: str
    project: str
    container: str
    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    ports: tuple[Port, ...]
    restart: str
    host_network: bool
    runtime: str
    healthcheck: bool
    files: Mapping[str, str]
    """Configs and secrets that the project itself holds: path in the container → content."""
    document: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Changes when the container must be made anew."""
        whole = json.dumps([self.document, dict(self.environment)], sort_keys=True, default=str)
        return hashlib.sha256(whole.encode()).hexdigest()


@dataclass(frozen=True)
class Project:
    name: str
    document: Mapping[str, Any]
    services: tuple[Service, ...]


def load(disk: Disk, directory: str, *, file: str = "", name: str = "", env_file: str = "") -> Project:
    """Read the project in `directory`, with its `.env`. Raises `Invalid` as Compose would refuse it."""
    path = file or next((f for f in DEFAULT_FILES if disk.exists(f"{directory}/{f}")), "")
    if not path:
        raise Invalid("no configuration file provided: not found")
    place = str(PurePosixPath(directory) / path)
    if not disk.exists(place):
        raise Invalid(f"open {place}: no such file or directory")
    variables = _read_env(disk, str(PurePosixPath(directory) / (env_file or ".env")), missing_ok=not env_file)
    try:
        raw = yaml.safe_load(disk.text(place))
    except yaml.YAMLError as error:
        raise Invalid(f"yaml: {' '.join(str(error).split())}") from error
    document = _interpolate(raw, variables)
    _check(document, place)
    project = name or document.get("name") or PurePosixPath(directory).name
    services = tuple(
        _service(disk, directory, project, key, body, variables, _files(document, body, variables))
        for key, body in document["services"].items()
    )
    return Project(project, document, services)


def _check(document: Any, place: str) -> None:
    if not isinstance(document, dict):
        raise Invalid(f"validating {place}: top-level object must be a mapping")
    for key in document.keys() - _TOP_KEYS:
        if not key.startswith("x-"):
            raise Invalid(f"validating {place}: additional properties '{key}' not allowed")
    if not isinstance(document.get("services"), dict) or not document["services"]:
        raise Invalid("empty compose file" if not document.get("services") else "services must be a mapping")
    for name, body in document["services"].items():
        if not isinstance(body, dict):
            raise Invalid(f"validating {place}: services.{name} must be a mapping")
        for key in body.keys() - _SERVICE_KEYS:
            if not key.startswith("x-"):
                raise Invalid(
                    f"validating {place}: services.{name} additional properties '{key}' not allowed"
                )
        if not body.get("image") and not body.get("build"):
            raise Invalid(
                f'service "{name}" has neither an image nor a build context specified: '
                "invalid compose project"
            )


def _files(document: dict[str, Any], body: dict[str, Any], variables: Mapping[str, str]) -> dict[str, str]:
    """What a service's configs and secrets hold, by their path in the container."""
    found = {}
    for kind in ("configs", "secrets"):
        for use in body.get(kind) or []:
            held = (document.get(kind) or {}).get(use["source"])
            if held is None:
                raise Invalid(f"service refers to undefined {kind.removesuffix('s')} {use['source']}")
            found[use["target"]] = held["content"] if "content" in held else variables[held["environment"]]
    return found


def _service(
    disk: Disk,
    directory: str,
    project: str,
    name: str,
    body: dict[str, Any],
    variables: Mapping[str, str],
    files: Mapping[str, str],
) -> Service:
    environment: dict[str, str] = {}
    given = body.get("env_file") or []
    for entry in [given] if isinstance(given, str | dict) else given:
        described = entry if isinstance(entry, dict) else {"path": entry}
        path, required = described["path"], described.get("required", True)
        environment |= _read_env(disk, str(PurePosixPath(directory) / path), missing_ok=not required)
    given = body.get("environment") or {}
    if isinstance(given, list):
        given = dict(word.split("=", 1) if "=" in word else (word, None) for word in given)
    # A name without a value passes the variable of that name on.
    passed = {key: variables.get(key) if value is None else str(value) for key, value in given.items()}
    environment |= {key: value for key, value in passed.items() if value is not None}
    command = body.get("command") or []
    health = body.get("healthcheck") or {}
    return Service(
        name=name,
        project=project,
        container=body.get("container_name") or f"{project}-{name}-1",
        image=str(body.get("image", "")),
        command=tuple(shlex.split(command) if isinstance(command, str) else map(str, command)),
        environment=environment,
        ports=tuple(_port(entry, name) for entry in body.get("ports") or []),
        restart=str(body.get("restart", "no")),
        host_network=body.get("network_mode") == "host",
        runtime=str(body.get("runtime", "")),
        healthcheck=bool(health) and not health.get("disable"),
        files=files,
        document=body,
    )


def _port(entry: object, service: str) -> Port:
    if isinstance(entry, dict):
        return Port(str(entry.get("host_ip", "")), int(entry["published"]), int(entry["target"]))
    match = re.fullmatch(r"(?:(.*):)?(\d+):(\d+)(?:/tcp)?", str(entry))
    if not match:
        raise Invalid(f"services.{service}.ports: invalid port mapping {entry!r}")
    return Port((match[1] or "").strip("[]"), int(match[2]), int(match[3]))


def _interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _interpolate(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolate(item, variables) for item in value]
    if not isinstance(value, str):
        return value

    def resolve(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        name, how, word = match["plain"] or match["name"], match["how"] or "", match["word"] or ""
        if not name:
            raise Invalid(f"invalid interpolation format for {value!r}: escape the $ with another $")
        found = variables.get(name)
        given = bool(found) if how.startswith(":") else found is not None
        if how.endswith("?") and not given:
            raise Invalid(f"required variable {name} is missing a value: {word}")
        if how.endswith("+"):
            return word if given else ""
        return (found or "") if given or not how else word

    return _VARIABLE.sub(resolve, value)


def _read_env(disk: Disk, path: str, *, missing_ok: bool) -> dict[str, str]:
    if not disk.exists(path):
        if missing_ok:
            return {}
        raise Invalid(f"env file {path} not found: stat {path}: no such file or directory")
    values: dict[str, str] = {}
    for line in disk.text(path).splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _ENV_LINE.fullmatch(line)
        if not match:
            raise Invalid(f"failed to read {path}: unexpected line in it")
        values[match[1]] = _unquote(match[2].strip())
    return values


def _unquote(text: str) -> str:
    if text[:1] == "'" and text[-1:] == "'":
        return text[1:-1]
    if text[:1] == '"' and text[-1:] == '"':
        return text[1:-1].replace(r"\n", "\n").replace(r"\"", '"').replace(r"\\", "\\")
    return re.sub(r"\s+#.*", "", text)
