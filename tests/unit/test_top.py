"""`fleet top`: figures from what vLLM and the node agent publish."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from pathlib import Path

import pytest
from light_fleet import DEADLINE_S, LightFleet, light_fleet, until
from test_light_nodes import KEY, MODEL, user_data
from test_tunnel import deliver

from fleet.commands.top import document, table
from fleet.ssh import Connection, NothingListens, connect
from fleet.top import Sample, parse, row, sample, watch

VLLM = """# HELP vllm:num_requests_running Number of requests
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m {odd}"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:generation_tokens_total{engine="0",model_name="a"} 1.5e+03
vllm:generation_tokens_total{engine="0",model_name="b"} 500
"""
AGENT = """vllm_fleet_gpus 2
vllm_fleet_gpu_memory_total_bytes{gpu="0"} 100
vllm_fleet_gpu_memory_total_bytes{gpu="1"} 100
vllm_fleet_gpu_memory_used_bytes{gpu="0"} 90
vllm_fleet_gpu_memory_used_bytes{gpu="1"} 70
vllm_fleet_gpu_utilization_ratio{gpu="0"} 1
vllm_fleet_gpu_utilization_ratio{gpu="1"} 0.5
vllm_fleet_vllm_restarts_total 1
"""


def test_figures_are_those_published_over_all_gpus_and_models() -> None:
    seen = sample("a", 0.0, parse(VLLM), parse(AGENT))
    assert (seen.running, seen.waiting, seen.kv_cache, seen.tokens) == (3, 2, 0.25, 2000.0)
    assert (seen.gpus, seen.gpu_utilization, seen.gpu_memory, seen.restarts) == (2, 0.75, 0.8, 1)


def test_newer_engines_name_the_kv_cache_otherwise() -> None:
    assert sample("a", 0.0, parse("vllm:kv_cache_usage_perc 0.5\n"), {}).kv_cache == 0.5


def test_nothing_is_made_up_for_what_nobody_tells() -> None:
    seen = sample("a", 0.0, {}, {})
    assert (seen.running, seen.kv_cache, seen.gpu_utilization, seen.tokens) == (None, None, None, None)


@pytest.mark.parametrize(
    ("before", "now", "rate"),
    [
        (None, Sample("a", 2.0, tokens=10), None),
        (Sample("a", 1.0, tokens=10), Sample("a", 3.0, tokens=110), 50.0),
        (Sample("a", 1.0, tokens=110), Sample("a", 3.0, tokens=10), None),  # vLLM started anew
        (Sample("a", 1.0, error="lost"), Sample("a", 3.0, tokens=10), None),
    ],
)
def test_a_rate_needs_two_looks_at_the_same_engine(before: Sample | None, now: Sample, rate: float) -> None:
    assert row(before, now).tokens_per_s == rate


async def test_nodes_are_watched_over_ssh_and_a_lost_one_comes_back(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 2, user_data()) as fleet:
        await serve(fleet)
        await fleet.backend.stop(fleet.nodes[1].server_id)
        async with aclosing(watch(fleet.nodes, 0.01)) as looks:
            _, lost = await anext(looks)
            async with connect(fleet.target(0)) as session:
                await complete(session)
            served, _ = await anext(looks)
            assert lost.sample.error
            assert served.sample.error == ""
            assert served.sample.gpus == 1
            assert served.sample.running == 0
            assert served.tokens_per_s
            assert served.tokens_per_s > 0

            await fleet.backend.start(fleet.boots[1])
            async with asyncio.timeout(DEADLINE_S):
                async for _, back in looks:
                    if back.sample.gpus == 1:
                        break

    shown = document([served, lost])
    assert shown[0]["node"] == "n-0"
    assert shown[0]["gpu_memory"] > 0.5
    assert shown[1]["tokens_per_s"] is None
    assert table([served, lost]).row_count == 2


async def serve(fleet: LightFleet) -> None:
    """The first node's model answers."""
    await deliver(fleet)
    async with connect(fleet.target(0)) as session:

        async def healthy() -> bool:
            try:
                return (await session.http("GET", 8000, "/health")).status == 200
            except NothingListens:
                return False

        await until(healthy)


async def complete(session: Connection) -> None:
    body = json.dumps({"model": MODEL, "prompt": "Say something.", "max_tokens": 16}).encode()
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    reply = await session.http("POST", 8000, "/v1/completions", headers=headers, body=body)
    assert reply.status == 200
