"""What a stack is told before it costs anything: fit, flags, driver, disk, budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet import settings
from fleet.checks import NodeCheck, check, cost_line
from fleet.cost import Cost, Part
from fleet.models import hub, model_config
from fleet.models.files import ModelFiles

# The service this project took over: a 32B model over its full context, on two GPUs.
QWEN_32B: dict[str, Any] = {
    "image": "vllm/vllm-openai:v0.9.2",
    "model": "Qwen/Qwen3-32B-AWQ",
    "max_model_len": 131072,
    "quantization": "awq_marlin",
    "distributed_executor_backend": "mp",
    "tensor_parallel_size": 2,
    "gpu_memory_utilization": 0.95,
    "swap_space_gb": 16,
}


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    key = tmp_path / "id_ed25519"
    key.write_text("a key")
    key.chmod(0o600)
    key.with_suffix(".pub").write_text(
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    )
    return {
        "nodes": [{"name": "a", "cloud": "scaleway"}],
        "serving": {"model": "Qwen/Qwen3-8B-AWQ"},
        "access": {"ssh_cidrs": ["203.0.113.7/32"], "ssh_private_key_path": str(key)},
        "secrets": {"api_key": "0123456789abcdef"},
    }


def checked(stack: dict[str, Any]) -> dict[str, NodeCheck]:
    return check(settings.parse(stack))


def refused(stack: dict[str, Any]) -> list[str]:
    with pytest.raises(settings.SettingsError) as caught:
        checked(stack)
    return [str(problem) for problem in caught.value.problems]


def on(stack: dict[str, Any], type_: str, **serving: Any) -> dict[str, Any]:
    return {**stack, "nodes": [{**stack["nodes"][0], "type": type_}], "serving": serving or stack["serving"]}


def test_the_default_model_fits_the_default_node(stack: dict[str, Any]) -> None:
    found = checked(stack)["a"]
    assert found.warnings == ()
    assert "5.92 requests of 16,384 tokens at once" in found.facts[0]
    stack["serving"]["image"] = "vllm/vllm-openai:v0.9.2"
    assert "5.60 requests of 16,384 tokens at once" in checked(stack)["a"].facts[0]


def test_a_misfit_is_refused_with_its_reason_and_what_would_fit(stack: dict[str, Any]) -> None:
    stack["serving"] |= {"model": "Qwen/Qwen3-32B-AWQ", "max_model_len": 32768}
    (said,) = refused(stack)
    assert said.startswith("nodes[0].serving: Qwen/Qwen3-32B-AWQ does not fit L4-1-24G: ")
    assert "GiB of KV cache a GPU" in said
    assert "it fits with " in said
    assert " or on L40S-1-48G (1.4699 EUR an hour)" in said


def test_every_misfit_of_a_stack_is_named_at_once(stack: dict[str, Any]) -> None:
    big = {"serving": {"model": "Qwen/Qwen3-32B"}}
    stack["nodes"] = [{"name": name, "cloud": "scaleway", **big} for name in ("a", "b")]
    assert [said.split(":")[0] for said in refused(stack)] == ["nodes[0].serving", "nodes[1].serving"]


@pytest.mark.parametrize(
    ("type_", "serving", "fits"),
    [("L4-2-24G", QWEN_32B, False), ("L40S-2-48G", QWEN_32B, True), ("H100-2-80G", QWEN_32B, True)],
)
def test_the_32b_service_is_judged_where_it_can_run(
    stack: dict[str, Any], type_: str, serving: dict[str, Any], fits: bool
) -> None:
    asked = on(stack, type_, **serving)
    if fits:
        assert any("exceeds the 40,960 of the model" in said for said in checked(asked)["a"].warnings)
    else:
        assert "does not fit L4-2-24G" in refused(asked)[0]


def test_an_override_deploys_a_misfit_and_is_said_every_time(stack: dict[str, Any]) -> None:
    stack["serving"]["model"] = "Qwen/Qwen3-32B"
    stack["fit"] = {"override": "measured by hand"}
    for _ in range(2):
        (said,) = checked(stack)["a"].warnings
        assert "does not fit L4-1-24G" in said
        assert said.endswith("overridden: measured by hand")


def test_a_model_nobody_knows_is_said_with_the_way_to_describe_it(stack: dict[str, Any]) -> None:
    stack["serving"]["model"] = "acme/new"
    (said,) = checked(stack)["a"].warnings
    assert "whether acme/new fits is unknown: 'acme/new' is not in the bundled table" in said
    assert "http://127.0.0.1:9 did not answer" in said
    assert "serving.architecture.config" in said


def test_a_hub_out_of_reach_is_asked_once_for_many_nodes(
    stack: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def model_files(model: str, *, token: str | None) -> ModelFiles:
        asked.append(model)
        raise hub.HubError("out of reach")

    monkeypatch.setattr(hub, "model_files", model_files)
    stack["serving"]["model"] = "acme/asked-once"
    stack["nodes"] = [{"name": name, "cloud": "scaleway"} for name in ("a", "b", "c")]
    checked(stack)
    assert asked == ["acme/asked-once"]


def test_a_described_model_is_judged_like_a_known_one(stack: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(model_config("Qwen/Qwen3-8B-AWQ")))
    stack["serving"] |= {"model": "/models/own", "architecture": {"config": str(config), "weights_gib": 5.7}}
    assert checked(stack)["a"].warnings == ()
    stack["serving"]["architecture"]["weights_gib"] = 30
    assert "the weights take 30.0 GiB" in refused(stack)[0]


def test_arguments_that_take_memory_are_counted(stack: dict[str, Any]) -> None:
    plain = checked(stack)["a"].facts
    stack["serving"]["extra_args"] = ["--max-num-batched-tokens", "16384"]
    assert checked(stack)["a"].facts != plain


def test_a_volume_too_small_for_the_weights_is_refused_with_the_size_it_needs(stack: dict[str, Any]) -> None:
    stack["nodes"][0] |= {"type": "H100-2-80G", "root_volume_gb": 150}
    stack["serving"] = {
        "model": "Qwen/Qwen2.5-72B-Instruct",
        "tensor_parallel_size": 2,
        "max_model_len": 4096,
        "gpu_memory_utilization": 0.95,
    }
    (said,) = refused(stack)
    assert "nodes[0].root_volume_gb: image, weights and caches" in said
    assert "make it 190" in said


def test_the_disk_is_judged_by_what_the_release_downloads_where_the_files_are_known(
    stack: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"model.safetensors": 10 * 10**9, "original/model.safetensors": 200 * 10**9}
    files = ModelFiles(model_config("Qwen/Qwen3-8B-AWQ"), 6.0, sizes)
    monkeypatch.setattr(hub, "model_files", lambda *_, **__: files)
    stack["serving"] = {"model": "acme/two-copies"}
    assert "need 253 GB, root_volume_gb is 200" in refused(stack)[0]
    # The second copy is not downloaded where the patterns leave it out.
    stack["serving"]["args"] = {"ignore_patterns": ["original/*"]}
    assert not [warning for warning in checked(stack)["a"].warnings if "GB" in warning]


def test_a_flag_the_image_lacks_is_left_out_and_said(stack: dict[str, Any]) -> None:
    stack["serving"] |= {"image": "vllm/vllm-openai:v0.18.0", "swap_space_gb": 4}
    assert "vLLM 0.18.0 has no --swap-space" in checked(stack)["a"].warnings[0]


def test_an_image_whose_release_is_unknown_is_said(stack: dict[str, Any]) -> None:
    stack["serving"]["image"] = f"vllm/vllm-openai@sha256:{'0' * 64}"
    assert "names no vLLM release" in checked(stack)["a"].warnings[0]


def test_an_image_newer_than_the_driver_is_said(stack: dict[str, Any]) -> None:
    stack["nodes"] = [
        {
            "name": "a",
            "cloud": "linode",
            "region": "us-ord",
            "type": "g2-gpu-rtx4000a1-m",
            "driver_branch": 535,
        }
    ]
    stack["serving"]["image"] = "vllm/vllm-openai:v0.20.0"
    assert any("needs driver 580 or newer" in said for said in checked(stack)["a"].warnings)


def test_a_stack_over_its_budget_is_refused_with_the_arithmetic(stack: dict[str, Any]) -> None:
    stack["nodes"] = [{"name": name, "cloud": "scaleway"} for name in ("a", "b")]
    stack["budget"] = {"max_cost_per_hour": 1.5}
    (said,) = refused(stack)
    each = checked({**stack, "budget": {}})["a"].cost.total
    assert each
    assert said.startswith(f"budget.max_cost_per_hour: 1.50 EUR is below the stack's {2 * each:.4f} = ")
    assert f"a {each:.4f} + b {each:.4f}" in said


def test_a_cost_of_jobs_that_pays_for_less_than_a_minute_is_refused(stack: dict[str, Any]) -> None:
    stack["jobs"] = {"max_cost": 0.035, "fallback_types": ["g6e.2xlarge"]}
    (said,) = refused(stack)
    assert said.startswith("jobs.max_cost: 0.035 pays for less than a minute of g6e.2xlarge at $")
    assert "; allow at least 0.04" in said
    checked({**stack, "jobs": {"max_cost": 0.5}})


def test_a_budget_in_dollars_is_counted_with_its_own_rate(stack: dict[str, Any]) -> None:
    euros = checked(stack)["a"].cost.total
    assert euros
    stack["budget"] = {
        "max_cost_per_hour": euros * 2,
        "currency": "USD",
        "usd_per_eur": 3,
        "as_of": "2026-11-01",
    }
    assert f"{euros * 3:.4f}" in refused(stack)[0]


@pytest.mark.parametrize(
    ("deployed", "said"),
    [
        (None, "cost: 2.0000 EUR an hour, 1460.00 a month"),
        (2.0, "cost: 2.0000 EUR an hour, 1460.00 a month, as deployed"),
        (1.5, "; +0.5000 an hour, +365.00 a month against what is deployed"),
    ],
)
def test_a_cost_is_told_with_its_difference(deployed: float | None, said: str) -> None:
    assert said in cost_line(Cost((Part("server", 2.0, None, ""),), "EUR"), deployed)


STACK_FILES = sorted(Path(__file__).parents[2].glob("Pulumi.*.yaml"))


@pytest.mark.parametrize("path", STACK_FILES, ids=lambda path: path.name)
def test_the_projects_own_stacks_fit(path: Path, stack: dict[str, Any]) -> None:
    written = yaml.safe_load(path.read_text(encoding="utf-8"))["config"]
    own = {
        key.removeprefix("vllm-fleet:"): value
        for key, value in written.items()
        if key.startswith("vllm-fleet:")
    }
    key = {"ssh_private_key_path": stack["access"]["ssh_private_key_path"]}
    found = checked({**own, "access": {**own["access"], **key}, "secrets": stack["secrets"]})
    assert all(node.facts for node in found.values())


def test_a_model_that_the_image_cannot_load_is_refused_with_the_release_that_can(
    stack: dict[str, Any],
) -> None:
    stack["serving"] = {
        "image": "vllm/vllm-openai:v0.9.2",
        "model": "openai/gpt-oss-20b",
        "max_model_len": 4096,
    }
    (said,) = refused(stack)
    assert said.startswith(
        "nodes[0].serving.model: vLLM 0.9.2, the image's release, cannot load GptOssForCausalLM; "
        "pin an image of vLLM 0.10.1 or later"
    )
    stack["nodes"][0]["fit"] = {"override": "an image built here"}
    assert "cannot load GptOssForCausalLM" in checked(stack)["a"].warnings[0]


def test_an_image_of_ones_own_that_may_load_a_model_is_a_warning(stack: dict[str, Any]) -> None:
    stack["serving"] = {"image": "own/vllm:v0.9.2", "model": "openai/gpt-oss-20b", "max_model_len": 4096}
    assert "serving.model: vLLM 0.9.2" in checked(stack)["a"].warnings[0]
