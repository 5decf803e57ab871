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
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", {"linear": 36, "full": 12}),
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
