"""A node on loopback for the tests of SSH and the gate: an SSH server whose commands answer what a test sets,
and an HTTP server in vLLM's place. It never runs a command on this machine."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from fleet.progress import Clock
from fleet.ssh import Target

API_KEY = "key-0123456789abcdef"
MODEL = "Qwen/Qwen3-8B-AWQ"


@dataclass
class Answer:
    """What a command prints, and how it ends."""

    stdout: str = ""
    status: int = 0
    stderr: str = ""


def container(
    status: str = "running", *, restarts: int = 0, exit_code: int = 0, oom_killed: bool = False
) -> Answer:
    """`docker inspect` of a container in this state."""
    state = {"Status": status, "ExitCode": exit_code, "OOMKilled": oom_killed}
    return Answer(json.dumps([{"Id": "c0ffee", "RestartCount": restarts, "State": state}]))


def cloud_init(status: str = "done", exit_status: int = 0, **more: object) -> Answer:
    """`cloud-init status --format json` in this state."""
    return Answer(json.dumps({"status": status, "errors": [], "recoverable_errors": {}} | more), exit_status)


HttpAnswer = tuple[int, object] | None
"""Status and JSON body; None: the connection is closed without a word."""


def vllm(
    method: str, path: str, key: str, *, model: str = MODEL, expected_key: str | None = API_KEY
) -> HttpAnswer:
    """A healthy vLLM; `expected_key` None answers everybody."""
    if path == "/health":
        return 200, {}
    if expected_key is not None and key != expected_key:
        return 401, {"error": "Unauthorized"}
    if path == "/v1/models":
        return 200, {"data": [{"id": model}]}
    return 200, {"choices": [{"text": "2"}]}


class FakeNode:
    """A node that is ready, unless a test changes what it answers."""

    def __init__(self, directory: Path) -> None:
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.user_key = asyncssh.generate_private_key("ssh-ed25519")
        self.key_path = directory / "id_ed25519"
        self.user_key.write_private_key(self.key_path)
        self.files: dict[str, bytes] = {}
        self.modes: dict[str, str] = {}
        self.ran: list[str] = []
        self.hanging = 0
        """Sessions of `sleep` that nobody has closed."""
        self.commands: dict[str, Answer | Callable[[], Answer]] = {
            "cloud-init status": cloud_init(),
            "systemctl is-active docker": Answer("active\n"),
            "nvidia-smi": Answer("0, NVIDIA L4, 23034\n"),
            "docker inspect vllm": container(),
            "docker logs": Answer("INFO: Application startup complete.\n"),
            "test -e /opt/llm/.env": Answer(),
        }
        self.http: Callable[[str, str, str], Any] = vllm
        self.ssh_port = self.http_port = 0
        self._connections: set[asyncssh.SSHServerConnection] = set()

    @property
    def target(self) -> Target:
        public = self.host_key.export_public_key().decode().strip()
        return Target("127.0.0.1", (public,), "root", self.ssh_port, self.key_path)

    def hang_up(self) -> None:
        """End every connection, as a reboot does."""
        for connection in list(self._connections):
            connection.abort()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeNode]:
        node = self

        class Server(asyncssh.SSHServer):
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                node._connections.add(conn)
                self._conn = conn

            def connection_lost(self, exc: Exception | None) -> None:
                node._connections.discard(self._conn)

            def connection_requested(self, *_where: object) -> bool:
                return True

        web = await asyncio.start_server(self._serve_http, "127.0.0.1", 0)
        authorized = asyncssh.import_authorized_keys(self.user_key.export_public_key().decode())
        ssh = await asyncssh.listen(
            "127.0.0.1",
            self.ssh_port,
            server_factory=Server,
            server_host_keys=[self.host_key],
            authorized_client_keys=authorized,
            process_factory=self._execute,
            encoding=None,
        )
        self.ssh_port, self.http_port = ssh.get_port(), web.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.hang_up()
            ssh.close()
            web.close()
            await ssh.wait_closed()

    async def _execute(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        command = process.command or ""
        self.ran.append(command)
        if command.startswith("sleep "):
            self.hanging += 1
            await process.channel.wait_closed()
            self.hanging -= 1
            return
        stdin = await process.stdin.read()
        answer = self._file_command(shlex.split(command), stdin) or next(
            (a for prefix, a in self.commands.items() if command.startswith(prefix)),
            Answer(status=127, stderr=f"{command}: command not found"),
        )
        if callable(answer):
            answer = answer()
        process.stdout.write(answer.stdout.encode())
        process.stderr.write(answer.stderr.encode())
        process.exit(answer.status)

    def _file_command(self, argv: list[str], stdin: bytes) -> Answer | None:
        if argv[0] == "install":
            self.files[argv[-1]], self.modes[argv[-1]] = stdin, argv[argv.index("-m") + 1]
            return Answer()
        if argv[0] == "mv":
            self.files[argv[-1]] = self.files.pop(argv[-2])
            self.modes[argv[-1]] = self.modes.pop(argv[-2])
            return Answer()
        if argv[0] == "cat":
            data = self.files.get(argv[-1])
            return Answer(status=1, stderr="No such file") if data is None else Answer(data.decode())
        return None

    async def _serve_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        (method, path, _), *lines = head.split("\r\n")[0].split(), *head.split("\r\n")[1:-2]
        headers = dict(line.lower().split(": ", 1) for line in lines)
        await reader.readexactly(int(headers.get("content-length", 0)))
        answer = self.http(method, path, headers.get("authorization", "").removeprefix("bearer "))
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer is not None:
            body = json.dumps(answer[1]).encode()
            writer.write(f"HTTP/1.1 {answer[0]} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        writer.close()


@dataclass
class FastClock:
    """Time that passes only by sleeping, and at once."""

    seconds: float = 0.0
    on_sleep: list[Callable[[float], None]] = field(default_factory=list)
    """Called with the time after each sleep, so that a test can change the world meanwhile."""

    def clock(self) -> Clock:
        return Clock(now=lambda: self.seconds, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.seconds += seconds
        for hook in self.on_sleep:
            hook(self.seconds)
        await asyncio.sleep(0)
