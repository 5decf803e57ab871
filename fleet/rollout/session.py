"""An SSH session that comes back: what a cut connection interrupted is done again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TypeVar

from fleet.progress import SYSTEM_CLOCK, Clock, Progress, Stage
from fleet.ssh import Completed, Connection, ConnectionLost, HttpReply, Target, wait_for_ssh

T = TypeVar("T")

LOSSES_TOLERATED = 5
"""Connections one step may lose; a network that cuts every one of them carries no rollout."""


class Session:
    """A node's SSH session. Every step given to it must be one that may be done twice."""

    def __init__(self, target: Target, ssh_s: float, progress: Progress, clock: Clock = SYSTEM_CLOCK) -> None:
        self._target = target
        self._ssh_s = ssh_s
        self._progress = progress
        self._clock = clock
        self._node: Connection | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Session:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._node:
            await self._node.close()

    async def run(
        self, argv: Sequence[str], *, stdin: bytes | None = None, timeout_s: float = 30.0, check: bool = True
    ) -> Completed:
        """As `Connection.run`; after a lost connection the command is run once more."""
        return await self.do(lambda node: node.run(argv, stdin=stdin, timeout_s=timeout_s, check=check))

    async def write_file(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """As `Connection.write_file`."""
        await self.do(lambda node: node.write_file(path, data, mode=mode))

    async def read_file(self, path: str) -> bytes | None:
        """Content of a file; None where there is none."""
        if (await self.run(["test", "-e", path], check=False)).exit_status != 0:
            return None
        return await self.do(lambda node: node.read_file(path))

    async def get(self, port: int, path: str) -> HttpReply:
        """Ask a server on the node's loopback. Raises as `Connection.http` does."""
        return await self.do(lambda node: node.http("GET", port, path))

    async def do(self, step: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a step, again when the connection is lost meanwhile. Raises what it raises, and SshError."""
        for _ in range(LOSSES_TOLERATED):
            node = await self._open()
            try:
                return await step(node)
            except ConnectionLost as error:
                await self._forget(node)
                self._progress.note(Stage.WORKER_SSH_ACCESSIBLE, f"{error}; connecting again")
        return await step(await self._open())

    async def _open(self) -> Connection:
        async with self._opening:
            if self._node is None:
                self._node = await wait_for_ssh(self._target, self._ssh_s, self._progress, clock=self._clock)
            return self._node

    async def _forget(self, node: Connection) -> None:
        async with self._opening:
            if self._node is node:
                self._node = None
        await node.close()
