"""Of repositories on a hub, what is fetched ahead of vLLM is what its own loader fetches and loads."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from layouts import LAYOUTS, is_weight
from local_hub import COMMIT, serving
from test_weights import choice

from fleet.weights import Source
from tools import vllm_cpu

HERE = Path(__file__).parent
RELEASE = (0, 32, 0)
ASKED = [
    *((name, "auto", None) for name in LAYOUTS if name not in ("gguf", "adapter")),  # other loaders'
    ("sharded with original", "auto", COMMIT),
    ("mistral", "hf", None),
    ("safetensors and bin", "npcache", None),
    ("pt alone", "pt", None),
    ("pt alone", "safetensors", None),
]
"""Layout, load format and revision."""


@pytest.fixture(scope="module")
def answers(python: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[set[str], dict[str, Any]]]:
    """For each of ASKED: the files whose content vLLM asked the hub for, and what its loader then says."""
    repositories = {f"acme/{number}": LAYOUTS[name] for number, (name, *_) in enumerate(ASKED)}
    questions = [
        {"repo": repo, "load_format": load_format, "revision": revision}
        for repo, (_, load_format, revision) in zip(repositories, ASKED, strict=True)
    ]
    cache = {"HF_HOME": str(tmp_path_factory.mktemp("cache")), "HF_HUB_OFFLINE": "0"}
    with serving(repositories) as hub:
        done = subprocess.run(
            [python, HERE / "vllm_loader.py"],
            input=json.dumps(questions),
            env=os.environ | cache | {"HF_ENDPOINT": hub.url},
            stdout=subprocess.PIPE,
            text=True,
            timeout=600,
            check=True,
        )
        fetched = [
            {each.removeprefix(f"{repo}/") for each in hub.fetched() if each.startswith(f"{repo}/")}
            for repo in repositories
        ]
    return list(zip(fetched, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("number", range(len(ASKED)), ids=[f"{name}, {kind}" for name, kind, _ in ASKED])
def test_the_weights_fetched_ahead_are_those_that_vllm_fetches_and_loads(
    answers: list[tuple[set[str], dict[str, Any]]], number: int
) -> None:
    name, load_format, revision = ASKED[number]
    files, (fetched, said) = LAYOUTS[name], answers[number]
    source = Source(f"acme/{number}", RELEASE, revision or "main", load_format=load_format)
    ours = choice(files, source)
    assert set(filter(is_weight, ours.downloaded)) == set(filter(is_weight, fetched))
    assert sorted(ours.loaded) == said.get("loaded", []), said


def test_the_loader_that_judges_is_of_the_release_that_is_judged() -> None:
    assert ".".join(map(str, RELEASE)) == vllm_cpu.VERSION
