"""vLLM itself, in the environment that `make test-engine` has installed; a test that cannot have it fails."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

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
    subprocess.run([python, HERE / "tiny_models.py", folder], check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return folder


class Judge:
    """vLLM's own parser, in a process of its own."""

    def __init__(self, python: Path) -> None:
        self._process = subprocess.Popen(
            [python, HERE / "parser_judge.py"], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.options: list[dict[str, Any]] = self._read()
        self.names = {name: each["dest"] for each in self.options for name in each["names"]}

    def __call__(self, words: Sequence[str]) -> dict[str, Any]:
        """What it makes of the words: `values` by destination, or `error`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(list(words)) + "\n")
        self._process.stdin.flush()
        return self._read()  # type: ignore[no-any-return]

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def judge(python: Path) -> Iterator[Judge]:
    made = Judge(python)
    yield made
    made.close()
