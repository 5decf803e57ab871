"""`fleet fit` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fleet.commands.fit import MISFIT, fit
from fleet.models import hub, model_config
from fleet.models.files import ModelFiles

app = typer.Typer()
app.command()(fit)


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(model_config("Qwen/Qwen3-32B")))
    return str(path)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    return result.exit_code, result.output


def given_by_numbers(config_file: str, memory_gib: str) -> tuple[int, str]:
    return run(
        "--model-config", config_file, "--weights-gib", "18.1", "--quantization", "awq_marlin",
        "--gpu-memory-gib", memory_gib, "--gpus", "2", "--tensor-parallel-size", "2",
        "--max-model-len", "131072", "--gpu-memory-utilization", "0.95", "--json",
    )  # fmt: skip


def test_a_fit_exits_with_0_and_prints_its_numbers(config_file: str) -> None:
    code, output = given_by_numbers(config_file, "44.4")
    report = json.loads(output)

    assert code == 0
    assert sorted(report) == [
        "available_kv_gib",
        "fits",
        "kv_cache_tokens",
        "max_concurrency",
        "reason",
        "suggestion",
        "weights_gib_per_gpu",
    ]
    assert report["fits"] is True
    assert report["weights_gib_per_gpu"] == 9.05
    assert report["suggestion"] is None


def test_a_misfit_exits_with_3_and_suggests_what_fits(config_file: str) -> None:
    code, output = given_by_numbers(config_file, "22.03")

    assert code == MISFIT
    assert json.loads(output)["suggestion"] == {"kv_cache_dtype": "fp8"}


def test_a_bundled_model_is_judged_on_an_instance_type() -> None:
    code, output = run(
        *("--model", "Qwen/Qwen3-8B-AWQ", "--type", "L4-1-24G", "--max-model-len", "16384"),
        *("--vllm-version", "0.9.2", "--json"),
    )

    assert code == 0
    assert json.loads(output)["kv_cache_tokens"] == pytest.approx(91_800, rel=0.05)


def test_without_json_a_person_reads_the_verdict_and_the_fix() -> None:
    code, output = run("--model", "Qwen/Qwen3-32B", "--type", "L4-1-24G", "--vllm-version", "0.9.2")

    assert code == MISFIT
    assert "does not fit" in output
    assert "the weights take 61.0 GiB a GPU" in output
    assert "fits with gpus 4, tensor_parallel_size 4, gpu_memory_utilization 0.95" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--type", "L4-1-24G"], "--model NAME or by --model-config FILE"),
        (["--model", "Qwen/Qwen3-8B"], "--type NAME or by --gpu-memory-gib SIZE"),
        (["--model", "Qwen/Qwen3-8B", "--type", "L4-9"], "no cloud of the catalog has it"),
        (["--model", "Qwen/Qwen3-8B", "--type", "L4-1-24G", "--quantization", "odd"], "'odd' is not known"),
        (["--model-config", "/nowhere.json", "--gpu-memory-gib", "22"], "give the model's config.json"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_answered_with_the_fix(arguments: list[str], words: str) -> None:
    code, output = run(*arguments)

    assert code == 2
    assert words in output


def test_a_model_of_the_hub_is_judged_by_the_size_of_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    files = ModelFiles(model_config("Qwen/Qwen3-8B-AWQ"), weights_gib=7.5)
    monkeypatch.setattr(hub, "model_files", lambda model, token: files)
    code, output = run("--model", "acme/new", "--type", "L4-1-24G", "--max-model-len", "16384", "--json")

    assert code == 0
    assert json.loads(output)["weights_gib_per_gpu"] == 7.5
