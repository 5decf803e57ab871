"""Checks of single values. Each says what is wrong and what to write instead."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_core import PydanticCustomError

ENGINE_OWNED_FLAGS = {
    "--model": "serving.model",
    "--served-model-name": "serving.served_model_name",
    "--max-model-len": "serving.max_model_len",
    "--quantization": "serving.quantization",
    "-q": "serving.quantization",
    "--tensor-parallel-size": "serving.tensor_parallel_size",
    "-tp": "serving.tensor_parallel_size",
    "--gpu-memory-utilization": "serving.gpu_memory_utilization",
    "--distributed-executor-backend": "serving.distributed_executor_backend",
    "--swap-space": "serving.swap_space_gb",
    "--dtype": "serving.dtype",
    "--kv-cache-dtype": "serving.kv_cache_dtype",
    "--max-num-seqs": "serving.max_num_seqs",
    "--port": "serving.port",
    "--api-key": "secrets.api_key",
    "--host": None,
}
"""vLLM flags that a key of their own sets; None: fixed, the container alone decides what it listens on."""


def wrong(mend: str, /, **context: Any) -> PydanticCustomError:
    """A problem in our words; `mend` says what is wrong and what to write instead."""
    return PydanticCustomError("mend", mend, context)


_PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
"""RFC 1918."""


def _node_name(value: str) -> str:
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?", value):
        raise wrong(
            "is not a node name: use 1 to 30 lower-case letters, digits and hyphens, beginning with a letter "
            "and not ending with a hyphen (it becomes a host name on every cloud)"
        )
    return value


def _cidr(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        pass
    try:
        interface = ipaddress.ip_interface(value)
    except ValueError:
        raise wrong("is not an address range; write it like 203.0.113.7/32") from None
    raise wrong(
        "has bits set beyond its prefix; write {host} for that one address or {network} for the range",
        host=f"{interface.ip}/{interface.max_prefixlen}",
        network=str(interface.network),
    )


def _cidr_with_prefix(value: str) -> str:
    if "/" not in value:
        raise wrong("has no prefix length; write {value}/32 for this one address", value=value)
    return _cidr(value)


def _private_network(value: str) -> str:
    network = ipaddress.ip_network(_cidr(value))
    inside = any(network.version == 4 and network.subnet_of(each) for each in _PRIVATE)
    if not inside or not 16 <= network.prefixlen <= 26:
        raise wrong(
            "is no private IPv4 network with room for a cluster; use a part of {private} with a prefix from "
            "/16 to /26, like 10.77.0.0/24",
            private=", ".join(map(str, _PRIVATE)),
        )
    return str(network)


def _pinned_image(value: str) -> str:
    repository, _, digest = value.partition("@")
    if digest:
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            raise wrong("has a digest that is not sha256: and 64 hex digits; copy it from the registry")
        return value
    tag = repository.rpartition("/")[2].partition(":")[2]
    if not tag:
        raise wrong("has no tag, so it would move under you; pin one, for example vllm/vllm-openai:v0.9.2")
    if tag == "latest" or tag.startswith("nightly"):
        raise wrong("moves under you; pin a release tag or a digest, for example vllm/vllm-openai:v0.9.2")
    if not re.fullmatch(r"[\w.-]{1,128}", tag, re.ASCII) or not re.fullmatch(
        r"[a-z0-9]+([._/:-]+[a-z0-9]+)*", repository.rpartition(":")[0]
    ):
        raise wrong("is not an image reference; write it like vllm/vllm-openai:v0.9.2")
    return value


def _model_reference(value: str) -> str:
    if value.startswith("/"):
        return value
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", value, re.ASCII):
        raise wrong(
            "is neither a Hugging Face model (owner/name, like Qwen/Qwen3-8B-AWQ) nor an absolute path"
        )
    return value


def _visible_devices(value: str | tuple[int, ...]) -> str | tuple[int, ...]:
    if isinstance(value, tuple) and (len(set(value)) != len(value) or min(value, default=-1) < 0):
        raise wrong(
            "names GPUs by their index, each once and none negative; write for example [0, 1], or all"
        )
    return value


def _extra_args(value: tuple[str, ...]) -> tuple[str, ...]:
    for argument in value:
        flag = argument.partition("=")[0]
        if flag in ENGINE_OWNED_FLAGS:
            key = ENGINE_OWNED_FLAGS[flag]
            mend = f"set {key} instead" if key else "leave it out: the container decides what vLLM listens on"
            raise wrong("carries {flag}, which is not set here; {mend}", flag=flag, mend=mend)
        if "token" in flag and flag.startswith("--hf"):
            raise wrong(
                "carries {flag}: a secret in an argument is readable by every process; use secrets.hf_token",
                flag=flag,
            )
    return value


def _environment(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise wrong("has the name {name}, which no shell accepts; use letters, digits and _", name=name)
        if re.search(r"TOKEN|SECRET|PASSWORD|API_?KEY", name, re.IGNORECASE):
            raise wrong("carries {name}, which looks like a secret; set it under secrets", name=name)
        if "\n" in text:
            raise wrong("has a line break in {name}, which an .env file cannot hold; leave it out", name=name)
    return value


def _api_key(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[A-Za-z0-9_.~+/=-]{16,256}", value.get_secret_value()):
        raise wrong(
            "must be 16 to 256 characters from A-Z a-z 0-9 _ . ~ + / = - (it travels in an HTTP header); "
            "make one with: openssl rand -hex 32"
        )
    return value


def _hf_token(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"hf_[A-Za-z0-9]{4,}", value.get_secret_value()):
        raise wrong(
            "must begin with hf_ and hold letters and digits only; make one at huggingface.co/settings/tokens"
        )
    return value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


NodeName = Annotated[str, AfterValidator(_node_name)]
Cidr = Annotated[str, AfterValidator(_cidr_with_prefix)]
PrivateNetwork = Annotated[str, AfterValidator(_private_network)]
PinnedImage = Annotated[str, AfterValidator(_pinned_image)]
ApiKey = Annotated[SecretStr, AfterValidator(_api_key)]
HuggingFaceToken = Annotated[SecretStr, AfterValidator(_hf_token)]


ModelReference = Annotated[str, AfterValidator(_model_reference)]
Words = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
VllmArguments = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), AfterValidator(_extra_args)]
Environment = Annotated[dict[str, str], AfterValidator(_environment)]
VisibleDevices = Annotated[
    Literal["all"] | tuple[int, ...], BeforeValidator(_as_tuple), AfterValidator(_visible_devices)
]
AsTuple = BeforeValidator(_as_tuple)
"""Configuration has lists; frozen settings have tuples."""
