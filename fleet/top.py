"""What a node's vLLM and node agent measure: GPU and KV-cache use, requests, tokens a second."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

from fleet import layout
from fleet.inventory import FleetNode, InventoryError
from fleet.ssh import Connection, NothingListens, SshError, Timeout, connect

HTTP_TIMEOUT_S = 5.0

KV_CACHE_METRICS = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
"""A share from 0 to 1; the second is its name up to vLLM 0.9."""

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{.*\})?\s+(\S+)", re.MULTILINE)

Metrics = dict[str, list[float]]
"""Values by metric, one for each set of labels."""


@dataclass(frozen=True)
class Sample:
    """One look at a node. Shares are from 0 to 1; None where nothing tells."""

    node: str
    at: float
    """Seconds on the monotonic clock."""
    gpus: int | None = None
    gpu_utilization: float | None = None
    """Mean over the GPUs."""
    gpu_memory: float | None = None
    """Used share of all GPUs' memory."""
    kv_cache: float | None = None
    running: int | None = None
    waiting: int | None = None
    tokens: float | None = None
    """Generated since vLLM started."""
    prompt_tokens: float | None = None
    restarts: int | None = None
    """Of vLLM, as the agent counted them."""
    error: str = ""


@dataclass(frozen=True)
class Row:
    """A node's line: the newest sample, and rates since the one before."""

    sample: Sample
    tokens_per_s: float | None
    prompt_tokens_per_s: float | None


def parse(text: str) -> Metrics:
    """Prometheus' text format, without labels, times and comments."""
    metrics: Metrics = {}
    for name, value in _SAMPLE.findall(text):
        metrics.setdefault(name, []).append(float(value))
    return metrics


def row(before: Sample | None, now: Sample) -> Row:
    """The rates between two samples; a counter that went back belongs to a vLLM that started anew."""

    def rate(old: float | None, new: float | None) -> float | None:
        if before is None or old is None or new is None or new < old or now.at <= before.at:
            return None
        return (new - old) / (now.at - before.at)

    return Row(
        now,
        rate(before.tokens if before else None, now.tokens),
        rate(before.prompt_tokens if before else None, now.prompt_tokens),
    )


def sample(node: str, at: float, vllm: Metrics, agent: Metrics, error: str = "") -> Sample:
    """One look, from what both answered; either may be empty."""
    used, total = (
        agent.get("vllm_fleet_gpu_memory_used_bytes"),
        agent.get("vllm_fleet_gpu_memory_total_bytes"),
    )
    busy = agent.get("vllm_fleet_gpu_utilization_ratio")
    kv_cache = next((vllm[name] for name in KV_CACHE_METRICS if name in vllm), None)
    return Sample(
        node,
        at,
        gpus=_whole(agent.get("vllm_fleet_gpus")),
        gpu_utilization=sum(busy) / len(busy) if busy else None,
        gpu_memory=sum(used) / sum(total) if used and total else None,
        kv_cache=max(kv_cache) if kv_cache else None,
        running=_whole(vllm.get("vllm:num_requests_running")),
        waiting=_whole(vllm.get("vllm:num_requests_waiting")),
        tokens=_sum(vllm.get("vllm:generation_tokens_total")),
        prompt_tokens=_sum(vllm.get("vllm:prompt_tokens_total")),
        restarts=_whole(agent.get("vllm_fleet_vllm_restarts_total")),
        error=error,
    )


def _sum(values: list[float] | None) -> float | None:
    return sum(values) if values else None


def _whole(values: list[float] | None) -> int | None:
    return int(sum(values)) if values else None


async def watch(nodes: Sequence[FleetNode], interval_s: float) -> AsyncGenerator[list[Row], None]:
    """The nodes' rows every `interval_s` seconds, over sessions that are kept open and opened anew when lost.

    The first ones have no rates.
    """
    before: list[Sample | None] = [None for _ in nodes]
    async with AsyncExitStack() as stack:
        meters = [await stack.enter_async_context(_Meter(node)) for node in nodes]
        while True:
            samples = await asyncio.gather(*(meter.read() for meter in meters))
            yield [row(old, new) for old, new in zip(before, samples, strict=True)]
            before = list(samples)
            await asyncio.sleep(interval_s)


class _Meter:
    """Reads one node again and again over one session."""

    def __init__(self, node: FleetNode) -> None:
        self._node = node
        self._stack = AsyncExitStack()
        self._session: Connection | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def read(self) -> Sample:
        """The node's newest figures; what could not be had is None, with the reason in `error`."""
        try:
            if self._session is None:
                self._session = await self._stack.enter_async_context(connect(self._node.reachable()))
            # A worker of a Ray cluster serves through its head.
            serving = self._node.ports.get("vllm")
            vllm, agent = await asyncio.gather(
                _metrics(self._session, serving), _metrics(self._session, layout.AGENT_PORT)
            )
        except (SshError, InventoryError) as error:
            await self._stack.aclose()
            self._session = None
            return Sample(self._node.name, time.monotonic(), error=str(error))
        answers = [*([("vLLM", vllm)] if serving else []), ("the node agent", agent)]
        silent = [name for name, metrics in answers if not metrics]
        missing = f"{' and '.join(silent)} did not answer" if silent else ""
        return sample(self._node.name, time.monotonic(), vllm, agent, missing)


async def _metrics(session: Connection, port: int | None) -> Metrics:
    """What is measured behind this port; nothing if there is none, or nobody answers there."""
    if port is None:
        return {}
    try:
        reply = await session.http("GET", port, "/metrics", timeout_s=HTTP_TIMEOUT_S)
    except (NothingListens, Timeout):
        return {}
    return parse(reply.body.decode(errors="replace")) if reply.status == 200 else {}
