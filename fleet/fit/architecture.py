"""A model's shape, read from its Hugging Face `config.json`: its weights, and what a token leaves cached.

Parameter counts are exact for the families tried in the tests. Names follow `transformers`' configuration
classes; where a family hides a value, vLLM's model file of that name says how it is derived.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Config = Mapping[str, Any]
AttentionKind = Literal["full", "sliding", "chunked", "linear"]

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
_QK_NORM = {"qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text", "qwen3_next", "gemma3", "gemma3_text"}
_FOUR_NORMS = {"gemma2", "gemma3", "gemma3_text"}
_TIED_BY_DEFAULT = {"gemma", "gemma2", "gemma3", "gemma3_text", "cohere", "cohere2", "opt", "gpt2", "falcon"}
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
}

# Videos of 14 frames, two to a step, each frame as large as an image
# (vllm/model_executor/models/qwen2_vl.py).
_MAX_VIDEO_TOKENS = {"qwen2_vl": 7 * 16384, "qwen2_5_vl": 7 * 16384}


class ConfigError(ValueError):
    """The configuration lacks a field the planner needs, or says something impossible."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What one decoder layer keeps of each token. `window` is in tokens, 0 for none."""

    attention: AttentionKind = "full"
    window: int = 0


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
class LinearAttention:
    """Gated-delta layers (Qwen3-Next and its kin): a state of fixed size instead of a growing cache."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int


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
    parameters: Parameters
    quantization: Mapping[str, Any]
    experts: Experts | None = None
    latent: LatentAttention | None = None
    linear: LinearAttention | None = None
    vision: VisionTower | None = None

    @property
    def is_multimodal(self) -> bool:
        return self.vision is not None

    @classmethod
    def from_config(cls, config: Config) -> Architecture:
        """Read a `config.json`, already parsed.

        Raises ConfigError naming the missing field.
        """
        text: Config = {**config, **_nested(config)}
        model_type = str(text.get("model_type", ""))
        hidden = _integer(text, "hidden_size", "n_embd", "d_model")
        count = _integer(text, "num_hidden_layers", "n_layer", "num_layers")
        heads = _integer(text, "num_attention_heads", "n_head")
        kv_heads = _kv_heads(text, heads)
        head_dim = int(text.get("head_dim") or hidden // heads)
        intermediate = int(
            text.get("intermediate_size") or text.get("ffn_dim") or text.get("n_inner") or 4 * hidden
        )
        if model_type == "llama4_text":
            intermediate = int(text.get("intermediate_size_mlp", intermediate))
        vocab = _integer(text, "vocab_size")
        layers = _layers(text, model_type, count)
        latent = _latent(text)
        experts = _experts(text, model_type, count)
        linear = _linear(text) if any(layer.attention == "linear" for layer in layers) else None
        shape = cls(
            model_type=model_type,
            hidden_size=hidden,
            vocab_size=vocab,
            attention_heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=intermediate,
            gated=model_type not in _UNGATED,
            layers=layers,
            max_model_len=_max_model_len(text),
            dtype_bytes=4 if str(text.get("torch_dtype") or text.get("dtype")) == "float32" else 2,
            parameters=Parameters(),
            quantization=dict(config.get("quantization_config") or text.get("quantization_config") or {}),
            experts=experts,
            latent=latent,
            linear=linear,
            vision=_vision(config, hidden),
        )
        return replace(shape, parameters=_parameters(text, shape))


def _nested(config: Config) -> Config:
    for key in ("text_config", "llm_config", "language_config"):
        inner = config.get(key)
        if isinstance(inner, Mapping):
            return inner
    return {}


def _integer(config: Config, *names: str) -> int:
    for name in names:
        value = config.get(name)
        if value is not None:
            return int(value)
    raise ConfigError(
        f"config.json: {names[0]} is missing; give the model's own config.json, not that of an adapter"
    )


def _kv_heads(config: Config, heads: int) -> int:
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    for name in ("num_key_value_heads", "num_kv_heads", "n_head_kv"):
        if config.get(name) is not None:
            return int(config[name])
    return heads


def _max_model_len(config: Config) -> int:
    length = int(
        config.get("max_position_embeddings")
        or config.get("n_positions")
        or config.get("max_seq_len")
        or config.get("seq_length")
        or 2048
    )
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    # YaRN and linear scaling lengthen what was trained; the other kinds state the final length already.
    if kind in {"yarn", "linear", "dynamic"} and config.get("model_type") not in {
        "deepseek_v2",
        "deepseek_v3",
        "gpt_oss",
    }:
        original = int(scaling.get("original_max_position_embeddings") or length)
        return max(length, int(original * float(scaling.get("factor", 1))))
    return length


_LAYER_TYPES: dict[str, AttentionKind] = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": "linear",
}


def _layers(config: Config, model_type: str, count: int) -> tuple[Layer, ...]:
    """The attention of each layer: what `layer_types` says, else the family's rule (vLLM's model file)."""
    window = int(config.get("sliding_window") or 0)
    chunk = int(config.get("attention_chunk_size") or 8192)
    sizes = {"full": 0, "linear": 0, "sliding": window, "chunked": chunk}
    kinds: list[AttentionKind]
    if isinstance(config.get("layer_types"), list):
        kinds = [_LAYER_TYPES.get(str(name), "full") for name in config["layer_types"]]
    elif model_type == "gemma2":
        kinds = ["full" if index % 2 else "sliding" for index in range(count)]
    elif model_type in {"gemma3", "gemma3_text"}:
        period = int(config.get("sliding_window_pattern") or 6)
        sizes["sliding"] = window or 1024
        kinds = ["full" if (index + 1) % period == 0 else "sliding" for index in range(count)]
    elif model_type == "gpt_oss":
        sizes["sliding"] = window or 128
        kinds = ["full" if index % 2 else "sliding" for index in range(count)]
    elif model_type == "llama4_text":
        kinds = ["full" if (index + 1) % 4 == 0 else "chunked" for index in range(count)]
    elif config.get("linear_num_value_heads"):
        period = int(config.get("full_attention_interval") or 4)
        kinds = ["full" if (index + 1) % period == 0 else "linear" for index in range(count)]
    elif window and config.get("use_sliding_window", True):
        kinds = ["sliding"] * count
    else:
        kinds = ["full"] * count
    return tuple(Layer(kind, sizes[kind]) if sizes[kind] or kind == "linear" else Layer() for kind in kinds)


def _latent(config: Config) -> LatentAttention | None:
    if not config.get("kv_lora_rank"):
        return None
    return LatentAttention(
        kv_rank=int(config["kv_lora_rank"]),
        rope_dim=_integer(config, "qk_rope_head_dim"),
        nope_dim=_integer(config, "qk_nope_head_dim"),
        value_dim=_integer(config, "v_head_dim"),
        query_rank=int(config.get("q_lora_rank") or 0),
    )


def _linear(config: Config) -> LinearAttention:
    return LinearAttention(
        key_heads=_integer(config, "linear_num_key_heads"),
        value_heads=_integer(config, "linear_num_value_heads"),
        key_dim=_integer(config, "linear_key_head_dim"),
        value_dim=_integer(config, "linear_value_head_dim"),
        kernel=int(config.get("linear_conv_kernel_dim") or 4),
    )


def _experts(config: Config, model_type: str, layers: int) -> Experts | None:
    count = int(
        config.get("n_routed_experts") or config.get("num_local_experts") or config.get("num_experts") or 0
    )
    if count < 2:
        return None
    size = int(config.get("moe_intermediate_size") or _integer(config, "intermediate_size"))
    shared = int(config.get("shared_expert_intermediate_size") or 0)
    shared += int(config.get("n_shared_experts") or 0) * size
    if model_type == "llama4_text":
        shared = size
        step = int(config.get("interleave_moe_layer_step") or 1)
    else:
        step = int(config.get("decoder_sparse_step") or config.get("moe_layer_freq") or 1)
    dense = int(config.get("first_k_dense_replace") or 0) + len(config.get("mlp_only_layers") or [])
    return Experts(
        count=count,
        per_token=int(config.get("num_experts_per_tok") or config.get("experts_per_token") or 1),
        intermediate_size=size,
        shared_intermediate_size=shared,
        layers=(layers - dense) // step,
    )


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
    hidden, heads, kv_heads, head_dim = (
        shape.hidden_size,
        shape.attention_heads,
        shape.kv_heads,
        shape.head_dim,
    )
    model_type, layers, experts, linear = shape.model_type, shape.layers, shape.experts, shape.linear
    count = len(layers)
    linear_layers = sum(layer.attention == "linear" for layer in layers)
    attention, small = _attention_parameters(shape)
    if model_type in _QKV_BIAS or config.get("attention_bias"):
        small += (heads + 2 * kv_heads) * head_dim
    if config.get("attention_bias"):
        small += hidden  # of the output projection
    if model_type == "gpt_oss":
        small += heads  # attention sinks
    if model_type in _QK_NORM:
        small += 2 * head_dim
    if linear and model_type.startswith(("qwen3_next", "qwen3_5")):
        attention += hidden * heads * head_dim  # the query projection also makes a gate
    attention *= count - linear_layers
    small *= count - linear_layers
    if linear:
        keys, values = linear.key_heads * linear.key_dim, linear.value_heads * linear.value_dim
        attention += linear_layers * hidden * (2 * keys + 3 * values + 2 * linear.value_heads)
        small += linear_layers * (
            linear.kernel * (2 * keys + values) + 2 * linear.value_heads + linear.value_dim
        )
    matrices = 3 if shape.gated else 2
    moe_layers = experts.layers if experts else 0
    feed_forward = (count - moe_layers) * matrices * hidden * shape.intermediate_size
    expert_parameters = 0
    if experts:
        feed_forward += moe_layers * 3 * hidden * experts.shared_intermediate_size
        expert_parameters = moe_layers * experts.count * 3 * hidden * experts.intermediate_size
        small += moe_layers * experts.count * hidden  # the router
        if config.get("topk_method") == "noaux_tc":
            small += moe_layers * experts.count
        if config.get("shared_expert_intermediate_size"):
            small += moe_layers * hidden
        if model_type == "gpt_oss":
            small += moe_layers * experts.count * (1 + hidden + 2 * experts.intermediate_size)
    small += (4 if model_type in _FOUR_NORMS else 2) * count * hidden + hidden
    tied = bool(config.get("tie_word_embeddings", model_type in _TIED_BY_DEFAULT))
    return Parameters(
        attention=attention,
        feed_forward=feed_forward,
        experts=expert_parameters,
        embedding=shape.vocab_size * hidden,
        lm_head=0 if tied else shape.vocab_size * hidden,
        vision=shape.vision.parameters if shape.vision else 0,
        small=small,
    )


def _attention_parameters(shape: Architecture) -> tuple[int, int]:
    """Matrices, and norms, of one attention layer."""
    hidden, heads, latent = shape.hidden_size, shape.attention_heads, shape.latent
    if latent is None:
        return hidden * shape.head_dim * (2 * heads + 2 * shape.kv_heads), 0
    query = heads * (latent.nope_dim + latent.rope_dim)
    projections = (hidden + query) * latent.query_rank if latent.query_rank else hidden * query
    projections += hidden * (latent.kv_rank + latent.rope_dim)
    projections += latent.kv_rank * heads * (latent.nope_dim + latent.value_dim)
    projections += heads * latent.value_dim * hidden
    return projections, latent.query_rank + latent.kv_rank
