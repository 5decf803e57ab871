"""How an update goes, node by node, put together from what the engine reports as it goes.

The engine's events are told to a `Board` one by one; it never asks for anything. A node's percentage only
rises; it ends at 100, or where the node failed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fleet.progress import Stage, parse_line

NODE_URN = re.compile(r"[:$]vllm-fleet:\w+:GpuNode::([^:]+)$")

EXCEPTION = re.compile(r"^(?:(?:\w+\.)+[A-Z]\w+|(?:create|read|update|delete) failed): ")
"""What Pulumi's host prints before a message: the exception's class, or `components.dynamic`'s words."""

EXPECTED_S: Mapping[str, Mapping[Stage, float]] = {
    "scaleway": {
        Stage.PROVIDER_CREATE: 5,
        Stage.PROVIDER_VOLUME_RESIZE: 10,
        Stage.PROVIDER_START: 12,
        Stage.PROVIDER_GET_IP: 40,
        Stage.WORKER_SSH_ACCESSIBLE: 65,
        Stage.WORKER_SSH_INSTALL: 240,
        Stage.WORKER_VLLM_HTTP_OK: 590,
        Stage.READY: 600,
    },
    "linode": {
        Stage.PROVIDER_CREATE: 10,
        Stage.WORKER_SSH_ACCESSIBLE: 150,
        Stage.WORKER_SSH_INSTALL: 690,
        Stage.WORKER_VLLM_HTTP_OK: 1640,
        Stage.READY: 1650,
    },
    "aws": {
        Stage.WORKER_SSH_ACCESSIBLE: 88,
        Stage.WORKER_VLLM_HTTP_OK: 588,
        Stage.READY: 598,
    },
}
"""Seconds from the start to each stage, by cloud.

Scaleway: volume and start as in its API's recorded replies (GPU servers start in 10 to 31 s), SSH some 20 s
later; image pull, weights and compilation together 351 s as in AWS' published cold start of a 12B model
(data-on-eks). Linode: the middles of its vLLM guide's table (SSH 2–3 min, cloud-init 5–10, reboot 1–2,
model 10–20). AWS: that same cold start, 598 s on a g6e.2xlarge, of which 88 s until the node is there.
They are a first guess only: a node's own pace corrects them.
"""


class Phase(StrEnum):
    """Where a node's update stands."""

    WAITING = "waiting"
    """Nothing was done to it yet; often nothing will have to be."""
    RUNNING = "running"
    DONE = "done"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """The update ended before this node did."""


@dataclass
class NodeProgress:
    """One node's way."""

    name: str
    cloud: str
    per_hour: float | None
    """Cost in the board's currency; None where the catalog does not know."""
    phase: Phase = Phase.WAITING
    percent: int = 0
    stage: Stage = Stage.REQUEST_CREATE
    note: str = ""
    started_at: float | None = None
    stage_at: float | None = None
    """When the stage was reached."""
    billed_at: float | None = None
    """When its server was there."""
    ended_at: float | None = None
    failure: list[str] = field(default_factory=list)
    """What the engine says of the failure, line by line."""

    def elapsed_s(self, now: float) -> float:
        """Since its first step."""
        return 0.0 if self.started_at is None else (self.ended_at or now) - self.started_at

    def expected_s(self) -> float | None:
        """The whole way's length: the cloud's table, stretched by this node's pace so far."""
        table = EXPECTED_S.get(self.cloud)
        if table is None:
            return None
        whole = table[Stage.READY]
        known = [stage for stage in table if stage <= self.percent]
        if not known or self.started_at is None or self.stage_at is None:
            return whole
        return whole * max(self.stage_at - self.started_at, 1.0) / table[max(known)]

    def cost(self, now: float) -> float | None:
        """What it has cost since its server was made in this update."""
        if self.per_hour is None:
            return None
        return 0.0 if self.billed_at is None else (now - self.billed_at) / 3600 * self.per_hour


class Board:
    """All nodes of an update. `now` is any clock in seconds."""

    def __init__(
        self,
        nodes: Mapping[str, tuple[str, float | None]],
        currency: str = "EUR",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`nodes` are those declared: name → cloud and cost per hour."""
        self.currency = currency
        self.nodes = {name: NodeProgress(name, cloud, per_hour) for name, (cloud, per_hour) in nodes.items()}
        self.other_failures: list[str] = []
        """Of what belongs to no node."""
        self._now = now

    def began(self, urn: str, op: str) -> None:
        """The engine begins an operation on a resource."""
        node = self._node_of(urn)
        if node and op not in {"same", "refresh", "read"} and node.phase == Phase.WAITING:
            self._start(node)

    def done(self, urn: str, op: str) -> None:
        """The engine has ended an operation on a resource."""
        found = NODE_URN.search(urn)
        node = self.nodes.get(found[1]) if found else None
        if node is None or op == "refresh" or node.phase not in {Phase.WAITING, Phase.RUNNING}:
            return
        self._end(node, Phase.DONE if node.phase == Phase.RUNNING else Phase.UNCHANGED)

    def failed(self, urn: str) -> None:
        """The engine could not do an operation on a resource."""
        node = self._node_of(urn)
        if node and node.phase != Phase.FAILED:
            self._end(node, Phase.FAILED)

    def said(self, urn: str, severity: str, message: str) -> str | None:
        """A diagnostic of the engine; returns a line worth showing where there is no live view."""
        if severity == "debug":
            return None
        lines = [line.rstrip() for line in message.splitlines() if line.strip()]
        if severity == "error":
            self._blame(urn, lines)
            return None
        for line in lines:
            self._hear(line)
        node = self._node_of(urn)
        # Progress names its node by itself.
        named = [f"{node.name}: {line}" if node and parse_line(line) is None else line for line in lines]
        return "\n".join(named) or None

    def finish(self) -> None:
        """The update is over: what is still under way was cut off."""
        for node in self.nodes.values():
            if node.phase == Phase.RUNNING:
                self._end(node, Phase.CANCELLED)

    @property
    def failed_anywhere(self) -> bool:
        """Whether a failure has been told, of a node or of something else."""
        return bool(self.other_failures) or any(node.failure for node in self.nodes.values())

    def cost(self) -> float:
        """What the nodes have cost so far in this update, as far as known."""
        now = self._now()
        return sum(node.cost(now) or 0.0 for node in self.nodes.values())

    def now(self) -> float:
        """This board's clock."""
        return self._now()

    def _hear(self, line: str) -> None:
        told = parse_line(line)
        node = self.nodes.get(told.node) if told else None
        if told is None or node is None or node.phase == Phase.FAILED:
            return
        if node.phase == Phase.WAITING:
            self._start(node)
        if told.stage > node.percent:
            node.percent, node.stage, node.stage_at = int(told.stage), told.stage, self._now()
        if told.stage >= Stage.PROVIDER_CREATE and node.billed_at is None:
            node.billed_at = self._now()
        node.note = told.note

    def _blame(self, urn: str, lines: list[str]) -> None:
        node = self._node_of(urn)
        if node is None:
            self.other_failures += [line for line in lines if line != "update failed"]
            return
        # A failed command's error repeats its output: of that, the stages were shown and the report is for
        # programs. What remains is the reason; where there is one, that the command failed says nothing more.
        told = [EXCEPTION.sub("", line) for line in lines]
        reason = [line for line in told if parse_line(line) is None and not line.startswith("{")]
        node.failure += reason[1:] if len(reason) > 1 and reason[0].startswith("exit status") else reason

    def _start(self, node: NodeProgress) -> None:
        node.phase, node.started_at = Phase.RUNNING, self._now()
        node.stage_at = node.started_at

    def _end(self, node: NodeProgress, phase: Phase) -> None:
        node.phase, node.ended_at = phase, self._now()
        if phase in {Phase.DONE, Phase.UNCHANGED}:
            node.percent, node.stage = int(Stage.READY), Stage.READY

    def _node_of(self, urn: str) -> NodeProgress | None:
        """The node a resource is part of: its parts carry its name and a dash before their own."""
        if ":GpuNode" not in urn:
            return None
        resource = urn.rsplit("::", 1)[-1]
        names = [name for name in self.nodes if resource == name or resource.startswith(f"{name}-")]
        return self.nodes[max(names, key=len)] if names else None
