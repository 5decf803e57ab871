"""Machines for tests: real boots, one at a time, and snapshots of them for what needs no first boot.

`await lab.boot("linode", user_data)` starts a machine; the `Guest` it gives is how a test looks inside, over
SSH.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import stat
import time
import uuid
from pathlib import Path

import asyncssh

from simcloud.nodes import Boot
from simcloud.vm.backend import Ground, Snapshot, VmNodes
from simcloud.vm.host import run
from simcloud.vm.image import FIRST_PARTITION, MachineImage
from simcloud.vm.qemu import share_of

SSH_PORT = 10022


class Lab:
    """Starts machines; each new one takes the place of the one before, for there are but two processors."""

    def __init__(self, backend: VmNodes, ground: Ground, directory: Path) -> None:
        self.backend = backend
        self.ground = ground
        self._directory = directory
        self._key = asyncssh.generate_private_key("ssh-ed25519")
        self._current: Guest | None = None

    async def boot(self, cloud: str, user_data: bytes | None, share: Path | None = None) -> Guest:
        """A first boot. `share` is a second disk, qcow2, that the machine and its snapshots take along."""
        guest = await self._guest(cloud, user_data)
        if share:
            shutil.copy(share, guest.share)
        await self.backend.start(guest.boot)
        return guest

    async def boot_from(self, snapshot: Snapshot, like: Guest) -> Guest:
        """A machine that goes on where `like` was when the snapshot was taken; it has a name of its own."""
        guest = await self._guest(like.boot.cloud, like.boot.user_data)
        # By another id, cloud-init would take its next boot for the first one of a new machine.
        boot = dataclasses.replace(guest.boot, server_id=like.boot.server_id)
        self._current = dataclasses.replace(guest, boot=boot, key=like.key)
        await self.backend.start_from(snapshot, boot)
        return self._current

    async def snapshot(self, guest: Guest, name: str) -> Snapshot:
        return await self.backend.snapshot(guest.boot.server_id, name, self._directory)

    async def stop(self) -> None:
        if self._current is not None:
            await self.backend.stop(self._current.boot.server_id, graceful=False)
            self._current = None

    async def _guest(self, cloud: str, user_data: bytes | None) -> Guest:
        await self.stop()
        identity = uuid.uuid4()
        published: dict[str, bytes] = {}

        async def publish(key: str, value: bytes) -> None:
            published[key] = value

        boot = Boot(
            cloud=cloud,
            server_id=str(identity),
            name=f"node-{identity.hex[:6]}",
            address=f"127.0.{identity.bytes[0] % 250 + 2}.{identity.bytes[1] % 250 + 2}",
            user_data=user_data,
            authorized_keys=(self._key.export_public_key().decode().strip(),),
            gpu_model="NVIDIA L4",
            gpu_count=2,
            gpu_memory_mib=23034,
            disk_gb=200,
            directory=self._directory / identity.hex,
            publish=publish,
        )
        boot.directory.mkdir()
        self._current = Guest(boot, self.backend, self._key, published, self.ground.speed_factor)
        return self._current


@dataclasses.dataclass(frozen=True)
class Guest:
    """A machine as seen from outside."""

    boot: Boot
    backend: VmNodes
    key: asyncssh.SSHKey
    published: dict[str, bytes]
    speed_factor: float

    @property
    def share(self) -> Path:
        """Its second disk, if it has one."""
        return share_of(self.boot.directory / "disk.qcow2")

    async def run(self, command: str, *, user: str = "root", deadline_s: float = 120) -> str:
        """Standard output of a shell command; AssertionError with its standard error when it fails."""
        done = await self.attempt(command, user=user, deadline_s=deadline_s)
        assert done.exit_status == 0, f"{command}: {done.exit_status}\n{done.stdout!s}\n{done.stderr!s}"
        return str(done.stdout)

    async def attempt(
        self, command: str, *, user: str = "root", deadline_s: float = 120
    ) -> asyncssh.SSHCompletedProcess:
        """The command's end, whatever it is. Raises OSError or asyncssh.Error while SSH is not there."""
        async with asyncssh.connect(
            self.boot.address, SSH_PORT, username=user, client_keys=[self.key], known_hosts=None, config=[],
            connect_timeout=20, login_timeout=20,
            # The default key exchange takes an emulated processor a second.
            kex_algs=["curve25519-sha256"],
        ) as connection:  # fmt: skip
            return await connection.run(command, timeout=deadline_s * self.speed_factor)

    async def until(self, command: str, *, user: str = "root", deadline_s: float) -> str:
        """Standard output of the command once it succeeds; it is tried over reboots.

        AssertionError after the deadline (times the host's speed factor), with what was last seen.
        """
        end = time.monotonic() + deadline_s * self.speed_factor
        seen: object = "nothing"
        pause = 1.0
        while time.monotonic() < end:
            try:
                done = await self.attempt(command, user=user)
                if done.exit_status == 0:
                    return str(done.stdout)
                seen = f"{done.exit_status}: {done.stdout!s}{done.stderr!s}"
            except (OSError, asyncssh.Error) as error:
                seen = repr(error)
            await asyncio.sleep(pause)
            # Each look costs the machine a second of what it waits for.
            pause = min(pause * 1.5, 8)
        raise AssertionError(
            f"{command} did not succeed in {deadline_s:.0f} s; last {seen}\n{self.console()}"
        )

    def console(self) -> str:
        """The last lines the machine wrote to its serial console."""
        console = self.boot.directory / "console.log"
        return "\n".join(console.read_text(errors="replace").splitlines()[-40:]) if console.exists() else ""


class Unpacked:
    """A machine image's files, to run its programs on without booting it. Needs root, for chroot."""

    def __init__(self, image: MachineImage, variant: str, directory: Path) -> None:
        self.root = directory / "root"
        self.root.mkdir()
        raw = directory / "disk.raw"
        run(["qemu-img", "convert", "-O", "raw", image.disk(variant), raw], timeout_s=120)
        run(["debugfs", "-R", f"rdump / {self.root}", f"{raw}?offset={FIRST_PARTITION}"], timeout_s=120)
        raw.unlink()
        for name, minor in (("null", 3), ("urandom", 9)):
            os.mknod(self.root / "dev" / name, stat.S_IFCHR, os.makedev(1, minor))
            (self.root / "dev" / name).chmod(0o666)

    def run(self, *command: str, stdin: bytes | None = None) -> bytes:
        """Standard output of a program of the image; HostError, with its last lines, when it fails."""
        return run(["chroot", self.root, *command], stdin=stdin, timeout_s=120)

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """A file of the image."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        target.chmod(mode)
