"""What of the stack is reached from outside, and how."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator

from fleet.settings.images import PinnedImage
from fleet.settings.section import Section
from fleet.settings.values import AsTuple, Cidr, NodeName, wrong

ANYWHERE = {"0.0.0.0/0", "::/0"}
CADDY_IMAGE = "caddy:2.10.2"


def _domain(value: str) -> str:
    label = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    if not re.fullmatch(rf"({label}\.)+[a-z]([a-z0-9-]{{0,61}}[a-z0-9])", value) or len(value) > 253:
        raise wrong(
            "is no domain name; write one in lower case that points to the node, like llm.example.com"
        )
    return value


def _certificate(value: str) -> str:
    if not re.fullmatch(r"(-----BEGIN CERTIFICATE-----\n[\w+/=\n]+\n-----END CERTIFICATE-----\n*)+", value):
        raise wrong('is no PEM certificate; set it by: pulumi config set --path KEY -- "$(cat chain.pem)"')
    return value


def _tls_key(value: SecretStr) -> SecretStr:
    pem = value.get_secret_value()
    if not re.fullmatch(
        r"-----BEGIN ([A-Z]+ )?PRIVATE KEY-----\n[\w+/=\n]+\n-----END \1?PRIVATE KEY-----\n*", pem
    ):
        raise wrong(
            "must be an unencrypted private key in PEM; set it by: pulumi config set --secret … < key.pem"
        )
    return value


TlsKey = Annotated[SecretStr, AfterValidator(_tls_key)]


class Expose(Section):
    """A gateway before vLLM that the outside may reach: TLS, the API key, the OpenAI API alone, limits."""

    domain: Annotated[str, AfterValidator(_domain)]
    """Name that clients use; it points to the address of the gateway's node."""
    cidrs: Annotated[tuple[Cidr, ...], AsTuple] = Field(min_length=1)
    """Address ranges that may reach it. There is no default: an open port is a decision."""
    gateway: NodeName | None = None
    """Node that carries the gateway, which balances over all nodes; the first one if left out."""
    tls: Literal["acme", "certificate", "internal"] = "acme"
    """`acme` gets a certificate from Let's Encrypt, `certificate` uses the one given here, `internal` one of
    the stack's own authority, whose certificate is an output for clients to trust."""
    email: str | None = Field(default=None, pattern=r"^[^@\s{}]+@[^@\s{}]+\.[^@\s{}]+$")
    """Where the authority writes when a certificate runs out."""
    acme_directory: str | None = Field(default=None, pattern=r"^https://[^\s{}]+$")
    """URL of another ACME authority."""
    certificate: Annotated[str, AfterValidator(_certificate)] | None = None
    """With `tls: certificate`: the certificate and its chain, PEM. Its key is `secrets.tls_key`."""
    max_body_mb: int = Field(default=10, ge=1, le=1024)
    """Largest request in MB (10⁶ bytes); larger ones get 413."""
    max_requests: int = Field(default=256, ge=1, le=100_000)
    """Requests that one node may be working on; with all of them full, more wait 5 s, then get 503."""
    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    """Requests a minute from one address; more get 429. Caddy itself cannot count them: `image` has to have
    the module github.com/mholt/caddy-ratelimit."""
    image: PinnedImage = CADDY_IMAGE
    """Caddy's image, pinned by tag or digest."""

    @model_validator(mode="after")
    def _limits_can_be_kept(self) -> Expose:
        if self.requests_per_minute is not None and self.image == CADDY_IMAGE:
            raise wrong(
                "requests_per_minute: {image} has no rate limit; set image to one that is built with "
                "github.com/mholt/caddy-ratelimit, or leave it to max_requests",
                image=self.image,
            )
        return self

    @model_validator(mode="after")
    def _a_certificate_can_be_had(self) -> Expose:
        if (self.tls == "certificate") != (self.certificate is not None):
            raise wrong(
                "certificate: goes with tls: certificate, and tls is {tls}; give both or neither",
                tls=self.tls,
            )
        if self.tls == "acme" and self.acme_directory is None and not ANYWHERE & set(self.cidrs):
            raise wrong(
                "tls: acme needs ports 80 and 443 open to Let's Encrypt, which asks from anywhere, and cidrs "
                "keeps it out; open 0.0.0.0/0, or use certificate or internal"
            )
        return self


def certificate_problem(certificate: str, key: SecretStr | None, domain: str) -> str | None:
    """Why the two PEM texts are no certificate for the domain with its key; None if they are.

    Without a key, the certificate alone is judged."""
    # Only stacks that bring a certificate pay for the import.
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        Encoding,
        PublicFormat,
        load_pem_private_key,
    )

    try:
        leaf = x509.load_pem_x509_certificates(certificate.encode())[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        known = names.get_values_for_type(x509.DNSName)
        private = load_pem_private_key(key.get_secret_value().encode(), None) if key else None
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        # What the library says may quote the key.
        return f"cannot be read ({type(error).__name__}); give PEM, with names as subjectAltName"
    if not {domain, f"*.{domain.partition('.')[2]}"} & set(known):
        return f"is for {', '.join(known)} and not for expose.domain, {domain}; give one that is"
    shapes = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if private and leaf.public_key().public_bytes(*shapes) != private.public_key().public_bytes(*shapes):
        return "belongs to another key than secrets.tls_key; give the two that belong together"
    return None
