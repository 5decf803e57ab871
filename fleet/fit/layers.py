"""What each layer of a model keeps of a request: keys and values of its tokens, or a state of fixed size."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from fleet.fit.fields import HIDDEN_SIZE, Config, integer, optional_integer

AttentionKind = Literal["full", "sliding", "chunked", "recurrent", "none"]

_LAYER_TYPES: dict[str, AttentionKind] = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": "recurrent",
    "mamba": "recurrent",
    "conv": "recurrent",
    "mlp": "none",
    "moe": "none",
}
# Nemotron-H spells its layers in one word.
_LETTERS: dict[str, AttentionKind] = {"M": "recurrent", "*": "full", "-": "none", "E": "none"}


@dataclass(frozen=True, slots=True)
class Layer:
    """What one decoder layer keeps of each token.

    `window` is in tokens, 0 for none; `kv_heads` and `head_dim` are 0 where they are the model's own.
    """

    attention: AttentionKind = "full"
    window: int = 0
    kv_heads: int = 0
    head_dim: int = 0


@dataclass(frozen=True, slots=True)
class RecurrentState:
    """What a recurrent layer keeps of a request, however long it is; ranks share it evenly.

    `values` are the numbers of its state, `value_bytes` what each takes; `convolution_values` are kept in
    half precision (`vllm/model_executor/layers/mamba/mamba_utils.py`).
    """

    values: int
    value_bytes: int
    convolution_values: int

    @property
    def bytes(self) -> int:
        return self.values * self.value_bytes + self.convolution_values * 2


def read_layers(config: Config, model_type: str, count: int) -> tuple[Layer, ...]:
    """The attention of each layer: what the config lists, else the family's rule (vLLM's model file).

    Layers that reuse the keys and values of others (Gemma 3n and 4) keep nothing.
    """
    window = optional_integer(config, "sliding_window")
    if model_type.startswith("gemma3"):
        window = window or 1024
    elif model_type == "gpt_oss":
        window = window or 128
    sizes = {"sliding": window, "chunked": optional_integer(config, "attention_chunk_size", 8192)}
    layers = []
    for kind in _kinds(config, model_type, count):
        size = sizes.get(kind, 0)
        layers.append(Layer("full" if kind == "sliding" and not size else kind, size))
    own = len(layers) - optional_integer(config, "num_kv_shared_layers")
    if config.get("global_head_dim"):
        layers = [_gemma4_layer(layer, config) for layer in layers]
    return tuple(layer if index < own else Layer("none") for index, layer in enumerate(layers))


def _gemma4_layer(layer: Layer, config: Config) -> Layer:
    """Full layers of Gemma 4 have heads of their own size."""
    if layer.attention != "full":
        return layer
    shared = optional_integer(config, "num_global_key_value_heads") if config.get("attention_k_eq_v") else 0
    return replace(layer, kv_heads=shared, head_dim=integer(config, "global_head_dim"))


def _kinds(config: Config, model_type: str, count: int) -> list[AttentionKind]:
    listed = config.get("layer_types") or config.get("layers_block_type")
    if isinstance(listed, list):
        return [_LAYER_TYPES.get(str(name), "full") for name in listed]
    letters = config.get("hybrid_override_pattern")
    if isinstance(letters, str):
        return [_LETTERS.get(letter, "full") for letter in letters]
    others, full = _rule(config, model_type, count)
    return ["full" if index in full else others for index in range(count)]


def _rule(config: Config, model_type: str, count: int) -> tuple[AttentionKind, Collection[int]]:
    """What most layers of the family are, and which layers have full attention instead."""
    pattern = config.get("sliding_window_pattern")
    others: AttentionKind = "sliding"
    full: Collection[int] = ()
    if isinstance(config.get("attn_layer_indices"), list):  # Bamba
        others, full = "recurrent", config["attn_layer_indices"]
    elif config.get("attn_layer_period"):  # Jamba
        first = optional_integer(config, "attn_layer_offset")
        others, full = "recurrent", range(first, count, integer(config, "attn_layer_period"))
    elif config.get("linear_num_value_heads"):  # Qwen3-Next
        others, full = "recurrent", _every(optional_integer(config, "full_attention_interval", 4), count)
    elif model_type in {"gemma2", "gpt_oss"}:
        full = _every(2, count)
    elif model_type in {"gemma3", "gemma3_text"}:
        full = _every(optional_integer(config, "sliding_window_pattern", 6), count)
    elif model_type == "llama4_text":
        others, full = "chunked", _every(4, count)
    elif isinstance(pattern, str) and pattern:  # EXAONE 4 spells it: LLLG
        full = [index for index in range(count) if pattern[index % len(pattern)] != "L"]
    elif not config.get("use_sliding_window", True):
        others = "full"
    return others, full


def _every(period: int, count: int) -> range:
    """The last layer of each `period`."""
    return range(period - 1, count, period)


def recurrent_state(config: Config) -> RecurrentState:
    """The state of one recurrent layer: gated delta rule, Mamba 1, Mamba 2 or a short convolution."""
    hidden = integer(config, HIDDEN_SIZE)
    if config.get("linear_num_value_heads"):
        keys = integer(config, "linear_num_key_heads") * integer(config, "linear_key_head_dim")
        values = integer(config, "linear_num_value_heads") * integer(config, "linear_value_head_dim")
        kernel = optional_integer(config, "linear_conv_kernel_dim", 4)
        # The state is kept in single precision.
        return RecurrentState(
            values * integer(config, "linear_key_head_dim"), 4, (kernel - 1) * (2 * keys + values)
        )
    if config.get("conv_L_cache"):  # LFM2
        kernel = integer(config, "conv_L_cache")
        return RecurrentState(0, 2, (kernel - 1) * optional_integer(config, "conv_dim", hidden))
    heads = optional_integer(config, ("mamba_n_heads", "mamba_num_heads"))
    state = integer(config, ("mamba_d_state", "ssm_state_size", "state_size"))
    kernel = optional_integer(config, ("mamba_d_conv", "conv_kernel"), 4)
    if not heads:  # Mamba 1
        inner = optional_integer(config, "mamba_expand", 2) * hidden
        return RecurrentState(inner * state, 2, (kernel - 1) * inner)
    size = optional_integer(config, ("mamba_d_head", "mamba_head_dim"))
    inner = heads * size if size else optional_integer(config, "mamba_expand", 2) * hidden
    groups = optional_integer(config, ("mamba_n_groups", "n_groups"), 1)
    return RecurrentState(inner * state, 2, (kernel - 1) * (inner + 2 * groups * state))
