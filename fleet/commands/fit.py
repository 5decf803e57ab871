"""`fleet fit`: does this model fit these cards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.commands import output

if TYPE_CHECKING:
    from fleet.fit import Architecture, FitReport, FitRequest, Gpu, VllmVersion
    from fleet.models.files import ModelFiles

MISFIT = 3
"""Exit code for a configuration that does not fit."""


def fit(
    model: Annotated[
        str | None, typer.Option(help="A model by its hub name, for example Qwen/Qwen3-8B-AWQ.")
    ] = None,
    model_config: Annotated[Path | None, typer.Option(help="The model's config.json.")] = None,
    weights_gib: Annotated[float | None, typer.Option(help="Size of the weights, all GPUs together.")] = None,
    quantization: Annotated[str | None, typer.Option(help="As for vLLM; else the checkpoint's own.")] = None,
    type_name: Annotated[
        str | None, typer.Option("--type", help="An instance type, for example L4-1-24G.")
    ] = None,
    gpu_memory_gib: Annotated[
        float | None, typer.Option(help="Memory of a GPU as the driver reports it.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs of the machine; those of --type unless given.")
    ] = None,
    tensor_parallel_size: Annotated[
        int | None, typer.Option(help="GPUs a model is split over; all if left out.")
    ] = None,
    pipeline_parallel_size: Annotated[int, typer.Option(help="Stages the layers are cut into.")] = 1,
    max_model_len: Annotated[
        int | None, typer.Option(help="Context in tokens; the model's own if left out.")
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(help="vLLM's share of a GPU's memory.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, half, bfloat16, float32")] = "auto",
    kv_cache_dtype: Annotated[str, typer.Option(help="auto, fp8, …")] = "auto",
    max_num_seqs: Annotated[int | None, typer.Option(help="Requests of one engine step.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Tokens of one engine step.")] = None,
    vllm_version: Annotated[str, typer.Option(help="Release or image reference.")] = "0.33.0",
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="No CUDA graphs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell whether a model fits, how many tokens its KV cache holds, and what would fit if it does not.

    Exits with 0 if it fits and with 3 if it does not.

    Example: fleet fit --model Qwen/Qwen3-8B-AWQ --type L4-1-24G --max-model-len 16384
    """
    from fleet.fit import Architecture, FitRequest, VllmVersion, plan  # noqa: PLC0415  keeps `fleet --help` quick

    try:
        files = _files(model, model_config)
        architecture, stored_gib = Architecture.from_config(files.config), files.weights_gib
        # Weights that are quantized while they load are not as large as their files.
        as_stored = quantization is None or bool(architecture.quantization)
        card, there = _card(type_name, gpu_memory_gib, gpus)
        request = FitRequest(
            architecture=replace(architecture, dtype_bytes=_dtype_bytes(dtype)),
            gpu=card,
            gpus=there,
            tensor_parallel_size=tensor_parallel_size
            or _widest(architecture, max(1, there // pipeline_parallel_size)),
            pipeline_parallel_size=pipeline_parallel_size,
            max_model_len=max_model_len,
            gpu_memory_utilization=gpu_memory_utilization,
            weights_gib=stored_gib if weights_gib is None and as_stored else weights_gib,
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            version=VllmVersion.parse(vllm_version),
            enforce_eager=enforce_eager,
        )
        report = _loadable(files.config, request.version, plan(request))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if as_json:
        typer.echo(json.dumps(report.summary(), indent=2))
    else:
        _show(request, report)
    raise typer.Exit(0 if report.fits else MISFIT)


def _loadable(config: Mapping[str, Any], version: VllmVersion, report: FitReport) -> FitReport:
    """The report of a model that the release can load: one that it cannot does not fit."""
    from fleet.engine import registry  # noqa: PLC0415

    found = registry.loading(registry.declared(config), version)
    if found is None:
        return report
    if found.is_warning:
        return replace(report, warnings=(*report.warnings, str(found)))
    return replace(report, fits=False, reason=str(found), suggestion=None)


def _files(model: str | None, model_config: Path | None) -> ModelFiles:
    """The model's configuration, and the GiB of its weights where they are known."""
    from fleet.models.files import ModelFiles  # noqa: PLC0415

    if (model is None) == (model_config is None):
        raise ValueError("give the model either by --model NAME or by --model-config FILE")
    if model is not None:
        from fleet.models import find_model  # noqa: PLC0415

        return find_model(model)
    assert model_config is not None
    try:
        config = json.loads(model_config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"--model-config {model_config}: {error}; give the model's config.json") from None
    if not isinstance(config, dict):
        raise ValueError(f"--model-config {model_config}: not a JSON object; give the model's config.json")
    return ModelFiles(config, None)


def _card(type_name: str | None, memory_gib: float | None, gpus: int | None) -> tuple[Gpu, int]:
    """The GPU and how many of it there are."""
    from fleet.fit import gpu, gpu_from_memory  # noqa: PLC0415

    if (type_name is None) == (memory_gib is None):
        raise ValueError("give the GPUs either by --type NAME or by --gpu-memory-gib SIZE")
    if memory_gib is not None:
        return gpu_from_memory(memory_gib), gpus or 1
    from fleet.catalog import catalog  # noqa: PLC0415

    for kind in catalog().types():
        if kind.name == type_name:
            return gpu(kind.gpu), gpus or kind.gpu_count
    raise ValueError(f"--type {type_name}: no cloud of the catalog has it; `fleet catalog list` shows them")


def _dtype_bytes(dtype: str) -> int:
    sizes = {"auto": 2, "half": 2, "float16": 2, "bfloat16": 2, "float": 4, "float32": 4}
    if dtype not in sizes:
        raise ValueError(f"dtype: {dtype!r} is not known; give one of {', '.join(sizes)}")
    return sizes[dtype]


def _widest(architecture: Architecture, gpus: int) -> int:
    """The largest number of GPUs the attention heads can be split over."""
    return next(size for size in range(gpus, 0, -1) if architecture.attention_heads % size == 0)


def _show(request: FitRequest, report: FitReport) -> None:
    from rich.table import Table  # noqa: PLC0415

    console = output.console()
    console.print(
        "[green]fits[/]" if report.fits else "[red]does not fit[/]", f"— {report.reason}", highlight=False
    )
    table = Table(
        "of each GPU",
        "GiB",
        title=f"{request.tensor_parallel_size} x {request.gpu.name}, vLLM {request.version}",
    )
    rows = {
        "memory": request.gpu.memory_gib,
        "weights": report.weights_gib_per_gpu,
        "activations": report.activation_gib,
        "outside torch": report.non_torch_gib,
        "CUDA graphs kept free": report.cuda_graphs_gib,
        "left for the KV cache": report.available_kv_gib,
        f"one request of {report.max_model_len:,} tokens": report.needed_kv_gib,
    }
    for name, gib in rows.items():
        table.add_row(name, f"{gib:.2f}")
    console.print(output.whole(table))
    console.print(
        f"machine: {report.host_memory_gib:.0f} GiB of RAM, {report.disk_gib:.0f} GiB of disk",
        highlight=False,
    )
    for warning in report.warnings:
        console.print(f"[yellow]note[/] {warning}", highlight=False)
    if report.suggestion:
        changes = ", ".join(f"{name} {value}" for name, value in report.suggestion.items())
        console.print(f"fits with {changes}", highlight=False)
