"""The serving files: a snapshot, and what may never be in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

from components.serving import asked_of
from fleet import compose, layout
from fleet.gateway import Gateway
from fleet.rollout.release import Release, Unreadable
from fleet.settings import Expose, Secrets, Serving
from fleet.vllm_arguments import parse
from simcloud.light.compose import load
from simcloud.light.disk import Disk

SECRETS = Secrets.model_validate({"api_key": "sk-planted-0123456789", "hf_token": "hf_planted0123456789"})
# The service this project took over: a 32B model on two GPUs.
QWEN_32B: dict[str, Any] = {
    "image": "vllm/vllm-openai:v0.9.2",
    "model": "Qwen/Qwen3-32B-AWQ",
    "max_model_len": 131072,
    "quantization": "awq_marlin",
    "distributed_executor_backend": "mp",
    "tensor_parallel_size": 2,
    "gpu_memory_utilization": 0.95,
    "swap_space_gb": 16,
    "visible_devices": [0, 1],
    "port": 5002,
    "webui": True,
}


def serving(**changed: Any) -> Serving:
    return Serving.model_validate({"model": "Qwen/Qwen3-8B-AWQ", **changed})


class _Yaml(SingleFileSnapshotExtension):
    _write_mode = WriteMode.TEXT
    file_extension = "yaml"


@pytest.mark.parametrize("variant", [{}, QWEN_32B], ids=["default", "qwen3_32b_on_two_gpus"])
def test_the_compose_file_is_what_was_reviewed(variant: dict[str, Any], snapshot: SnapshotAssertion) -> None:
    assert compose.compose_file(serving(**variant)) == snapshot(extension_class=_Yaml)


def test_the_container_has_the_settings_that_gpus_need() -> None:
    vllm = compose.compose_document(serving(**QWEN_32B))["services"]["vllm"]
    assert vllm["runtime"] == "nvidia"
    assert vllm["ipc"] == "host"
    assert vllm["shm_size"] == "16gb"
    assert vllm["healthcheck"]["start_period"] == "300s"
    assert "deploy" not in vllm  # Swarm's


def test_no_container_has_rights_that_it_does_not_need() -> None:
    door = Gateway(Expose(domain="llm.example.com", cidrs=("0.0.0.0/0",)), False, "", "", ())
    services = compose.compose_document(serving(webui=True), door)["services"]
    assert services.keys() == {"vllm", "open-webui", "gateway"}
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "gateway" else [])
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.keys() & {"privileged", "network_mode", "pid", "devices", "user"}
        # Neither Docker's socket nor anything of the machine's own is within reach.
        sources = [volume.split(":")[0] for volume in service["volumes"]]
        assert all(source.startswith(("/var/lib/llm/", layout.ROLLOUT_DIRECTORY)) for source in sources), name


def test_everything_is_published_on_loopback_only() -> None:
    for service in compose.compose_document(serving(webui=True))["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_no_secret_is_in_the_compose_file() -> None:
    text = compose.compose_file(serving(webui=True))
    for value in compose.secret_environment(SECRETS).values():
        assert value not in text


def resolved(directory: Path, what: Serving) -> Any:
    """The project as an independent reader of compose files sees it, `.env` included."""
    disk = Disk(directory)
    environment = {**compose.plain_environment(what), **compose.secret_environment(SECRETS)}
    disk.write("/opt/llm/docker-compose.yml", compose.compose_file(what).encode())
    disk.write("/opt/llm/.env", compose.env_file(environment).encode())
    return load(disk, "/opt/llm")


def test_port_key_and_devices_come_from_the_env_file(tmp_path: Path) -> None:
    vllm, webui = resolved(tmp_path, serving(**QWEN_32B)).services
    assert vllm.command[vllm.command.index("--port") + 1] == "5002"
    assert [(port.host_ip, port.published, port.target) for port in vllm.ports] == [("127.0.0.1", 5002, 5002)]
    assert vllm.environment["NVIDIA_VISIBLE_DEVICES"] == "0,1"
    assert vllm.environment["VLLM_API_KEY"] == "sk-planted-0123456789"
    assert vllm.environment["HF_TOKEN"] == "hf_planted0123456789"
    assert webui.environment["OPENAI_API_BASE_URL"] == "http://vllm:5002/v1"
    assert webui.environment["OPENAI_API_KEY"] == "sk-planted-0123456789"


@pytest.mark.parametrize(
    "value", ["planted-aws", "pl$nted ${PORT}", 'p"l\\nanted', "plänted # x", "{planted: 1}"]
)
def test_a_secret_variable_reaches_the_container_and_is_not_in_the_compose_file(
    tmp_path: Path, value: str
) -> None:
    given = {**SECRETS.model_dump(include={"api_key"}), "environment": {"AWS_SECRET_ACCESS_KEY": value}}
    secrets = Secrets.model_validate(given)
    text = compose.compose_file(serving(), secret_names=secrets.environment)
    lines = {**compose.plain_environment(serving()), **compose.secret_environment(secrets)}
    assert value not in text
    disk = Disk(tmp_path)
    disk.write("/opt/llm/docker-compose.yml", text.encode())
    disk.write("/opt/llm/.env", compose.env_file(lines).encode())
    (vllm,) = load(disk, "/opt/llm").services
    assert vllm.environment["AWS_SECRET_ACCESS_KEY"] == value


@pytest.mark.parametrize("word", ["$HOME", "${PORT}", "$$", "a'b\"c", "ünï", "# no comment", "{x: 1}"])
def test_words_with_a_meaning_to_compose_or_yaml_arrive_as_they_are(tmp_path: Path, word: str) -> None:
    given = serving(args={"response_role": word}, environment={"X": word})
    (vllm,) = resolved(tmp_path, given).services
    assert vllm.command[-1] == word
    assert vllm.environment["X"] == word


def test_the_same_settings_make_the_same_file() -> None:
    assert compose.compose_file(serving(**QWEN_32B)) == compose.compose_file(serving(**QWEN_32B))
    assert list(yaml.safe_load(compose.compose_file(serving()))) == ["name", "services"]


def test_a_flag_that_the_image_no_longer_takes_is_left_out() -> None:
    def flags(image: str) -> list[str]:
        return compose.serve_arguments(serving(image=image, swap_space_gb=16))

    assert "--swap-space" in flags("vllm/vllm-openai:v0.9.2")
    assert "--swap-space" not in flags("vllm/vllm-openai:v0.18.0")
    # Without a release in the tag nobody knows better than the settings.
    assert "--swap-space" in flags(f"vllm/vllm-openai@sha256:{'0' * 64}")


@pytest.mark.parametrize(
    ("task", "version", "words"),
    [
        ("generate", "0.33.0", ""),
        ("chat", "0.9.2", ""),
        ("embed", "0.33.0", "--runner pooling --convert embed"),
        ("embed", "0.10.1", "--runner pooling --convert embed"),
        ("embed", "0.10.0", "--task embed"),
        ("embed", "0.9.2", "--task embed"),
        ("rerank", "0.33.0", "--runner pooling"),
        ("rerank", "0.9.2", "--task score"),
        ("score", "0.9.2", "--task score"),
        ("classify", "0.33.0", "--runner pooling --convert classify"),
        ("classify", "0.9.2", "--task classify"),
        ("pooling", "0.33.0", "--runner pooling"),
        ("pooling", "0.9.2", "--task reward"),
        ("transcription", "0.33.0", ""),
        ("transcription", "0.9.2", "--task transcription"),
    ],
)
def test_vllm_is_started_for_the_task_as_its_release_takes_it(task: str, version: str, words: str) -> None:
    image = f"vllm/vllm-openai:v{version}"
    plain = compose.serve_arguments(serving(image=image))
    wanted = serving(image=image, task=task, extra_args=["--enforce-eager"])
    assert compose.serve_arguments(wanted) == [*plain, *words.split(), "--enforce-eager"]
    assert not parse(words.split(), wanted.vllm_version).findings


def test_a_release_knows_the_task_and_a_model_that_generates_has_the_compose_file_of_before() -> None:
    assert compose.compose_file(serving(task="generate")) == compose.compose_file(serving())
    release = Release(compose.compose_file(serving(task="rerank")).encode(), b"")
    assert release.task == "rerank"
    assert Release(compose.compose_file(serving()).encode(), b"").task == "generate"
    broken = Release(release.compose.replace(b": rerank", b": rank"), b"")
    with pytest.raises(Unreadable, match="x-vllm-fleet-task is 'rank'"):
        broken.task  # noqa: B018  (it raises)


def test_the_adapters_of_a_release_are_served_beside_its_model() -> None:
    words = ["--enable-lora", "--lora-modules", "sql=/models/sql", '{"name": "law", "path": "/models/law"}']
    what = serving(extra_args=words)
    assert what.more_served == ("sql", "law")
    assert Release(compose.compose_file(what).encode(), b"").more_served == ("sql", "law")


def test_the_gate_is_asked_for_more_only_where_there_is_more() -> None:
    assert asked_of(serving()) == {}
    words = ["--enable-lora", "--lora-modules", "sql=/models/sql"]
    assert asked_of(serving(task="embed", extra_args=words)) == {"task": "embed", "more_served": ["sql"]}
