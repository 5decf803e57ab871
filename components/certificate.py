"""A certificate for the nodes of a stack, made once and kept in its state."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pulumi
from pulumi import Output
from pulumi.dynamic import CreateResult, ReadResult, Resource, UpdateResult

from components.dynamic import CloudProvider


class CertificateProvider(CloudProvider):
    replace_on = frozenset({"dns_names"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        from fleet.authority import issue  # noqa: PLC0415 - only a new one needs the library

        issued = issue(props["name"], *props["dns_names"])
        digest = hashlib.sha256(issued.certificate.encode()).hexdigest()
        return CreateResult(digest[:16], {**props, **asdict(issued)})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        return ReadResult(id_, props)  # it exists in state alone

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        kept = {key: olds[key] for key in ("authority", "certificate", "key")}
        return UpdateResult({**news, **kept})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Nothing: it goes with the state."""


class Certificate(Resource, module="gateway", name="Certificate"):
    """The certificate by which the nodes prove themselves to the gateway, and its authority's."""

    authority: Output[str]
    certificate: Output[str]
    key: Output[str]
    """Its private key; a secret."""

    def __init__(self, name: str, dns_names: Sequence[str]) -> None:
        props = {"name": f"{pulumi.get_project()} {pulumi.get_stack()}", "dns_names": [*dns_names]}
        super().__init__(
            CertificateProvider(),
            name,
            {**props, "authority": None, "certificate": None, "key": None},
            pulumi.ResourceOptions(additional_secret_outputs=["key"]),
        )
