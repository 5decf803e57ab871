"""What a node should be inside, by the stack's state; and what it is, seen over SSH without touching it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet import cloudconfig
from fleet.billing import State, node_urns
from fleet.drift import Drift
from fleet.layout import COMPOSE_PATH, ENV_PATH, PREFETCH_SETTINGS_PATH, UNITS_DIRECTORY
from fleet.ssh import Completed, Connection, HostKeyMismatch, SshError, Target, Unreachable, connect

SECRET_ENVIRONMENT = "FLEET_SECRET_ENVIRONMENT"  # noqa: S105  (a name, not a secret)
HELD = ("nvidia-*", "libnvidia-*", "linux-modules-nvidia-*", "docker*", "containerd*", "runc")
"""Packages that the first boot puts on hold; cloudinit/setup.sh has the same list."""
RELEASED = {COMPOSE_PATH, ENV_PATH, PREFETCH_SETTINGS_PATH}
"""Written by the first boot, and replaced by rollouts."""


@dataclass(frozen=True)
class Expected:
    """What a node should be inside."""

    node: str
    target: Target
    compose: str
    environment: str = field(repr=False)
    """Content of `.env`. Secret."""
    host_files: Mapping[str, str] = field(default_factory=dict)
    """What the first boot wrote and no rollout replaces: path → content."""
    commits: Mapping[str, str] = field(default_factory=dict)
    """What the gate saw served from the hub: owner/name@revision → commit."""
    refs: Mapping[str, str] = field(default_factory=dict)
    """The files on the node that hold them."""
    dry_run: bool = False
    """The last rollout only looked, so that what is served is not what the state says."""


def expected_nodes(state: State) -> list[Expected]:
    """The nodes of `pulumi stack export --show-secrets`, by the last rollout that went well."""
    found = []
    gates = _gates(state)
    for entry in state["deployment"].get("resources", []):
        inputs = entry.get("inputs", {})
        if not str(inputs.get("create")).endswith("-m fleet.rollout"):
            continue
        spec = json.loads(_plain(inputs["stdin"]))
        secret = _plain(inputs["environment"])[SECRET_ENVIRONMENT]
        found.append(
            Expected(
                node=spec["node"],
                target=Target.parse(spec["target"]),
                compose=spec["compose"],
                environment=spec["environment"] + secret,
                host_files=_host_files(state, spec["node"]),
                **gates.get(spec["node"], {}),
                dry_run=spec.get("dry_run", False),
            )
        )
    return found


async def node_drift(expected: Expected, node: Connection) -> list[Drift]:
    """Everything inside the node that is not as expected. Raises SshError when it cannot be looked at."""
    looked = _Looked(expected, node)
    found = [
        *[drift async for drift in looked.files()],
        *[drift async for drift in looked.units()],
        *[drift async for drift in looked.packages()],
    ]
    if not expected.dry_run:
        found += [drift async for drift in looked.serving()]
    return sorted(found)


async def look(expected: Expected) -> list[Drift]:
    """`node_drift` over a session of its own; a node that cannot be looked at is drift as well."""
    try:
        async with connect(expected.target) as node:
            return await node_drift(expected, node)
    except HostKeyMismatch as error:
        pinned = " or ".join(error.expected)
        return [Drift("node", expected.node, "ssh", "host key", pinned, error.presented)]
    except SshError as error:
        reason = error.reason if isinstance(error, Unreachable) else type(error).__name__
        return [Drift("node", expected.node, "ssh", "session", "opens", reason)]


async def look_at_all(nodes: Sequence[Expected]) -> list[Drift]:
    """All nodes at once."""
    found = await asyncio.gather(*(look(node) for node in nodes))
    return sorted(drift for drifts in found for drift in drifts)


class _Looked:
    """The parts of one look at one node."""

    def __init__(self, expected: Expected, node: Connection) -> None:
        self._expected = expected
        self._node = node

    async def files(self) -> AsyncIterator[Drift]:
        for path, content in self._expected.host_files.items():
            if drift := await self._digest(path, content):
                yield drift

    async def units(self) -> AsyncIterator[Drift]:
        """Units that start by themselves do, are running, and nothing was added to them."""
        for path, content in self._expected.host_files.items():
            if not path.startswith(f"{UNITS_DIRECTORY}/") or "[Install]" not in content:
                continue
            unit = path.rpartition("/")[2]
            properties = {"UnitFileState": "enabled", "ActiveState": "active", "DropInPaths": ""}
            done = await self._run("systemctl", "show", f"--property={','.join(properties)}", unit)
            shown = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
            for name, wanted in properties.items():
                now = shown.get(name, "")
                # A unit on its way up, as during a rollout, is not drift.
                if now != wanted and not (name == "ActiveState" and now in ("activating", "reloading")):
                    yield self._drift(unit, name, wanted or "none", now or "none")

    async def packages(self) -> AsyncIterator[Drift]:
        """What the model runs on is held, as the first boot left it."""
        if not any("apt-mark hold" in content for content in self._expected.host_files.values()):
            return
        form = "${db:Status-Abbrev}${Package}\\n"
        installed = await self._run("dpkg-query", "--show", f"--showformat={form}", *HELD)
        held = set((await self._run("apt-mark", "showhold")).stdout.split())
        # dpkg names what is installed and held `hi`, what is installed only `ii`.
        names = {line[2:].strip() for line in installed.stdout.splitlines() if line[1:2] == "i"}
        for name in sorted(names - held):
            yield self._drift(f"package {name}", "hold", "on hold", "may be upgraded")

    async def serving(self) -> AsyncIterator[Drift]:
        """The files that are served from, and the containers that run."""
        async for drift in self._compose_file():
            yield drift
        if changed := await self._digest(ENV_PATH, self._expected.environment, mode="600"):
            yield changed
        services = cloudconfig.mapping(self._expected.compose).get("services") or {}
        async for drift in self._weights():
            yield drift
        for name, service in services.items():
            async for drift in self._container(service.get("container_name", name), service):
                yield drift

    async def _weights(self) -> AsyncIterator[Drift]:
        """A branch that has moved on the hub is served from its new commit after the next start."""
        for name, commit in self._expected.commits.items():
            done = await self._run("cat", self._expected.refs.get(name, "/dev/null"))
            now = found[0] if (found := re.fullmatch("[0-9a-f]{40}", done.stdout.strip())) else "none"
            if now != commit:
                yield self._drift(f"weights {name}", "commit", commit[:12], now[:12])

    async def _compose_file(self) -> AsyncIterator[Drift]:
        whole = await self._digest(COMPOSE_PATH, self._expected.compose)
        if whole is None:
            return
        there = await self._run("cat", COMPOSE_PATH)
        was, now = (_flat(cloudconfig.mapping(text)) for text in (self._expected.compose, there.stdout))
        differing = [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
        if whole.property != "content" or not now or not differing:
            yield whole  # it is missing, no YAML, or says the same in other words
            return
        for key in differing:
            yield self._drift(COMPOSE_PATH, key, was.get(key, "not set"), now.get(key, "not set"))

    async def _container(self, name: str, service: Mapping[str, Any]) -> AsyncIterator[Drift]:
        what = f"container {name}"
        done = await self._run("docker", "inspect", name)
        if done.exit_status != 0:
            yield self._drift(what, "state", "running", "there is none")
            return
        seen = json.loads(done.stdout)[0]
        image = service["image"]
        state = seen["State"]["Status"]
        if state != "running":
            yield self._drift(what, "state", "running", state)
        if (running := seen["Config"]["Image"]) != image:
            yield self._drift(what, "image", image, running)
        else:
            # The tag may have been moved, by a pull, to another image than the one that runs.
            known = await self._run("docker", "image", "inspect", "--format", "{{.Id}}", image)
            digest = known.stdout.strip() or "not on the node"
            if digest != seen["Image"]:
                yield self._drift(what, "image digest", _short(digest), _short(seen["Image"]))
        if words := service.get("command"):
            was, now = (
                _flags([self._filled(str(word)) for word in words]),
                _flags(seen["Config"]["Cmd"] or []),
            )
            for flag in sorted(was.keys() | now.keys()):
                if was.get(flag) != now.get(flag):
                    yield self._drift(what, flag, was.get(flag, "not set"), now.get(flag, "not set"))
        if restarts := seen["RestartCount"]:
            yield self._drift(what, "restarts", "0", str(restarts))

    def _filled(self, word: str) -> str:
        """A word as compose hands it on: variables of `.env` filled in, `$$` a plain `$`."""
        values = dict(re.findall(r"^(\w+)='([^']*)'$", self._expected.environment, re.MULTILINE))
        return re.sub(
            r"\$(?:\$|\{(\w+)\})",
            lambda found: values.get(found[1], found[0]) if found[1] else "$",
            word,
        )

    async def _digest(self, path: str, content: str, mode: str | None = None) -> Drift | None:
        """Whether the file has this content, by its digest: what it holds stays on the node."""
        done = await self._run("sha256sum", path)
        if done.exit_status != 0:
            return self._drift(path, "exists", "yes", "no")
        was, now = hashlib.sha256(content.encode()).hexdigest(), done.stdout.split()[0]
        if was != now:
            return self._drift(path, "content", _short(f"sha256:{was}"), _short(f"sha256:{now}"))
        if mode:
            there = (await self._run("stat", "-c", "%a", path)).stdout.strip()
            if there != mode:
                return self._drift(path, "mode", mode, there)
        return None

    def _drift(self, resource: str, property_: str, was: str, now: str) -> Drift:
        return Drift("node", self._expected.node, resource, property_, was, now)

    async def _run(self, *argv: str) -> Completed:
        return await self._node.run(argv, check=False)


def _gates(state: State) -> dict[str, dict[str, Any]]:
    """What the last gate that passed saw of each node's weights, by node."""
    found = {}
    for entry in state["deployment"].get("resources", []):
        inputs, report = entry.get("inputs", {}), _plain(entry.get("outputs", {}).get("stdout"))
        if str(inputs.get("create")).endswith("-m fleet.gate") and isinstance(report, str):
            spec = json.loads(_plain(inputs["stdin"]))
            commits = json.loads(report).get("commits") or {}
            found[spec["node"]] = {
                "commits": commits,
                "refs": {ref["name"]: ref["path"] for ref in spec.get("refs", ())},
            }
    return found


def _host_files(state: State, node: str) -> dict[str, str]:
    """What the node's user data writes for good."""
    urns = set(node_urns(state, node))
    for entry in state["deployment"]["resources"]:
        if entry["urn"] in urns and (text := cloudconfig.find(_plain(entry.get("inputs", {})))):
            files = cloudconfig.written_files(text)
            return {path: content for path, content in files.items() if path not in RELEASED}
    return {}


def _plain(value: Any) -> Any:
    """A value of an exported state: a secret is an object that holds its JSON."""
    if isinstance(value, dict):
        if "plaintext" in value:
            return _plain(json.loads(value["plaintext"]))
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """A compose file as path → text; a command's flags each have a path of their own."""
    if isinstance(value, dict):
        parts = [_flat(entry, f"{path}.{key}" if path else str(key)) for key, entry in value.items()]
        return {key: text for part in parts for key, text in part.items()}
    if path.endswith(".command") and isinstance(value, list):
        flags = _flags([str(word) for word in value])
        return {f"{path} {flag}": text for flag, text in flags.items()}
    text = value if isinstance(value, str) else json.dumps(value)
    # A file within the file, the gateway's configuration or a certificate, is told by its digest.
    return {path: _short(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}") if "\n" in text else text}


def _flags(words: list[str]) -> dict[str, str]:
    """Flag → value. What stands before the first flag has an empty name."""
    return dict(_pairs(words))


def _pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    flag, values = "", list[str]()
    for word in [*words, "--"]:
        if word.startswith("--"):
            if flag or values:
                yield flag, " ".join(values) or "on"
            flag, equals, value = word.partition("=")
            values = [value] if equals else []
        else:
            values.append(word)


def _short(digest: str) -> str:
    """Enough of a digest to tell two apart."""
    algorithm, _, rest = digest.partition(":")
    return f"{algorithm}:{rest[:12]}" if rest else digest
