"""Who we are to Scaleway, and where its API is.

The same places and the same order as Scaleway's own tools: explicit configuration, then the `SCW_*`
environment, then the profile in Scaleway's configuration file.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

DEFAULT_ZONE = "fr-par-2"
DEFAULT_API_URL = "https://api.scaleway.com"

# field: key of a stack's `scaleway:` configuration
STACK_KEYS = {
    "access_key": "accessKey",
    "secret_key": "secretKey",
    "project_id": "projectId",
    "api_url": "apiUrl",
}

# field: (environment variable, key in Scaleway's configuration file)
SOURCES = {
    "access_key": ("SCW_ACCESS_KEY", "access_key"),
    "secret_key": ("SCW_SECRET_KEY", "secret_key"),
    "project_id": ("SCW_DEFAULT_PROJECT_ID", "default_project_id"),
    "zone": ("SCW_DEFAULT_ZONE", "default_zone"),
    "api_url": ("SCW_API_URL", "api_url"),
}


class CredentialsError(ValueError):
    """A credential is missing or unusable. The message says how to fix it and never shows a secret."""


@dataclass(frozen=True)
class Credentials:
    """An API key, the project it works in, and the API's address. `repr` leaves the secret key out."""

    secret_key: str = field(repr=False)
    project_id: str
    access_key: str | None = None
    """Not needed by the API itself; shown by checks, so that people see which key is in use."""
    zone: str | None = None
    """The zone of calls that name none, such as `fr-par-2`."""
    api_url: str = DEFAULT_API_URL

    def __post_init__(self) -> None:
        """Refuse what would fail or leak later. Raises `CredentialsError`."""
        # A header carries visible ASCII only, and the error an HTTP library raises would quote the value.
        if not re.fullmatch(r"[\x21-\x7e]+", self.secret_key):
            raise CredentialsError("secret_key: holds spaces or other than ASCII characters; copy it again")
        if "@" in self.api_url:
            raise CredentialsError("api_url: holds a user name or password; leave them out")
        try:
            url = urlsplit(self.api_url)
            complete = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
        except ValueError:
            complete = False
        if not complete:
            raise CredentialsError(f"api_url: {self.api_url!r} is no URL; write it like {DEFAULT_API_URL}")
        if url.scheme == "http" and not self.on_loopback:
            raise CredentialsError(
                f"api_url: {self.api_url!r} would carry the secret key unencrypted; use https "
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
    def of_stack(cls, get: Callable[[str], str | None]) -> Self:
        """Those of a Pulumi stack, where `get` reads a key of its `scaleway:` configuration.

        Raises `CredentialsError`.
        """
        # Every zone is named by its resource; with one given here Scaleway's file need not be read for it.
        given = {field: get(key) for field, key in STACK_KEYS.items()}
        return cls.resolve({"zone": DEFAULT_ZONE, **given})

    @classmethod
    def resolve(cls, config: Mapping[str, str | None], environ: Mapping[str, str] | None = None) -> Self:
        """Fill each field from the first source that has it.

        `config` has the keys of `SOURCES`; an empty value counts as absent, there and in `environ` (the
        process's environment if left out). The file is read only if something is still missing.
        Raises `CredentialsError`.
        """
        environ = os.environ if environ is None else environ
        found = {name: config.get(name) or environ.get(variable) for name, (variable, _) in SOURCES.items()}
        path = _config_path(environ)
        if not all(found.values()):
            profile = _read_profile(path, environ.get("SCW_PROFILE"))
            found = {name: found[name] or profile.get(key) for name, (_, key) in SOURCES.items()}
        missing = [name for name in ("secret_key", "project_id") if not found[name]]
        if missing:
            raise CredentialsError("\n".join(_missing(name, path) for name in missing))
        return cls(
            secret_key=found["secret_key"] or "",
            project_id=found["project_id"] or "",
            access_key=found["access_key"],
            zone=found["zone"],
            api_url=(found["api_url"] or DEFAULT_API_URL).rstrip("/"),
        )


def _missing(name: str, path: Path) -> str:
    variable, key = SOURCES[name]
    camel = re.sub(r"_(\w)", lambda letter: letter[1].upper(), name)
    secret = "--secret " if name == "secret_key" else ""
    return (
        f"{name}: Scaleway's {name.replace('_', ' ')} is not set; "
        f"run `pulumi config set {secret}scaleway:{camel}`, or set {variable}, "
        f"or write {key} into {path} (`scw init` does)"
    )


def _config_path(environ: Mapping[str, str]) -> Path:
    if explicit := environ.get("SCW_CONFIG_PATH"):
        return Path(explicit)
    if base := environ.get("XDG_CONFIG_HOME"):
        return Path(base) / "scw" / "config.yaml"
    return Path.home() / ".config" / "scw" / "config.yaml"


def _read_profile(path: Path, wanted: str | None) -> dict[str, str]:
    """The file's top-level values, overridden by those of the active profile; nothing if there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialsError(f"{path}: cannot be read ({type(error).__name__}); fix or remove it") from None

    import yaml  # noqa: PLC0415  # most runs get everything from the stack and never read the file

    try:
        content: Any = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        # The parser's own message quotes the line it stumbled over, which may hold the secret key.
        raise CredentialsError(
            f"{path}: is not valid YAML; correct it, or write a new one with `scw init`"
        ) from None
    if not isinstance(content, dict):
        raise CredentialsError(f"{path}: is not a mapping of settings; write it anew with `scw init`")

    name = wanted or content.get("active_profile") or "default"
    profiles = content.get("profiles") or {}
    if name == "default":
        profile: Any = {}
    elif isinstance(profiles, dict) and isinstance(profiles.get(name), dict):
        profile = profiles[name]
    else:
        raise CredentialsError(f"{path}: has no profile {name!r}; correct SCW_PROFILE or active_profile")
    return {
        key: str(value) for key, value in {**content, **profile}.items() if isinstance(value, str) and value
    }
