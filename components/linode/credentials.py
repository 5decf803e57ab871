"""Who we are to Linode, and where its API is: the same keys and variables as Linode's own provider reads."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

DEFAULT_URL = "https://api.linode.com"
DEFAULT_VERSION = "v4"

# configuration key: environment variable
SOURCES = {"token": "LINODE_TOKEN", "url": "LINODE_URL", "apiVersion": "LINODE_API_VERSION"}


class CredentialsError(ValueError):
    """A credential is missing or unusable. The message says how to fix it and never shows a secret."""


@dataclass(frozen=True)
class Credentials:
    """A token and the API's address with its version. `repr` leaves the token out."""

    token: str = field(repr=False)
    api_url: str

    def __post_init__(self) -> None:
        """Refuse what would fail or leak later. Raises `CredentialsError`."""
        # A header carries visible ASCII only, and the error an HTTP library raises would quote the value.
        if not re.fullmatch(r"[\x21-\x7e]+", self.token):
            raise CredentialsError("linode:token: holds spaces or other than ASCII characters; copy it again")
        url = urlsplit(self.api_url)
        if url.scheme not in {"http", "https"} or not url.hostname or "@" in url.netloc:
            raise CredentialsError(f"linode:url: is no plain URL; write it like {DEFAULT_URL}")
        if url.scheme == "http" and not self.on_loopback:
            raise CredentialsError(
                f"linode:url: {self.api_url!r} would carry the token unencrypted; use https "
                "(plain http is accepted on loopback only)"
            )

    @property
    def on_loopback(self) -> bool:
        """Whether the API is on this machine, that is, an embedded cloud."""
        host = urlsplit(self.api_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @classmethod
    def resolve(cls, config: Callable[[str], str | None], environ: Mapping[str, str] | None = None) -> Self:
        """Fill each field from the configuration, else from the environment (the process's, if left out).

        `config` gives the value of a key of `SOURCES`; an empty one counts as absent. Raises
        `CredentialsError`.
        """
        environ = os.environ if environ is None else environ
        found = {key: config(key) or environ.get(variable) for key, variable in SOURCES.items()}
        if not found["token"]:
            raise CredentialsError(
                "linode:token: Linode's access token is not set; run "
                "`pulumi config set --secret linode:token`, or set LINODE_TOKEN"
            )
        base = (found["url"] or DEFAULT_URL).rstrip("/")
        return cls(token=found["token"], api_url=f"{base}/{found['apiVersion'] or DEFAULT_VERSION}")
