"""A bounded log that can be followed."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

KEPT_LINES = 2000


class Log:
    """The last lines of a container or unit, with the time of each (Unix seconds)."""

    def __init__(self) -> None:
        self._lines: deque[tuple[float, str]] = deque(maxlen=KEPT_LINES)
        self._written = 0
        self._news = asyncio.Event()

    def write(self, text: str) -> None:
        for line in text.splitlines():
            self._lines.append((time.time(), line))
            self._written += 1
        self._news.set()
        self._news = asyncio.Event()

    def tail(self, count: int | None = None) -> list[tuple[float, str]]:
        """The last `count` lines, or all that are kept."""
        lines = list(self._lines)
        return lines if count is None else lines[max(len(lines) - count, 0) :]

    async def follow(self) -> AsyncIterator[tuple[float, str]]:
        """Lines written from now on, for ever."""
        seen = self._written
        while True:
            news = self._news
            fresh = min(self._written - seen, len(self._lines))
            seen = self._written
            for entry in self.tail(fresh):
                yield entry
            if seen == self._written:
                await news.wait()


async def show(
    log: Log, count: int | None, *, follow: bool, write: Callable[[tuple[float, str]], None]
) -> None:
    """Write the last `count` lines, then, when following, every new one until cancelled."""
    for entry in log.tail(count):
        write(entry)
    if follow:
        async for entry in log.follow():
            write(entry)
