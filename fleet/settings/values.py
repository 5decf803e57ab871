"""Checks of single values. Each says what is wrong and what to write instead."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_core import PydanticCustomError

from fleet.masking import names_secret

REFUSED = "refused"
"""Type of the errors raised here."""

RESERVED_PREFIX = "vllm-fleet"
"""Tags that begin so say which stack and node owns a resource; only the project itself writes them."""

OWNED_VARIABLES = {
    "NVIDIA_VISIBLE_DEVICES": "serving.visible_devices",
    "CUDA_VISIBLE_DEVICES": "serving.visible_devices",
    "VLLM_API_KEY": "secrets.api_key",
    "HF_TOKEN": "secrets.hf_token",
    "HUGGING_FACE_HUB_TOKEN": "secrets.hf_token",
}
"""Variables of the container that a setting of their own gives."""

ENV_FILE_VARIABLES = {
    "PORT": "serving.port",
    "VLLM_PREVIOUS_API_KEY": "secrets.previous_api_key",
    "GATEWAY_SITE_KEY": "secrets.tls_key",
    "GATEWAY_NODE_KEY": "expose",
}
"""The same of a node's `.env`, beside those."""

FIXED_VARIABLES = {
    **dict.fromkeys(
        ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE", "TRANSFORMERS_CACHE"),
        "weights are kept in /models, the only place that outlives the container",
    ),
    "VLLM_CACHE_ROOT": "compiled kernels are kept in /cache, the only place that outlives the container",
    "HF_TOKEN_PATH": "the token comes from secrets.hf_token",
}
"""Variables of the container that nobody sets: name → why."""


def wrong(template: str, /, **context: Any) -> PydanticCustomError:
    """A refused value. `template` says what is wrong and, after its first semicolon, the fix.

    What a whole section refuses begins with the key and a colon.
    """
    if "; " in template:
        problem, fix = (part.format_map(context) for part in template.split("; ", 1))
    else:
        problem, _, fix = template.format_map(context).partition("; ")
    return PydanticCustomError(REFUSED, "{problem}; {fix}", {"problem": problem, "fix": fix})


_PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
"""RFC 1918."""


def _node_name(value: str) -> str:
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?", value):
        raise wrong(
            "is not a node name; use 1 to 30 lower-case letters, digits and hyphens, beginning with a letter "
            "and not ending with a hyphen (it becomes a host name on every cloud)"
        )
    return value


def _cidr(value: str) -> str:
    try:
        interface = ipaddress.ip_interface(value)
    except ValueError:
        raise wrong("is not an address range; write it like 203.0.113.7/32") from None
    host = f"{interface.ip}/{interface.max_prefixlen}"
    if isinstance(interface, ipaddress.IPv6Interface) and interface.scope_id:
        raise wrong("names a network interface of one machine; leave out %{scope}", scope=interface.scope_id)
    if "/" not in value:
        raise wrong("has no prefix length; write {host} for this one address", host=host)
    if interface.ip != interface.network.network_address:
        raise wrong(
            "has bits set beyond its prefix; write {host} for that one address or {network} for the range",
            host=host,
            network=str(interface.network),
        )
    return str(interface.network)


def _private_network(value: str) -> str:
    try:
        interface = ipaddress.ip_interface(value)
    except ValueError:
        raise wrong("is not an address range; write it like 10.77.0.0/24") from None
    network = interface.network
    inside = any(network.version == 4 and network.subnet_of(each) for each in _PRIVATE)
    if not inside or not 16 <= network.prefixlen <= 26:
        raise wrong(
            "is no private IPv4 network with room for a cluster; use a part of {private} with a prefix from "
            "/16 to /26, like 10.77.0.0/24",
            private=", ".join(map(str, _PRIVATE)),
        )
    if interface.ip != network.network_address:
        raise wrong("has bits set beyond its prefix; write {network}", network=str(network))
    return str(network)


def _model_reference(value: str) -> str:
    if value.startswith("/"):
        return value
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+|/[\w.-]+\.gguf)?", value, re.ASCII):
        raise wrong(
            "is neither a Hugging Face model (owner/name) nor an absolute path; write it like Qwen/Qwen3-8B"
        )
    return value


MIN_PUBLIC_KEY = 40
"""Bytes of the shortest one, of Ed25519, are 51."""


def _public_key(value: str) -> str:
    if value.startswith("-----BEGIN"):
        raise wrong("is a private key; give the public one, the line in the file that ends in .pub")
    kind, blob, *_ = [*value.split(), "", ""]
    try:
        inside = base64.b64decode(blob, validate=True)
    except binascii.Error:
        inside = b""
    # A key's data begins with its type, after that type's length in four bytes.
    if not kind or not inside[4:].startswith(kind.encode()) or len(inside) < MIN_PUBLIC_KEY:
        raise wrong("is no public key of OpenSSH; copy the line of a .pub file, as in ssh-ed25519 AAAA…")
    return f"{kind} {blob}"


def _served_files(value: dict[str, Path]) -> dict[str, Path]:
    for name in value:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise wrong(
                "has the name {name}, which is not one in /files; use letters, digits and . _ - alone",
                name=name,
            )
    return value


def _visible_devices(value: str | tuple[int, ...]) -> str | tuple[int, ...]:
    if isinstance(value, tuple) and (len(set(value)) != len(value) or min(value, default=-1) < 0):
        raise wrong(
            "names GPUs by their index, each once and none negative; write for example [0, 1], or all"
        )
    return value


def _environment(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise wrong("has the name {name}, which no shell accepts; use letters, digits and _", name=name)
        if names_secret(name) and not re.fullmatch(r"[0-9.]*|true|false|yes|no", text, re.IGNORECASE):
            raise wrong(
                "carries {name}, which looks like a secret; set it under secrets.environment", name=name
            )
        if re.search(r"[\n\r\0]", text):
            raise wrong("has a line break in {name}, which an .env file cannot hold; leave it out", name=name)
    return value


def _container_environment(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if owner := OWNED_VARIABLES.get(name):
            raise wrong("carries {name}, which is not set here; set {owner} instead", name=name, owner=owner)
        if why := FIXED_VARIABLES.get(name):
            raise wrong("carries {name}, which is not set here; leave it out: {why}", name=name, why=why)
    return value


def _tags(value: tuple[str, ...]) -> tuple[str, ...]:
    for tag in value:
        # As clouds may read it: without outer blanks, in one case, with look-alikes made one.
        plain = unicodedata.normalize("NFKC", tag).strip().casefold().replace("_", "-")
        if not plain:
            raise wrong("has an empty tag; leave it out")
        if plain.startswith((RESERVED_PREFIX, f"name={RESERVED_PREFIX}")):
            raise wrong(
                "has the tag {tag}, and by {prefix}… a stack knows its own resources; choose another name",
                tag=tag,
                prefix=RESERVED_PREFIX,
            )
        if re.search(r"[\x00-\x1f\x7f]", tag):
            raise wrong("has a tag with a control character; leave it out")
    return value


def _secret_environment(value: dict[str, SecretStr]) -> dict[str, SecretStr]:
    for name, secret in value.items():
        text = secret.get_secret_value()
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise wrong("has the name {name}, which no shell accepts; use letters, digits and _", name=name)
        if owner := {**OWNED_VARIABLES, **ENV_FILE_VARIABLES}.get(name):
            raise wrong("carries {name}, which is not set here; set {owner} instead", name=name, owner=owner)
        if why := FIXED_VARIABLES.get(name):
            raise wrong("carries {name}, which is not set here; leave it out: {why}", name=name, why=why)
        if not text:
            raise wrong("has no value for {name}; give one or leave it out", name=name)
        if re.search(r"['\x00-\x1f\x7f]", text):
            raise wrong(
                "has a quote or a line break in {name}, which an .env file cannot hold; encode it, for "
                "example with base64",
                name=name,
            )
    return value


def _registry_host(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?", value):
        raise wrong(
            "is not a registry's host; write it as images do, without https:// and path: ghcr.io or "
            "registry.example.com:5000"
        )
    return value


def _printable(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]+", value.get_secret_value()):
        raise wrong("is empty or holds spaces or other than ASCII characters; copy it again")
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
Cidr = Annotated[str, AfterValidator(_cidr)]
PrivateNetwork = Annotated[str, AfterValidator(_private_network)]
ApiKey = Annotated[SecretStr, AfterValidator(_api_key)]
HuggingFaceToken = Annotated[SecretStr, AfterValidator(_hf_token)]


ModelReference = Annotated[str, AfterValidator(_model_reference)]
ServedFiles = Annotated[dict[str, Path], AfterValidator(_served_files)]
PublicKey = Annotated[str, AfterValidator(_public_key)]
Words = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Environment = Annotated[dict[str, str], AfterValidator(_environment)]
ContainerEnvironment = Annotated[
    dict[str, str], AfterValidator(_container_environment), AfterValidator(_environment)
]
Tags = Annotated[Words, AfterValidator(_tags)]
SecretEnvironment = Annotated[dict[str, SecretStr], AfterValidator(_secret_environment)]
RegistryHost = Annotated[str, AfterValidator(_registry_host)]
RegistryPassword = Annotated[SecretStr, AfterValidator(_printable)]
VisibleDevices = Annotated[
    Literal["all"] | tuple[int, ...], BeforeValidator(_as_tuple), AfterValidator(_visible_devices)
]
AsTuple = BeforeValidator(_as_tuple)
"""Configuration has lists; frozen settings have tuples."""
