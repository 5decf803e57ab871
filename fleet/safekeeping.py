"""Who can read a stack's state and secrets.

The development defaults, a passphrase that this repository publishes and a state in the checkout, are for the
stack `dev` while all its clouds are embedded ones. Every other stack has its own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fleet.settings import Problem

DEVELOPMENT_STACK = "dev"
DEVELOPMENT_PASSPHRASE = "development"  # noqa: S105  published, which is why it is refused elsewhere
DEVELOPMENT_STATE = Path(".fleet") / "state"
"""In the project's folder."""

PASSPHRASE = "PULUMI_CONFIG_PASSPHRASE"  # noqa: S105  a variable's name
BACKEND = "PULUMI_BACKEND_URL"

ENDPOINTS = {"scaleway": "scaleway:apiUrl", "linode": "linode:url", "aws": "aws:endpoints"}
"""The setting of each cloud that says where its API answers."""
LOOPBACK = {"127.0.0.1", "::1", "localhost"}

PBKDF2_ITERATIONS = 1_000_000
"""As the engine's passphrase provider derives its key."""

OTHERS_READ = stat.S_IRGRP | stat.S_IROTH
OTHERS_ENTER = stat.S_IXGRP | stat.S_IXOTH

DOCUMENTATION = "docs/environments.md"


def refusals(stack: str, environment: Mapping[str, str], folder: Path) -> list[Problem]:
    """The development defaults in `environment` with which a stack of the project in `folder` must not run.

    Nothing is decrypted: a stack that runs has been opened with what the environment holds.
    """
    passphrase = passphrase_in(environment) == DEVELOPMENT_PASSPHRASE
    state = is_development_state(environment.get(BACKEND, ""), folder)
    if not (passphrase or state):
        return []
    document = stack_document(stack, folder)
    if is_embedded(stack, document):
        return []
    found = []
    if passphrase and _has_passphrase(document):
        said = f"is the published development passphrase, and it encrypts the secrets of stack {stack}"
        found.append(Problem(PASSPHRASE, f"{said}. Fix: {own_secrets_provider(stack)}"))
    if state:
        said = f"is this checkout's {DEVELOPMENT_STATE}, which is for embedded clouds alone"
        found.append(Problem(BACKEND, f"{said}. Fix: {own_backend(stack)}"))
    return found


def stack_document(stack: str, folder: Path) -> Mapping[str, Any]:
    """The stack's own file; empty where there is none, or none that can be read."""
    import yaml  # noqa: PLC0415  a stack with a secrets provider of its own does without

    try:
        document = yaml.safe_load((folder / f"Pulumi.{stack}.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return document if isinstance(document, Mapping) else {}


def is_embedded(stack: str, document: Mapping[str, Any]) -> bool:
    """Whether it is the development stack and all its clouds answer on this machine."""
    config = document.get("config")
    if stack != DEVELOPMENT_STACK or not isinstance(config, Mapping):
        return False
    return all(
        hosts and hosts <= LOOPBACK
        for hosts in (_hosts(config.get(ENDPOINTS.get(cloud, ""))) for cloud in _clouds(config))
    )


def _clouds(config: Mapping[str, Any]) -> set[str]:
    machines = [
        machine
        for section in ("vllm-fleet:nodes", "vllm-fleet:ray")
        for machine in config.get(section) or ()
        if isinstance(machine, Mapping)
    ]
    return {str(machine.get("cloud")) for machine in machines} | (
        {"aws"} if config.get("vllm-fleet:jobs") else set()
    )


def _hosts(setting: object) -> set[str]:
    """Host names of a URL, or of all URLs in a structure such as `aws:endpoints`; "" for what is no URL."""
    match setting:
        case Mapping():
            return {host for value in setting.values() for host in _hosts(value)}
        case list():
            return {host for value in setting for host in _hosts(value)}
        case str():
            try:
                return {urlsplit(setting).hostname or ""}
            except ValueError:
                return {""}
    return set()


def passphrase_in(environment: Mapping[str, str]) -> str | None:
    """The passphrase as the engine finds it; None if there is none."""
    if PASSPHRASE in environment:
        return environment[PASSPHRASE]
    try:
        return Path(environment[f"{PASSPHRASE}_FILE"]).read_text(encoding="utf-8").strip()
    except (KeyError, OSError, ValueError):
        return None


def _has_passphrase(document: Mapping[str, Any]) -> bool:
    """Whether a passphrase encrypts the secrets; assumed where the stack's file says nothing."""
    return str(document.get("secretsprovider") or "passphrase") == "passphrase"


def published_passphrase(document: Mapping[str, Any]) -> str | None:
    """The passphrase that opens a stack's secrets, if it is one that everybody knows. Takes half a second."""
    salt = document.get("encryptionsalt")
    if not salt:
        return None
    return next((guess for guess in (DEVELOPMENT_PASSPHRASE, "") if _opens(guess, str(salt))), None)


def _opens(passphrase: str, encryption_salt: str) -> bool:
    """Whether a passphrase belongs to the `encryptionsalt` of a stack's file.

    That is `v1:SALT:` and the word "pulumi", encrypted, as `v1:NONCE:CIPHERTEXT`.
    """
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415  only where a stack is looked at
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    try:
        _, salt, _, nonce, ciphertext = encryption_salt.split(":")
        key = hashlib.pbkdf2_hmac("sha256", passphrase.encode(), base64.b64decode(salt), PBKDF2_ITERATIONS)
        return AESGCM(key).decrypt(base64.b64decode(nonce), base64.b64decode(ciphertext), None) == b"pulumi"
    except (ValueError, binascii.Error, InvalidTag):
        return False


def is_development_state(backend: str, folder: Path) -> bool:
    """Whether a backend's URL is the state folder in the project's own folder."""
    at = local_state(backend)
    return at is not None and at.resolve() == (folder / DEVELOPMENT_STATE).resolve()


def local_state(backend: str) -> Path | None:
    """The folder of a `file://` backend, which holds `.pulumi`; None for any other."""
    if not backend.startswith("file://"):
        return None
    return Path(backend.removeprefix("file://").partition("?")[0]).expanduser()


def own_secrets_provider(stack: str) -> str:
    """How a stack gets a secrets provider of its own. Who knew the passphrase may have read its keys."""
    change = f"pulumi stack change-secrets-provider --stack {stack}"
    return (
        f"{change} passphrase   (asks for a new one; or 'awskms://alias/vllm-fleet?region=…&awssdk=v2'), "
        f"then renew the API key and the clouds' keys; {DOCUMENTATION}"
    )


def own_backend(stack: str) -> str:
    """How a stack gets a backend of its own."""
    return f"move stack {stack} to a backend of its own, such as s3://BUCKET?region=…; {DOCUMENTATION}"


def readable_by_others(state: Path) -> list[Path]:
    """The files of a local state that others than its owner may read, none where no folder lets them in."""
    inside = (state / ".pulumi").resolve()
    if not inside.is_dir() or not all(at.stat().st_mode & OTHERS_ENTER for at in (inside, *inside.parents)):
        return []
    files = (file for file in inside.rglob("*") if file.is_file())
    return sorted(file for file in files if file.stat().st_mode & OTHERS_READ)
