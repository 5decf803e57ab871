"""vLLM itself in a light node's container: the gate, what it serves and what it measures."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from vllm_node import MODEL, SERVED, Served
from vllm_questions import CHAT, KEY, MODELS

from fleet import engine_log, gate, observability
from fleet.progress import Progress
from fleet.settings.observability import Observability
from fleet.ssh import connect
from fleet.top import parse, sample

pytestmark = pytest.mark.asyncio(loop_scope="session")

UNTIL_0_9 = {"vllm:gpu_cache_usage_perc"}
"""Names that newer releases do not have."""


async def check(spec: gate.GateSpec) -> gate.Report:
    return await gate.check(spec, Progress("l4-0", io.StringIO()))


def fault(report: gate.Report) -> str | None:
    return report.diagnosis.fault if report.diagnosis else None


async def test_the_gate_goes_to_100_percent(served: Served) -> None:
    report = await check(served.gate)
    assert report.ready, report
    assert [stage.percent for stage in report.stages] == [50, 60, 70, 80, 90, 95, 100]
    assert report.first_token_s is not None


async def test_the_gate_names_a_key_that_is_refused(served: Served) -> None:
    assert fault(await check(replace(served.gate, api_key="wrong-key-0123456789"))) == "key_refused"


async def test_the_gate_names_a_model_that_is_not_served(served: Served) -> None:
    assert fault(await check(replace(served.gate, served_model="other"))) == "wrong_model"


async def test_the_adapter_is_listed_and_answers(served: Served) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with served.client() as client:
        models = (await client.get(MODELS, headers=headers)).json()["data"]
        assert {each["id"]: each["parent"] for each in models} == {SERVED: None, "sql": SERVED}
        assert models[0]["root"] == MODEL
        document = {"model": "sql", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        reply = await client.post(CHAT, json=document, headers=headers)
        assert reply.status_code == 200
        assert reply.json()["model"] == "sql"


async def test_top_reads_its_metrics(served: Served) -> None:
    async with connect(served.gate.target) as node:
        metrics = (await node.http("GET", 8000, "/metrics")).body.decode()
    seen = sample("l4-0", 0.0, parse(metrics), {})
    assert (seen.running, seen.waiting) == (0, 0)
    assert seen.kv_cache is not None
    assert seen.tokens
    assert seen.prompt_tokens


async def test_every_metric_of_alerts_and_dashboards_exists(served: Served) -> None:
    files = observability.files("l4-0", 8000, Observability(enabled=True))
    watched = {name for text in files.values() for name in re.findall(r"\bvllm:\w+", text)} - UNTIL_0_9
    assert len(watched) > 5
    async with served.client() as client:
        metrics = (await client.get("/metrics")).text
    published = set(re.findall(r"^(vllm:\w+)\{", metrics, re.MULTILINE))
    assert watched <= published


async def test_a_start_that_went_well_has_no_fault_in_its_log(served: Served) -> None:
    assert engine_log.read(served.transcript.read_text()).fault is None
