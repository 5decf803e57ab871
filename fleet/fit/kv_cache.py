"""How many tokens the cache holds, and how many requests of full length.

V1 groups the layers of a hybrid model so that every block has the same size and all groups draw from one pool
(`vllm/v1/core/kv_cache_utils.py`); V0 gives every layer every token.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fleet.fit.architecture import Architecture
from fleet.fit.layers import Layer
from fleet.fit.versions import (
    BatchLimits,
    VllmVersion,
    has_chunked_kv_cache,
    has_hybrid_kv_cache,
    nearly_as_many,
    reports_capacity_by_concurrency,
)

BLOCK_TOKENS = 16

_CACHE_BYTES = {
    "bfloat16": 2,
    "float16": 2,
    "half": 2,
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
    "fp8_inc": 1,
    "int8": 1,
}


@dataclass(frozen=True, slots=True)
class KvCapacity:
    """`tokens` as vLLM logs them, how many requests of max_model_len fit, and the bytes one of them needs."""

    tokens: int
    concurrency: float
    needed_bytes: int


def cache_bytes(kv_cache_dtype: str, dtype_bytes: int) -> int:
    """Bytes a cached number takes.

    Raises ValueError for a data type nobody knows.
    """
    if kv_cache_dtype == "auto":
        return min(dtype_bytes, 2)
    if kv_cache_dtype not in _CACHE_BYTES:
        raise ValueError(
            f"kv_cache_dtype: {kv_cache_dtype!r} is not known; give one of auto, {', '.join(_CACHE_BYTES)}"
        )
    return _CACHE_BYTES[kv_cache_dtype]


def token_bytes(
    architecture: Architecture, layer: Layer, *, tensor_parallel_size: int, value_bytes: int
) -> int:
    """Bytes one token leaves in that layer of one rank.

    With more ranks than key-value heads each rank keeps one head; a latent vector is whole on every rank.
    """
    if architecture.latent is not None:
        return architecture.latent.cached_values * value_bytes
    heads = max(1, (layer.kv_heads or architecture.kv_heads) // tensor_parallel_size)
    return 2 * heads * (layer.head_dim or architecture.head_dim) * value_bytes


def kv_capacity(
    architecture: Architecture,
    available_bytes: float,
    *,
    max_model_len: int,
    limits: BatchLimits,
    version: VllmVersion,
    v1: bool,
    tensor_parallel_size: int,
    pipeline_parallel_size: int,
    value_bytes: int,
) -> KvCapacity:
    """What fits into `available_bytes` of the fullest rank; nothing, when they are negative."""
    kinds = Counter(
        _kept(layer, version, v1=v1) for layer in architecture.layers if layer.attention != "none"
    )
    layers = {kind: math.ceil(count / pipeline_parallel_size) for kind, count in kinds.items()}
    per_token = {
        kind: token_bytes(
            architecture, kind, tensor_parallel_size=tensor_parallel_size, value_bytes=value_bytes
        )
        for kind in layers
        if kind.attention != "recurrent"
    }
    page = _page_bytes(architecture, per_token.values(), tensor_parallel_size)
    # Groups of equal size: as many layers as the rarest kind has, unless the kinds are nearly as many.
    rarest, commonest = min(layers.values()), max(layers.values())
    group_layers = commonest if commonest < nearly_as_many(version) * rarest else rarest
    groups = {kind: math.ceil(count / group_layers) for kind, count in layers.items()}
    block_tokens = {kind: page // size for kind, size in per_token.items()}
    request_blocks = sum(
        count
        * _blocks_per_request(kind, max_model_len, limits.max_num_batched_tokens, block_tokens.get(kind, 1))
        for kind, count in groups.items()
    )
    blocks = max(0, int(available_bytes // (page * group_layers)))
    concurrency = blocks / request_blocks
    tokens = blocks // sum(groups.values()) * min(block_tokens.values())
    if not v1:
        concurrency = tokens / max_model_len
    elif reports_capacity_by_concurrency(version) or architecture.state is not None:
        tokens = int(concurrency * max_model_len)
    return KvCapacity(tokens, concurrency, request_blocks * page * group_layers)


def _kept(layer: Layer, version: VllmVersion, *, v1: bool) -> Layer:
    """The layer as the cache treats it: one that keeps every token, unless the engine knows better."""
    if layer.attention == "sliding" and not (v1 and has_hybrid_kv_cache(version)):
        return replace(layer, attention="full", window=0)
    if layer.attention == "chunked" and not (v1 and has_chunked_kv_cache(version)):
        return replace(layer, attention="full", window=0)
    return layer


def _page_bytes(architecture: Architecture, per_token: Iterable[int], tensor_parallel_size: int) -> int:
    """Bytes of a block, the same for all layers since they share one pool.

    16 tokens of the layer that keeps most of each; or as many as are as large as a recurrent layer's state.
    """
    largest = max(per_token)
    state = architecture.state.bytes / tensor_parallel_size if architecture.state is not None else 0.0
    return largest * BLOCK_TOKENS * max(1, math.ceil(state / largest / BLOCK_TOKENS))


def _blocks_per_request(kind: Layer, max_model_len: int, batched_tokens: int, block_tokens: int) -> int:
    """Blocks a request of full length holds at most (`max_memory_usage_bytes` of each cache spec)."""
    if kind.attention == "recurrent":
        return 1
    if kind.attention == "sliding":
        # One more, since a window need not begin with a block.
        return math.ceil(min(kind.window - 1 + batched_tokens, max_model_len) / block_tokens) + 1
    if kind.attention == "chunked":
        return math.ceil(min(kind.window + batched_tokens, max_model_len) / block_tokens)
    return math.ceil(max_model_len / block_tokens)
