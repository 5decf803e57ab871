"""Shapes read from config.json: parameter counts are those the checkpoints' own indexes state."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from fleet.fit import Architecture, ConfigError
from fleet.models import model_config, model_configs

PARAMETERS = {
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "google/gemma-2-9b-it": 9_241_705_984,
    "microsoft/phi-4": 14_659_507_200,
    "deepseek-ai/DeepSeek-V2-Lite-Chat": 15_706_484_224,
    "deepseek-ai/DeepSeek-V3": 671_026_419_200,
    "openai/gpt-oss-20b": 20_914_757_184,
    "openai/gpt-oss-120b": 116_829_156_672,
}


@pytest.mark.parametrize(("model", "parameters"), PARAMETERS.items())
def test_parameters_are_counted_exactly(model: str, parameters: int) -> None:
    assert Architecture.from_config(model_config(model)).parameters.total == parameters


def test_a_language_model_inside_a_vision_model_is_counted_exactly() -> None:
    gemma = Architecture.from_config(model_config("google/gemma-3-27b-it"))

    assert gemma.vision is not None
    assert gemma.parameters.total - gemma.parameters.vision == 27_009_346_304
    assert gemma.parameters.vision == pytest.approx(0.42e9, rel=0.05)


def test_every_bundled_model_is_understood() -> None:
    for name, config in model_configs().items():
        assert Architecture.from_config(config).parameters.total > 1e8, name


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        ("Qwen/Qwen3-8B", {"full": 36}),
        ("google/gemma-2-9b-it", {"sliding": 21, "full": 21}),
        ("google/gemma-3-27b-it", {"sliding": 52, "full": 10}),
        ("openai/gpt-oss-20b", {"sliding": 12, "full": 12}),
        ("mistralai/Mistral-7B-Instruct-v0.1", {"sliding": 32}),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", {"chunked": 36, "full": 12}),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", {"recurrent": 36, "full": 12}),
    ],
)
def test_each_family_has_its_attention_layers(model: str, kinds: dict[str, int]) -> None:
    layers = Architecture.from_config(model_config(model)).layers

    assert Counter(layer.attention for layer in layers) == kinds


def test_layer_types_of_the_config_win_over_the_family_rule() -> None:
    config: dict[str, Any] = {
        **model_config("google/gemma-2-9b-it"),
        "layer_types": ["full_attention"] * 42,
    }

    assert all(layer.attention == "full" for layer in Architecture.from_config(config).layers)


_TEXT = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
_MAMBA2 = {"mamba_n_heads": 128, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_d_conv": 4}
_NEMOTRON_H = {"mamba_num_heads": 128, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8}


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (
            {"model_type": "jamba", "attn_layer_period": 8, "attn_layer_offset": 4, "mamba_d_state": 16},
            {"recurrent": 28, "full": 4},
        ),
        ({"model_type": "bamba", "attn_layer_indices": [9, 18, 27], **_MAMBA2}, {"recurrent": 29, "full": 3}),
        (
            {"model_type": "granitemoehybrid", "layer_types": ["mamba"] * 28 + ["attention"] * 4, **_MAMBA2},
            {"recurrent": 28, "full": 4},
        ),
        (
            {"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*" * 8, **_NEMOTRON_H},
            {"recurrent": 16, "none": 8, "full": 8},
        ),
        (
            {"model_type": "lfm2", "layer_types": ["conv"] * 24 + ["full_attention"] * 8, "conv_L_cache": 3},
            {"recurrent": 24, "full": 8},
        ),
        (
            {"model_type": "exaone4", "sliding_window": 4096, "sliding_window_pattern": "LLLG"},
            {"sliding": 24, "full": 8},
        ),
        ({"model_type": "qwen2", "sliding_window": 131072, "use_sliding_window": False}, {"full": 32}),
        (
            {"model_type": "gemma4", "num_kv_shared_layers": 20, "layer_types": ["full_attention"] * 32},
            {"full": 12, "none": 20},
        ),
    ],
)
def test_hybrid_families_keep_a_cache_only_where_they_attend(
    config: dict[str, Any], kinds: dict[str, int]
) -> None:
    layers = Architecture.from_config({**_TEXT, **config}).layers

    assert Counter(layer.attention for layer in layers) == kinds


_GLM = {
    "model_type": "chatglm",
    "hidden_size": 4096,
    "num_layers": 28,
    "num_attention_heads": 32,
    "kv_channels": 128,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "ffn_hidden_size": 13696,
    "padded_vocab_size": 65024,
    "add_qkv_bias": True,
}
_DBRX = {
    "model_type": "dbrx",
    "d_model": 6144,
    "n_heads": 48,
    "n_layers": 40,
    "vocab_size": 100352,
    "attn_config": {"kv_n_heads": 8},
    "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
}
_GPT2 = {"model_type": "gpt2", "n_embd": 1600, "n_head": 25, "n_layer": 48, "vocab_size": 50257}
_MPT = {"model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "vocab_size": 50432}
_STARCODER = {
    "model_type": "gpt_bigcode",
    "n_embd": 6144,
    "n_head": 48,
    "n_layer": 40,
    "n_inner": 24576,
    "multi_query": True,
    "vocab_size": 49152,
}
_FALCON = {
    "model_type": "falcon",
    "hidden_size": 8192,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "num_kv_heads": 8,
    "multi_query": True,
    "new_decoder_architecture": True,
    "vocab_size": 65024,
}


@pytest.mark.parametrize(
    ("config", "kv_heads", "head_dim", "billions"),
    [
        (_GLM, 2, 128, 6.24),
        (_DBRX, 8, 128, 131.6),
        (_GPT2, 25, 64, 1.56),
        (_MPT, 32, 128, 6.65),
        (_STARCODER, 1, 128, 15.5),
        (_FALCON, 8, 64, 41.3),
    ],
)
def test_a_family_may_name_its_fields_otherwise(
    config: dict[str, Any], kv_heads: int, head_dim: int, billions: float
) -> None:
    shape = Architecture.from_config(config)

    assert (shape.kv_heads, shape.head_dim) == (kv_heads, head_dim)
    assert shape.parameters.total / 1e9 == pytest.approx(billions, rel=0.02)


def test_what_a_nested_language_model_leaves_out_is_its_class_default() -> None:
    shape = Architecture.from_config(
        {
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        }
    )

    assert (shape.attention_heads, shape.kv_heads, shape.head_dim) == (8, 4, 256)
    assert shape.max_model_len == 131072


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": "many"}, "hidden_size: 'many' is not a positive whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads: 0 is not a positive whole number"),
        ({"hidden_size": 4095}, "no multiple of the 32 attention heads; give head_dim"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "only decoders are planned"),
        ({"model_type": "mamba", "num_attention_heads": None, "state_size": 16}, "no KV cache to plan"),
    ],
)
def test_an_impossible_config_names_the_field_and_the_value(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Architecture.from_config({**_TEXT, "model_type": "llama", **changes})


def test_yarn_lengthens_the_context() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}

    assert (
        Architecture.from_config({**model_config("Qwen/Qwen3-8B"), "rope_scaling": yarn}).max_model_len
        == 131072
    )


def test_a_config_of_something_else_names_the_missing_field() -> None:
    with pytest.raises(ConfigError, match="hidden_size is missing"):
        Architecture.from_config({"peft_type": "LORA"})


def test_a_model_that_is_not_bundled_is_answered_with_its_neighbours() -> None:
    with pytest.raises(ValueError, match="Qwen/Qwen3-8B-AWQ"):
        model_config("Qwen/Qwen3-8B-AW")
