"""Whose turn it is: at most so many nodes of a stack are between two releases at once, in the order of
their names.

All rollouts of one update run on one machine at the same time, as children of the engine. They agree through
files in one folder, each held by `flock` for as long as its process lives, so that a killed rollout never
blocks another. Rollouts that overlap form a round, which each joins as it starts, and nobody switches before
the round has stood still for a moment: those of one update start together, whatever each finds to prepare.
The first failure in a round keeps those that have not switched yet from switching.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fleet.progress import SYSTEM_CLOCK, Clock, pause_s
from fleet.rollout.spec import Queue

WaitingFor = Callable[[str, float, float], None]
"""Hears whom a node waits for, since how many seconds, and for how many at most."""


class RoundFailed(Exception):
    """Another node of this update failed, so this one keeps what it serves; the message names the node."""


class TurnTimeout(Exception):
    """This node's turn did not come in time; the message names who was waited for."""


class Turnstile:
    """One node's membership in the round under way. Leaving is the end of the process, or `leave`."""

    def __init__(self, queue: Queue, node: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._queue = queue
        self._node = node
        self._clock = clock
        self._folder = queue.directory
        self._folder.mkdir(parents=True, exist_ok=True)
        self._failed = self._folder / "failed"
        self._round = os.open(self._folder / "round", os.O_CREAT | os.O_RDWR, 0o600)
        if _try_lock(self._round):  # nobody else is there: a new round
            self._failed.unlink(missing_ok=True)
        fcntl.flock(self._round, fcntl.LOCK_SH)
        self._member = self._folder / f"member-{node}"
        self._membership = os.open(self._member, os.O_CREAT | os.O_RDWR, 0o600)
        os.utime(self._membership)
        fcntl.flock(self._membership, fcntl.LOCK_EX)

    def leave(self) -> None:
        """Let those behind go first."""
        self._member.unlink(missing_ok=True)
        os.close(self._membership)
        os.close(self._round)

    def fail(self) -> None:
        """Keep the others of this round from switching."""
        self._failed.write_text(self._node)

    @asynccontextmanager
    async def turn(self, waiting: WaitingFor) -> AsyncIterator[None]:
        """Wait for this node's turn and hold it; what ends it by an error fails the round.

        Raises RoundFailed, TurnTimeout.
        """
        slot = await self._enter(waiting)
        try:
            yield
        except BaseException:
            self.fail()
            raise
        finally:
            os.close(slot)

    async def _enter(self, waiting: WaitingFor) -> int:
        started = self._clock.now()
        while True:
            before = self._before()
            # The order comes from the list, the limit from the slots: a member may join late.
            first = self._settled() and len(before) < self._queue.max_unavailable
            slot = self._free_slot() if first else None
            if self._failed.exists():  # asked last: who fails says so before it gives its slot back
                if slot is not None:
                    os.close(slot)
                raise RoundFailed(self._failed.read_text())
            if slot is not None:
                return slot
            waited_s = self._clock.now() - started
            whom = ", ".join(before) or "nodes that are being switched or have just started"
            if waited_s >= self._queue.limit_s:
                raise TurnTimeout(whom)
            waiting(whom, waited_s, self._queue.limit_s)
            await self._clock.sleep(pause_s(waited_s))

    def _before(self) -> list[str]:
        """Members of the round that come first."""
        earlier = [path for path in sorted(self._folder.glob("member-*")) if path.name < self._member.name]
        return [path.name.removeprefix("member-") for path in earlier if _held(path)]

    def _settled(self) -> bool:
        """Whether nobody has joined for a while."""
        last = max(map(_joined_at, self._folder.glob("member-*")), default=0.0)
        return time.time() - last >= self._queue.settle_s

    def _free_slot(self) -> int | None:
        for number in range(self._queue.max_unavailable):
            slot = os.open(self._folder / f"slot-{number}", os.O_CREAT | os.O_RDWR, 0o600)
            if _try_lock(slot):
                return slot
            os.close(slot)
        return None


def _held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _joined_at(path: Path) -> float:
    """When a member joined; 0 for one that has left."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
