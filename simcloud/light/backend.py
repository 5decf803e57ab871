"""Light machines as a backend of the embedded clouds."""

from __future__ import annotations

from simcloud.light import docker_cli, host, provision  # noqa: F401  (they register the machines' programs)
from simcloud.light.containers import EngineMaker
from simcloud.light.machine import BOOT_FAULTS, Machine
from simcloud.nodes import Boot, NodeBackend
from simcloud.vllm_sim import Fault

NODE_FAULTS = BOOT_FAULTS | {"docker_dead", "driver_missing", "gpu_missing", "disk_full", "port_taken"}
FAULTS = NODE_FAULTS | set(Fault)


class LightNodes(NodeBackend):
    """Machines in this process.

    `ssh_port` is where each listens on its own address; `speed` multiplies every simulated delay (0: none).
    `engine` makes what serves in vLLM's containers, in place of the simulator.
    """

    def __init__(self, *, ssh_port: int, speed: float, engine: EngineMaker | None = None) -> None:
        self._ssh_port = ssh_port
        self._speed = speed
        self._engine = engine
        self._machines: dict[str, Machine] = {}
        self._faults: dict[str, str] = {}

    async def start(self, boot: Boot) -> None:
        if boot.server_id in self._machines:
            return
        machine = Machine(
            boot,
            ssh_port=self._ssh_port,
            speed=self._speed,
            fault=lambda: self._faults.get(boot.name),
            machines=self._machines.values,
            engine=self._engine,
        )
        self._machines[boot.server_id] = machine
        machine.power_on()

    async def stop(self, server_id: str) -> None:
        machine = self._machines.pop(server_id, None)
        if machine:
            await machine.power_off()

    async def inject(self, name: str, fault: str | None) -> None:
        """See `NodeBackend.inject`. Raises `ValueError` for a fault that is not one of `FAULTS`."""
        if fault is not None and fault not in FAULTS:
            raise ValueError(f"fault: {fault!r} is none of {', '.join(sorted(FAULTS))}")
        before = self._faults.pop(name, None)
        if fault:
            self._faults[name] = fault
            return
        for machine in list(self._machines.values()):
            if machine.boot.name == name:
                if before in BOOT_FAULTS:
                    machine.reboot()
                elif before:
                    await machine.restart_vllm()

    async def close(self) -> None:
        for server_id in list(self._machines):
            await self.stop(server_id)
