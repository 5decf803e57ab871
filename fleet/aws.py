"""AWS's own client, boto3: who we are, where the API is, and a limit on every call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from fleet import aws_replies

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 60.0
ATTEMPTS = 3


@dataclass(frozen=True)
class Credentials:
    """Keys or a profile, and the API's addresses; `repr` leaves the secrets out.

    boto3's own chain counts for what is not given: environment, profile, instance metadata.
    """

    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    profile: str | None = None
    endpoints: tuple[tuple[str, str], ...] = ()
    """(service, URL) where it is not AWS's own."""

    @classmethod
    def of(cls, config: Callable[[str], str | None]) -> Self:
        """From what AWS's Pulumi provider is configured with: `config` gives the value of a key of `aws:`."""
        given: list[Mapping[str, str]] = json.loads(config("endpoints") or "[]")
        return cls(
            access_key=config("accessKey"),
            secret_key=config("secretKey"),
            token=config("token"),
            profile=config("profile"),
            endpoints=tuple(sorted(pair for each in given for pair in each.items())),
        )


OWN_CHAIN = Credentials()
"""Nothing given."""


def client(
    service: str,
    region: str,
    credentials: Credentials = OWN_CHAIN,
    *,
    read_timeout_s: float = READ_TIMEOUT_S,
    attempts: int = ATTEMPTS,
) -> Any:
    """boto3's client of a service in a region. A call takes `attempts` × `read_timeout_s` at most."""
    import boto3  # noqa: PLC0415  takes longer to load than `--help` or a preview may
    from botocore.config import Config  # noqa: PLC0415

    # The provider's names of services have no hyphens.
    url = dict(credentials.endpoints).get(service.replace("-", ""))
    session: Any = boto3.Session(
        aws_access_key_id=credentials.access_key,
        aws_secret_access_key=credentials.secret_key,
        aws_session_token=credentials.token,
        profile_name=credentials.profile,
        region_name=region,
    )
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=read_timeout_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        # A proxy of the environment cannot reach this machine's own loopback.
        proxies={} if url and url.startswith("http://127.") else None,
    )
    made = session.client(service, endpoint_url=url, config=config)
    aws_replies.guard(made, attempts)
    return made


def code(error: Exception) -> str:
    """AWS's word for a refusal; empty if it is none."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
