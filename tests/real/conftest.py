"""vLLM itself, in the environment that `make test-engine` has installed; a test that cannot have it fails."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from vllm_node import Judge, Served, node_with, serving

from tools import vllm_cpu

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter of vLLM's environment."""
    if not vllm_cpu.program().exists():
        pytest.fail(f"{vllm_cpu.program()} does not exist; run `make test-engine`, which installs it")
    return vllm_cpu.folder() / "bin" / "python"


@pytest.fixture(scope="session")
def models(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that tiny_models.py has filled."""
    folder = tmp_path_factory.mktemp("models")
    subprocess.run(
        [python, HERE / "tiny_models.py", folder], check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    return folder


@pytest.fixture(scope="session")
def judge(python: Path) -> Iterator[Judge]:
    made = Judge(python)
    yield made
    made.close()


@pytest.fixture(scope="session")
def transcript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs of every container, one after the other."""
    return tmp_path_factory.mktemp("logs") / "vllm.log"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def served(
    models: Path, transcript: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """The node, once its model answers."""
    folder = tmp_path_factory.mktemp("node")
    async with node_with(models, folder, transcript, serving(models)) as operator:
        yield Served(operator, transcript)
