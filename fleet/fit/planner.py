"""Does this model fit these cards, and if not, what is the nearest setting that does.

`plan` answers for one configuration, `nearest_fit` searches a bounded neighbourhood of it. Both are
arithmetic on plain values: no network, no GPU.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fleet.fit.architecture import Architecture
from fleet.fit.gpus import Gpu
from fleet.fit.kv_cache import KvCapacity, cache_bytes, kv_capacity
from fleet.fit.memory import GIB, RankMemory, activation_gib, cuda_graphs_gib, non_torch_gib, rank_weights_gib
from fleet.fit.quantization import WeightFormat, contradicted, weight_format
from fleet.fit.versions import (
    DEFAULT_VERSION,
    BatchLimits,
    VllmVersion,
    batch_limits,
    default_utilization,
    uses_v1_engine,
)

MAX_UTILIZATION = 0.95
"""The most this project lets vLLM take: what is left serves the CUDA context and graphs."""

# Held by the CUDA context before vLLM starts: published start-ups report 0.38 to 0.63 GiB less free than
# total.
_CONTEXT_AT_START_GIB = 0.35
_COUNTS = (
    "gpus",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
)
_SMALLEST_LENGTH = 2048
_LENGTH_STEP = 1024


@dataclass(frozen=True, slots=True)
class FitRequest:
    """One configuration, sizes in GiB. What is None takes the engine's default for version and card."""

    architecture: Architecture
    gpu: Gpu
    gpus: int = 1
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    weights_gib: float | None = None
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    version: VllmVersion = DEFAULT_VERSION
    enforce_eager: bool = False
    swap_space_gib: float | None = None
    use_v1: bool | None = None
    """VLLM_USE_V1, where the environment sets it."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is not positive; give 1 or more")
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization: {self.gpu_memory_utilization} is no share of the memory; "
                "give 0.90 for 90 %"
            )
        if self.weights_gib is not None and not 0 < self.weights_gib < math.inf:
            raise ValueError(
                f"weights_gib: {self.weights_gib} is not a size; give the weights' GiB, all ranks together"
            )
        if not 0 < self.gpu.memory_gib < math.inf:
            raise ValueError(f"gpu_memory_gib: {self.gpu.memory_gib} is not a size; give the GiB of one GPU")


@dataclass(frozen=True, slots=True)
class FitReport:
    """The verdict and the numbers it rests on, in GiB of the fullest rank unless named otherwise."""

    fits: bool
    reason: str
    kv_cache_tokens: int
    max_concurrency: float
    weights_gib_per_gpu: float
    available_kv_gib: float
    needed_kv_gib: float
    non_torch_gib: float
    activation_gib: float
    cuda_graphs_gib: float
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    host_memory_gib: float
    disk_gib: float
    suggestion: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """What `fleet fit --json` prints."""
        return {
            "fits": self.fits,
            "kv_cache_tokens": self.kv_cache_tokens,
            "weights_gib_per_gpu": round(self.weights_gib_per_gpu, 2),
            "available_kv_gib": round(self.available_kv_gib, 2),
            "max_concurrency": round(self.max_concurrency, 2),
            "reason": self.reason,
            "suggestion": self.suggestion,
        }


def plan(request: FitRequest, *, suggest: bool = True) -> FitReport:
    """Judge one configuration; for a misfit `suggestion` names the flags that would make it fit, or is None.

    Raises ValueError for a quantization or cache data type nobody knows.
    """
    report = _judge(request)
    if report.fits or not suggest:
        return report
    return replace(report, suggestion=nearest_fit(request))


def nearest_fit(request: FitRequest) -> dict[str, Any] | None:
    """The flags whose change makes `request` fit: fewest first, keeping the context where possible.

    Tried are: the checkpoint's own quantization, tensor parallelism over the cards there are, utilization
    0.95, fewer sequences, an fp8 cache, a shorter context; when none serves, more cards of the same kind, up
    to 8.
    """
    own: dict[str, Any] = {}
    if stored := contradicted(request.quantization, request.architecture.quantization):
        own = {"quantization": stored}
    candidates = sorted(({**own, **changes} for changes in _alternatives(request)), key=len)
    for changes in candidates:
        if changes and _judge(replace(request, **changes)).fits:
            return changes
    for changes in candidates:
        length = _longest_context(replace(request, **changes))
        if length is not None:
            return {**changes, "max_model_len": length}
    for gpus, utilization in itertools.product((2, 4, 8), (_utilization(request), MAX_UTILIZATION)):
        changes = {
            "gpus": gpus,
            "tensor_parallel_size": gpus,
            "pipeline_parallel_size": 1,
            "gpu_memory_utilization": utilization,
            **own,
        }
        if gpus > request.gpus and _judge(replace(request, **changes)).fits:
            asked = replace(request, gpu_memory_utilization=_utilization(request))
            return {name: value for name, value in changes.items() if getattr(asked, name) != value}
    return None


def _alternatives(request: FitRequest) -> Iterator[dict[str, Any]]:
    """Every combination of changes that leave the context as it is, none included, gentlest first."""
    heads = request.architecture.attention_heads
    ranks: list[dict[str, Any]] = [{}] + [
        {"tensor_parallel_size": size}
        | ({"pipeline_parallel_size": 1} if request.pipeline_parallel_size > 1 else {})
        for size in (1, 2, 4, 8, 16)
        if size <= request.gpus and heads % size == 0 and size != request.tensor_parallel_size
    ]
    share: list[dict[str, Any]] = [{}]
    if _utilization(request) != MAX_UTILIZATION:
        share.append({"gpu_memory_utilization": MAX_UTILIZATION})
    sequences = _limits(request).max_num_seqs
    fewer: list[dict[str, Any]] = [{}] + [{"max_num_seqs": count} for count in (128, 32) if count < sequences]
    fp8: list[dict[str, Any]] = [{}]
    if request.gpu.compute_capability >= 8.9 and cache_bytes(request.kv_cache_dtype, 2) > 1:
        fp8.append({"kv_cache_dtype": "fp8"})
    for parts in itertools.product(fp8, fewer, share, ranks):
        yield {name: value for part in parts for name, value in part.items()}


def _longest_context(request: FitRequest) -> int | None:
    """The longest context, in steps of 1024 tokens, with which the request fits, if that is worth having."""
    wanted = _max_model_len(request)
    shortest, longest = _SMALLEST_LENGTH // _LENGTH_STEP, (wanted - 1) // _LENGTH_STEP
    fitting: int | None = None
    while shortest <= longest:
        middle = (shortest + longest) // 2
        if _judge(replace(request, max_model_len=middle * _LENGTH_STEP)).fits:
            fitting, shortest = middle * _LENGTH_STEP, middle + 1
        else:
            longest = middle - 1
    return fitting


def _judge(request: FitRequest) -> FitReport:
    weights = weight_format(
        request.quantization, request.architecture.quantization, request.architecture.dtype_bytes
    )
    limits = _limits(request)
    v1 = _v1(request)
    memory = _rank_memory(request, weights, limits, v1=v1)
    budget = request.gpu.memory_gib * _utilization(request)
    available = budget - memory.total
    length = _max_model_len(request)
    capacity = kv_capacity(
        request.architecture,
        available * GIB,
        max_model_len=length,
        limits=limits,
        version=request.version,
        v1=v1,
        tensor_parallel_size=request.tensor_parallel_size,
        pipeline_parallel_size=request.pipeline_parallel_size,
        value_bytes=cache_bytes(request.kv_cache_dtype, request.architecture.dtype_bytes),
    )
    obstacle = next(_impossible(request, weights, v1=v1), None) or _too_little_memory(
        request, memory, budget, capacity, length
    )
    total_weights = memory.weights * request.tensor_parallel_size * request.pipeline_parallel_size
    return FitReport(
        fits=obstacle is None,
        reason=obstacle or _room(request, capacity, available, length),
        kv_cache_tokens=capacity.tokens,
        max_concurrency=capacity.concurrency,
        weights_gib_per_gpu=memory.weights,
        available_kv_gib=available,
        needed_kv_gib=capacity.needed_bytes / GIB,
        non_torch_gib=memory.non_torch,
        activation_gib=memory.activation,
        cuda_graphs_gib=memory.cuda_graphs,
        max_model_len=length,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        host_memory_gib=host_memory_gib(request, total_weights),
        disk_gib=disk_gib(total_weights),
        warnings=tuple(_warnings(request, length)),
    )


def _rank_memory(request: FitRequest, weights: WeightFormat, limits: BatchLimits, *, v1: bool) -> RankMemory:
    tp, pp = request.tensor_parallel_size, request.pipeline_parallel_size
    return RankMemory(
        weights=rank_weights_gib(
            request.architecture,
            weights,
            tensor_parallel_size=tp,
            pipeline_parallel_size=pp,
            total_gib=request.weights_gib,
        ),
        non_torch=non_torch_gib(
            request.version,
            v1=v1,
            stages=pp,
            ranks=tp,
            hopper=9.0 <= request.gpu.compute_capability < 12.0,
        ),
        activation=activation_gib(
            request.architecture,
            limits,
            version=request.version,
            v1=v1,
            tensor_parallel_size=tp,
            max_model_len=_max_model_len(request),
        ),
        cuda_graphs=cuda_graphs_gib(
            request.architecture, version=request.version, enforce_eager=request.enforce_eager
        ),
    )


def _utilization(request: FitRequest) -> float:
    return request.gpu_memory_utilization or default_utilization(request.version)


def _max_model_len(request: FitRequest) -> int:
    return request.max_model_len or request.architecture.max_model_len


def _v1(request: FitRequest) -> bool:
    if request.use_v1 is not None:
        return request.use_v1
    return uses_v1_engine(request.version, request.gpu.compute_capability, request.kv_cache_dtype)


def _limits(request: FitRequest) -> BatchLimits:
    defaults = batch_limits(
        request.version,
        v1=_v1(request),
        max_model_len=_max_model_len(request),
        gpu_memory_gib=request.gpu.memory_gib,
        is_a100=request.gpu.is_a100,
        multimodal=request.architecture.is_multimodal,
    )
    return BatchLimits(
        request.max_num_batched_tokens or defaults.max_num_batched_tokens,
        request.max_num_seqs or defaults.max_num_seqs,
    )


def _impossible(request: FitRequest, weights: WeightFormat, *, v1: bool) -> Iterator[str]:
    """What no amount of memory fixes."""
    architecture, tp, pp = request.architecture, request.tensor_parallel_size, request.pipeline_parallel_size
    heads, kv_heads = architecture.attention_heads, architecture.kv_heads
    if stored := contradicted(request.quantization, architecture.quantization):
        yield (
            f"quantization {request.quantization} contradicts the {stored} of the checkpoint's config.json, "
            "which vLLM refuses; leave quantization out"
        )
    if tp * pp > request.gpus:
        stages = f" x pipeline_parallel_size {pp}" if pp > 1 else ""
        yield f"tensor_parallel_size {tp}{stages} needs {tp * pp} GPUs, there are {request.gpus}"
    if heads % tp:
        yield f"tensor_parallel_size {tp} does not divide the model's {heads} attention heads"
    if architecture.latent is None and max(kv_heads, tp) % min(kv_heads, tp):
        yield f"tensor_parallel_size {tp} and the {kv_heads} key-value heads do not divide each other"
    if pp > len(architecture.layers):
        yield f"pipeline_parallel_size {pp} exceeds the model's {len(architecture.layers)} layers"
    if request.gpu.compute_capability < weights.min_compute_capability:
        yield (
            f"quantization {weights.method} needs compute capability {weights.min_compute_capability}, "
            f"a {request.gpu.name} has {request.gpu.compute_capability}"
        )
    left = request.gpu.memory_gib * (1 - _utilization(request))
    if v1 and left < _CONTEXT_AT_START_GIB:
        yield (
            f"gpu_memory_utilization {_utilization(request):.2f} leaves {left:.2f} GiB, less than the CUDA "
            f"context already holds when vLLM starts; {MAX_UTILIZATION} works"
        )


def _too_little_memory(
    request: FitRequest, memory: RankMemory, budget: float, capacity: KvCapacity, length: int
) -> str | None:
    if capacity.concurrency >= 1:
        return None
    other = memory.non_torch + memory.cuda_graphs
    spent = f"weights {memory.weights:.1f}, activations {memory.activation:.1f}, other {other:.1f}"
    share = f"{budget:.1f} GiB ({_utilization(request):.0%} of {request.gpu.memory_gib:.1f})"
    if memory.weights >= budget:
        return f"the weights take {memory.weights:.1f} GiB a GPU, more than the {share} vLLM may use"
    if memory.total >= budget:
        return f"no room for the KV cache: {spent} GiB fill the {share} of a GPU"
    return (
        f"one request of {length:,} tokens needs {capacity.needed_bytes / GIB:.2f} GiB of KV cache a GPU, "
        f"{budget - memory.total:.2f} GiB are left of {share} after {spent} GiB"
    )


def _room(request: FitRequest, capacity: KvCapacity, available: float, length: int) -> str:
    return (
        f"{available:.1f} GiB of KV cache a GPU hold {capacity.tokens:,} tokens: "
        f"{capacity.concurrency:.2f} requests of {length:,} tokens at once"
    )


def _warnings(request: FitRequest, length: int) -> Iterator[str]:
    if length > request.architecture.max_model_len:
        yield (
            f"max_model_len {length:,} exceeds the {request.architecture.max_model_len:,} of the model's "
            "config.json: vLLM refuses it unless rope scaling (such as YaRN) is set as well"
        )
    if _utilization(request) > MAX_UTILIZATION:
        yield (
            f"gpu_memory_utilization {_utilization(request)} is above {MAX_UTILIZATION}: "
            "CUDA graphs may not find room"
        )


def host_memory_gib(request: FitRequest, total_weights_gib: float) -> float:
    """RAM the machine needs in GiB.

    4 for the system and the server, 4 for each rank's process, the swap space (4 a GPU unless set, gone
    since 0.18), and the checkpoint's shards being read, at most 10 together.
    """
    ranks = request.tensor_parallel_size * request.pipeline_parallel_size
    swap = request.swap_space_gib if request.swap_space_gib is not None else 4.0
    if request.version >= (0, 18):
        swap = 0.0
    return 4 + ranks * (4 + swap) + min(total_weights_gib, 10.0)


def disk_gib(total_weights_gib: float) -> float:
    """Disk needed in GiB: the weights, 30 for vLLM's unpacked image, 10 for compile caches and logs."""
    return total_weights_gib + 40
