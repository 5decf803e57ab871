"""Things that happen by themselves after a while, also when the emulator was killed in between."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable

from simcloud.store import Document, Store

# With no delays at all a client would never see a passing state, and a client that does not look must not
# wait for ever: at speed 0 a state lasts until somebody has seen it, or this many seconds.
UNSEEN_DWELL_S = 2.0

Due = Callable[[str, str], Awaitable[None]]
"""Called with the action and the object's id; called again for the same timer after a crash."""


class Timer(Document):
    """One thing to come. There is at most one for each object of a cloud."""

    cloud: str
    object_id: str
    action: str
    due: float
    """Unix time in seconds."""


class Timers:
    """Timers on disk. Delays are real clouds' delays times `speed`."""

    def __init__(self, store: Store, *, speed: float) -> None:
        self._timers = store.table("timer", Timer)
        self._store = store
        self._speed = speed
        self._due: dict[str, Due] = {}
        self._handles: dict[str, asyncio.TimerHandle] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def serve(self, cloud: str, due: Due) -> None:
        """Names who acts for a cloud, and takes up the timers it left behind."""
        self._due[cloud] = due
        for timer in self._timers:
            if timer.cloud == cloud:
                self._schedule(timer)

    def after(self, cloud: str, object_id: str, action: str, seconds: float) -> None:
        """Sets the object's timer, in place of the one it had."""
        delay = seconds * self._speed if self._speed else UNSEEN_DWELL_S
        timer = Timer(
            id=f"{cloud}/{object_id}",
            cloud=cloud,
            object_id=object_id,
            action=action,
            due=time.time() + delay,
        )
        self._timers.put(timer)
        self._schedule(timer)

    def seen(self, cloud: str, object_id: str) -> None:
        """A client has seen the object's state: at speed 0 it may pass now."""
        timer = self._timers.get(f"{cloud}/{object_id}")
        if timer and not self._speed and timer.id not in self._running:
            timer.due = 0.0
            self._schedule(timer)

    def cancel(self, cloud: str, object_id: str) -> None:
        timer_id = f"{cloud}/{object_id}"
        self._timers.remove(timer_id)
        if handle := self._handles.pop(timer_id, None):
            handle.cancel()

    async def clear(self) -> None:
        """Forgets every timer; returns when none is acting any more."""
        self._timers.clear()
        await self.close()

    async def close(self) -> None:
        """Stops acting; the timers stay on disk."""
        for handle in self._handles.values():
            handle.cancel()
        self._handles.clear()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _schedule(self, timer: Timer) -> None:
        if previous := self._handles.pop(timer.id, None):
            previous.cancel()
        loop = asyncio.get_running_loop()
        self._handles[timer.id] = loop.call_later(max(0.0, timer.due - time.time()), self._start, timer)

    def _start(self, timer: Timer) -> None:
        self._handles.pop(timer.id, None)
        if timer.id in self._running:
            # The object's previous step still acts; its end must come before this one.
            self._running[timer.id].add_done_callback(lambda _: self._start(timer))
        elif self._timers.get(timer.id) is timer:
            self._running[timer.id] = asyncio.create_task(self._act(timer))

    async def _act(self, timer: Timer) -> None:
        try:
            await self._due[timer.cloud](timer.action, timer.object_id)
        except Exception:
            # One broken machine must not stop the cloud; whoever runs the emulator reads why.
            traceback.print_exc()
        finally:
            del self._running[timer.id]
            # The step may have set the object's next timer, which stays.
            if self._timers.get(timer.id) is timer:
                self._timers.remove(timer.id)
