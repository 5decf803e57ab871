"""How far a node has come, told in lines; and how to wait for the next step.

A stage is shown with its percentage; the percentage of a node only rises. Plain lines on purpose: they
read the same in a terminal, in the engine's log and in CI.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TextIO

HEARTBEAT_S = 10.0
"""Least seconds between two lines about the same wait."""


class Stage(IntEnum):
    """A step on the way to a ready node; its value is the percentage shown with it."""

    REQUEST_CREATE = 0
    PROVIDER_CREATE = 20
    PROVIDER_VOLUME_RESIZE = 25
    PROVIDER_START = 30
    PROVIDER_GET_IP = 40
    PROVIDER_SECURITY_GROUP = 45
    WORKER_SSH_ACCESSIBLE = 50
    WORKER_SSH_INSTALL = 60
    WORKER_VLLM_HTTP_OK = 70
    WORKER_MODEL_LOADED = 80
    WORKER_VLLM_WARMUP = 90
    HEALTH_CHECK = 95
    READY = 100

    @property
    def label(self) -> str:
        """Percentage and name, as users see them."""
        return f"{self.value} % {self.name}"


@dataclass(frozen=True)
class Clock:
    """Where waits take their time from, so that a test need not spend it."""

    now: Callable[[], float] = time.monotonic
    """Seconds, from any origin, never going back."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


SYSTEM_CLOCK = Clock()


def pause_s(waited_s: float, *, least: float = 0.2, most: float = 2.0) -> float:
    """Seconds to pause before looking again: a tenth of the wait so far, within bounds.

    So a wait ends at most a tenth late, however long it is, and a long one costs few looks.
    """
    return min(max(waited_s / 10, least), most)


@dataclass(frozen=True)
class Told:
    """What a line of `Progress` says."""

    node: str
    stage: Stage
    note: str


_LINE = re.compile(r"^(\S+) +(\d+) % ([A-Z_]+) *(.*)$")


def parse_line(line: str) -> Told | None:
    """Read a line that `Progress` printed; None for any other."""
    found = _LINE.match(line)
    if found is None or found[3] not in Stage.__members__:
        return None
    return Told(found[1], Stage[found[3]], found[4])


class Progress:
    """Prints one line for each stage a node reaches, and a heartbeat while it waits.

    Lines go to `stream` (standard error unless given): `l4-a   70 % WORKER_VLLM_HTTP_OK   …`.
    """

    def __init__(self, node: str, stream: TextIO | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._node = node
        self._stream = stream or sys.stderr
        self._clock = clock
        self._percent = 0
        self._last_line_at = clock.now()

    def reached(self, stage: Stage, note: str = "") -> None:
        """Say that `stage` is done. A stage that lies behind is not shown again."""
        if stage >= self._percent:
            self._print(stage, note)

    def waiting(self, stage: Stage, what: str, seen: str, *, waited_s: float, limit_s: float) -> None:
        """Say what is waited for and what was seen last; at most one such line in ten seconds."""
        if self._clock.now() - self._last_line_at >= HEARTBEAT_S:
            self._print(stage, f"waiting for {what}: {seen}, {waited_s:.0f} s of {limit_s:.0f} s")

    def note(self, stage: Stage, text: str) -> None:
        """Say something worth knowing at once, such as a lost connection."""
        self._print(stage, text)

    def _print(self, stage: Stage, text: str) -> None:
        self._percent = max(self._percent, stage)
        self._last_line_at = self._clock.now()
        line = f"{self._node:<12} {self._percent:>3} % {Stage(self._percent).name:<23} {text}"
        print(line.rstrip(), file=self._stream, flush=True)
