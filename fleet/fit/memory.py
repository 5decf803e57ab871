"""What a rank's memory is spent on before the cache gets the rest.

Follows vLLM's own accounting (`determine_available_memory` in `vllm/v1/worker/gpu_worker.py`, V0:
`determine_num_available_blocks` in `vllm/worker/worker.py`): the cache gets the card's total x utilization,
less weights, less what lives outside torch, less the peak of one dummy step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fleet.fit.architecture import Architecture
from fleet.fit.quantization import WeightFormat
from fleet.fit.versions import BatchLimits, VllmVersion, counts_cuda_context, subtracts_cuda_graphs

GIB = 1 << 30

# The dummy sampler sorts every row of the vocabulary (top-p): half and full logits, sorted values, 64-bit
# indices, probabilities, cumulative sums. Published profiles, V0 and V1, eleven models, give 38.2 to 39.3
# bytes a logit.
_SORTING_SAMPLER_BYTES = 38.5
# FlashInfer's sampler rejects instead of sorting: two copies of the logits and the probabilities.
_REJECTION_SAMPLER_BYTES = 14.0
# Without any filter: the logits, and their copy in single precision.
_PLAIN_SAMPLER_BYTES = 6.0
# What the allocator holds over what is in use, from a start-up of 0.3.0.
_HELD_BY_ALLOCATOR = 1.3
# CUDA context and loaded kernels, where they count: V1 logs of 0.8.x differ from those of 0.9.1 by this much.
_CUDA_CONTEXT_GIB = 0.42


@dataclass(frozen=True, slots=True)
class RankMemory:
    """GiB taken on the fullest rank, apart from the cache."""

    weights: float
    non_torch: float
    activation: float
    cuda_graphs: float

    @property
    def total(self) -> float:
        return self.weights + self.non_torch + self.activation + self.cuda_graphs


def rank_weights_gib(
    architecture: Architecture,
    weights: WeightFormat,
    *,
    tensor_parallel_size: int,
    pipeline_parallel_size: int,
    total_gib: float | None,
) -> float:
    """GiB of weights on the fullest rank: an even share of `total_gib` where known, else counted."""
    tp, pp = tensor_parallel_size, pipeline_parallel_size
    if total_gib is not None:
        return total_gib / tp / pp
    parameters = architecture.parameters
    plain = architecture.dtype_bytes
    dense = weights.dense_bits / 8
    attention = _sharded_attention(architecture, tp)
    stage = (
        attention * dense
        + parameters.feed_forward / tp * dense
        + parameters.experts / tp * weights.expert_bits / 8
        + parameters.small * plain
    ) / pp
    ends = (
        (parameters.embedding + parameters.lm_head)
        if pp == 1
        else max(parameters.embedding, parameters.lm_head)
    )
    return (stage + (ends + parameters.vision) / tp * plain) / GIB


def _sharded_attention(architecture: Architecture, tp: int) -> float:
    """Attention parameters of a rank: key and value heads are copied once there are more ranks than heads."""
    parameters = architecture.parameters.attention
    if architecture.latent is not None:
        latent = architecture.latent
        copied = (
            len(architecture.layers)
            * architecture.hidden_size
            * (latent.kv_rank + latent.rope_dim + latent.query_rank)
        )
        return copied + (parameters - copied) / tp
    if tp <= architecture.kv_heads:
        return parameters / tp
    key_value = (
        len(architecture.layers)
        * 2
        * architecture.hidden_size
        * architecture.kv_heads
        * architecture.head_dim
    )
    return (parameters - key_value) / tp + key_value / architecture.kv_heads


def activation_gib(
    architecture: Architecture,
    limits: BatchLimits,
    *,
    version: VllmVersion,
    v1: bool,
    tensor_parallel_size: int,
    max_model_len: int,
) -> float:
    """Peak of the dummy step in GiB: in the forward pass, the sampler, or the image encoder.

    They follow one another, so the largest counts (`profile_run` in `vllm/v1/worker/gpu_model_runner.py`).
    """
    hidden_states = limits.max_num_batched_tokens * architecture.hidden_size * 2
    forward = limits.max_num_batched_tokens * _forward_bytes_per_token(architecture, tensor_parallel_size)
    rows = min(limits.max_num_seqs, limits.max_num_batched_tokens)
    sampler = rows * architecture.vocab_size * sampler_bytes(architecture, version, v1=v1) + hidden_states
    encoder = _encoder_bytes(architecture, tensor_parallel_size, max_model_len if v1 else 0)
    peak = max(forward, sampler, encoder) / GIB
    # Until 0.6.4 V0 counted what torch's allocator held, freed blocks included, not what was in use at the
    # peak.
    return peak * _HELD_BY_ALLOCATOR if not v1 and version < (0, 6, 4) else peak


def sampler_bytes(architecture: Architecture, version: VllmVersion, *, v1: bool) -> float:
    """Peak bytes a logit costs, by the sampler the profile runs.

    Torch's sorting sampler, but for FlashInfer's (V1 up to 0.8.2, and since 0.22) and that of the second
    model runner, which serves Qwen3 since 0.22 and every dense model since 0.26 and skips top-k and top-p
    when profiled.
    """
    if not v1 or (0, 8, 3) <= version < (0, 22):
        return _SORTING_SAMPLER_BYTES
    if version >= (0, 22) and architecture.model_type == "qwen3":
        return _PLAIN_SAMPLER_BYTES
    if version >= (0, 26) and architecture.experts is None:
        return _PLAIN_SAMPLER_BYTES
    return _REJECTION_SAMPLER_BYTES


def _forward_bytes_per_token(architecture: Architecture, tp: int) -> float:
    """Widest moment of a decoder layer, in bytes a token: three streams beside the block's own tensors."""
    stream = 3 * architecture.hidden_size
    wide = (3 if architecture.gated else 2) * architecture.intermediate_size / tp
    if architecture.latent is not None:
        latent = architecture.latent
        wide = max(wide, architecture.attention_heads * (2 * latent.nope_dim + 2 * latent.value_dim) / tp)
    else:
        heads = 2 * architecture.attention_heads + 2 * architecture.kv_heads
        wide = max(wide, heads * architecture.head_dim / tp)
    if architecture.experts is not None:
        # Each token is copied to its experts; the first and last buffers share memory (fused_moe.py).
        size = architecture.experts.intermediate_size / tp
        wide = max(wide, architecture.experts.per_token * (max(2 * size, architecture.hidden_size) + size))
    return 2 * (stream + wide)


def _encoder_bytes(architecture: Architecture, tp: int, video_tokens: int) -> float:
    """The image encoder at its largest item: an image, or a video as long as `video_tokens` leave room for.

    Five tensors of the encoder's width live beside four of its feed-forward block, in half precision; the
    embeddings are kept for the language model.
    """
    vision = architecture.vision
    if vision is None:
        return 0.0
    frames = min(video_tokens, vision.max_video_tokens) // vision.max_image_tokens
    tokens = max(1, frames) * vision.max_image_tokens
    widths = 5 * vision.hidden_size + 4 * vision.intermediate_size / tp
    return 2 * (tokens * vision.merge * widths + tokens * architecture.hidden_size)


def non_torch_gib(version: VllmVersion, *, v1: bool, ranks: int) -> float:
    """GiB outside torch: libraries' workspaces, and NCCL's buffers, which grow with the ranks.

    Published profiles: 0.13 alone, 0.3 to 0.55 for two ranks, 0.75 for four (V1); 0.03 to 0.09 alone since
    0.7 on V0, 0.26 to 0.35 before.
    """
    alone = 0.13 if v1 else (0.07 if version >= (0, 7) else 0.3)
    context = _CUDA_CONTEXT_GIB if counts_cuda_context(version, v1=v1) else 0.0
    return alone + 0.28 * math.log2(ranks) + context


def cuda_graphs_gib(architecture: Architecture, *, version: VllmVersion, enforce_eager: bool) -> float:
    """GiB kept free for CUDA graphs, where the engine keeps them free: about 8 MiB a layer over 0.2 GiB."""
    if enforce_eager or not subtracts_cuda_graphs(version):
        return 0.0
    return 0.2 + 0.0075 * len(architecture.layers)
