"""Faults that tests plant in the embedded clouds."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import count

from pydantic import BaseModel, ConfigDict, Field


class FaultKind(StrEnum):
    """What goes wrong with a call."""

    RATE_LIMITED = "429"
    SERVER_ERROR = "500"
    UNAVAILABLE = "503"
    FORBIDDEN = "403"
    NOT_FOUND = "404"
    """No effect: what the call is about is said not to exist, whether it does or not."""
    CONFLICT = "409"
    """No effect: what the call is about is just changing."""
    QUOTA = "quota"
    OUT_OF_STOCK = "out_of_stock"
    TIMEOUT = "timeout"
    """No effect, and silence until the client gives up."""
    RESET = "reset"
    """No effect, and the connection is reset."""
    LOST_REPLY = "lost_reply"
    """The effect happens, then the connection is reset."""
    CLOSED = "closed"
    """No effect, and the connection is closed in good order, without a reply."""
    HTML_502 = "html_502"
    """The effect happens; a proxy on the way back answers 502 with a page of its own."""
    GARBAGE = "garbage"
    """The effect happens; the reply is a success whose body is a page of text."""
    WRONG_SHAPE = "wrong_shape"
    """The effect happens; the reply is a success in the right syntax that says something else."""
    NULLS = "nulls"
    """The effect happens; the reply is a success in which every value is missing."""
    TRUNCATED = "truncated"
    """The effect happens; the connection is closed in the middle of the body."""
    HOLD = "hold"
    """The call waits for its release before its effect; a client that goes away takes the call with it."""
    HOLD_AFTER = "hold_after"
    """The effect happens; the reply waits for its release."""
    LAG = "lag"
    """The effect happens, and the next calls do not know yet of what was made."""
    LIST_LAG = "list_lag"
    """The same, but only lists lack it: who asks for it by its id finds it."""


LAGS = frozenset({FaultKind.LAG, FaultKind.LIST_LAG})
"""These change no reply of the call they are planted on, and so come on top of another fault of it."""


class Fault(BaseModel):
    """One planted fault. It lets `skip` matching calls pass, then hits `times` of them."""

    model_config = ConfigDict(extra="forbid")

    call: str | None = None
    """Name of the call; None matches every call."""
    node: str | None = None
    """Name of a node or of the object called upon; None matches all."""
    fault: FaultKind
    times: int = Field(default=1, ge=1)
    skip: int = Field(default=0, ge=0)
    misses: int = Field(default=3, ge=1)
    """How many calls miss what the call made, of a lag."""


class Held(BaseModel):
    """A call that waits for its release."""

    id: int
    call: str
    node: str | None
    fault: FaultKind


@dataclass
class Lag:
    """Objects that calls do not know of yet."""

    ids: frozenset[str]
    lists_only: bool
    misses: int
    missed: bool = False
    """Whether the present call would have known of one."""

    def hides(self, object_id: str, *, listed: bool) -> bool:
        """Whether the present call must not see the object; `listed` if it looks at all there are."""
        hidden = object_id in self.ids and (listed or not self.lists_only)
        self.missed = self.missed or hidden
        return hidden


class Faults:
    """The planted faults and the calls they hold."""

    def __init__(self) -> None:
        self.planted: list[Fault] = []
        self._ids = count(1)
        self._held: dict[int, tuple[Held, asyncio.Event]] = {}
        self._lags: list[Lag] = []

    @property
    def held(self) -> list[Held]:
        return [held for held, _ in self._held.values()]

    def plant(self, fault: Fault) -> None:
        self.planted.append(fault)

    def clear(self) -> None:
        """Removes every fault and lets held calls go on."""
        self.planted.clear()
        self._lags.clear()
        self.release()

    def take(self, call: str, names: Collection[str]) -> FaultKind | None:
        """The fault that hits this call, used up once. The first planted one that matches decides."""
        fault = self._take(call, names, [each for each in self.planted if each.fault not in LAGS])
        return fault.fault if fault else None

    def take_lag(self, call: str, names: Collection[str]) -> Fault | None:
        """The lag that hits this call, used up once."""
        return self._take(call, names, [each for each in self.planted if each.fault in LAGS])

    def _take(self, call: str, names: Collection[str], planted: list[Fault]) -> Fault | None:
        for fault in planted:
            if fault.call not in (None, call) or (fault.node is not None and fault.node not in names):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.times -= 1
            if not fault.times:
                self.planted.remove(fault)
            return fault
        return None

    def hide(self, made: frozenset[str], fault: Fault) -> None:
        """Let the next `fault.misses` calls that would know of what was made not know of it."""
        self._lags.append(Lag(made, fault.fault is FaultKind.LIST_LAG, fault.misses))

    @contextmanager
    def lags(self) -> Iterator[list[Lag]]:
        """The lags of one call, each counted where that call missed something."""
        for lag in self._lags:
            lag.missed = False
        try:
            yield list(self._lags)
        finally:
            for lag in self._lags:
                lag.misses -= lag.missed
            self._lags = [lag for lag in self._lags if lag.misses]

    async def hold(self, call: str, node: str | None, fault: FaultKind) -> None:
        """Waits for `release`, however long: who plants a hold also ends it."""
        held = Held(id=next(self._ids), call=call, node=node, fault=fault)
        released = asyncio.Event()
        self._held[held.id] = (held, released)
        try:
            await released.wait()
        finally:
            del self._held[held.id]

    def release(self) -> int:
        """Lets all held calls go on; returns how many there were."""
        for _, released in self._held.values():
            released.set()
        return len(self._held)
