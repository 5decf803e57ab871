"""Failed starts of vLLM itself: `fleet diagnose` names each from the log that it leaves."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from container import CPU, environment
from typer.testing import CliRunner

from fleet.cli import app
from tools import vllm_cpu

MODEL = "tiny/qwen3"
SNAPSHOT = Path("hub/models--tiny--qwen3/snapshots") / ("0" * 40)
START_S = 600.0
"""Seconds for a start to fail; the slowest is one that fails in its worker."""

BY_ARGUMENTS = {
    "bad_flag": ["--no-such-flag"],
    "bad_flag ": ["--dtype", "foo"],
    "bad_json_argument": ["--speculative-config", "{bad"],
    "ambiguous_flag": ["--max-num", "4"],
    "reasoning_parser_unknown": ["--reasoning-parser", "nosuch"],
    "tool_parser_unknown": ["--enable-auto-tool-choice", "--tool-call-parser", "nosuch"],
    "context_too_long": ["--max-model-len", "100000"],
    "quantization_unknown": ["--quantization", "nosuch"],
    "chat_template_missing": ["--chat-template", "/nosuch/template.jinja"],
    # 1 GiB holds 2,097,152 tokens of this model.
    "kv_cache_too_small": [
        *("--hf-overrides.max_position_embeddings", "2500000"),
        *("--max-model-len", "2500000"),
    ],
}


def log_of(models: Path, folder: Path, model: str, words: list[str]) -> Path:
    """The log of a start that fails."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    log = folder / "vllm.log"
    with log.open("w") as file:
        done = subprocess.run(
            [vllm_cpu.program(), "serve", model, "--host", "127.0.0.1", "--port", port, *CPU, *words],
            env=environment(models),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=START_S,
            check=False,
        )
    assert done.returncode != 0, log.read_text()
    return log


def named(log: Path) -> dict[str, str]:
    """What `fleet diagnose` makes of it."""
    done = CliRunner().invoke(app, ["diagnose", "--json", "--log", str(log)])
    assert done.exit_code in (0, 3), done.output
    return json.loads(done.output)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("fault", "words"), BY_ARGUMENTS.items(), ids=str)
def test_arguments_that_it_refuses(models: Path, tmp_path: Path, fault: str, words: list[str]) -> None:
    log = log_of(models, tmp_path, MODEL, words)
    assert named(log)["fault"] == fault.strip(), log.read_text()[-3000:]


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Iterator[Path]:
    """The model as a folder that a test may spoil."""
    made = tmp_path / "model"
    shutil.copytree(models / SNAPSHOT, made)
    return made


def change(model: Path, **changes: object) -> None:
    config = model / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))


def test_a_folder_that_is_not_there(models: Path, tmp_path: Path) -> None:
    log = log_of(models, tmp_path, "/models/nothing", [])
    assert named(log)["fault"] == "model_path_missing", log.read_text()[-3000:]


def test_an_architecture_it_does_not_know(models: Path, tmp_path: Path, copy: Path) -> None:
    change(copy, architectures=["NoSuchForCausalLM"], model_type="nosuch")
    log = log_of(models, tmp_path, str(copy), [])
    assert named(log)["fault"] == "architecture_unknown", log.read_text()[-3000:]


def test_heads_that_do_not_divide(models: Path, tmp_path: Path, copy: Path) -> None:
    log = log_of(models, tmp_path, str(copy), ["--tensor-parallel-size", "3"])
    assert named(log)["fault"] == "heads_not_divisible", log.read_text()[-3000:]


def test_no_weights(models: Path, tmp_path: Path, copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    log = log_of(models, tmp_path, str(copy), [])
    assert named(log)["fault"] == "weights_missing", log.read_text()[-3000:]


def test_a_port_that_is_taken(models: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        log = log_of(models, tmp_path, MODEL, ["--port", str(taken.getsockname()[1])])
    assert named(log)["fault"] == "port_taken", log.read_text()[-3000:]
