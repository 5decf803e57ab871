"""One light machine: power, boot, cloud-init, and what answers on its ports."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import asyncssh

from simcloud.light import agent, commands, ray, ssh
from simcloud.light.containers import Connection, Docker, EngineMaker
from simcloud.light.disk import Disk
from simcloud.light.log import Log
from simcloud.light.systemd import NoSuchUnit, Systemd
from simcloud.light.userdata import CloudConfig, File, parse
from simcloud.nodes import Boot
from simcloud.vllm_sim import Gpus

# A boot at speed 1, in seconds: a tenth or so of what GPU servers take, so that a trial is watchable.
BOOT_S, CLOUD_INIT_S, REBOOT_S = 2.0, 3.0, 1.0

# Faults that are seen only by booting anew.
BOOT_FAULTS = {"ssh_closed", "host_key_mismatch", "cloud_init_error", "reboot_lost"}

HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
STAGES = "/var/lib/vllm-fleet/stages.jsonl"
OUTPUT_LOG = "/var/log/cloud-init-output.log"
INSTANCE = "/var/lib/cloud/instance/boot-finished"

_logger = logging.getLogger(__name__)


@dataclass
class CloudInit:
    """What `cloud-init status` tells."""

    status: str = "running"
    errors: list[str] = field(default_factory=list)
    degraded: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def finish(self, status: str) -> None:
        self.status = status
        self.done.set()


class Machine:
    """A machine that is on from `power_on` to `power_off`; its disk stays in between."""

    def __init__(
        self,
        boot: Boot,
        *,
        ssh_port: int,
        speed: float,
        fault: Callable[[], str | None],
        machines: Callable[[], Iterable[Machine]],
        engine: EngineMaker | None = None,
    ) -> None:
        self.boot = boot
        self.ssh_port = ssh_port
        self.speed = speed
        self.fault = fault
        self.address = boot.address
        self.directory = boot.directory
        self.gpus = Gpus(boot.gpu_count, boot.gpu_memory_mib)
        self.disk = Disk(boot.directory / "root")
        self.config: CloudConfig = parse(boot.user_data)
        self.cloud_init = CloudInit()
        self.booted_at = 0.0
        self.engine = engine
        self.docker = Docker(self)
        self.systemd = Systemd(self.disk, self._execute)
        self.ray = ray.Part(self, machines)
        self._ssh: asyncssh.SSHAcceptor | None = None
        self._life: asyncio.Task[None] | None = None
        self._rebooting: asyncio.Task[None] | None = None
        self.connections: set[asyncssh.SSHServerConnection] = set()

    @property
    def authorized_keys(self) -> tuple[str, ...]:
        return (*self.boot.authorized_keys, *self.config.authorized_keys)

    # --- Power ---

    def power_on(self, delay_s: float = BOOT_S) -> None:
        """Begin to boot."""
        self.booted_at = time.time()
        self.cloud_init = CloudInit()
        self._life = asyncio.create_task(self._boot(delay_s))

    async def power_off(self) -> None:
        """End everything that runs, at once."""
        tasks = [
            task for task in (self._life, self._rebooting) if task and task is not asyncio.current_task()
        ]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        if self._ssh:
            self._ssh.close()
            self._ssh = None
        for connection in list(self.connections):
            connection.abort()
        await self.systemd.close()
        await self.docker.close()
        await self.ray.close()

    def reboot(self) -> None:
        """Restart; returns at once, as `systemctl reboot` does."""
        self._rebooting = asyncio.create_task(self._reboot())

    async def _reboot(self) -> None:
        await self.power_off()
        if self.fault() != "reboot_lost":
            self.power_on(REBOOT_S)

    # --- Boot ---

    async def _boot(self, delay_s: float) -> None:
        try:
            await self._pause(delay_s)
            first = not self.disk.exists(INSTANCE)
            self.disk.write("/proc/sys/kernel/random/boot_id", f"{uuid.uuid4()}\n".encode(), 0o444)
            self.disk.write("/etc/hostname", f"{self.boot.name}\n".encode())
            if first:
                self._write(lambda file: not file.defer)
            await self._open_ssh()
            await self._set_up(first)
        except Exception:
            _logger.exception("machine %s did not boot", self.boot.name)
            self.cloud_init.finish("error")

    async def _set_up(self, first: bool) -> None:
        """cloud-init's later stages and, once they are done, the units."""
        began = time.time()
        await self._pause(CLOUD_INIT_S if first else 0)
        if self.fault() == "cloud_init_error":
            self.cloud_init.errors.append(
                "('scripts_user', RuntimeError('Runparts: 1 failures (runcmd) in 1 attempted'))"
            )
            self.disk.append(OUTPUT_LOG, "E: Unable to locate package nvidia-container-toolkit\n")
            self.cloud_init.finish("error")
            return
        if first:
            self._write(lambda file: file.defer)
            self.held = self.config.held
            for name in ("driver", "docker"):
                self.stage(name, (time.time() - began) / 2)
            self.stage("cloud_init", time.time() - began)
            self.disk.append(OUTPUT_LOG, f"Cloud-init v. 25.1.4 finished. Datasource {self.datasource}.\n")
            self.disk.write(INSTANCE, b"")
        self.cloud_init.errors.extend(self.config.errors)
        self.cloud_init.degraded = bool(self.config.errors)
        restart = first and await self._wants_restart()
        self.cloud_init.finish("done")
        if restart:
            self.reboot()
        else:
            self.systemd.boot()

    async def _wants_restart(self) -> bool:
        condition = self.config.reboot
        if condition is None or isinstance(condition, bool):
            return bool(condition)
        argv = condition.split() if isinstance(condition, str) else [str(word) for word in condition]
        return await self._execute(argv, "/", Log()) == 0

    def _write(self, chosen: Callable[[File], bool]) -> None:
        for file in filter(chosen, self.config.files):
            before = self.disk.read(file.path) if file.append and self.disk.exists(file.path) else b""
            self.disk.write(file.path, before + file.content, file.mode)

    async def _open_ssh(self) -> None:
        key = self._host_key()
        public = key.export_public_key().strip() + b"\n"
        if self.boot.cloud == "scaleway":
            # As the node's own boot script does, through the metadata service.
            await self.boot.publish("ssh-host-public-keys", public)
        if self.fault() == "host_key_mismatch":
            key = asyncssh.generate_private_key("ssh-ed25519", comment="another")
        if self.fault() != "ssh_closed":
            self._ssh = await ssh.listen(self, key)

    def _host_key(self) -> asyncssh.SSHKey:
        if not self.disk.exists(HOST_KEY):
            made = self.config.host_key or asyncssh.generate_private_key("ssh-ed25519").export_private_key()
            self.disk.write(HOST_KEY, made, 0o600)
        key = asyncssh.import_private_key(self.disk.read(HOST_KEY))
        self.disk.write(f"{HOST_KEY}.pub", key.export_public_key())
        return key

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self.speed)

    # --- What runs ---

    @property
    def datasource(self) -> str:
        return {"scaleway": "DataSourceScaleway", "linode": "DataSourceAkamai"}.get(
            self.boot.cloud, "DataSourceEc2"
        )

    @property
    def held(self) -> frozenset[str]:
        """Packages on hold; kept on the disk."""
        path = self.directory / "held.json"
        return frozenset(json.loads(path.read_text())) if path.exists() else frozenset()

    @held.setter
    def held(self, packages: frozenset[str]) -> None:
        (self.directory / "held.json").write_text(json.dumps(sorted(packages)))

    def stage(self, name: str, seconds: float) -> None:
        """Note how long a stage of the boot took, as the node's own scripts do."""
        line = {"stage": name, "at": round(time.time(), 3), "seconds": round(seconds, 3)}
        self.disk.append(STAGES, json.dumps(line) + "\n")

    def connection(self, port: int) -> Connection | None:
        """Who answers on a port of the machine's own loopback; None: connection refused."""
        if port == agent.PORT:
            with suppress(NoSuchUnit):
                if self.systemd.unit("vllm-agent.service").active == "active":
                    return agent.connection(self)
            return None
        return self.ray.connection(port) or self.docker.connection(port)

    async def restart_vllm(self) -> None:
        """Start vLLM anew, with fresh containers, if it was ever started."""
        with suppress(NoSuchUnit):
            if self.systemd.unit("vllm.service").active != "inactive":
                await self.docker.close()
                await self.systemd.restart("vllm.service")

    def _execute(self, argv: list[str], directory: str, log: Log) -> Coroutine[Any, Any, int]:
        return commands.run_unit_command(self, argv, directory, log)
