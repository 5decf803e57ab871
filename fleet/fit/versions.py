"""vLLM versions, and what the engine assumes in each when nothing is said.

The numbers come from reading vLLM's sources at 0.6.6, 0.9.2, 0.10.2, 0.11.0, 0.12.0, 0.15.1, 0.16.0, 0.17.0,
0.18.1, 0.19.0, 0.19.1, 0.20.2, 0.22.1, 0.26.0 and 0.33.0 (`vllm/engine/arg_utils.py`, `vllm/config`,
`vllm/envs.py`, `vllm/v1/worker/gpu_worker.py`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

_VERSION = re.compile(r"(?<![\d.])v?(\d+)\.(\d+)(?:\.(\d+))?")


class VllmVersion(NamedTuple):
    """A vLLM release, comparable: `VllmVersion.parse("v0.9.2") < VllmVersion(0, 10)`."""

    major: int
    minor: int
    patch: int = 0

    @classmethod
    def parse(cls, text: str) -> VllmVersion:
        """Read a release (`0.9.2`, `v0.8.5.post1`) or an image reference (`vllm/vllm-openai:v0.9.2`).

        Raises ValueError where no release number is found.
        """
        tag = text.partition("@")[0].rpartition(":")[2]
        match = _VERSION.match(tag.strip())
        if match is None:
            raise ValueError(
                f"vllm_version: {text!r} names no vLLM release; give one such as 0.33.0, or pin the image "
                "by a tag such as vllm/vllm-openai:v0.33.0"
            )
        return cls(int(match[1]), int(match[2]), int(match[3] or 0))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


DEFAULT_VERSION = VllmVersion(0, 33, 0)


def default_utilization(version: VllmVersion) -> float:
    """Share of the GPU's memory vLLM takes unasked: 0.90, and 0.92 since 0.20 (`vllm/config/cache.py`)."""
    return 0.92 if version >= (0, 20) else 0.90


def uses_v1_engine(version: VllmVersion, compute_capability: float, kv_cache_dtype: str) -> bool:
    """Whether the V1 engine runs; it sizes its memory otherwise than V0.

    V1 is the default since 0.8. Until 0.10 cards older than Ampere, and an fp8 cache on cards other than
    Hopper, fall back to V0 (`EngineArgs._is_v1_supported_oracle` of 0.9.2).
    """
    if version < (0, 8):
        return False
    if version >= (0, 10):
        return True
    hopper = 9.0 <= compute_capability < 10.0
    return compute_capability >= 8.0 and (not kv_cache_dtype.startswith("fp8") or hopper)


class BatchLimits(NamedTuple):
    """What one engine step may hold: tokens, and sequences."""

    max_num_batched_tokens: int
    max_num_seqs: int


def batch_limits(
    version: VllmVersion,
    *,
    v1: bool,
    max_model_len: int,
    gpu_memory_gib: float,
    is_a100: bool,
    multimodal: bool,
) -> BatchLimits:
    """The engine's own choice for `vllm serve` (`EngineArgs._set_default_args`, `SchedulerConfig`)."""
    if not v1:
        if max_model_len > 32 * 1024 and not multimodal:  # chunked prefill switches itself on
            return BatchLimits(2048 if version >= (0, 6, 5) else 512, 256)
        # Unchunked: a whole prompt is one step. Multimodal models take at least 5120.
        return BatchLimits(max(max_model_len, 5120 if multimodal and version >= (0, 6, 4) else 2048), 256)
    if version < (0, 8, 3):
        return BatchLimits(2048, 1024)
    if gpu_memory_gib >= 160 and version >= (0, 27):
        return BatchLimits(16384, 1024)
    # A100s were told apart in 0.9.0: a large batch slows them down.
    if gpu_memory_gib >= 70 and not (is_a100 and version >= (0, 9)):
        return BatchLimits(8192, 1024)
    return BatchLimits(2048, 256)


def has_hybrid_kv_cache(version: VllmVersion) -> bool:
    """Whether sliding-window layers get only their window (V1's hybrid KV cache manager, since 0.9.1)."""
    return version >= (0, 9, 1)


def nearly_as_many(version: VllmVersion) -> float:
    """How many times more layers of one kind than of another still share one group (`kv_cache_utils.py`)."""
    return 1.5 if version >= (0, 19) else 1.25


def has_chunked_kv_cache(version: VllmVersion) -> bool:
    """Whether chunked layers (Llama 4) keep only their chunk: by default since 0.15 (`vllm/envs.py`)."""
    return version >= (0, 15)


def reports_capacity_by_concurrency(version: VllmVersion) -> bool:
    """Whether the logged cache size is concurrency x max_model_len (since 0.20), not blocks x block size."""
    return version >= (0, 20)


def subtracts_cuda_graphs(version: VllmVersion) -> bool:
    """Whether an estimate of the CUDA graphs is kept free before the cache is sized (default since 0.20)."""
    return version >= (0, 20)


def counts_cuda_context(version: VllmVersion, *, v1: bool) -> bool:
    """Whether the CUDA context counts against the budget.

    V1 up to 0.9.0 took all the memory in use on the device; since 0.9.1 it compares with a snapshot taken
    after the context was made (`vllm/v1/worker/gpu_worker.py`), as V0 did since 0.3.
    """
    return version < (0, 9, 1) if v1 else version < (0, 3)


def fuses_all_reduce(version: VllmVersion) -> bool:
    """Whether tensor-parallel ranks on Hopper and Blackwell data-centre cards fuse the all-reduce.

    Since 0.17 (`enable_allreduce_rms_fusion` in `vllm/config/vllm.py`), by FlashInfer, with 2, 4 or 8 ranks
    and one pipeline stage.
    """
    return version >= (0, 17)


def keeps_expert_workspace(version: VllmVersion, *, v1: bool) -> bool:
    """Whether the experts' workspace outlives the forward pass: `vllm/v1/worker/workspace.py`, since 0.16."""
    return v1 and version >= (0, 16)
