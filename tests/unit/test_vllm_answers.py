"""The simulator's answers, held to those that vLLM itself has given: see tests/real/test_answers.py."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_vllm_sim import serving
from vllm_questions import KEY, LENGTH, MODEL, QUESTIONS, Question, ask, families

from simcloud.vllm_flags import parse_options
from simcloud.vllm_sim import Simulator

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "vllm_answers_0.32.0.json").read_text())
DIFFERENT = {
    "responses": "the simulator completes and chats, no more",
    "messages": "likewise",
}
"""What the simulator answers otherwise, and why; as in docs/verification.md."""


def simulator(version: str = "0.32.0") -> Simulator:
    words = [
        *("--model", "tiny/qwen3", "--served-model-name", MODEL, "--max-model-len", str(LENGTH)),
        *("--enable-lora", "--lora-modules", "sql=/files/adapter"),
    ]
    options = parse_options(words, {"VLLM_API_KEY": KEY}, version)
    return Simulator(options, version=version, speed=0.0, log=lambda line: None)


def plain(answer: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(asdict(answer)))


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
async def test_it_answers_as_vllm_does(question: Question) -> None:
    async with serving(simulator()) as url, httpx.AsyncClient(base_url=url) as client:
        same = plain(await ask(client, question)) == RECORDED["answers"][question.name]
        assert same is (question.name not in DIFFERENT), (
            plain(await ask(client, question)),
            RECORDED["answers"][question.name],
        )


async def test_it_measures_what_vllm_does() -> None:
    async with serving(simulator()) as url, httpx.AsyncClient(base_url=url) as client:
        assert families((await client.get("/metrics")).text) == RECORDED["metrics"]


async def test_errors_of_older_releases_have_no_object_of_their_own() -> None:
    question = next(each for each in QUESTIONS if each.name == "completion of another model")
    async with serving(simulator("0.10.0")) as url, httpx.AsyncClient(base_url=url) as client:
        assert set((await ask(client, question)).shape) == {"object", "message", "type", "param", "code"}
    async with serving(simulator("0.10.1")) as url, httpx.AsyncClient(base_url=url) as client:
        assert set((await ask(client, question)).shape) == {"error"}


@pytest.mark.parametrize(
    ("version", "named", "unknown"),
    [
        ("0.9.2", "vllm:gpu_cache_usage_perc", "vllm:kv_cache_usage_perc"),
        ("0.10.0", "vllm:kv_cache_usage_perc", "vllm:inter_token_latency_seconds"),
    ],
)
async def test_metrics_are_those_of_the_release(version: str, named: str, unknown: str) -> None:
    async with serving(simulator(version)) as url, httpx.AsyncClient(base_url=url) as client:
        published = families((await client.get("/metrics")).text)
    assert named in published
    assert unknown not in published
