"""Virtual machines behind the servers of an embedded cloud."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from starlette.routing import BaseRoute

from simcloud.nodes import Boot, NodeBackend
from simcloud.vllm_sim import Fault as SimulatorFault
from simcloud.vm.admin import mirror_routes
from simcloud.vm.containers import registry_storage, running_registry
from simcloud.vm.host import run
from simcloud.vm.image import MIRROR_ADDRESS, MachineImage, machine_image
from simcloud.vm.metadata import (
    GUEST_ADDRESS,
    HARDWARE_ADDRESS,
    METADATA_ADDRESS,
    UNPRIVILEGED_ADDRESS,
    MachineServer,
)
from simcloud.vm.mirrors import Condition, Fault, Mirror, Mirrors
from simcloud.vm.qemu import Accelerator, Forward, Hardware, Machine, accelerator, share_of, speed_factor

GB = 10**9

_VARIANT = {"scaleway": "gpu", "aws": "gpu", "linode": "plain"}
"""Whether the cloud's image for GPU servers carries Docker and the driver already."""


class MachineFault(StrEnum):
    """Ways the machine itself misbehaves, beside the simulator's own (`simcloud.vllm_sim.Fault`)."""

    DRIVER_MISSING = "driver_missing"
    """The driver finds no GPU: nvidia-smi fails."""
    DOCKER_DEAD = "docker_dead"
    """dockerd does not start."""
    DISK_FULL = "disk_full"
    """From the next start of dockerd on there is no room for a container image."""
    REBOOT_NEVER_RETURNS = "reboot_never_returns"
    """The machine stops where it should restart."""


_MIRROR_FAULTS = {
    "apt_down": (Mirror.APT, Condition(fault=Fault.DOWN)),
    "apt_package_missing": (Mirror.APT, Condition(fault=Fault.NOT_FOUND, path=".deb")),
    "pull_refused": (Mirror.REGISTRY, Condition(fault=Fault.UNAUTHORIZED)),
    "pull_cut": (Mirror.REGISTRY, Condition(fault=Fault.CUT, path="/blobs/")),
    "registry_down": (Mirror.REGISTRY, Condition(fault=Fault.DOWN)),
}

FAULTS = (*MachineFault, *_MIRROR_FAULTS, *SimulatorFault)


def build() -> None:
    """Make what machines are made of, on first use: about two minutes.

    Raises HostError when this host cannot run machines, saying what is missing.
    """
    image = machine_image()
    registry_storage()
    accelerator(image.kernel, image.initrd)


@dataclass(frozen=True)
class Ground:
    """What all machines share, made ready before the first one starts."""

    image: MachineImage
    accelerator: Accelerator
    registry_url: str
    speed_factor: float
    """By how much deadlines are stretched on this host."""


@dataclass(frozen=True)
class Snapshot:
    """A machine's disk with its memory saved in it, for others to start from."""

    name: str
    disk: Path


@dataclass
class _Running:
    boot: Boot
    machine: Machine
    server: MachineServer
    mirrors: Mirrors

    async def end(self, *, graceful_s: float) -> None:
        if graceful_s:
            await self.machine.power_off(deadline_s=graceful_s)
        else:
            await self.machine.kill()
        await self.server.close()
        await self.mirrors.stop()


class VmNodes(NodeBackend):
    """Runs machines under QEMU: 2 processors, 2.5 GB of memory, a disk, a network of mirrors only.

    The first `start` (or `prepare`) builds and keeps the images: about two minutes. Installing the
    stand-in driver takes `driver_build_s` seconds, as the compilation of a real one's module takes minutes.
    """

    def __init__(self, *, ssh_port: int, driver_build_s: float = 0) -> None:
        self._ssh_port = ssh_port
        self._driver_build_s = driver_build_s
        self._resources = AsyncExitStack()
        self._ground: Ground | None = None
        self._preparing = asyncio.Lock()
        self._running: dict[str, _Running] = {}
        self._faults: dict[str, str] = {}
        self._mirrors: dict[str, Mirrors] = {}

    async def prepare(self) -> Ground:
        """Build images if needed and start the registry.

        Raises HostError when this host cannot run machines, saying what is missing.
        """
        async with self._preparing:
            if self._ground is None:
                image = await asyncio.to_thread(machine_image)
                scratch = Path(
                    self._resources.enter_context(tempfile.TemporaryDirectory(prefix="vllm-fleet-"))
                )
                self._ground = Ground(
                    image=image,
                    accelerator=await asyncio.to_thread(accelerator, image.kernel, image.initrd),
                    registry_url=await self._resources.enter_async_context(running_registry(scratch)),
                    speed_factor=await asyncio.to_thread(speed_factor),
                )
            return self._ground

    def controls(self) -> list[BaseRoute]:
        """`/mirrors/…`: bandwidth and failures of each machine's mirrors."""
        return [*mirror_routes(self.mirrors)]

    def mirrors(self, name: str) -> Mirrors:
        """The mirrors of the machine of this name, now or at its next start."""
        return self._mirrors.setdefault(name, Mirrors())

    async def start(self, boot: Boot) -> None:
        """Power on. The disk is made from the cloud's image at the first start, and grows with the volume."""
        if self._is_on(boot.server_id):
            return
        ground = await self.prepare()
        disk = boot.directory / "disk.qcow2"
        base = ground.image.disk(_VARIANT[boot.cloud])
        if not disk.exists():
            await asyncio.to_thread(_new_disk, disk, base, boot.disk_gb)
        else:
            await asyncio.to_thread(run, ["qemu-img", "resize", disk, str(boot.disk_gb * GB)], timeout_s=60)
        await self._power_on(boot, disk, snapshot=None)

    async def _power_on(self, boot: Boot, disk: Path, *, snapshot: str | None) -> None:
        await self._forget(boot.server_id)
        ground = await self.prepare()
        mirrors = self.mirrors(boot.name)
        server = MachineServer(boot, lambda: self._faults.get(boot.name), driver_build_s=self._driver_build_s)
        http, https = await mirrors.start(
            archive=ground.image.archive,
            registry_url=ground.registry_url,
            certificate=ground.image.mirror_certificate,
        )
        forwards = [
            Forward(MIRROR_ADDRESS, 80, http),
            Forward(MIRROR_ADDRESS, 443, https),
            Forward(METADATA_ADDRESS[boot.cloud], 80, server.metadata_port),
            Forward(UNPRIVILEGED_ADDRESS, 80, server.unprivileged_port),
            Forward(HARDWARE_ADDRESS, 80, server.hardware_port),
        ]
        try:
            machine = await Machine.start(
                Hardware(
                    cloud=boot.cloud,
                    server_id=boot.server_id,
                    disk=disk,
                    ssh=(boot.address, self._ssh_port),
                    guest_address=GUEST_ADDRESS,
                    forwards=forwards,
                ),
                kernel=ground.image.kernel,
                initrd=ground.image.initrd,
                accelerator=ground.accelerator,
                directory=boot.directory,
                snapshot=snapshot,
            )
        except BaseException:
            await server.close()
            await mirrors.stop()
            raise
        self._running[boot.server_id] = _Running(boot, machine, server, mirrors)
        await self._apply_reboot_fault(boot.name)

    async def stop(self, server_id: str, *, graceful: bool = True) -> None:
        """Press the power button, and pull the plug after 20 s (times the speed factor) or at once."""
        if running := self._running.pop(server_id, None):
            assert self._ground is not None
            await running.end(graceful_s=20 * self._ground.speed_factor if graceful else 0)

    async def _forget(self, server_id: str) -> None:
        """Clear away a machine that powered itself off."""
        if running := self._running.pop(server_id, None):
            await running.end(graceful_s=0)

    async def wait_off(self, server_id: str, *, deadline_s: float) -> None:
        """Wait until a machine has ended by itself.

        Raises TimeoutError when it has not by the deadline, in seconds.
        """
        if running := self._running.get(server_id):
            await asyncio.wait_for(running.machine.wait(), deadline_s)

    def _is_on(self, server_id: str) -> bool:
        return server_id in self._running and self._running[server_id].machine.running

    async def inject(self, name: str, fault: str | None) -> None:
        """Set or heal a fault: one of `FAULTS`.

        Raises ValueError for an unknown one.
        """
        if fault is not None and fault not in FAULTS:
            raise ValueError(f"fault: {fault!r} is none of {', '.join(FAULTS)}")
        mirrors = self.mirrors(name)
        for mirror in Mirror:
            mirrors[mirror] = mirrors[mirror].model_copy(update={"fault": None, "path": ""})
        self._faults.pop(name, None)
        if fault in _MIRROR_FAULTS:
            mirror, condition = _MIRROR_FAULTS[fault]
            mirrors[mirror] = condition.model_copy(update={"bandwidth": mirrors[mirror].bandwidth})
        elif fault is not None:
            self._faults[name] = fault
        await self._apply_reboot_fault(name)

    async def _apply_reboot_fault(self, name: str) -> None:
        action = "shutdown" if self._faults.get(name) == MachineFault.REBOOT_NEVER_RETURNS else "reset"
        for running in self._running.values():
            if running.boot.name == name and running.machine.running:
                await running.machine.command("set-action", reboot=action)

    async def snapshot(self, server_id: str, name: str, directory: Path) -> Snapshot:
        """Save a running machine, disk and memory, under `directory`; it goes on afterwards.

        What its network connections were doing is lost: take it when they are idle.
        """
        running = self._running[server_id]
        disk = directory / f"{name}.qcow2"
        await running.machine.command("stop")
        try:
            await running.machine.monitor(f"savevm {name}")
            await asyncio.to_thread(_copy_disks, running.boot.directory / "disk.qcow2", disk)
            await running.machine.monitor(f"delvm {name}")
        finally:
            await running.machine.command("cont")
        return Snapshot(name, disk)

    async def start_from(self, snapshot: Snapshot, boot: Boot) -> None:
        """Power on where a snapshot was taken (seconds); what cloud-init made of the machine there stays."""
        disk = boot.directory / "disk.qcow2"
        await asyncio.to_thread(_copy_disks, snapshot.disk, disk)
        await self._power_on(boot, disk, snapshot=snapshot.name)

    async def close(self) -> None:
        """Pull every plug, end the registry."""
        running = list(self._running.values())
        self._running.clear()
        await asyncio.gather(*(each.end(graceful_s=0) for each in running))
        with contextlib.suppress(ProcessLookupError):
            await self._resources.aclose()
        self._ground = None


def _new_disk(disk: Path, base: Path, size_gb: int) -> None:
    disk.parent.mkdir(parents=True, exist_ok=True)
    layer: list[str | Path] = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base]
    run([*layer, disk, str(size_gb * GB)], timeout_s=60)


def _copy_disks(source: Path, target: Path) -> None:
    """A disk, and the one that may lie beside it."""
    _copy(source, target)
    if share_of(source).exists():
        _copy(share_of(source), share_of(target))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    run(["cp", "--reflink=auto", "--sparse=always", source, target], timeout_s=300)
