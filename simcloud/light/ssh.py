"""The machine's sshd: keys only, one command a channel, forwards to the machine's own loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import asyncssh

from simcloud.light import commands
from simcloud.light.containers import Connection
from simcloud.vllm_sim import Reader, Writer

if TYPE_CHECKING:
    from simcloud.light.machine import Machine

USERS = {"root", "ubuntu", "ec2-user"}
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


async def listen(machine: Machine, host_key: asyncssh.SSHKey) -> asyncssh.SSHAcceptor:
    """Open the machine's SSH port. Raises `OSError` when the address cannot be bound."""
    return await asyncssh.listen(
        machine.address,
        machine.ssh_port,
        server_factory=lambda: _Server(machine),
        server_host_keys=[host_key],
        encoding=None,
        password_auth=False,
        kbdint_auth=False,
        gss_host=None,
        agent_forwarding=False,
        x11_forwarding=False,
        reuse_address=True,
    )


class _Server(asyncssh.SSHServer):
    """One connection."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._machine.connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection:
            self._machine.connections.discard(self._connection)

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        home = "/root" if username == "root" else f"/home/{username}"
        keys = list(self._machine.authorized_keys)
        with suppress(OSError):
            keys += self._machine.disk.read(f"{home}/.ssh/authorized_keys2").decode().splitlines()
        return username in USERS and key.public_data in _public_data(keys)

    def session_requested(self) -> asyncssh.SSHServerSession[bytes]:
        machine = self._machine

        def sftp(channel: asyncssh.SSHServerChannel[bytes]) -> asyncssh.SFTPServer:
            return asyncssh.SFTPServer(channel, chroot=bytes(machine.disk.root))

        return commands.Process(lambda process: _session(machine, process), sftp, 3, False)

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> Connection:
        connect = self._machine.connection(dest_port) if dest_host in LOOPBACK else None
        if connect is None:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "Connection refused")

        async def forward(reader: Reader, writer: Writer) -> None:
            with suppress(asyncssh.Error, OSError):  # the client hung up
                await connect(reader, writer)

        return forward


async def _session(machine: Machine, process: commands.Process) -> None:
    """Run the channel's command; when the client closes the channel first, the command ends too."""
    if process.command is None:
        process.stdout.write(b"This machine is simulated: it runs single commands, not a shell.\r\n")
        process.exit(0)
        return
    running = asyncio.create_task(commands.run_remote(machine, process.command, process))
    closed = asyncio.create_task(process.wait_closed())
    await asyncio.wait({running, closed}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        with suppress(OSError, asyncssh.Error):  # the client closed the channel meanwhile
            process.exit(running.result())
    running.cancel()
    closed.cancel()
    machine.systemd.check_paths()


def _public_data(lines: Iterable[str]) -> set[bytes]:
    known = set()
    for line in lines:
        with suppress(asyncssh.KeyImportError):
            known.add(asyncssh.import_public_key(line).public_data)
    return known
