"""Looks on a node for the reason why its model does not answer (yet).

Each look says in a few words what the node is doing, and raises Failed as soon as it is clear that waiting
does not help: the container dies again and again, the unit failed, Docker is down.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from typing import Any

from fleet import engine_log
from fleet.diagnosis import Failed, Fault
from fleet.progress import Clock
from fleet.ssh import Completed, Connection

ENV_PATH = "/opt/llm/.env"
UNIT = "vllm.service"

RESTARTS_TOLERATED = 3
"""Restarts seen by one watch before an unexplained exit counts as a loop; Docker doubles its pauses."""

LOG_LINES = 200
"""Last lines of the log that each look reads."""
WHOLE_START = 2000
"""Lines that hold a whole start of vLLM, a traceback of each of eight workers included."""

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ")
"""The time that Docker writes before a line, always of the same width."""

ENV_GRACE_S = 20.0
"""Seconds for `.env` to arrive: its delivery may be under way."""


class Watch(ABC):
    """Follows one node's vLLM through the looks of one gate."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_line = ""
        self._last_line_at = clock.now()

    @property
    def last_line(self) -> str:
        """The newest line of the log, with its age as far as this watch has seen it stand still."""
        if not self._last_line:
            return "the log is empty"
        return f"{self._last_line} (unchanged for {self._clock.now() - self._last_line_at:.0f} s)"

    async def look(self, node: Connection) -> str:
        """What the node is doing, in a few words. Raises Failed, and what `Connection.run` raises."""
        try:
            return await self._look(node)
        except Failed:
            # Containers and units also end when the machine goes down for its reboot.
            system = await node.run(["systemctl", "is-system-running"], check=False)
            if system.stdout.strip() == "stopping":
                return "the machine is going down"
            raise

    @abstractmethod
    async def restarts(self, node: Connection) -> int | None:
        """How often vLLM was restarted by what runs it; None if it does not run."""

    @abstractmethod
    async def log(self, node: Connection, count: int = LOG_LINES) -> list[str]:
        """Its last lines."""

    @abstractmethod
    async def _look(self, node: Connection) -> str: ...

    async def _journal(self, node: Connection, unit: str, count: int) -> list[str]:
        words = ["journalctl", "-u", unit, "-n", str(count), "-o", "cat", "--no-pager"]
        return self._remember((await node.run(words, check=False)).stdout)

    def _remember(self, text: str) -> list[str]:
        lines = [line for line in text.splitlines() if line.strip()]
        if lines and lines[-1] != self._last_line:
            self._last_line, self._last_line_at = lines[-1], self._clock.now()
        return lines


def _in_order(logs: Completed) -> str:
    """Both streams of `docker logs --timestamps` as one text, without the times."""
    lines = [line for line in f"{logs.stdout}\n{logs.stderr}".split("\n") if line]
    if all(map(STAMP.match, lines)):
        lines.sort(key=lambda line: line.partition(" ")[0])
    return "\n".join(STAMP.sub("", line, count=1) for line in lines)


async def _unit_state(node: Connection, unit: str, *properties: str) -> dict[str, str]:
    shown = await node.run(["systemctl", "show", unit, f"--property={','.join(properties)}"], check=False)
    return dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)


class ContainerWatch(Watch):
    """Follows a vLLM that Docker runs."""

    def __init__(self, container: str, clock: Clock) -> None:
        super().__init__(clock)
        self._container = container
        self._id = ""
        self._first_restarts = 0
        self._exits = 0
        self._env_missing_since: float | None = None

    async def restarts(self, node: Connection) -> int | None:
        document = await self._inspect(node)
        return document["RestartCount"] if document and document["State"]["Status"] == "running" else None

    async def log(self, node: Connection, count: int = LOG_LINES) -> list[str]:
        words = ["docker", "logs", "--timestamps", "--tail", str(count), self._container]
        return self._remember(_in_order(await node.run(words, check=False)))

    async def _look(self, node: Connection) -> str:
        document = await self._inspect(node)
        return await (self._look_at_container(node, document) if document else self._look_at_unit(node))

    async def _inspect(self, node: Connection) -> dict[str, Any] | None:
        done = await node.run(["docker", "inspect", self._container], check=False)
        if done.exit_status == 0:
            document: dict[str, Any] = json.loads(done.stdout)[0]
            return document
        if "Docker daemon" in done.stderr:
            docker = await node.run(["systemctl", "is-active", "docker"], check=False)
            if docker.stdout.strip() == "failed":
                raise Failed(Fault.DOCKER_DEAD, done.stderr.splitlines())
        return None

    async def _look_at_container(self, node: Connection, document: dict[str, Any]) -> str:
        state, restarts = document["State"], int(document["RestartCount"])
        if document["Id"] != self._id:
            self._id, self._first_restarts, self._exits = document["Id"], restarts, 0
        grown = restarts - self._first_restarts
        # Docker passes through `exited` on its way to a restart; only one that lasts is an end.
        self._exits = self._exits + 1 if state["Status"] in {"exited", "dead"} else 0
        lines = await self.log(node)
        if grown or self._exits > 1:
            reading = engine_log.read("\n".join(await self.log(node, WHOLE_START)), ended=True)
            if reading.failed:
                raise reading.failed
            if state.get("OOMKilled") or state.get("ExitCode") == 137:
                raise Failed(Fault.OUT_OF_HOST_MEMORY, [f"exit code {state.get('ExitCode')}", *lines[-1:]])
            if grown >= RESTARTS_TOLERATED or self._exits > 1:
                status = f"{state['Status']}, exit code {state.get('ExitCode')}, restarted {restarts} times"
                raise Failed(Fault.EXIT_LOOP, [status, *(reading.seen or lines[-2:])])
        again = f", restarted {restarts} times" if restarts else ""
        return f"container {state['Status']}{again}: {self._last_line}"

    async def _look_at_unit(self, node: Connection) -> str:
        """There is no container yet: what does the unit that makes it say?"""
        state = await _unit_state(node, UNIT, "ActiveState", "SubState")
        active, retrying = state.get("ActiveState", "unknown"), state.get("SubState") == "auto-restart"
        lines = await self._journal(node, UNIT, 40)
        if active == "failed" or retrying:
            reading = engine_log.read("\n".join(lines), ended=True)
            if reading.failed:
                raise reading.failed
            if active == "failed":
                raise Failed(Fault.SERVICE_FAILED, reading.seen or lines[-2:])
        if active == "inactive":
            await self._expect_env(node)
        return f"{UNIT} {active}: {self._last_line}"

    async def _expect_env(self, node: Connection) -> None:
        there = await node.run(["test", "-e", ENV_PATH], check=False)
        if there.exit_status == 0:
            self._env_missing_since = None
            return
        now = self._clock.now()
        self._env_missing_since = now if self._env_missing_since is None else self._env_missing_since
        if now - self._env_missing_since >= ENV_GRACE_S:
            raise Failed(Fault.ENV_MISSING, [f"{UNIT} is inactive and {ENV_PATH} does not exist"])


class UnitWatch(Watch):
    """Follows a vLLM that systemd runs: one that spans several machines."""

    def __init__(self, unit: str, clock: Clock) -> None:
        super().__init__(clock)
        self._unit = unit
        self._first_restarts: int | None = None

    async def restarts(self, node: Connection) -> int | None:
        state = await _unit_state(node, self._unit, "ActiveState", "NRestarts")
        return int(state.get("NRestarts") or 0) if state.get("ActiveState") == "active" else None

    async def log(self, node: Connection, count: int = LOG_LINES) -> list[str]:
        return await self._journal(node, self._unit, count)

    async def _look(self, node: Connection) -> str:
        state = await _unit_state(node, self._unit, "ActiveState", "NRestarts")
        active, restarts = state.get("ActiveState", "unknown"), int(state.get("NRestarts") or 0)
        self._first_restarts = restarts if self._first_restarts is None else self._first_restarts
        lines = await self.log(node)
        if restarts > self._first_restarts or active == "failed":
            reading = engine_log.read("\n".join(await self.log(node, WHOLE_START)), ended=True)
            if reading.failed:
                raise reading.failed
            if active == "failed" or restarts - self._first_restarts >= RESTARTS_TOLERATED:
                status = f"{self._unit} is {active}, restarted {restarts} times"
                raise Failed(Fault.EXIT_LOOP, [status, *(reading.seen or lines[-2:])])
        return f"{self._unit} {active}: {self._last_line}"
