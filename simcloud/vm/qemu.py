"""One QEMU process: how it is started, spoken to and ended."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simcloud.vm.host import cache_directory, say


@dataclass(frozen=True)
class Accelerator:
    """What runs the machine's processors."""

    qemu: Sequence[str]
    kernel: str
    """Words for the kernel's command line."""


KVM = Accelerator(["-accel", "kvm", "-cpu", "host"], "")
# Debian's 6.12 kernel double-faults on cmpxchg16b as QEMU 7.2 emulates it. String instructions are emulated a
# byte at a time: a kernel that believes them fast copies at a third of the speed. Now and then an emulated
# processor trips over code that the kernel has just changed, mostly in its first seconds: it then begins
# anew, and what would change code later is switched off (a busy host that looks like a bad clock) or done
# before there is traffic (guest/early-netfilter.service).
EMULATED = Accelerator(
    ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,-cx16,-erms,-fsrm"],
    "clearcpuid=rep_good tsc=reliable panic=1 oops=panic",
)

_KERNEL = "root=/dev/vda1 rw console=ttyS0 net.ifnames=0"

_NETWORK = "169.254.0.0/16"
"""Link-local, because the clouds' metadata services are: then their addresses need no route."""
_HOST = "169.254.0.2"


class MachineError(RuntimeError):
    """QEMU refused a command or ended; the text says which and what it said."""


@dataclass(frozen=True)
class Forward:
    """An address of the outside world that leads to a port of this host's loopback."""

    address: str
    port: int
    to: int


@dataclass(frozen=True)
class Hardware:
    """What distinguishes one machine's hardware from another's."""

    cloud: str
    server_id: str
    disk: Path
    ssh: tuple[str, int]
    """Host address and port that lead to the machine's port 22."""
    guest_address: str
    forwards: Sequence[Forward]


def share_of(disk: Path) -> Path:
    """The second disk of a machine that has one: what stands for a share on its network."""
    return disk.with_name(f"share-of-{disk.name}")


def accelerator(kernel: Path, initrd: Path) -> Accelerator:
    """KVM if it really boots this kernel, else emulation. Tried once a boot of this host."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = cache_directory() / "kvm.json"
    if note.exists() and (known := json.loads(note.read_text()))["boot"] == boot:
        return KVM if known["works"] else EMULATED
    works = Path("/dev/kvm").exists() and asyncio.run(_boots(kernel, initrd))
    say(
        "KVM works"
        if works
        else "KVM cannot run the machines here: they are emulated (about ten times slower)"
    )
    note.write_text(json.dumps({"boot": boot, "works": works}))
    return KVM if works else EMULATED


async def _boots(kernel: Path, initrd: Path, *, deadline_s: float = 20) -> bool:
    """Whether KVM brings the kernel as far as its first process."""
    process = await asyncio.create_subprocess_exec(
        "qemu-system-x86_64", "-nodefaults", "-display", "none", *KVM.qemu, "-m", "512", "-no-reboot",
        "-kernel", str(kernel), "-initrd", str(initrd), "-append", "console=ttyS0 panic=-1",
        "-serial", "stdio", "-monitor", "none",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(deadline_s):
            async for line in process.stdout:
                if b"as init process" in line:
                    return True
                if b"KVM internal error" in line:
                    return False
    except TimeoutError:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return False


class Machine:
    """A running QEMU. It ends with the process that started it."""

    def __init__(self, process: asyncio.subprocess.Process, control: Path, log: Path) -> None:
        self._process = process
        self._control = control
        self._log = log

    @classmethod
    async def start(
        cls,
        hardware: Hardware,
        *,
        kernel: Path,
        initrd: Path,
        accelerator: Accelerator,
        directory: Path,
        snapshot: str | None = None,
    ) -> Machine:
        """Power on, from a saved state if one is named.

        Raises MachineError when QEMU does not come up within 60 s.
        """
        # A socket's path is at most 107 bytes, which a directory given from outside may well exceed.
        control = Path(tempfile.mkdtemp(prefix="vllm-fleet-vm-")) / "qmp"
        log = directory / "qemu.log"
        arguments = [
            *("qemu-system-x86_64", "-name", hardware.server_id, "-nodefaults", "-no-user-config"),
            *("-display", "none", "-machine", "q35", *accelerator.qemu, "-smp", "2", "-m", "2560"),
            *("-kernel", str(kernel), "-initrd", str(initrd)),
            *("-append", f"{_KERNEL} embedded.cloud={hardware.cloud} {accelerator.kernel}"),
            *_identity(hardware.cloud, hardware.server_id),
            # What a crash of this host would lose is made again in a minute.
            *_drive(hardware.disk),
            *(_drive(share) if (share := share_of(hardware.disk)).exists() else ()),
            *(
                "-netdev",
                _network(hardware),
                "-device",
                f"virtio-net-pci,netdev=net,mac={mac_address(hardware.cloud, hardware.server_id)}",
            ),
            *("-device", "virtio-rng-pci"),
            *("-chardev", f"file,id=console,path={_quoted(directory / 'console.log')},append=on"),
            *("-serial", "chardev:console", "-qmp", f"unix:{control},server=on,wait=off"),
            *(("-loadvm", snapshot) if snapshot else ()),
        ]
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                "setpriv", "--pdeathsig", "KILL", *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=output,
                stderr=output,
            )  # fmt: skip
        machine = cls(process, control, log)
        try:
            await machine._answers(deadline_s=60)
        except TimeoutError:
            await machine.kill()
            raise MachineError(f"QEMU did not come up within 60 s: {machine._said()}") from None
        return machine

    async def _answers(self, *, deadline_s: float) -> None:
        async with asyncio.timeout(deadline_s):
            # The socket is QEMU's to make and, a moment later, to listen at; nothing tells when.
            while self.running and not await self._listens():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            await self.command("query-status")

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_unix_connection(self._control)
        except OSError:
            return False
        writer.close()
        return True

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> None:
        """Until QEMU has ended."""
        await self._process.wait()

    async def command(self, name: str, **arguments: Any) -> Any:
        """One QMP command and its result. Raises MachineError when it is refused or QEMU is gone."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._control)
        except OSError as error:
            raise MachineError(f"QEMU is gone ({error}): {self._said()}") from error
        try:
            for request in ({"execute": "qmp_capabilities"}, {"execute": name, "arguments": arguments}):
                writer.write(json.dumps(request).encode() + b"\n")
            replies: list[Any] = []
            while len(replies) < 2:
                line = await reader.readline()
                if not line:
                    raise MachineError(f"QEMU ended during {name}: {self._said()}")
                reply = json.loads(line)
                if "error" in reply:
                    raise MachineError(f"QEMU refused {name}: {reply['error']['desc']}")
                if "return" in reply:
                    replies.append(reply["return"])
            return replies[-1]
        finally:
            writer.close()

    async def monitor(self, line: str) -> None:
        """A command of the human monitor, for what QMP lacks. Raises MachineError with its complaint."""
        if said := (await self.command("human-monitor-command", **{"command-line": line})).strip():
            raise MachineError(f"QEMU refused {line}: {said}")

    async def power_off(self, *, deadline_s: float) -> None:
        """Press the power button, and pull the plug when the system has not ended by the deadline."""
        with contextlib.suppress(MachineError, TimeoutError):
            await self.command("system_powerdown")
            await asyncio.wait_for(self._process.wait(), deadline_s)
        await self.kill()

    async def kill(self) -> None:
        """Pull the plug."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._control.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._control.parent.rmdir()

    def _said(self) -> str:
        return " ".join(self._log.read_text(errors="replace").splitlines()[-3:])


def _identity(cloud: str, server_id: str) -> list[str]:
    """DMI tables by which cloud-init and its generator recognise the cloud."""
    match cloud:
        case "scaleway":
            return ["-smbios", "type=1,manufacturer=Scaleway,product=SCW-embedded"]
        case "linode":
            return ["-smbios", f"type=1,manufacturer=Akamai,product=Embedded,serial={server_id}"]
        case "aws":
            identity = "ec2" + hashlib.sha256(server_id.encode()).hexdigest()[:29]
            uuid = "-".join(identity[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))
            return ["-uuid", uuid, "-smbios", f"type=1,manufacturer=Amazon EC2,serial={uuid},uuid={uuid}"]
    raise ValueError(f"cloud: {cloud!r} is none of scaleway, linode, aws")


def mac_address(cloud: str, server_id: str) -> str:
    """Of a machine's one network interface."""
    # Linode's interfaces are known by their prefix, which its datasource looks for.
    prefix = "f2:3c:95" if cloud == "linode" else "52:54:00"
    tail = hashlib.sha256(server_id.encode()).hexdigest()
    return f"{prefix}:{tail[0:2]}:{tail[2:4]}:{tail[4:6]}"


def _network(hardware: Hardware) -> str:
    address, port = hardware.ssh
    options = [
        f"user,id=net,ipv6=off,net={_NETWORK},host={_HOST},dhcpstart={hardware.guest_address}",
        # Nothing leaves the machine but what is forwarded by name below.
        "restrict=on",
        f"hostfwd=tcp:{address}:{port}-{hardware.guest_address}:22",
        *(
            f"guestfwd=tcp:{each.address}:{each.port}-cmd:socat -T300 STDIO TCP:127.0.0.1:{each.to}"
            for each in hardware.forwards
        ),
    ]
    return ",".join(options)


def _drive(disk: Path) -> list[str]:
    return ["-drive", f"file={_quoted(disk)},if=virtio,cache=unsafe,discard=unmap"]


def _quoted(path: Path) -> str:
    return str(path).replace(",", ",,")


def speed_factor() -> float:
    """How much slower this host is than where deadlines were measured (2 cores of 2.6 GHz, idle): 1 to 4."""
    started = time.perf_counter()
    data = b"\0" * (1 << 20)
    for _ in range(256):
        hashlib.blake2b(data).digest()
    # Beyond 4 a machine is of no use: better to fail than to wait for hours.
    return min(4.0, max(1.0, (time.perf_counter() - started) / 0.3))
