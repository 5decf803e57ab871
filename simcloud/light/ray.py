"""Ray on light machines: who has joined which head, as its dashboard tells it, and vLLM over all their GPUs.

A machine is in a cluster while its unit runs, with the head's address and the same token in its files.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from fleet import layout, ray
from simcloud.light.commands import Call, Failed, handles
from simcloud.light.containers import Connection
from simcloud.light.systemd import NoSuchUnit, Unit
from simcloud.vllm_flags import BadFlags, parse_options
from simcloud.vllm_sim import (
    Gpus,
    Reader,
    Request,
    Response,
    Simulator,
    Writer,
    serve_http,
)

if TYPE_CHECKING:
    from simcloud.light.machine import Machine

UNITS = (ray.HEAD_UNIT, ray.WORKER_UNIT)


@handles(f"{layout.SCRIPTS_DIRECTORY}/{ray.SETUP_SCRIPT}")
async def _set_up(call: Call) -> int:
    call.machine.disk.write("/opt/ray/requirements.txt", call.machine.disk.read(ray.REQUIREMENTS_PATH))
    return 0


@handles("python")
async def _python(call: Call) -> int:
    """Ray's own interpreter, for the one script that it runs: workers that are no members stop."""
    machine = call.machine
    if not call.args or not call.args[0].endswith(ray.RETIRE_SCRIPT):
        raise Failed(f"python: {' '.join(call.args)}: only {ray.RETIRE_SCRIPT} is simulated", 2)
    staying = machine.disk.text(ray.MEMBERS_PATH).split()
    for each in machine.ray.members():
        if each.ray.address not in staying:
            await each.systemd.stop(ray.WORKER_UNIT)
    return 0


class Part:
    """One machine's part in a cluster; `machines` are all there are."""

    def __init__(self, machine: Machine, machines: Callable[[], Iterable[Machine]]) -> None:
        self._machine = machine
        self._machines = machines
        self._vllm: Simulator | None = None
        self._running: asyncio.Task[int] | None = None
        self._started_at = 0.0

    async def close(self) -> None:
        """Power off."""
        if self._running:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running
        self._vllm = self._running = None

    def connection(self, port: int) -> Connection | None:
        """Who answers on a port of the head's loopback; None: refused."""
        if not self._active(ray.HEAD_UNIT):
            return None
        if port == ray.DASHBOARD_PORT:
            return self._dashboard
        vllm = self._serving()
        return vllm.connection if vllm and vllm.options.port == port else None

    async def _dashboard(self, reader: Reader, writer: Writer) -> None:
        async def respond(request: Request) -> Response:
            token = self._text(ray.TOKEN_PATH)
            if request.headers.get("authorization") != f"Bearer {token}":
                return Response(b"Unauthorized", 401)
            nodes = [
                {
                    "node_ip": each.ray.address,
                    "state": "ALIVE",
                    "is_head_node": each is self._machine,
                    "resources_total": {"GPU": float(each.gpus.count)},
                }
                for each in self.members()
            ]
            return Response(json.dumps({"result": True, "data": {"result": {"result": nodes}}}).encode())

        await serve_http(reader, writer, respond)

    @property
    def address(self) -> str:
        """On the private network."""
        return self._settings().get("RAY_NODE_IP", "")

    def members(self) -> list[Machine]:
        """The machines in this head's cluster."""
        token, head = self._text(ray.TOKEN_PATH), f"{self.address}:{ray.PORT}"
        return [
            each
            for each in self._machines()
            if each.ray.joined(head) and each.ray._text(ray.TOKEN_PATH) == token
        ]

    def joined(self, head: str) -> bool:
        """Whether the machine is in the cluster of that head."""
        return any(map(self._active, UNITS)) and self._settings().get("RAY_ADDRESS") == head

    def _serving(self) -> Simulator | None:
        """The vLLM that its unit runs; one that has ended was started again."""
        unit = self._unit(ray.SERVE_UNIT)
        if unit is None or unit.active != "active":
            return None
        if self._running and (self._running.done() or unit.since != self._started_at):
            unit.restarts += self._running.done()
            self._running.cancel()
            self._vllm = self._running = None
        if self._vllm is None:
            self._started_at = unit.since
            environment = _variables(self._text(ray.ENVIRONMENT_PATH))
            members = self.members()
            try:
                options = parse_options(json.loads(self._text(ray.ARGUMENTS_PATH)), environment)
            except BadFlags as refusal:
                unit.log.write(str(refusal))
                unit.restarts += 1
                return None
            self._vllm = Simulator(
                options,
                hf_token=environment.get("HF_TOKEN", ""),
                # Ray hands out the GPUs of all machines.
                gpus=Gpus(sum(each.gpus.count for each in members), self._machine.gpus.memory_mib),
                speed=self._machine.speed,
                weights=self._machine.directory / "weights",
                log=unit.log.write,
            )
            self._running = asyncio.create_task(self._vllm.run())
        return self._vllm

    def _active(self, unit: str) -> bool:
        found = self._unit(unit)
        return found is not None and found.active == "active"

    def _unit(self, name: str) -> Unit | None:
        try:
            return self._machine.systemd.unit(name)
        except NoSuchUnit:
            return None

    def _settings(self) -> dict[str, str]:
        return _variables(self._text(ray.SETTINGS_PATH))

    def _text(self, path: str) -> str:
        return self._machine.disk.text(path) if self._machine.disk.exists(path) else ""


def _variables(text: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(text))
