"""An SSH host key made before its machine, so that the first connection is already to a known host."""

from __future__ import annotations

import hashlib
from typing import Any

import pulumi
from pulumi import Output
from pulumi.dynamic import CreateResult, ReadResult, Resource, UpdateResult

from components.dynamic import CloudProvider


class SshHostKeyProvider(CloudProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - only a new node needs it
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        return CreateResult(
            hashlib.sha256(public).hexdigest()[:16],
            {**props, "private_key": private.decode(), "public_key": public.decode()},
        )

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        return ReadResult(id_, props)  # it exists in state alone

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        kept = {key: olds[key] for key in ("private_key", "public_key")}
        return UpdateResult({**news, **kept})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Nothing: it goes with the state."""


class SshHostKey(Resource, module="ssh", name="HostKey"):
    """An ed25519 host key. It outlives a replacement of the machine, so users see no changed host."""

    private_key: Output[str]
    """OpenSSH's PEM; a secret."""
    public_key: Output[str]
    """One line: `ssh-ed25519 AAAA…`."""

    def __init__(self, name: str, opts: pulumi.ResourceOptions) -> None:
        secret = pulumi.ResourceOptions(additional_secret_outputs=["private_key"])
        super().__init__(
            SshHostKeyProvider(),
            name,
            {"private_key": None, "public_key": None},
            pulumi.ResourceOptions.merge(opts, secret),
        )
