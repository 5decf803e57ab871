"""The models and parsers of each release of vLLM, and what is said of a model that it cannot load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fleet.cli import app
from fleet.engine import registry, releases
from fleet.engine.registry import Declared, declared, loading, purposes
from fleet.fit.versions import VllmVersion
from fleet.loading import doubts, finding
from fleet.models import model_config, model_configs
from fleet.settings import Serving

NEWEST = releases.newest()
FIRSTS = {
    "openai/gpt-oss-20b": "0.10.1",
    "Qwen/Qwen3-Next-80B-A3B-Instruct": "0.10.2",
    "Qwen/Qwen3.5-4B": "0.17.0",
    "google/gemma-4-E2B": "0.19.1",
    "LGAI-EXAONE/EXAONE-4.0-32B": "0.10.0",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": "0.8.3",
    "Qwen/Qwen3-32B-AWQ": "0.8.4",
}
"""Models and the first release that can load them, as their announcements say."""


def test_the_data_is_read_when_it_is_first_asked_for() -> None:
    code = (
        "import fleet.checks; from fleet.engine import registry; "
        "assert not registry._data.cache_info().currsize"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(("model", "first"), FIRSTS.items())
def test_a_model_is_loaded_from_its_first_release_on(model: str, first: str) -> None:
    for version in releases.known():
        found = loading(declared(model_config(model)), version)
        if version >= VllmVersion.parse(first):
            assert found is None
        else:
            assert found is not None
            assert str(version) in found.problem
            assert found.fix == f"pin an image of vLLM {first} or later"


def test_every_bundled_model_is_loaded_by_the_newest_release() -> None:
    assert [name for name, config in model_configs().items() if loading(declared(config), NEWEST)] == []


def test_code_of_a_models_own_is_used_where_it_is_trusted() -> None:
    model = declared(model_config("MiniMaxAI/MiniMax-M2.5"))
    refused = loading(model, VllmVersion(0, 11, 2))
    assert refused is not None
    assert not refused.is_warning
    assert "has no class for model_type minimax_m2" in refused.problem
    assert refused.fix == "set trust_remote_code: true in serving.args"
    assert loading(model, VllmVersion(0, 11, 2), trusted=True) is None
    assert loading(model, VllmVersion(0, 19, 1)) is None
    older = loading(model, VllmVersion(0, 9, 2))
    assert older is not None
    assert not older.is_warning
    assert older.fix == "pin an image of vLLM 0.11.1 or later, with trust_remote_code: true in serving.args"
    # Its code may be such as the Transformers backend takes.
    older = loading(model, VllmVersion(0, 9, 2), trusted=True)
    assert older is not None
    assert older.is_warning


@pytest.mark.parametrize(
    ("model", "version", "said", "is_warning"),
    [
        (
            Declared(("Grok1ForCausalLM",), None, False),
            NEWEST,
            f"vLLM {NEWEST}, the image's release, cannot load Grok1ForCausalLM; "
            "pin an image of vLLM 0.24.0, the last release that could",
            False,
        ),
        (
            declared(model_config("google/gemma-4-E2B")),
            VllmVersion(0, 19, 0),
            "vLLM 0.19.0, the image's release, cannot load Gemma4ForConditionalGeneration: the Transformers "
            "in it has no class for model_type gemma4; pin an image of vLLM 0.19.1 or later",
            False,
        ),
        (
            Declared(("Qwen3ForCausalLM",), "qwen3", False),
            VllmVersion(0, 8, 3),
            "vLLM 0.8.3 does not register Qwen3ForCausalLM: the Transformers backend serves it slower, if at "
            "all; pin an image of vLLM 0.8.4 or later",
            True,
        ),
        (
            Declared(("OfTomorrowForCausalLM",), "of_tomorrow", False),
            NEWEST,
            f"no release of vLLM up to {NEWEST} registers OfTomorrowForCausalLM; "
            "see whether the image brings a plugin for it",
            True,
        ),
    ],
)
def test_what_is_said_of_a_model_that_a_release_does_not_register(
    model: Declared, version: VllmVersion, said: str, is_warning: bool
) -> None:
    found = loading(model, version)
    assert str(found) == said
    assert found is not None
    assert found.is_warning is is_warning


def test_only_what_is_certain_is_refused() -> None:
    gone = Declared(("Grok1ForCausalLM",), None, False)
    for version in (None, VllmVersion(0, 99), VllmVersion(NEWEST.major, NEWEST.minor, NEWEST.patch + 1)):
        found = loading(gone, version)
        assert found is not None
        assert found.is_warning
    # A model that is not known to generate: Transformers was not searched for it.
    found = loading(Declared(("GritLM",), None, False), NEWEST)
    assert found is not None
    assert found.is_warning
    found = loading(Declared(("GritLM",), None, False), NEWEST, implementation="vllm")
    assert found is not None
    assert not found.is_warning
    assert loading(Declared((), "new", False), NEWEST) is None
    assert loading(gone, NEWEST, implementation="terratorch") is None


def test_one_of_several_architectures_is_enough_and_so_is_one_that_is_converted() -> None:
    assert loading(Declared(("New", "LlamaForCausalLM"), "llama", False), NEWEST) is None
    assert loading(Declared(("OPTForSequenceClassification",), "opt", False), NEWEST) is None
    assert loading(Declared(("OPTForSequenceClassification",), "opt", False), VllmVersion(0, 9, 2))


@pytest.mark.parametrize("config", [{}, {"architectures": "x", "model_type": 1, "auto_map": []}])
def test_a_configuration_of_another_shape_says_nothing(config: dict[str, Any]) -> None:
    assert declared(config) == Declared((), None, False)


def test_what_a_model_is_for_is_what_the_registry_says() -> None:
    assert purposes("BertModel", NEWEST) == {"embed"}
    assert purposes("LlamaForCausalLM", NEWEST) == {"generate", "embed"}
    assert purposes("Gemma4ForConditionalGeneration", NEWEST) == {"multimodal"}
    assert purposes("Gemma4ForConditionalGeneration", VllmVersion(0, 9, 2)) == set()


def test_parsers_are_those_of_the_release() -> None:
    assert registry.parsers("--reasoning-parser", VllmVersion(0, 9, 2)) == {"deepseek_r1", "granite", "qwen3"}
    assert registry.parsers("--reasoning-parser", VllmVersion(0, 6, 6)) == set()
    assert "hermes" in registry.parsers("--tool-call-parser", None)


# --- as it is served ------------------------------------------------------------------------------------


def serving(**changed: Any) -> Serving:
    return Serving.model_validate(
        {"model": "google/gemma-4-E2B", "image": "vllm/vllm-openai:v0.9.2", **changed}
    )


@pytest.mark.parametrize(
    ("changed", "is_warning"),
    [
        ({}, False),
        ({"image": "registry.example/mirror/vllm-openai:v0.9.2"}, False),
        ({"image": "registry.example/own/vllm:v0.9.2"}, True),
        ({"image": f"vllm/vllm-openai@sha256:{'0' * 64}"}, None),
        ({"args": {"hf_overrides": {"architectures": ["OPTForCausalLM"], "model_type": "opt"}}}, None),
        ({"args": {"config_format": "mistral"}}, None),
    ],
)
def test_an_image_is_judged_as_it_is_served(changed: dict[str, Any], is_warning: bool | None) -> None:
    found = finding(serving(**changed), model_config("google/gemma-4-E2B"))
    assert (found.is_warning if found else None) is is_warning


def test_a_model_that_answers_no_completions_is_doubtful() -> None:
    (said,) = doubts(serving(), {"architectures": ["BertModel"]})
    assert said.startswith("serving.model: BertModel is registered for embed alone")
    assert said.endswith("set serving.task: embed")
    (said,) = doubts(serving(task="chat"), {"architectures": ["XLMRobertaForSequenceClassification"]})
    assert "does not answer /v1/chat/completions" in said
    assert said.endswith("set serving.task: rerank or score or classify")
    assert not list(doubts(serving(task="embed"), {"architectures": ["BertModel"]}))
    (said,) = doubts(serving(), {"architectures": ["EAGLEModel"]})
    assert "drafts tokens for another model" in said
    assert not list(doubts(serving(), {"architectures": ["LlamaForCausalLM"]}))
    assert not list(doubts(serving(), {"architectures": ["NewForCausalLM"]}))


# --- fleet fit and plan ---------------------------------------------------------------------------------


def test_a_model_that_the_release_cannot_load_does_not_fit() -> None:
    asked = ["fit", "--model", "openai/gpt-oss-20b", "--type", "L4-1-24G", "--max-model-len", "8192"]
    result = CliRunner().invoke(app, [*asked, "--vllm-version", "0.9.2", "--json"])
    assert result.exit_code == 3
    said = json.loads(result.output)
    assert said["fits"] is False
    assert said["reason"].endswith("cannot load GptOssForCausalLM; pin an image of vLLM 0.10.1 or later")
    assert CliRunner().invoke(app, [*asked, "--vllm-version", "0.10.1"]).exit_code == 0


def test_a_doubt_is_a_note_beside_the_verdict(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**model_config("Qwen/Qwen3-8B"), "architectures": ["NewForCausalLM"]}))
    asked = ["fit", "--model-config", str(config), "--type", "L40S-1-48G", "--max-model-len", "8192"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0
    assert "registers NewForCausalLM" in " ".join(result.output.split())
