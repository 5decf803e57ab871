"""The two files a node serves from: the compose file, and the `.env` beside it that holds the secrets.

Pure functions of the settings: what they return is exactly what lands in `/opt/llm`. The port and the visible
devices live in `.env` alone, beside the secrets, and the compose file refers to them.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import yaml

from fleet import gateway, layout
from fleet import network as networks
from fleet.engine import releases, tasks
from fleet.fit.flags import supported
from fleet.gateway import Gateway
from fleet.served_files import MOUNT
from fleet.settings import DIRECT, Network, Secrets, Serving

DOCKER_HUB = "https://index.docker.io/v1/"
"""What Docker's configuration calls its own registry, whichever of its hosts was meant."""
DOCKER_HUB_HOSTS = {"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}
WEBUI_CONTAINER = "open-webui"
PORT = "${PORT}"
"""How the compose file names vLLM's port."""


def confined() -> dict[str, Any]:
    """What no container of a node is given. vLLM runs as root and owns its files, so it needs no capability;
    GPUs come from the nvidia runtime, and `ipc: host` is for the memory that its workers share."""
    return {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}


def serve_arguments(serving: Serving) -> list[str]:
    """The arguments of `vllm serve`, one word each, as the pinned image understands them.

    The API key is not among them: arguments are readable by every process, so vLLM takes it from
    `VLLM_API_KEY` in its environment.
    """
    pairs: list[tuple[str, object]] = [
        ("--model", serving.model),
        ("--served-model-name", serving.served_model_name),
        ("--host", "0.0.0.0"),  # noqa: S104  (inside the container; the compose file publishes it on loopback)
        ("--port", PORT),
        ("--max-model-len", serving.max_model_len),
        ("--quantization", serving.quantization),
        ("--dtype", None if serving.dtype == "auto" else serving.dtype),
        ("--kv-cache-dtype", None if serving.kv_cache_dtype == "auto" else serving.kv_cache_dtype),
        ("--tensor-parallel-size", serving.tensor_parallel_size),
        ("--distributed-executor-backend", serving.distributed_executor_backend),
        ("--gpu-memory-utilization", f"{serving.gpu_memory_utilization:g}"),
        ("--max-num-seqs", serving.max_num_seqs),
        ("--swap-space", serving.swap_space_gb),
    ]
    version = serving.vllm_version
    release = releases.release(version)
    words = [
        word
        for flag, value in pairs
        if value is not None and (version is None or supported(flag, version))
        for word in (flag, value if value is PORT else _literal(str(value)))
    ]
    return [*words, *tasks.words(serving.task, release), *(_literal(word) for word in serving.added_words)]


def compose_document(
    serving: Serving,
    door: Gateway | None = None,
    secret_names: Iterable[str] = (),
    network: Network = DIRECT,
    files: str = "",
) -> dict[str, Any]:
    """The compose file as a document: plain compose, no Swarm keys. With `door`, a gateway before vLLM.

    `secret_names` are the variables of `.env` that vLLM's container is given beside its own; `files` is the
    digest of `serving.files`, empty without any.
    """
    own = {
        # Those of .env that are vLLM's; a name without a value is what .env says, or nothing.
        **dict.fromkeys(("NVIDIA_VISIBLE_DEVICES", "VLLM_API_KEY", "HF_TOKEN", *sorted(secret_names))),
        "HF_HOME": "/models",
        "VLLM_CACHE_ROOT": "/cache",
    }
    fetching = networks.environment(network)
    trusted = [f"{networks.BUNDLE_PATH}:{networks.BUNDLE_PATH}:ro"] if network.ca_certificates else []
    delivered = [f"{layout.FILES_DIRECTORY}/{files}:{MOUNT}:ro"] if files else []
    given = {name: _literal(value) for name, value in serving.environment.items()}
    vllm = {
        "image": serving.image,
        "container_name": serving.container_name,
        "runtime": "nvidia",
        "ipc": "host",
        "shm_size": f"{serving.shm_size_gb}gb",
        **confined(),
        "restart": "unless-stopped",
        # Settings refuse these names; here, too, ours are what counts.
        "environment": {**own, **fetching, **given, **own},
        "ports": [f"127.0.0.1:{PORT}:{PORT}"],
        "volumes": [
            f"{layout.MODELS_DIRECTORY}:/models",
            f"{layout.CACHE_DIRECTORY}:/cache",
            *delivered,
            *trusted,
        ],
        "command": serve_arguments(serving),
        "healthcheck": {
            "test": ["CMD", "curl", "-fsS", "-m", "5", f"http://127.0.0.1:{PORT}/health"],
            "interval": "15s",
            "timeout": "10s",
            "retries": 5,
            "start_period": f"{serving.start_period_s}s",
        },
        "logging": {"driver": "json-file", "options": {"max-size": "50m", "max-file": "4"}},
    }
    services: dict[str, Any] = {"vllm": vllm}
    if serving.webui:
        services["open-webui"] = {
            "image": serving.webui_image,
            "container_name": WEBUI_CONTAINER,
            **confined(),
            "restart": "unless-stopped",
            "environment": {
                "OPENAI_API_BASE_URL": f"http://vllm:{PORT}/v1",
                # Compose takes it from .env; the key itself is never in this file.
                "OPENAI_API_KEY": "${VLLM_API_KEY}",
                **fetching,
            },
            "ports": [f"127.0.0.1:{layout.WEBUI_PORT}:8080"],
            "volumes": ["/var/lib/llm/open-webui:/app/backend/data", *trusted],
        }
    # Compose leaves alone what begins so: a release says by it what it is to be asked.
    named = {"name": "llm", **({} if serving.task == tasks.GENERATE else {layout.TASK_KEY: serving.task})}
    if door is None:
        return {**named, "services": services}
    with_it = gateway.service(replace(door, task=serving.task), serving.port)
    return {**named, **with_it, "services": {**services, **with_it["services"]}}


def compose_file(
    serving: Serving,
    door: Gateway | None = None,
    secret_names: Iterable[str] = (),
    network: Network = DIRECT,
    files: str = "",
) -> str:
    """`/opt/llm/docker-compose.yml`, deterministic."""
    # By libyaml: a preview of a fleet waits for it.
    return yaml.dump(
        compose_document(serving, door, secret_names, network, files),
        Dumper=yaml.CSafeDumper,
        sort_keys=False,
        allow_unicode=True,
        width=1000,
    )


def plain_environment(serving: Serving) -> dict[str, str]:
    """What `.env` holds beside the secrets: the port vLLM listens on and the GPUs its container sees."""
    devices = serving.visible_devices
    visible = devices if isinstance(devices, str) else ",".join(str(index) for index in devices)
    return {"PORT": str(serving.port), "NVIDIA_VISIBLE_DEVICES": visible}


def secret_environment(secrets: Secrets) -> dict[str, str]:
    """What of `.env` is secret."""
    token = {"HF_TOKEN": secrets.hf_token.get_secret_value()} if secrets.hf_token else {}
    more = {name: value.get_secret_value() for name, value in sorted(secrets.environment.items())}
    return {"VLLM_API_KEY": secrets.api_key.get_secret_value(), **token, **more}


def registry_logins(secrets: Secrets) -> dict[str, str]:
    """Logins as Docker's configuration has them: registry → base64 of user and password. Secret."""
    return {
        DOCKER_HUB if host in DOCKER_HUB_HOSTS else host: b64encode(
            f"{login.username}:{login.password.get_secret_value()}".encode()
        ).decode()
        for host, login in sorted(secrets.registries.items())
    }


def gateway_environment(secrets: Secrets, node_key: str, *, public: bool) -> dict[str, str]:
    """What the gateway adds to that: the key of the node's certificate, and on the node with the public door
    that of the domain's."""
    given = {
        gateway.PREVIOUS_KEY_VARIABLE: secrets.previous_api_key,
        gateway.SITE_KEY_VARIABLE: secrets.tls_key if public else None,
    }
    return {
        **{name: value.get_secret_value() for name, value in given.items() if value},
        gateway.NODE_KEY_VARIABLE: node_key,
    }


def env_file(environment: Mapping[str, str]) -> str:
    """`/opt/llm/.env`: a variable a line. Values are checked to hold no quotes; PEM has lines of its own."""
    return "".join(f"{name}={_quoted(value)}\n" for name, value in environment.items())


def _quoted(value: str) -> str:
    escaped = value.replace("\n", "\\n")
    return f"'{value}'" if escaped == value else f'"{escaped}"'


class _Dumper(yaml.CSafeDumper):
    """Texts of several lines as blocks, for people to read; by libyaml, since previews wait for it."""


def _text(dumper: yaml.CSafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    # YAML 1.1 takes NEL for a line break and reads back another one, except from an escape.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else style)


_Dumper.add_representer(str, _text)


def dump(document: dict[str, Any]) -> str:
    """A document as YAML, in the order given."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _literal(word: str) -> str:
    """A word compose must not interpolate: its `$` is written `$$`."""
    return word.replace("$", "$$")
