"""How machines reach the internet where they may not do so directly: proxies, mirrors, own authorities."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from fleet.settings.section import Section
from fleet.settings.values import AsTuple, wrong

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = rf"{_LABEL}(\.{_LABEL})*"
_HOST = rf"({_NAME}|\[[0-9a-fA-F:.]+\])"
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\r?\n[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")

TRUST_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
"""Name a file of authorities, to OpenSSL and to Python's libraries that bring authorities of their own."""

LARGEST_CA_FILE = 100_000
"""Bytes; user data takes 127 KiB at most, on the cloud that takes most."""


def _proxy(value: str) -> str:
    if "@" in value:
        raise wrong(
            "carries a user name or password, which the node's user data, its processes and the stack's "
            "state would show; leave them out, and let the proxy admit the nodes by their addresses"
        )
    if re.fullmatch(rf"https?://{_HOST}/?", value):
        raise wrong("has no port, and programs disagree on the default; add it, such as :3128")
    if not re.fullmatch(rf"https?://{_HOST}:\d{{1,5}}/?", value) or not _port_is_right(value):
        raise wrong("is not the URL of a proxy; write it like http://proxy.example.com:3128")
    return value.rstrip("/")


def _mirror(value: str) -> str:
    if "@" in value:
        raise wrong(
            "carries a user name or password, which Docker refuses in a mirror's URL; leave them out, and "
            "let the mirror admit the nodes by their addresses"
        )
    if value.startswith("http://"):
        raise wrong("is not HTTPS, so images could be changed on the way; use the mirror's https:// URL")
    if not re.fullmatch(rf"https://{_HOST}(:\d{{1,5}})?/?", value) or not _port_is_right(value):
        raise wrong(
            "is not the URL of a registry mirror; write it like https://mirror.example.com, without a path"
        )
    return value.rstrip("/")


def _port_is_right(url: str) -> bool:
    port = re.search(r":(\d+)/?$", url)
    return port is None or 1 <= int(port[1]) <= 65535


def _unproxied(value: str) -> str:
    if value.startswith("*"):
        raise wrong("has a wildcard, which few programs understand; write a domain like .example.com")
    try:
        ipaddress.ip_network(value)
    except ValueError:
        if not re.fullmatch(rf"\.?{_NAME}(:\d{{1,5}})?", value):
            raise wrong(
                "is not a host, domain, address or address range; write it like mirror.example.com, "
                ".example.com, 10.0.0.5 or 10.0.0.0/8"
            ) from None
    return value


def _listed(value: Any) -> Any:
    """Environments have it as one text with commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _certificates(value: str) -> str:
    """The certificates alone, as PEM, whether the value is PEM or names a file of it."""
    text = value if "-----BEGIN" in value else _content(value)
    if "PRIVATE KEY-----" in text:
        raise wrong("holds a private key, which no node needs; give the authorities' certificates alone")
    found = _CERTIFICATE.findall(text)
    if not found:
        raise wrong(
            "holds no certificate in PEM; convert it: openssl x509 -inform der -in ca.der -out ca.pem"
        )
    if not all(map(_is_certificate, found)):
        raise wrong("holds a damaged certificate; look at it with: openssl x509 -noout -text -in ca.pem")
    return "".join(f"{each}\n" for each in found).replace("\r", "")


def _content(name: str) -> str:
    try:
        path = Path(name).expanduser()
        data = path.read_bytes() if path.is_file() else None
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a path"
        raise wrong("cannot be read ({why}); give a PEM file that you may read", why=why) from None
    if data is None:
        raise wrong("is not a file; give the path of a PEM file with the authorities' certificates")
    if len(data) > LARGEST_CA_FILE:
        raise wrong("is too large for user data; give your own authorities' certificates alone")
    return data.decode(errors="replace")


def _is_certificate(pem: str) -> bool:
    from cryptography import x509  # noqa: PLC0415  few stacks need it

    try:
        x509.load_pem_x509_certificate(pem.encode())
    except ValueError:
        return False
    return True


ProxyUrl = Annotated[str, AfterValidator(_proxy)]
MirrorUrl = Annotated[str, AfterValidator(_mirror)]
Unproxied = Annotated[str, AfterValidator(_unproxied)]
Certificates = Annotated[str, AfterValidator(_certificates)]


class Network(Section):
    """How every machine of the stack reaches the internet. Each is given this at its first boot: a change
    replaces the nodes, one that is protected excepted, and holds for jobs submitted after it."""

    http_proxy: ProxyUrl | None = None
    """Proxy for http:// URLs, with its port and without a user or password. HTTPS needs `https_proxy` too."""
    https_proxy: ProxyUrl | None = None
    """Proxy for https:// URLs, often the same: images, weights and most packages come by it."""
    no_proxy: Annotated[
        tuple[Unproxied, ...],
        AsTuple,
        BeforeValidator(_listed, json_schema_input_type=tuple[str, ...] | str),
    ] = ()
    """What is reached directly: hosts, domains (`.example.com`), addresses, ranges. The machine itself, its
    containers and its cloud's metadata service always are."""
    ca_certificates: Certificates | None = None
    """Certificates of own authorities that machines trust beside the public ones: PEM, or the path of a PEM
    file on this machine."""
    registry_mirrors: Annotated[tuple[MirrorUrl, ...], AsTuple] = ()
    """HTTPS URLs of mirrors of Docker Hub, which Docker asks first. Images of other registries do not come by
    them: name those by the mirror's own host."""

    @property
    def variables(self) -> frozenset[str]:
        """The environment variables that the section gives."""
        proxies = [name for name in ("http_proxy", "https_proxy") if getattr(self, name)]
        proxies += ["no_proxy"] if proxies else []
        trusted = TRUST_VARIABLES if self.ca_certificates else ()
        return frozenset([*proxies, *(name.upper() for name in proxies), *trusted])

    @property
    def authorities(self) -> tuple[str, ...]:
        """The certificates, PEM each."""
        return tuple(f"{each}\n" for each in _CERTIFICATE.findall(self.ca_certificates or ""))


DIRECT = Network()
"""The internet is reached directly."""
