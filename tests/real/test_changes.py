"""Rollouts of vLLM itself, one good and one bad, under a client's eyes; and an embedding model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from test_rollout import Operator
from vllm_node import MODEL, SERVED, Served, node_with, serving
from vllm_questions import KEY, MODELS

from fleet.diagnosis import Fault
from fleet.rollout.process import RolloutFailed

pytestmark = pytest.mark.asyncio(loop_scope="session")

AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


async def ask(client: httpx.AsyncClient) -> str:
    """One completion: `ok`, or what came instead."""
    document = {"model": SERVED, "prompt": "Hi", "max_tokens": 2}
    try:
        reply = await client.post("/v1/completions", json=document, headers=AUTHORIZED)
    except httpx.HTTPError as error:
        return type(error).__name__
    return "ok" if reply.status_code == 200 else str(reply.status_code)


async def test_a_flag_changes_and_a_bad_one_is_rolled_back(served: Served, models: Path) -> None:
    """The old release answers every request until the switch, the new one all after the gate."""
    answers: list[str] = []
    switched: list[int] = []
    served.operator.told.on_line = lambda line: (
        switched.append(len(answers)) if "rollout: switch" in line else None
    )

    async def keep_asking(client: httpx.AsyncClient) -> None:
        while True:
            answers.append(await ask(client))
            await asyncio.sleep(0.2)

    changed = serving(models, max_num_seqs=8)
    async with served.client() as client:
        asking = asyncio.create_task(keep_asking(client))
        outcome = await served.operator.roll_out(changed)
        assert await ask(client) == "ok"
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
    assert "Application startup complete" in outcome.note
    assert answers[: switched[0] - 1] == ["ok"] * (switched[0] - 1)
    assert switched[0] > 1

    # The parser takes the name, the engine does not.
    bad = serving(models, max_num_seqs=8, more=("--reasoning-parser", "nosuch"))
    with pytest.raises(RolloutFailed) as failure:
        await served.operator.roll_out(bad)
    report = str(failure.value)
    assert Fault.REASONING_PARSER_UNKNOWN.summary in report
    assert f"rolled back; release {outcome.release} serves, gated in" in report
    async with served.client() as client:
        assert await ask(client) == "ok"


@pytest_asyncio.fixture(loop_scope="session")
async def embedding(models: Path, tmp_path: Path, transcript: Path) -> AsyncIterator[Operator]:
    """A node that serves the tiny model for embeddings."""
    settings = serving(models, files={}, task="embed")
    async with node_with(models, tmp_path, transcript, settings) as operator:
        yield operator


async def test_an_embedding_model_answers_with_its_vectors(embedding: Operator) -> None:
    served = Served(embedding, Path())
    async with served.client() as client:
        assert (await client.get(MODELS, headers=AUTHORIZED)).json()["data"][0]["root"] == MODEL
        document = {"model": SERVED, "input": ["one", "two"]}
        reply = await client.post("/v1/embeddings", json=document, headers=AUTHORIZED)
        assert reply.status_code == 200
        assert [len(each["embedding"]) for each in reply.json()["data"]] == [64, 64]
        assert (await client.post("/v1/completions", json=document, headers=AUTHORIZED)).status_code == 404
