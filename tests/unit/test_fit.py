"""The fit planner against vLLM's own words: published start-up logs, and known answers."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet.fit import Architecture, FitReport, FitRequest, Gpu, VllmVersion, gpu, gpu_from_memory, plan
from fleet.fit.kv_cache import kv_capacity
from fleet.fit.versions import BatchLimits
from fleet.models import model_config

LOGS: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "data" / "vllm_startup_logs.yaml").read_text(encoding="utf-8")
)
_OF_THE_REQUEST = (
    "max_model_len",
    "gpu_memory_utilization",
    "weights_gib",
    "quantization",
    "kv_cache_dtype",
    "max_num_seqs",
    "max_num_batched_tokens",
    "use_v1",
)


def replay(log: dict[str, Any]) -> FitReport:
    card = gpu(log["gpu"])
    ranks, stages = log.get("tensor_parallel_size", 1), log.get("pipeline_parallel_size", 1)
    return plan(
        FitRequest(
            architecture=Architecture.from_config(model_config(log["model"])),
            gpu=Gpu(card.name, card.nominal_gb, (log["gpu_memory_gib"],), card.compute_capability),
            gpus=ranks * stages,
            tensor_parallel_size=ranks,
            pipeline_parallel_size=stages,
            version=VllmVersion.parse(log["vllm_version"]),
            enforce_eager=log.get("enforce_eager", False),
            **{name: log[name] for name in _OF_THE_REQUEST if name in log},
        ),
        suggest=False,
    )


def cache_errors(logs: list[dict[str, Any]]) -> list[float]:
    """Relative errors of the cache size, smallest first, of those logs that state one."""
    errors = []
    for log in logs:
        if "kv_cache_tokens" in log:
            errors.append(abs(replay(log).kv_cache_tokens / log["kv_cache_tokens"] - 1))
        elif log.get("available_kv_gib", 0) > 0:
            errors.append(abs(replay(log).available_kv_gib / log["available_kv_gib"] - 1))
    return sorted(errors)


def test_the_verdict_agrees_with_published_logs_in_at_least_95_percent() -> None:
    wrong = [f"{log['source']} {log['model']}" for log in LOGS if replay(log).fits != log["fits"]]

    assert len(LOGS) >= 50
    assert len(wrong) <= 0.05 * len(LOGS), wrong


@pytest.mark.parametrize("held_out", [False, True])
def test_cache_sizes_agree_with_published_logs(held_out: bool) -> None:
    errors = cache_errors([log for log in LOGS if log["calibration"] != held_out])

    assert len(errors) >= 15
    assert statistics.median(errors) <= 0.10
    assert errors[int(0.9 * len(errors))] <= 0.20


@pytest.mark.parametrize(
    ("model", "dtype_bytes", "gib", "tokens"),
    [
        # Logged beside each other: "Available KV cache memory" and "GPU KV cache size".
        ("Qwen/Qwen3-14B", 2, 6.51, 42_656),
        ("Qwen/Qwen3-30B-A3B", 1, 10.55, 230_528),
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", 2, 28.20, 184_832),
        # Kimi K2 has DeepSeek V3's latent attention: the same cache on each of 8 ranks.
        ("deepseek-ai/DeepSeek-V3", 2, 46.80, 715_072),
    ],
)
def test_bytes_of_a_token_are_those_of_the_engine(
    model: str, dtype_bytes: int, gib: float, tokens: int
) -> None:
    architecture = Architecture.from_config(model_config(model))

    capacity = kv_capacity(
        architecture,
        gib * 2**30,
        max_model_len=8192,
        limits=BatchLimits(2048, 256),
        version=VllmVersion(0, 11),
        v1=True,
        tensor_parallel_size=8 if architecture.latent else 1,
        pipeline_parallel_size=1,
        value_bytes=dtype_bytes,
    )

    assert capacity.tokens == pytest.approx(tokens, rel=0.001)


def qwen3_32b(card: str, gpus: int, ranks: int) -> FitReport:
    return plan(
        FitRequest(
            architecture=Architecture.from_config(model_config("Qwen/Qwen3-32B-AWQ")),
            gpu=gpu(card),
            gpus=gpus,
            tensor_parallel_size=ranks,
            max_model_len=131072,
            gpu_memory_utilization=0.95,
            quantization="awq_marlin",
            version=VllmVersion(0, 9, 2),
            swap_space_gib=16,
        )
    )


@pytest.mark.parametrize(
    ("card", "gpus", "ranks", "fits", "reason", "suggestion"),
    [
        ("L4", 2, 2, False, "needs 16.00 GiB of KV cache a GPU, 10.10 GiB", {"kv_cache_dtype": "fp8"}),
        ("L40S", 2, 2, True, "1.96 requests of 131,072 tokens at once", None),
        ("RTX-4000-Ada", 2, 2, False, "7.75 GiB are left", {"kv_cache_dtype": "fp8", "max_num_seqs": 128}),
        ("H100-80GB", 1, 2, False, "needs 2 GPUs, there are 1", {"tensor_parallel_size": 1}),
        ("H100-80GB", 1, 1, True, "1.61 requests of 131,072 tokens at once", None),
        ("A10G", 2, 2, False, "10.13 GiB are left", {"max_model_len": 82944}),
        ("RTX-4000-Ada", 4, 2, False, "7.75 GiB are left", {"tensor_parallel_size": 4}),
        ("RTX-4000-Ada", 4, 4, True, "1.50 requests of 131,072 tokens at once", None),
    ],
)
def test_the_32b_model_at_131072_tokens_is_judged_with_its_reason(
    card: str, gpus: int, ranks: int, fits: bool, reason: str, suggestion: dict[str, Any] | None
) -> None:
    report = qwen3_32b(card, gpus, ranks)

    assert report.fits is fits
    assert reason in report.reason
    assert report.suggestion == suggestion


def test_a_context_beyond_the_config_is_pointed_out() -> None:
    assert "rope scaling" in qwen3_32b("L40S", 2, 2).warnings[0]


def test_the_machine_needs_ram_for_processes_and_swap_and_disk_for_image_and_weights() -> None:
    report = qwen3_32b("L40S", 2, 2)

    assert report.host_memory_gib == pytest.approx(4 + 2 * (4 + 16) + 10)
    assert report.disk_gib == pytest.approx(2 * report.weights_gib_per_gpu + 40)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tensor_parallel_size": 3, "gpus": 3}, "tensor_parallel_size 3 does not divide the model's 32"),
        ({"tensor_parallel_size": 4, "gpus": 2}, "needs 4 GPUs, there are 2"),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, "x pipeline_parallel_size 2 needs 4 GPUs"),
        ({"gpu": gpu("T4"), "quantization": "fp8"}, "fp8 needs compute capability 8.0, a T4 has 7.5"),
        ({"gpu_memory_utilization": 0.99}, "less than the CUDA context already holds"),
        ({"gpu_memory_utilization": 0.2}, "the weights take 15.3 GiB a GPU, more than the 4.4 GiB"),
        ({"gpu_memory_utilization": 0.75}, "no room for the KV cache"),
    ],
)
def test_a_misfit_names_what_stands_in_its_way(changes: dict[str, Any], reason: str) -> None:
    values = {
        "architecture": Architecture.from_config(model_config("Qwen/Qwen3-8B")),
        "gpu": gpu("L4"),
        "gpus": 1,
        "max_model_len": 8192,
        "version": VllmVersion(0, 9, 2),
    }

    report = plan(FitRequest(**{**values, **changes}))

    assert not report.fits
    assert reason in report.reason


@pytest.mark.parametrize(
    ("asked", "stored", "fits"),
    [
        ("awq_marlin", "awq", True),
        ("gptq", "awq", False),
        ("fp8", "compressed-tensors", False),
        ("awq_marlin", None, True),
    ],
)
def test_a_quantization_that_contradicts_the_checkpoint_is_refused(
    asked: str, stored: str | None, fits: bool
) -> None:
    config = {**model_config("Qwen/Qwen3-8B"), "quantization_config": stored and {"quant_method": stored}}
    report = plan(
        FitRequest(Architecture.from_config(config), gpu("L40S"), max_model_len=8192, quantization=asked)
    )

    assert report.fits is fits
    if not fits:
        assert f"{asked} contradicts the {stored}" in report.reason
        assert report.suggestion == {"quantization": stored}


def test_a_share_that_leaves_the_context_no_room_is_lowered() -> None:
    report = plan(
        FitRequest(
            Architecture.from_config(model_config("Qwen/Qwen3-8B")),
            gpu("L4"),
            max_model_len=8192,
            gpu_memory_utilization=0.99,
        )
    )

    assert report.suggestion == {"gpu_memory_utilization": 0.95}


def test_a_marketing_size_stands_for_what_such_a_card_reports() -> None:
    assert gpu_from_memory(24).memory_gib == 22.03
    assert gpu_from_memory(23.65).memory_gib == 23.65
    assert gpu_from_memory(79.15).is_a100
    assert not gpu_from_memory(80).is_a100


@pytest.mark.parametrize(
    ("field", "value"),
    [("gpus", 0), ("gpu_memory_utilization", 90.0), ("weights_gib", -1.0), ("max_model_len", 0)],
)
def test_an_impossible_number_is_refused_with_its_name(field: str, value: float) -> None:
    llama = Architecture.from_config(model_config("meta-llama/Llama-3.1-8B-Instruct"))

    with pytest.raises(ValueError, match=f"{field}: {value}"):
        FitRequest(llama, gpu("L4"), **{field: value})


def test_an_image_reference_names_its_release() -> None:
    assert VllmVersion.parse("registry.example:5000/vllm/vllm-openai:v0.9.2") == VllmVersion(0, 9, 2)
    with pytest.raises(ValueError, match="names no vLLM release"):
        VllmVersion.parse("vllm/vllm-openai:latest")
