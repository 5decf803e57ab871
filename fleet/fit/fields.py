"""Fields of a `config.json`, by whatever name a family gives them (`transformers`' configuration classes)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]

# What a nested language model may leave out because it is its configuration class's default.
_NESTED_DEFAULTS: dict[str, Config] = {
    "gemma3_text": {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
    },
}

HIDDEN_SIZE = ("hidden_size", "n_embd", "d_model")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads")
VOCABULARY = ("vocab_size", "padded_vocab_size")
INTERMEDIATE_SIZE = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "ff_intermediate_size")
EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "experts_per_token", "top_k_experts", "moe_top_k", "moe_k")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads")
# In vLLM's order of search (`_get_and_verify_max_len` in `vllm/config/model.py`).
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length")


class ConfigError(ValueError):
    """The configuration lacks a field the planner needs, or says something impossible."""


def language_model(config: Config) -> Config:
    """The language model's fields, those of a vision model's inner configuration first."""
    for key in ("text_config", "llm_config", "language_config"):
        inner = config.get(key)
        if isinstance(inner, Mapping):
            defaults = _NESTED_DEFAULTS.get(str(inner.get("model_type", "llama")), {})
            return {**config, **defaults, **inner}
    # MPT and DBRX keep these apart.
    for key in ("attn_config", "ffn_config"):
        inner = config.get(key)
        if isinstance(inner, Mapping):
            config = {**config, **inner}
    return config


def integer(config: Config, names: tuple[str, ...] | str) -> int:
    """The first of those fields that is there; ConfigError if none is, or it is no positive whole number."""
    names = (names,) if isinstance(names, str) else names
    found = _first(config, names)
    if found is None:
        raise ConfigError(
            f"config.json: {names[0]} is missing; give the model's own config.json, not that of an adapter"
        )
    if found == 0:
        raise ConfigError(f"config.json: {names[0]}: 0 is not a positive whole number; correct it")
    return found


def optional_integer(config: Config, names: tuple[str, ...] | str, default: int = 0) -> int:
    """As `integer`, but `default` where the field is missing or null; zero is as good as any."""
    found = _first(config, (names,) if isinstance(names, str) else names)
    return default if found is None else found


def _first(config: Config, names: tuple[str, ...]) -> int | None:
    name = next((name for name in names if config.get(name) is not None), None)
    if name is None:
        return None
    value = config[name]
    # Some families list a size layer by layer: the largest is what must fit.
    values = value if isinstance(value, list) and value else [value]
    try:
        number = max(int(each) for each in values)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise ConfigError(f"config.json: {name}: {value!r} is not a positive whole number; correct it")
    return number


def key_value_heads(config: Config, heads: int) -> int:
    """Heads whose keys and values are cached: as many as there are unless the family shares them."""
    if config.get("multi_query_attention"):
        return integer(config, "multi_query_group_num")
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    return optional_integer(config, _KEY_VALUE_HEADS) or heads


def head_size(config: Config, hidden: int, heads: int) -> int:
    """Numbers of an attention head."""
    given = optional_integer(config, ("head_dim", "kv_channels"))
    if not given and hidden % heads:
        raise ConfigError(
            f"config.json: hidden_size: {hidden} is no multiple of the {heads} attention heads; give head_dim"
        )
    return given or hidden // heads


def max_model_len(config: Config) -> int:
    """The longest context the model is made for, in tokens."""
    length = optional_integer(config, _LENGTHS) or 2048
    family = str(config.get("model_type", ""))
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    # YaRN and linear scaling lengthen what was trained; the other kinds, and these families, state the final
    # length already.
    stated = family.startswith(("gemma3", "deepseek_v2", "deepseek_v3", "gpt_oss"))
    if kind in {"yarn", "linear", "dynamic"} and not stated:
        original = int(scaling.get("original_max_position_embeddings") or length)
        return max(length, int(original * float(scaling.get("factor", 1))))
    return length
