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
from fleet.fit.versions import (
    BatchLimits,
    VllmVersion,
    counts_cuda_context,
    fuses_all_reduce,
    keeps_expert_workspace,
    subtracts_cuda_graphs,
)

GIB = 1 << 30

# The dummy sampler sorts every row of the vocabulary (top-p): half and full logits, sorted values, 64-bit
# indices, probabilities, cumulative sums. Published profiles, V0 and V1, eleven models, give 38.2 to 39.3
# bytes a logit.
_SORTING_SAMPLER_BYTES = 38.5
# FlashInfer's sampler rejects instead of sorting: two copies of the logits, the probabilities, a draw.
_REJECTION_SAMPLER_BYTES = 14.0
# The Triton kernel searches for a pivot in place; its buffers come on top. Published profiles of 0.19, eight
# models: 14.8 to 15.0 bytes a logit.
_PIVOT_SAMPLER_BYTES = 14.9
# Without any filter: the logits, and their copy in single precision.
_PLAIN_SAMPLER_BYTES = 6.0
# What the allocator holds over what is in use, from a start-up of 0.3.0.
_HELD_BY_ALLOCATOR = 1.3
# CUDA context and loaded kernels, where they count: V1 logs of 0.8.x differ from those of 0.9.1 by this much.
_CUDA_CONTEXT_GIB = 0.42
# Workspace of FlashInfer's all-reduce fusion: published profiles of 0.19 on two and four H100, over NCCL's
# share.
_FUSED_ALL_REDUCE_GIB = 1.5


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
            architecture.attention_layers
            * architecture.hidden_size
            * (latent.kv_rank + latent.rope_dim + latent.query_rank)
        )
        return copied + (parameters - copied) / tp
    if tp <= architecture.kv_heads:
        return parameters / tp
    key_value = (
        architecture.attention_layers
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
    tokens, tp = limits.max_num_batched_tokens, tensor_parallel_size
    hidden_states = tokens * architecture.hidden_size * 2
    forward = tokens * _forward_bytes_per_token(architecture, tp)
    rows = min(limits.max_num_seqs, tokens)
    sampler = rows * architecture.vocab_size * sampler_bytes(architecture, version, v1=v1) + hidden_states
    if keeps_expert_workspace(version, v1=v1):
        sampler += tokens * 2 * _expert_values_per_token(architecture, tp)
    encoder = _encoder_bytes(architecture, tp, max_model_len if v1 else 0)
    peak = max(forward, sampler, encoder) / GIB
    # Until 0.6.4 V0 counted what torch's allocator held, freed blocks included, not what was in use at the
    # peak.
    return peak * _HELD_BY_ALLOCATOR if not v1 and version < (0, 6, 4) else peak


def sampler_bytes(architecture: Architecture, version: VllmVersion, *, v1: bool) -> float:
    """Peak bytes a logit costs, by the sampler the profile runs (`vllm/v1/sample/ops/topk_topp_sampler.py`).

    FlashInfer's up to 0.8.2 and again since 0.21, torch's sort in between and on V0, a Triton kernel from
    0.17 on. The second model runner, which serves Qwen3 since 0.22 and every dense model since 0.26, skips
    top-k and top-p when profiled.
    """
    if not v1 or (0, 8, 3) <= version < (0, 17):
        return _SORTING_SAMPLER_BYTES
    if (0, 17) <= version < (0, 21):
        return _PIVOT_SAMPLER_BYTES
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
    return 2 * (stream + max(wide, _expert_values_per_token(architecture, tp)))


def _expert_values_per_token(architecture: Architecture, tp: int) -> float:
    """Numbers the experts' workspace holds for each token, which is copied to each of its experts.

    The first and the last buffer share memory (`vllm/model_executor/layers/fused_moe`).
    """
    if architecture.experts is None:
        return 0.0
    size = architecture.experts.intermediate_size / tp
    return architecture.experts.per_token * (max(2 * size, architecture.hidden_size) + size)


def _encoder_bytes(architecture: Architecture, tp: int, video_tokens: int) -> float:
    """The image encoder at its largest item: an image, or a video as long as `video_tokens` leave room for.

    Five tensors of the encoder's width live beside one more of its feed-forward block than that has matrices,
    in half precision; the embeddings are kept for the language model.
    """
    vision = architecture.vision
    if vision is None:
        return 0.0
    frames = min(video_tokens, vision.max_video_tokens) // vision.max_image_tokens
    tokens = max(1, frames) * vision.max_image_tokens
    block = (4 if vision.gated else 3) * vision.intermediate_size / tp
    widths = 5 * vision.hidden_size + block
    return 2 * (tokens * vision.merge * widths + tokens * architecture.hidden_size)


def non_torch_gib(version: VllmVersion, *, v1: bool, stages: int, ranks: int, hopper: bool) -> float:
    """GiB outside torch: libraries' workspaces, and NCCL's buffers, which grow with a stage's `ranks`.

    Published profiles: 0.13 alone, 0.3 to 0.55 for two ranks, 0.75 for four (V1); 0.03 to 0.09 alone since
    0.7 on V0, 0.26 to 0.35 before. Pipeline stages open their channels later: 0.07 with two to four of them.
    `hopper` is true for compute capability 9.0 and 10.x.
    """
    alone = 0.13 if v1 else (0.07 if version >= (0, 7) else 0.3)
    context = _CUDA_CONTEXT_GIB if counts_cuda_context(version, v1=v1) else 0.0
    fused = v1 and stages == 1 and hopper and ranks in (2, 4, 8) and fuses_all_reduce(version)
    return alone + 0.28 * math.log2(ranks) + context + (_FUSED_ALL_REDUCE_GIB if fused else 0.0)


def cuda_graphs_gib(architecture: Architecture, *, version: VllmVersion, enforce_eager: bool) -> float:
    """GiB kept free for CUDA graphs, where the engine keeps them free: about 8 MiB a layer over 0.2 GiB."""
    if enforce_eager or not subtracts_cuda_graphs(version):
        return 0.0
    return 0.2 + 0.0075 * len(architecture.layers)
