"""What this stack's own state holds, asked of the engine, which has it open: no cloud is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
from tenacity import AsyncRetrying, retry_if_exception_message, stop_after_delay, wait_exponential

READ_S = 30
"""Seconds in which the state must have been readable once."""


PATIENTLY: Mapping[str, Any] = {
    "retry": retry_if_exception_message(match=".*failed to load checkpoint"),
    "stop": stop_after_delay(READ_S),
    "wait": wait_exponential(multiplier=0.05, max=2),
    "reraise": True,
}
"""How to read a state in a file: an engine that updates rewrites it in place, and a reader may find half."""


async def outputs() -> Mapping[str, Any]:
    """The outputs of the last update; empty of a stack that has none. Raises what the engine answers."""
    return await _read("pulumi:pulumi:readStackOutputs", "name")


async def resources() -> Mapping[str, Any]:
    """The resources by their URNs, each with `outputs`. Raises what the engine answers."""
    return await _read("pulumi:pulumi:readStackResourceOutputs", "stackName")


async def _read(function: str, key: str) -> Mapping[str, Any]:
    stack = f"{pulumi.get_organization()}/{pulumi.get_project()}/{pulumi.get_stack()}"
    reply: Any = await AsyncRetrying(**PATIENTLY)(pulumi.runtime.invoke_async, function, {key: stack})
    return (reply or {}).get("outputs") or {}
