"""Is all well? One finding for each thing that must hold, in the clouds and on the nodes, with its fix.

Looks only: nothing is changed anywhere. What is asked of a cloud is up to that cloud's probe; what is asked
of a node is the same on every cloud.
"""

from __future__ import annotations

import asyncio
import io
import shlex
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fleet import ray, safekeeping
from fleet.diagnosis import Context, Fault, Hints, diagnose, ssh_fault
from fleet.engine import tasks
from fleet.gate import GateSpec, Timeouts
from fleet.gate import check as pass_gate
from fleet.gateway import HTTPS_PORT
from fleet.inventory import FleetNode, InventoryError
from fleet.progress import Progress, Stage
from fleet.ssh import Connection, SshError, connect, fingerprint

if TYPE_CHECKING:
    from fleet.settings import Node

GB = 10**9
LEAST_FREE_GB = 20.0
"""A vLLM image is some 20 GB unpacked: with less, the next rollout's pull fills the disk."""

SLOW_MS = 2000.0
"""A call of a cloud's API takes 0.1 to 0.5 s from its own continent; with far slower ones every wait of a
deployment is long."""

LEAST_DAYS = 20
"""Caddy renews a certificate when a third of its time is left, of Let's Encrypt's 90 days 30."""
LAST_DAYS = 7
"""With fewer, clients are about to be refused: what was a warning is a failure."""
TLS_S = 10.0

READY = Timeouts(ssh_s=10.0, install_s=1.0, ready_s=5.0, token_s=30.0, reboot_s=5.0)
"""The gate's limits for a node that should have been ready all along."""


class Status(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    WARNING = "warning"
    """Works, but somebody should know."""
    FAILED = "failed"
    UNKNOWN = "unknown"
    """Could not be found out; the reason is what was seen."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    """The cloud or the node."""
    name: str
    status: Status
    seen: str
    fix: str = ""
    """What to do; never empty for what failed."""


@dataclass(frozen=True)
class CloudRequest:
    """What a stack wants of one cloud."""

    config: Mapping[str, str]
    """The stack's settings of the cloud's own namespace (`scaleway:…`), secrets in clear."""
    nodes: tuple[Node, ...]
    """Declared on this cloud."""
    existing: frozenset[str]
    """Names of those that have their server already, and need neither stock nor quota."""
    public_key: str | None
    """What the nodes will be opened with; None if the key file does not tell."""


class CloudProbe(Protocol):
    """A cloud's part of the check: the attribute `probe` of the module `components.<cloud>.probe`."""

    def __call__(self, request: CloudRequest) -> list[Finding]:
        """Everything found. Raises nothing for what is wrong: that is a finding."""
        ...


def latency(cloud: str, who: str, took_ms: float, status_page: str) -> Finding:
    """How fast the cloud's API answered a call, `who` being its address or name."""
    seen = f"{who} answered in {took_ms:.0f} ms"
    if took_ms <= SLOW_MS:
        return Finding(cloud, "API", Status.OK, seen)
    fix = f"look at {status_page} and at the network between here and there"
    return Finding(cloud, "API", Status.WARNING, f"{seen}, which is slow", fix)


def exit_status(findings: Sequence[Finding]) -> int:
    """1 if anything failed; warnings and what could not be found out do not count."""
    return int(any(finding.status == Status.FAILED for finding in findings))


def check_keeping(stack: str, environment: Mapping[str, str], folder: Path) -> list[Finding]:
    """Who can read the state and the secrets of a stack of the project in `folder`."""
    document = safekeeping.stack_document(stack, folder)
    if safekeeping.is_embedded(stack, document):
        return []
    passphrase = safekeeping.published_passphrase(document)
    if passphrase is None:
        found = [Finding("stack", "secrets", Status.OK, "no published passphrase opens them")]
    else:
        seen = f"encrypted with {passphrase!r}, a passphrase that everybody knows"
        fix = safekeeping.own_secrets_provider(stack)
        found = [Finding("stack", "secrets", Status.FAILED, seen, fix)]
    backend = environment.get(safekeeping.BACKEND, "")
    state = safekeeping.local_state(backend)
    if safekeeping.is_development_state(backend, folder):
        seen = f"in this checkout's {safekeeping.DEVELOPMENT_STATE}, which is for embedded clouds alone"
        found.append(Finding("stack", "state", Status.FAILED, seen, safekeeping.own_backend(stack)))
    if state is not None and (files := safekeeping.readable_by_others(state)):
        seen = f"others on this machine can read {len(files)} files of it, {files[0].name} for one"
        fix = f"chmod -R go= {shlex.quote(str(state / '.pulumi'))}; umask 077 keeps it so"
        found.append(Finding("stack", "state", Status.WARNING, seen, fix))
    return found


async def check_node(node: FleetNode, api_key: str | None, limits: Timeouts = READY) -> list[Finding]:
    """SSH and host key, disk, driver, containers, restarts, certificate, readiness, as the node itself says.

    `limits` are those of the gate, which judges the readiness.
    """
    try:
        target = node.reachable()
        async with connect(target) as session:
            pinned = " or ".join(map(fingerprint, target.host_keys))
            ssh = Finding(node.name, "SSH", Status.OK, f"{target}, host key {pinned} as pinned")
            looks = _Looks(node, session)
            serving = [looks.containers(), looks.restarts()] if node.container else [looks.membership()]
            gateway = [looks.certificate(node.certificate_name)] if node.certificate_name else []
            inside = await asyncio.gather(looks.disk(), looks.driver(), *serving, *gateway)
    except InventoryError as error:
        return [Finding(node.name, "SSH", Status.FAILED, str(error), "pulumi up")]
    except SshError as error:
        failed = ssh_fault(error)
        return [_failed(node, "SSH", failed.fault, failed.seen)]
    readiness = [await _readiness(node, api_key, limits)] if "vllm" in node.ports else []
    return [ssh, *inside, *readiness]


class _Looks:
    """Single looks over one session."""

    def __init__(self, node: FleetNode, session: Connection) -> None:
        self._node = node
        self._session = session

    async def _ask(self, *argv: str) -> tuple[int, str]:
        """Exit status, and what was said on either stream."""
        done = await self._session.run(argv, check=False)
        return done.exit_status, done.stdout.strip() or done.stderr.strip()

    def _ok(self, name: str, seen: str) -> Finding:
        return Finding(self._node.name, name, Status.OK, seen)

    async def disk(self) -> Finding:
        _, said = await self._ask("df", "--output=avail,size", "-B1", "/")
        free, size = (int(word) / GB for word in said.splitlines()[-1].split())
        seen = f"{free:.0f} of {size:.0f} GB free"
        if free >= LEAST_FREE_GB:
            return self._ok("disk", seen)
        return _failed(self._node, "disk", Fault.DISK_FULL, [f"{seen}, {LEAST_FREE_GB:.0f} needed"])

    async def driver(self) -> Finding:
        query = ("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
        status, said = await self._ask("nvidia-smi", *query)
        if status == 0 and said:
            return self._ok("driver", "; ".join(said.splitlines()))
        return _failed(self._node, "driver", Fault.DRIVER_NOT_LOADED, said.splitlines()[:1])

    async def containers(self) -> Finding:
        _, docker = await self._ask("systemctl", "is-active", "docker")
        if docker != "active":
            return _failed(self._node, "containers", Fault.DOCKER_DEAD, [f"docker is {docker}"])
        status, state = await self._ask("docker", "inspect", "-f", "{{.State.Status}}", self._node.container)
        if status == 0 and state == "running":
            return self._ok("containers", f"{self._node.container} is running")
        seen = state if status == 0 else f"there is no container {self._node.container}"
        return _failed(
            self._node, "containers", Fault.EXIT_LOOP if status == 0 else Fault.SERVICE_FAILED, [seen]
        )

    async def membership(self) -> Finding:
        """Of a Ray cluster's machine: one of the two units runs."""
        _, said = await self._ask("systemctl", "is-active", ray.HEAD_UNIT, ray.WORKER_UNIT)
        if "active" in said.split():
            return self._ok("cluster", "its part of the Ray cluster runs")
        fix = f"sudo journalctl -u {ray.HEAD_UNIT} -u {ray.WORKER_UNIT} -n 20, then pulumi up"
        seen = f"neither {ray.HEAD_UNIT} nor {ray.WORKER_UNIT} runs"
        return Finding(self._node.name, "cluster", Status.FAILED, seen, fix)

    async def certificate(self, name: str) -> Finding:
        """Whom the gateway's certificate is for, and how long it holds."""
        try:
            names, ends = await self._shown_certificate(name)
        except (OSError, TimeoutError) as error:
            seen = f"port {HTTPS_PORT} shows none: {error or type(error).__name__}"
            return _failed(self._node, "certificate", Fault.GATEWAY_FAILED, [seen])
        days = (ends - datetime.now(UTC)).days
        if not {name, f"*.{name.partition('.')[2]}"} & set(names):
            seen = f"it is for {', '.join(names)}, not for {name}"
            return _failed(self._node, "certificate", Fault.GATEWAY_FAILED, [seen])
        seen = f"for {name}, {days} days left"
        if days >= LEAST_DAYS:
            return self._ok("certificate", seen)
        fix = "it was to be renewed by now: docs/runbooks/certificate.md"
        status = Status.FAILED if days < LAST_DAYS else Status.WARNING
        return Finding(self._node.name, "certificate", status, seen, fix)

    async def _shown_certificate(self, name: str) -> tuple[list[str], datetime]:
        """The names and the end of what is shown to clients of `name`. Raises OSError, TimeoutError."""
        from cryptography import x509  # noqa: PLC0415  only where there is a gateway

        # Read, not trusted: nothing is sent, and one that has run out is to be read as well.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        async with self._session.forward(HTTPS_PORT) as port, asyncio.timeout(TLS_S):
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
            shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            writer.close()
        certificate = x509.load_der_x509_certificate(shown)
        known = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return known.get_values_for_type(x509.DNSName), certificate.not_valid_after_utc

    async def restarts(self) -> Finding:
        status, said = await self._ask("docker", "inspect", "-f", "{{.RestartCount}}", self._node.container)
        if status != 0:
            return Finding(self._node.name, "restarts", Status.UNKNOWN, "there is no container")
        if said == "0":
            return self._ok("restarts", "none")
        fix = diagnose(Fault.EXIT_LOOP, Stage.READY, _context(self._node)).next_command
        return Finding(self._node.name, "restarts", Status.WARNING, f"restarted {said} times", fix)


async def _readiness(node: FleetNode, api_key: str | None, limits: Timeouts) -> Finding:
    """The gate's own answer: set up, healthy, right model, key asked for, a token generated."""
    if api_key is None:
        return Finding(node.name, "readiness", Status.UNKNOWN, "the API key could not be read")
    spec = GateSpec(
        node=node.name,
        cloud=node.cloud,
        target=node.reachable(),
        served_model=node.model,
        task=node.task,
        more_served=node.more_served,
        api_key=api_key,
        vllm_port=node.ports["vllm"],
        container_name=node.container,
        unit="" if node.container else ray.SERVE_UNIT,
        hints=_hints(node),
        timeouts=limits,
    )
    report = await pass_gate(spec, Progress(node.name, io.StringIO()))
    if report.diagnosis is None:
        what = "a token" if node.task in tasks.CONVERSING else "an answer"
        took = f", {what} in {report.first_token_s:.2f} s" if report.first_token_s is not None else ""
        return Finding(node.name, "readiness", Status.OK, f"serves {node.model}{took}")
    seen = f"{report.diagnosis.summary}: {' | '.join(report.diagnosis.seen)}"
    return Finding(node.name, "readiness", Status.FAILED, seen, report.diagnosis.next_step)


def _hints(node: FleetNode) -> Hints:
    return Hints(zone=node.zone, region=node.zone, server_id=node.server_id)


def _context(node: FleetNode) -> Context:
    return Context(node.name, node.cloud, _hints(node), node.target, node.container)


def _failed(node: FleetNode, name: str, fault: Fault, seen: Sequence[str]) -> Finding:
    """A finding in the words that every diagnosis uses."""
    found = diagnose(fault, Stage.READY, _context(node), seen)
    said = ": ".join(filter(None, [found.summary, " | ".join(found.seen)]))
    return Finding(
        node.name, name, Status.FAILED, said, f"{found.fix or found.cause}; look with: {found.next_command}"
    )
