"""Faults that tests plant in the embedded clouds."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from enum import StrEnum
from itertools import count

from pydantic import BaseModel, ConfigDict, Field


class FaultKind(StrEnum):
    """What goes wrong with a call."""

    RATE_LIMITED = "429"
    SERVER_ERROR = "500"
    UNAVAILABLE = "503"
    FORBIDDEN = "403"
    QUOTA = "quota"
    OUT_OF_STOCK = "out_of_stock"
    TIMEOUT = "timeout"
    """No effect, and silence until the client gives up."""
    RESET = "reset"
    """No effect, and the connection is reset."""
    LOST_REPLY = "lost_reply"
    """The effect happens, then the connection is reset."""
    HOLD = "hold"
    """The call waits for its release before its effect; a client that goes away takes the call with it."""
    HOLD_AFTER = "hold_after"
    """The effect happens; the reply waits for its release."""


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


class Held(BaseModel):
    """A call that waits for its release."""

    id: int
    call: str
    node: str | None
    fault: FaultKind


class Faults:
    """The planted faults and the calls they hold."""

    def __init__(self) -> None:
        self.planted: list[Fault] = []
        self._ids = count(1)
        self._held: dict[int, tuple[Held, asyncio.Event]] = {}

    @property
    def held(self) -> list[Held]:
        return [held for held, _ in self._held.values()]

    def plant(self, fault: Fault) -> None:
        self.planted.append(fault)

    def clear(self) -> None:
        """Removes every fault and lets held calls go on."""
        self.planted.clear()
        self.release()

    def take(self, call: str, names: Collection[str]) -> FaultKind | None:
        """The fault that hits this call, used up once. The first planted one that matches decides."""
        for fault in self.planted:
            if fault.call not in (None, call) or (fault.node is not None and fault.node not in names):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.times -= 1
            if not fault.times:
                self.planted.remove(fault)
            return fault.fault
        return None

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
