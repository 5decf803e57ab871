"""A model's shape, read from its Hugging Face `config.json`: its weights, and what a token leaves cached.

Parameter counts are exact for the families tried in the tests. Names follow `transformers`' configuration
classes; where a family hides a value, vLLM's model file of that name says how it is derived.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fleet.fit import fields
from fleet.fit.fields import Config, ConfigError, integer, optional_integer
from fleet.fit.layers import Layer, RecurrentState, read_layers, recurrent_state

__all__ = ["Architecture", "ConfigError", "Experts", "LatentAttention", "Parameters", "VisionTower"]

# Feed-forward blocks without a gate have two matrices instead of three.
_UNGATED = {
    "phi",
    "gpt_neox",
    "gptj",
    "gpt2",
    "gpt_bigcode",
    "opt",
    "falcon",
    "bloom",
    "starcoder2",
    "mpt",
    "nemotron",
    "nemotron_h",
}
_QKV_BIAS = {
    "qwen2",
    "qwen2_moe",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen2_vl_text",
    "qwen2_5_vl_text",
    "gpt_oss",
    "phi",
    "opt",
    "gpt2",
}
_QK_NORM = {
    "qwen3",
    "qwen3_moe",
    "qwen3_vl_text",
    "qwen3_vl_moe_text",
    "qwen3_next",
    "gemma3",
    "gemma3_text",
    "gemma4",
    "gemma4_text",
}
_FOUR_NORMS = {"gemma2", "gemma3", "gemma3_text", "gemma4", "gemma4_text"}
_TIED_BY_DEFAULT = {
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gemma4",
    "gemma4_text",
    "cohere",
    "cohere2",
    "opt",
    "gpt2",
    "gpt_bigcode",
    "bloom",
    "mpt",
    "falcon",
}
# Largest image an encoder is profiled with, in language-model tokens: the processors' own limits
# (Qwen-VL: 12.8 megapixels at 28 x 28 a token; Pixtral 1540 px at patch 14, merged 2 x 2; InternVL 12 tiles +
# 1).
_MAX_IMAGE_TOKENS = {
    "qwen2_vl": 16384,
    "qwen2_5_vl": 16384,
    "qwen3_vl": 16384,
    "qwen3_vl_moe": 16384,
    "qwen3_5": 16384,
    "qwen3_5_moe": 16384,
    "mistral3": 3025,
    "pixtral": 4096,
    "gemma3": 256,
    "llava": 576,
    "internvl_chat": 3328,
    "llama4": 2448,
    "gemma4": 280,
}

# Videos of 14 frames, two to a step, each frame as large as an image
# (vllm/model_executor/models/qwen2_vl.py).
_MAX_VIDEO_TOKENS = {"qwen2_vl": 7 * 16384, "qwen2_5_vl": 7 * 16384}


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek): one compressed vector a token, the same on every rank."""

    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    query_rank: int

    @property
    def cached_values(self) -> int:
        """Numbers kept per token and layer."""
        return self.kv_rank + self.rope_dim


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: `layers` of the model have `count` experts, a token visits `per_token`."""

    count: int
    per_token: int
    intermediate_size: int
    shared_intermediate_size: int
    layers: int


@dataclass(frozen=True, slots=True)
class VisionTower:
    """An image encoder. Its largest items count in language-model tokens of `merge` patches each."""

    parameters: int
    hidden_size: int
    intermediate_size: int
    gated: bool
    merge: int
    max_image_tokens: int
    max_video_tokens: int


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameter counts by how they are stored and sharded."""

    attention: int = 0
    feed_forward: int = 0
    experts: int = 0
    embedding: int = 0
    lm_head: int = 0
    vision: int = 0
    small: int = 0  # norms, biases, routers: never quantized, copied to every rank

    @property
    def total(self) -> int:
        return (
            self.attention
            + self.feed_forward
            + self.experts
            + self.embedding
            + self.lm_head
            + self.vision
            + self.small
        )


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything the planner needs to know of a model."""

    model_type: str
    hidden_size: int
    vocab_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    gated: bool
    layers: tuple[Layer, ...]
    max_model_len: int
    dtype_bytes: int
    """Of a weight that is not quantized. By itself vLLM loads half precision, also from single precision."""
    parameters: Parameters
    quantization: Mapping[str, Any]
    experts: Experts | None = None
    latent: LatentAttention | None = None
    state: RecurrentState | None = None
    """What a recurrent layer keeps; None where there is no such layer."""
    vision: VisionTower | None = None

    @property
    def attention_layers(self) -> int:
        """Layers with keys and values of their own."""
        return sum(layer.attention not in {"recurrent", "none"} for layer in self.layers)

    @property
    def is_multimodal(self) -> bool:
        return self.vision is not None

    @classmethod
    def from_config(cls, config: Config) -> Architecture:
        """Read a `config.json`, already parsed.

        Raises ConfigError naming the missing field.
        """
        text = fields.language_model(config)
        _refuse_what_is_not_planned(text)
        model_type = str(text.get("model_type", ""))
        hidden = integer(text, fields.HIDDEN_SIZE)
        heads = integer(text, fields.HEADS)
        layers = read_layers(text, model_type, integer(text, fields.LAYERS))
        recurrent = any(layer.attention == "recurrent" for layer in layers)
        shape = cls(
            model_type=model_type,
            hidden_size=hidden,
            vocab_size=integer(text, fields.VOCABULARY),
            attention_heads=heads,
            kv_heads=fields.key_value_heads(text, heads),
            head_dim=fields.head_size(text, hidden, heads),
            intermediate_size=_intermediate_size(text, model_type, hidden),
            gated=model_type not in _UNGATED,
            layers=layers,
            max_model_len=fields.max_model_len(text),
            dtype_bytes=2,
            parameters=Parameters(),
            quantization=dict(config.get("quantization_config") or text.get("quantization_config") or {}),
            experts=_experts(text, model_type, len(layers)),
            latent=_latent(text),
            state=recurrent_state(text) if recurrent else None,
            vision=_vision(config, hidden),
        )
        return replace(shape, parameters=_parameters(text, shape))


def _refuse_what_is_not_planned(config: Config) -> None:
    """Raise ConfigError for models whose requests keep something else than the tokens' keys and values."""
    family = config.get("model_type")
    if config.get("is_encoder_decoder"):
        raise ConfigError(
            f"config.json: model_type: {family!r} is an encoder with a decoder; only decoders are planned"
        )
    if config.get("state_size") and not any(config.get(name) for name in fields.HEADS):
        raise ConfigError(
            f"config.json: model_type: {family!r} has no attention, so no KV cache to plan; each of its "
            "requests keeps a state of fixed size"
        )


def _intermediate_size(config: Config, model_type: str, hidden: int) -> int:
    if model_type == "llama4_text" and config.get("intermediate_size_mlp"):
        return integer(config, "intermediate_size_mlp")
    ratio = optional_integer(config, "expansion_ratio", 4)
    return optional_integer(config, fields.INTERMEDIATE_SIZE) or ratio * hidden


def _latent(config: Config) -> LatentAttention | None:
    if not config.get("kv_lora_rank"):
        return None
    return LatentAttention(
        kv_rank=int(config["kv_lora_rank"]),
        rope_dim=integer(config, "qk_rope_head_dim"),
        nope_dim=integer(config, "qk_nope_head_dim"),
        value_dim=integer(config, "v_head_dim"),
        query_rank=int(config.get("q_lora_rank") or 0),
    )


def _experts(config: Config, model_type: str, layers: int) -> Experts | None:
    count = optional_integer(config, fields.EXPERTS)
    if count < 2:
        return None
    size = optional_integer(config, "moe_intermediate_size") or integer(config, fields.INTERMEDIATE_SIZE)
    shared = optional_integer(
        config,
        (
            "shared_expert_intermediate_size",
            "shared_intermediate_size",
            "moe_shared_expert_intermediate_size",
        ),
    )
    if not shared:
        shared = optional_integer(config, ("n_shared_experts", "moe_num_shared_experts")) * size
    if model_type == "llama4_text":
        shared = size
    elif config.get("enable_moe_block"):  # Gemma 4 runs its dense block beside the experts
        shared = integer(config, fields.INTERMEDIATE_SIZE)
    return Experts(
        count=count,
        per_token=optional_integer(config, fields.EXPERTS_PER_TOKEN, 1),
        intermediate_size=size,
        shared_intermediate_size=shared,
        layers=_expert_layers(config, layers),
    )


def _expert_layers(config: Config, layers: int) -> int:
    """How many layers have experts."""
    listed = config.get("moe_layer_freq")
    if isinstance(listed, list):
        return sum(map(bool, listed))
    letters = config.get("hybrid_override_pattern")
    if isinstance(letters, str):
        return letters.count("E")
    dense = optional_integer(config, "first_k_dense_replace") + len(config.get("mlp_only_layers") or [])
    step = optional_integer(
        config,
        ("decoder_sparse_step", "moe_layer_freq", "expert_layer_period", "interleave_moe_layer_step"),
        1,
    )
    return (layers - dense) // max(1, step)


def _vision(config: Config, text_hidden: int) -> VisionTower | None:
    inner = config.get("vision_config")
    if not isinstance(inner, Mapping) or not inner:
        return None
    family = str(config.get("model_type", ""))
    hidden = int(inner.get("embed_dim") or inner.get("hidden_size") or 1024)
    if family == "qwen2_5_vl":
        hidden = int(inner.get("hidden_size") or hidden)
    depth = int(inner.get("depth") or inner.get("num_hidden_layers") or 24)
    ratio = float(inner.get("mlp_ratio") or 4)
    intermediate = int(inner.get("intermediate_size") or ratio * hidden)
    patch = int(inner.get("patch_size") or 14)
    merge = int(inner.get("spatial_merge_size") or config.get("spatial_merge_size") or 1) ** 2
    gated = family in {"qwen2_5_vl", "mistral3", "pixtral"}
    matrices = 3 if gated else 2
    blocks = depth * (4 * hidden * hidden + matrices * hidden * intermediate + 2 * hidden)
    frames = int(inner.get("temporal_patch_size") or 1)
    patches = (
        int(inner.get("in_channels") or inner.get("num_channels") or 3) * frames * patch * patch * hidden
    )
    merged = merge * hidden
    projector = merged * merged + merged * text_hidden if merge > 1 else hidden * text_hidden
    return VisionTower(
        parameters=blocks + patches + projector,
        hidden_size=hidden,
        intermediate_size=intermediate,
        gated=gated,
        merge=merge,
        max_image_tokens=_MAX_IMAGE_TOKENS.get(family, 2048),
        max_video_tokens=_MAX_VIDEO_TOKENS.get(family, 0),
    )


def _parameters(config: Config, shape: Architecture) -> Parameters:
    hidden, experts = shape.hidden_size, shape.experts
    # Every layer has a feed-forward block, but for Nemotron-H, which gives each layer one task.
    letters = str(config.get("hybrid_override_pattern") or "")
    blocks = letters.count("-") if letters else len(shape.layers)
    attention, small = _attention_parameters(config, shape)
    recurrent, recurrent_small = _recurrent_parameters(config, shape)
    matrices = 3 if shape.gated else 2
    moe_layers = experts.layers if experts else 0
    feed_forward = (blocks if letters else blocks - moe_layers) * matrices * hidden * shape.intermediate_size
    if config.get("use_double_wide_mlp"):  # Gemma 4, where keys and values are reused
        reused = optional_integer(config, "num_kv_shared_layers")
        feed_forward += reused * matrices * hidden * shape.intermediate_size
    expert_parameters = 0
    small += recurrent_small
    if experts:
        feed_forward += moe_layers * matrices * hidden * experts.shared_intermediate_size
        expert_parameters = moe_layers * experts.count * matrices * hidden * experts.intermediate_size
        small += moe_layers * experts.count * hidden  # the router
        if config.get("topk_method") == "noaux_tc":
            small += moe_layers * experts.count
        if config.get("shared_expert_intermediate_size"):
            small += moe_layers * hidden
        if shape.model_type == "gpt_oss":
            small += moe_layers * experts.count * (1 + hidden + 2 * experts.intermediate_size)
    small += (4 if shape.model_type in _FOUR_NORMS else 2) * len(shape.layers) * hidden + hidden
    tied = bool(config.get("tie_word_embeddings", shape.model_type in _TIED_BY_DEFAULT))
    # Gemma 3n and 4 also embed every token once for each layer.
    per_layer = len(shape.layers) * optional_integer(config, "hidden_size_per_layer_input")
    per_layer *= optional_integer(config, "vocab_size_per_layer_input", shape.vocab_size)
    return Parameters(
        attention=attention + recurrent,
        feed_forward=feed_forward,
        experts=expert_parameters,
        embedding=shape.vocab_size * hidden + per_layer,
        lm_head=0 if tied else shape.vocab_size * hidden,
        vision=shape.vision.parameters if shape.vision else 0,
        small=small,
    )


def _attention_parameters(config: Config, shape: Architecture) -> tuple[int, int]:
    """Matrices, and norms and biases, of all the attention layers."""
    matrices = small = 0
    for layer in shape.layers:
        if layer.attention in {"recurrent", "none"}:
            continue
        kv_heads, head_dim = layer.kv_heads or shape.kv_heads, layer.head_dim or shape.head_dim
        if shape.latent is not None:
            large, norms = _latent_parameters(shape, shape.latent)
            matrices += large
            small += norms
        else:
            matrices += shape.hidden_size * head_dim * (2 * shape.attention_heads + 2 * kv_heads)
        if shape.model_type in _QKV_BIAS or config.get("attention_bias") or config.get("add_qkv_bias"):
            small += (shape.attention_heads + 2 * kv_heads) * head_dim
        if config.get("attention_bias"):
            small += shape.hidden_size  # of the output projection
        if shape.model_type == "gpt_oss":
            small += shape.attention_heads  # attention sinks
        if shape.model_type in _QK_NORM:
            small += 2 * head_dim
        if shape.state is not None and shape.model_type.startswith(("qwen3_next", "qwen3_5")):
            # The query projection also makes a gate.
            matrices += shape.hidden_size * shape.attention_heads * head_dim
    # Layers that reuse the keys and values of others still have their queries.
    reused = (
        sum(layer.attention == "none" for layer in shape.layers) if config.get("num_kv_shared_layers") else 0
    )
    return matrices + reused * 2 * shape.hidden_size * shape.attention_heads * shape.head_dim, small


def _latent_parameters(shape: Architecture, latent: LatentAttention) -> tuple[int, int]:
    """Matrices, and norms, of one layer of latent attention."""
    hidden, heads = shape.hidden_size, shape.attention_heads
    query = heads * (latent.nope_dim + latent.rope_dim)
    projections = (hidden + query) * latent.query_rank if latent.query_rank else hidden * query
    projections += hidden * (latent.kv_rank + latent.rope_dim)
    projections += latent.kv_rank * heads * (latent.nope_dim + latent.value_dim)
    projections += heads * latent.value_dim * hidden
    return projections, latent.query_rank + latent.kv_rank


def _recurrent_parameters(config: Config, shape: Architecture) -> tuple[int, int]:
    """Matrices, and convolutions and norms, of all the recurrent layers."""
    hidden, count = shape.hidden_size, sum(layer.attention == "recurrent" for layer in shape.layers)
    if not count:
        return 0, 0
    if config.get("linear_num_value_heads"):
        value_heads, value_dim = (
            integer(config, "linear_num_value_heads"),
            integer(config, "linear_value_head_dim"),
        )
        keys = integer(config, "linear_num_key_heads") * integer(config, "linear_key_head_dim")
        values = value_heads * value_dim
        kernel = optional_integer(config, "linear_conv_kernel_dim", 4)
        return (
            count * hidden * (2 * keys + 3 * values + 2 * value_heads),
            count * (kernel * (2 * keys + values) + 2 * value_heads + value_dim),
        )
    if config.get("conv_L_cache"):
        return count * 4 * hidden * hidden, 0
    # Mamba: in and out projections; what selects the state is small beside them.
    heads = optional_integer(config, ("mamba_n_heads", "mamba_num_heads"))
    size = optional_integer(config, ("mamba_d_head", "mamba_head_dim"))
    inner = heads * size if heads and size else optional_integer(config, "mamba_expand", 2) * hidden
    return count * 3 * hidden * inner, 0
