"""A tunnel to a node's loopback that is there as long as it is wanted, over reboots and lost networks."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import NoReturn

from fleet.inventory import FleetNode
from fleet.progress import SYSTEM_CLOCK, Clock, pause_s
from fleet.ssh import Connection, ConnectionLost, NothingListens, Timeout, Unreachable, wait_for_ssh

ATTEMPT_S = 60.0
"""Seconds of trying to connect after which the reason is told again; the trying goes on."""

PATHS = {"vllm": "/health", "webui": "/", "ray": "/", "grafana": "/api/health", "prometheus": "/-/ready"}
"""What shows that a service answers."""

URLS = {**dict.fromkeys(PATHS, "http://127.0.0.1:{port}"), "vllm": "http://127.0.0.1:{port}/v1"}


class PortTaken(Exception):
    """A port of this machine is in use; the message says which and what to do."""

    def __init__(self, port: int) -> None:
        super().__init__(
            f"port {port} of this machine is taken, perhaps by another tunnel; "
            f"choose another: --port {port + 1000}"
        )


@dataclass(frozen=True)
class Forward:
    """A service of the node and where it appears here."""

    service: str
    """A key of `PATHS`."""
    port: int
    """On the node's loopback."""
    local_port: int

    @property
    def url(self) -> str:
        """Where the service is on this machine, while the tunnel is open."""
        return URLS[self.service].format(port=self.local_port)


def forwards(ports: Mapping[str, int], local_port: int | None = None) -> tuple[Forward, ...]:
    """One forward a service, to the same port here; `local_port` moves vLLM's."""
    return tuple(
        Forward(service, port, local_port if local_port and service == "vllm" else port)
        for service, port in ports.items()
    )


async def hold(
    node: FleetNode,
    wanted: tuple[Forward, ...],
    tell: Callable[[str], None],
    on_open: Callable[[], None],
    *,
    clock: Clock = SYSTEM_CLOCK,
) -> NoReturn:
    """Open the tunnel, tell of each service when it answers, and open it again whenever it breaks.

    `tell` gets a line for each change; `on_open` is called once, when all services answer for the first
    time. Ends by being cancelled. Raises PortTaken; and what no waiting fixes: HostKeyMismatch,
    AuthenticationRefused, InventoryError.
    """
    target = node.reachable()
    opened = False
    while True:
        try:
            session = await wait_for_ssh(target, ATTEMPT_S, clock=clock)
        except Unreachable as error:
            tell(f"{error}; trying on")
            continue
        try:
            async with AsyncExitStack() as stack:
                stack.push_async_callback(session.close)
                for forward in wanted:
                    await _listen(stack, session, forward)
                async with asyncio.TaskGroup() as waiting:
                    for forward in wanted:
                        waiting.create_task(_announce(session, forward, tell, clock))
                if not opened:
                    on_open()
                opened = True
                await session.wait_closed()
        except* ConnectionLost:
            pass  # told below, as the end of a session is
        tell(f"{node.name}: the connection was lost; opening it again")


async def _announce(session: Connection, forward: Forward, tell: Callable[[str], None], clock: Clock) -> None:
    """Tell the service's URL as soon as it answers, whatever the others do."""
    await _answers(session, forward, tell, clock)
    tell(f"{forward.service}: {forward.url}")


async def _listen(stack: AsyncExitStack, session: Connection, forward: Forward) -> None:
    try:
        await stack.enter_async_context(session.forward(forward.port, forward.local_port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(forward.local_port) from None
        raise


async def _answers(session: Connection, forward: Forward, tell: Callable[[str], None], clock: Clock) -> None:
    """Return when the service answers; it may still be loading a model, for as long as that takes."""
    started, told = clock.now(), ""
    while True:
        try:
            status = (await session.http("GET", forward.port, PATHS[forward.service])).status
            if status < 500:
                return
            seen = f"answers {status}"
        except NothingListens:
            seen = "nothing listens yet"
        except Timeout:
            seen = "no answer"
        if seen != told:
            tell(f"waiting for {forward.service} on port {forward.port} of the node: {seen}")
            told = seen
        await clock.sleep(pause_s(clock.now() - started))
