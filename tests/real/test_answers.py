"""What vLLM itself answers to the questions that the simulator is asked every day."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from vllm_node import Served
from vllm_questions import QUESTIONS, ask, families

from tools.vllm_cpu import VERSION

RECORDED = Path(__file__).parents[1] / "data" / f"vllm_answers_{VERSION}.json"

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_its_answers_are_those_that_are_recorded(
    served: Served, request: pytest.FixtureRequest
) -> None:
    """`pytest tests/real/test_answers.py --snapshot-update` records them again."""
    async with served.client() as client:
        answers = {question.name: asdict(await ask(client, question)) for question in QUESTIONS}
        metrics = families((await client.get("/metrics")).text)
    found = json.dumps({"answers": answers, "metrics": metrics}, indent=1, sort_keys=True) + "\n"
    if request.config.getoption("update_snapshots"):
        RECORDED.write_text(found)
    assert json.loads(found) == json.loads(RECORDED.read_text())
