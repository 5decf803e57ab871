"""SSH to a node whose host key is known before the first connection.

Only the pinned host keys are accepted: the user's known_hosts and ssh_config are not read. asyncssh does
the protocol; it takes 0.4 s to import, so it is imported when a connection is made and not before.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
import ipaddress
import shlex
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from fleet import spec
from fleet.progress import SYSTEM_CLOCK, Clock, Progress, Stage, pause_s
from fleet.ssh_key import is_public

if TYPE_CHECKING:
    import asyncssh

Opened = TypeVar("Opened")

DIAL_TIMEOUT_S = 5.0
"""Seconds for the TCP handshake alone, so that an address without a machine is asked again soon."""

ATTEMPT_TIMEOUT_S = 30.0
"""Seconds for one whole login; key exchange takes several on a machine that is busy booting."""

AUTHENTICATION_GRACE_S = 30.0
"""Seconds in which a refused key is tried again: sshd may be up before the cloud has put the keys there."""

HOST_KEY_ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)

KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_COUNT = 3
"""Unanswered keepalives after which a connection counts as lost."""


@dataclass(frozen=True)
class Target:
    """A machine to reach, and how it proves to be the right one."""

    host: str
    host_keys: tuple[str, ...]
    """Pinned public host keys as OpenSSH writes them: `ssh-ed25519 AAAA…`."""
    user: str = "root"
    port: int = 22
    private_key_path: Path | None = None
    """None: the SSH agent's keys and the user's default ones."""
    jump: Target | None = None
    """The machine through which it is reached; None: straight."""

    @classmethod
    def parse(cls, raw: object) -> Target:
        """From JSON. Raises SpecError."""
        return spec.parse(cls, raw, "target")

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"


@dataclass(frozen=True)
class Completed:
    """A command that ran to its end on a node."""

    argv: tuple[str, ...]
    exit_status: int
    """-1 if a signal ended it."""
    stdout: str
    stderr: str


@dataclass(frozen=True)
class HttpReply:
    """What an HTTP server on the node answered."""

    status: int
    body: bytes


class SshError(Exception):
    """Something between here and the node went wrong; the message says what."""


class Unreachable(SshError):
    """No SSH session could be opened, or an open one was lost."""

    def __init__(
        self, target: Target, reason: Literal["refused", "timeout", "unreachable", "lost"], detail: str
    ) -> None:
        super().__init__(f"{target}: {detail}")
        self.reason = reason


class ConnectionLost(Unreachable):
    """An open connection ended: the machine reboots, or the network does not carry it any more."""

    def __init__(self, target: Target, detail: str = "the connection was lost") -> None:
        super().__init__(target, "lost", detail)


class AuthenticationRefused(SshError):
    """The node is the right one but accepts none of the keys offered."""


class KeyUnusable(AuthenticationRefused):
    """The private key file cannot be used, so nothing was offered."""


class HostKeyMismatch(SshError):
    """The machine that answered has another host key than the pinned one. Never retried."""

    def __init__(self, target: Target, presented: str) -> None:
        self.expected = tuple(fingerprint(key) for key in target.host_keys)
        self.presented = presented
        super().__init__(
            f"{target.host}:{target.port} presented {presented}, but {' or '.join(self.expected)} is pinned"
        )


class CommandFailed(SshError):
    """A command ended with another status than 0. Holds no standard input, which may be secret."""

    def __init__(self, completed: Completed) -> None:
        tail = " / ".join(completed.stderr.strip().splitlines()[-3:]) or "nothing on standard error"
        super().__init__(f"`{shlex.join(completed.argv)}` ended with {completed.exit_status}: {tail}")
        self.completed = completed


class Timeout(SshError):
    """The node did not answer in time; the connection is still up."""


class NothingListens(SshError):
    """No server answers on that port of the node's loopback."""


def fingerprint(public_key: str) -> str:
    """The SHA256 fingerprint of an OpenSSH public key line, as `ssh-keygen -l` prints it, with its type.

    Raises ValueError if the line is not a public key.
    """
    try:
        algorithm, blob = public_key.split()[:2]
        digest = hashlib.sha256(base64.b64decode(blob, validate=True)).digest()
    except (ValueError, binascii.Error):
        raise ValueError(
            f"{public_key[:40]!r} is not an OpenSSH public key like `ssh-ed25519 AAAA…`"
        ) from None
    return f"{algorithm} SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


class Connection:
    """An open SSH session. Made by `connect` or `wait_for_ssh`."""

    def __init__(
        self, target: Target, connection: asyncssh.SSHClientConnection, jump: Connection | None = None
    ) -> None:
        self.target = target
        self._connection = connection
        self._jump = jump

    async def run(
        self, argv: Sequence[str], *, stdin: bytes | None = None, timeout_s: float = 30.0, check: bool = True
    ) -> Completed:
        """Run one command as root and wait for its end.

        `argv` is passed word by word (quoted for the remote shell); secrets belong in `stdin`, never in
        `argv`. Raises CommandFailed (if `check`), Timeout, ConnectionLost.
        """
        completed, _ = await self._run(argv, stdin, timeout_s, check)
        return completed

    async def write_file(
        self, path: str | PurePosixPath, data: bytes, *, mode: int = 0o644, timeout_s: float = 30.0
    ) -> None:
        """Put `data` at `path`, owned by root, with `mode`, making its folders.

        Readers see the old content or the new one, never a part. Raises as `run` does.
        """
        new = f"{path}.new"
        install = ["install", "-D", "-m", f"{mode:04o}", "-o", "root", "-g", "root", "/dev/stdin", new]
        await self.run(install, stdin=data, timeout_s=timeout_s)
        await self.run(["mv", "-T", new, str(path)], timeout_s=timeout_s)

    async def read_file(self, path: str | PurePosixPath, *, timeout_s: float = 30.0) -> bytes:
        """The content of a file on the node. Raises CommandFailed if there is none."""
        _, data = await self._run(["cat", str(path)], None, timeout_s, True)
        return data

    @asynccontextmanager
    async def forward(self, port: int, local_port: int = 0) -> AsyncIterator[int]:
        """A port of this machine's loopback, a free one unless named, that leads to `port` of the node's.

        Raises OSError if `local_port` is taken.
        """
        listener = await self._connection.forward_local_port("127.0.0.1", local_port, "127.0.0.1", port)
        try:
            yield listener.get_port()
        finally:
            listener.close()
            await listener.wait_closed()

    async def open_process(self, command: str) -> asyncssh.SSHClientProcess[bytes]:
        """Start a command line as the login user, without input; who reads its output sets its pace.

        Raises ConnectionLost, and NothingListens if the node opens no more sessions.
        """

        with self._translated(f"`{command}`", ATTEMPT_TIMEOUT_S):
            async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                return await self._opened(command, None)

    async def wait_closed(self) -> None:
        """Return when the session has ended, whoever ended it."""
        await self._connection.wait_closed()

    async def http(
        self,
        method: str,
        port: int,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 10.0,
    ) -> HttpReply:
        """Ask a server on the node's loopback, in a channel of this session: no local port, no HTTP client.

        Raises NothingListens, Timeout, ConnectionLost.
        """
        import http.client  # noqa: PLC0415  25 ms that only a request needs to spend

        lines = {"Host": f"127.0.0.1:{port}", "Connection": "close", "Content-Length": str(len(body))}
        head = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in {**lines, **(headers or {})}.items())]
        with self._translated(f"{method} {path} on port {port}", timeout_s):
            async with asyncio.timeout(timeout_s):
                reader, writer = await _whole(
                    self._connection.open_connection("127.0.0.1", port), lambda streams: streams[1].close()
                )
                try:
                    writer.write("\r\n".join([*head, "", ""]).encode("latin-1") + body)
                    reply = await reader.read()
                finally:
                    writer.close()
        if not reply:
            # Docker's proxy accepts for a container that does not listen yet, and hangs up.
            raise NothingListens(f"port {port} of the node closed without an answer")
        response = http.client.HTTPResponse(cast(socket.socket, _Replay(reply)), method=method)
        try:
            response.begin()
            return HttpReply(response.status, response.read())
        except http.client.HTTPException as error:
            raise NothingListens(f"port {port} of the node does not speak HTTP: {error!r}") from None

    async def reached_from(self) -> str:
        """Our own address as the node sees it; empty where it does not say. Raises ConnectionLost."""
        import asyncssh  # noqa: PLC0415  loaded by now

        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                # Not by sudo, which does not pass this variable on.
                done = await _ended(await self._opened("printenv SSH_CLIENT", None))
        except (TimeoutError, asyncssh.ChannelOpenError):
            return ""
        except (asyncssh.Error, OSError) as error:
            raise ConnectionLost(self.target, str(error)) from None
        words = cast(bytes, done.stdout or b"").decode(errors="replace").split()
        try:
            return str(ipaddress.ip_address(words[0])) if words else ""
        except ValueError:
            return ""

    async def close(self) -> None:
        """End the session."""
        self._connection.abort()
        await self._connection.wait_closed()
        if self._jump:
            await self._jump.close()

    async def _run(
        self, argv: Sequence[str], stdin: bytes | None, timeout_s: float, check: bool
    ) -> tuple[Completed, bytes]:
        """The completed command, and its standard output as it came."""
        import asyncssh  # noqa: PLC0415  loaded by now

        words = tuple(argv) if self.target.user == "root" else ("sudo", "-n", *argv)
        command = shlex.join(words)
        with self._translated(f"`{command}`", timeout_s):
            async with asyncio.timeout(timeout_s):
                try:
                    process = await self._opened(command, stdin)
                except asyncssh.ChannelOpenError as error:
                    raise ConnectionLost(
                        self.target, f"the node takes no more commands on this connection: {error.reason}"
                    ) from None
                result = await _ended(process)
        if result.exit_status is None:
            raise ConnectionLost(self.target, f"the connection was lost while `{command}` ran")
        stdout, stderr = cast(bytes, result.stdout or b""), cast(bytes, result.stderr or b"")
        completed = Completed(
            words, result.exit_status, stdout.decode(errors="replace"), stderr.decode(errors="replace")
        )
        if check and completed.exit_status != 0:
            raise CommandFailed(completed)
        return completed, stdout

    async def _opened(self, command: str, stdin: bytes | None) -> asyncssh.SSHClientProcess[bytes]:
        """A command that has started. Raises what asyncssh raises."""
        import asyncssh  # noqa: PLC0415  loaded by now

        return await _whole(
            self._connection.create_process(
                command,
                input=stdin or None,
                stdin=asyncssh.PIPE if stdin else asyncssh.DEVNULL,
                encoding=None,
            ),
            lambda process: process.close(),
        )

    @contextmanager
    def _translated(self, doing: str, timeout_s: float) -> Iterator[None]:
        """Turn the library's errors into this module's."""
        import asyncssh  # noqa: PLC0415  loaded by now

        try:
            yield
        except TimeoutError:
            raise Timeout(f"{self.target}: no answer to {doing} in {timeout_s:g} s") from None
        except asyncssh.ChannelOpenError as error:
            if self._connection.is_closed():
                raise ConnectionLost(self.target) from None
            raise NothingListens(f"{self.target}: {doing}: {error.reason}") from None
        except (asyncssh.DisconnectError, OSError) as error:
            if self._connection.is_closed():
                raise ConnectionLost(self.target, f"the connection was lost: {error}") from None
            # Only this channel ended: what it led to hung up before it was asked.
            raise NothingListens(f"{self.target}: {doing}: {error}") from None


async def _ended(process: asyncssh.SSHClientProcess[bytes]) -> asyncssh.SSHCompletedProcess:
    """How a command ended. Given up on, its session is closed: sshd opens ten at most."""
    try:
        return await process.wait()
    except BaseException:
        process.close()
        raise


async def _whole(opening: Awaitable[Opened], close: Callable[[Opened], object]) -> Opened:
    """What a channel leads to, once it is open; given up on meanwhile, it is closed as soon as it is.

    The library forgets a channel whose opening is cancelled. The node does not: sshd counts the session
    until it is closed, and opens ten at most.
    """
    task = asyncio.ensure_future(opening)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(
            lambda done: None if done.cancelled() or done.exception() else close(done.result())
        )
        raise


class _Replay:
    """A reply already received, in the shape http.client reads from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def openssh(target: Target, *options: str) -> list[str]:
    """The words of an `ssh` command to the node that trusts its pinned host key and nothing else.

    The key is given by a command instead of a file, so that nothing needs to be cleaned up. It prints one
    key: the ed25519 one if there is one, which is what OpenSSH then asks for.
    """
    pinned = next((line for line in target.host_keys if line.startswith("ssh-ed25519 ")), target.host_keys[0])
    # Without IdentitiesOnly an agent's keys come first, and a server stops listening after a few wrong ones.
    key = target.private_key_path
    identity = [] if key is None else ["-i", str(key), "-o", "IdentitiesOnly=yes"]
    # What ~/.ssh/config says of this address counts for neither client: a jump host, another user or key
    # there would make this command reach what the other does not.
    own = ["-F", "none"]
    trust = [
        *("-o", f"KnownHostsCommand=/bin/echo %H {' '.join(pinned.split()[:2])}"),
        *("-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=yes"),
    ]
    port = [] if target.port == 22 else ["-p", str(target.port)]
    through = [] if target.jump is None else ["-o", f"ProxyCommand={_through(target.jump)}"]
    return ["ssh", *own, *identity, *port, *trust, *through, *options, f"{target.user}@{target.host}"]


def _through(jump: Target) -> str:
    """What OpenSSH starts to reach a machine through another; not `-J`, which takes no host key."""
    program, *words = openssh(jump)
    # A % of its own is doubled there.
    return f"{program} -W '[%h]:%p' {shlex.join(words).replace('%', '%%')}"


@asynccontextmanager
async def connect(target: Target, *, timeout_s: float = ATTEMPT_TIMEOUT_S) -> AsyncIterator[Connection]:
    """One attempt at a session, closed when the block is left.

    Raises Unreachable, AuthenticationRefused, HostKeyMismatch; ValueError if no usable host key is pinned.
    """
    node = await _open(target, timeout_s)
    try:
        yield node
    finally:
        await node.close()


async def wait_for_ssh(
    target: Target,
    deadline_s: float,
    progress: Progress | None = None,
    *,
    stage: Stage = Stage.WORKER_SSH_ACCESSIBLE,
    clock: Clock = SYSTEM_CLOCK,
) -> Connection:
    """Try until the node lets us in, and return the open session, which the caller closes.

    `progress` hears of the wait as part of `stage`. After `deadline_s` the last error is raised:
    Unreachable, whose `reason` tells a refusal from silence, or AuthenticationRefused, which comes earlier
    once it has lasted 30 s. HostKeyMismatch and KeyUnusable are raised at once.
    """
    started = clock.now()
    refused_since: float | None = None
    while True:
        left_s = deadline_s - (clock.now() - started)
        try:
            return await _open(target, max(min(ATTEMPT_TIMEOUT_S, left_s), 1.0))
        except (HostKeyMismatch, KeyUnusable):
            raise
        except (Unreachable, AuthenticationRefused) as error:
            now = clock.now()
            waited_s = now - started
            if isinstance(error, AuthenticationRefused):
                refused_since = now if refused_since is None else refused_since
                patience_over = now - refused_since >= AUTHENTICATION_GRACE_S
            else:
                refused_since, patience_over = None, False
            if patience_over or waited_s >= deadline_s:
                raise
            if progress:
                progress.waiting(stage, "SSH", str(error), waited_s=waited_s, limit_s=deadline_s)
        # OpenSSH ≥ 9.8 shuts out a source that fails to log in several times within seconds.
        least = 0.2 if refused_since is None else 5.0
        await clock.sleep(pause_s(waited_s, least=least, most=max(2.0, least)))


async def _open(target: Target, timeout_s: float) -> Connection:
    import asyncssh  # noqa: PLC0415  see the module's docstring

    if not target.host_keys:
        raise ValueError("target.host_keys is empty: without a pinned host key no connection is made")
    pinned = [_host_key(line) for line in target.host_keys]
    presented: list[asyncssh.SSHKey] = []

    class Pinning(asyncssh.SSHClient):
        def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
            presented.append(key)
            return False

    options = _options(target, pinned)
    jump = await _open(target.jump, timeout_s) if target.jump else None
    try:
        async with AsyncExitStack() as unless_open:
            if jump:
                unless_open.push_async_callback(jump.close)
            connection = await _login(target, options, Pinning, jump, timeout_s)
            unless_open.pop_all()
    except TimeoutError:
        raise Unreachable(target, "timeout", "no answer") from None
    except ConnectionRefusedError:
        raise Unreachable(target, "refused", "connection refused") from None
    except asyncssh.HostKeyNotVerifiable:
        other = presented[0].export_public_key().decode() if presented else ""
        raise HostKeyMismatch(target, fingerprint(other) if other else "an unreadable host key") from None
    except asyncssh.PermissionDenied as error:
        offered = target.private_key_path or "the agent's and the default keys"
        raise AuthenticationRefused(f"{target} refuses {offered}: {error.reason}") from None
    except (asyncssh.Error, OSError) as error:
        raise Unreachable(target, "unreachable", str(error) or type(error).__name__) from None
    return Connection(target, connection, jump)


async def _login(
    target: Target,
    options: asyncssh.SSHClientConnectionOptions,
    pinning: type[asyncssh.SSHClient],
    jump: Connection | None,
    timeout_s: float,
) -> asyncssh.SSHClientConnection:
    import asyncssh  # noqa: PLC0415  loaded by now

    async with asyncio.timeout(timeout_s):
        route: dict[str, Any] = (
            {"tunnel": jump._connection} if jump else {"sock": await _dial(target.host, target.port)}
        )
        return await asyncssh.connect(
            target.host, target.port, **route, options=options, config=None, client_factory=pinning
        )


def _host_key(line: str) -> asyncssh.SSHKey:
    import asyncssh  # noqa: PLC0415  loaded by now

    try:
        return asyncssh.import_public_key(line)
    except asyncssh.KeyImportError:
        raise ValueError(f"target.host_keys: {line[:40]!r} is not an OpenSSH public key") from None


def _options(target: Target, pinned: list[asyncssh.SSHKey]) -> asyncssh.SSHClientConnectionOptions:
    import asyncssh  # noqa: PLC0415  loaded by now

    types = {key.get_algorithm() for key in pinned}
    if "ssh-rsa" in types:
        types |= {"rsa-sha2-512", "rsa-sha2-256"}
    common = asyncssh.SSHClientConnectionOptions(
        config=None,
        username=target.user,
        known_hosts=(pinned, [], []),
        # The pinned types first; the others too, so that a stranger shows its key instead of hanging up.
        server_host_key_algs=sorted(HOST_KEY_ALGORITHMS, key=lambda name: name not in types),
        preferred_auth=("publickey",),
        keepalive_interval=KEEPALIVE_INTERVAL_S,
        keepalive_count_max=KEEPALIVE_COUNT,
    )
    if target.private_key_path is None:
        return common
    path = target.private_key_path.expanduser()
    try:
        # A public key names one of the agent's.
        public = path if is_public(path) else Path(f"{path}.pub")
        if public == path:
            return asyncssh.SSHClientConnectionOptions(common, config=None, agent_identities=[str(path)])
        # The agent is asked for this one key only: it may hold it decrypted, and a server stops listening
        # after a few wrong keys.
        return asyncssh.SSHClientConnectionOptions(
            common,
            config=None,
            client_keys=[str(path)],
            ignore_encrypted=True,
            agent_path=() if public.is_file() else None,
            agent_identities=[str(public)] if public.is_file() else None,
        )
    except (OSError, asyncssh.KeyImportError) as error:
        raise KeyUnusable(
            f"private_key_path: {path} cannot be used: {error}; name a readable private key"
        ) from None


async def _dial(host: str, port: int) -> socket.socket:
    """A TCP connection, given up after DIAL_TIMEOUT_S, which the library cannot tell from a slow login."""
    loop = asyncio.get_running_loop()
    family, kind, protocol, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
    dialed = socket.socket(family, kind, protocol)
    try:
        dialed.setblocking(False)
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            await loop.sock_connect(dialed, address)
    except BaseException:
        dialed.close()
        raise
    return dialed
