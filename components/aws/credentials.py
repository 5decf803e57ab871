"""Who we are to AWS, and where its API is: the same keys of configuration as AWS's own provider reads.

What is not configured comes from boto3's own chain: environment, profile, instance metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = float(os.environ.get("AWS_READ_TIMEOUT_S", "60"))
ATTEMPTS = 6
AGAIN = "run the same command again"


class CredentialsError(ValueError):
    """The configuration of AWS is unusable. The message says how to mend it and never shows a secret."""


@dataclass(frozen=True)
class Credentials:
    """An account, a region and the API's addresses. `repr` leaves the secrets out."""

    region: str
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    profile: str | None = None
    endpoints: tuple[tuple[str, str], ...] = ()
    """(service, URL) where it is not AWS's own."""

    @classmethod
    def resolve(cls, config: Callable[[str], str | None], region: str) -> Self:
        """From the provider's configuration; `config` gives the value of a key of `aws:`.

        Raises CredentialsError if the provider works in another region than the node is to live in.
        """
        configured = config("region")
        if configured and configured != region:
            raise CredentialsError(
                f"region: {region} is not the {configured} of aws:region, where the provider works; "
                f"make them agree: pulumi config set aws:region {region}"
            )
        given: list[Mapping[str, str]] = json.loads(config("endpoints") or "[]")
        return cls(
            region=region,
            access_key=config("accessKey"),
            secret_key=config("secretKey"),
            token=config("token"),
            profile=config("profile"),
            endpoints=tuple(sorted(pair for each in given for pair in each.items())),
        )


@lru_cache(maxsize=16)
def client(credentials: Credentials, service: str) -> Any:
    """The vendor's client of one service, with deadlines; loaded when it is first needed."""
    import boto3  # noqa: PLC0415 - takes longer to import than a preview may
    from botocore.config import Config  # noqa: PLC0415

    url = dict(credentials.endpoints).get(service)
    session: Any = boto3.Session(
        aws_access_key_id=credentials.access_key,
        aws_secret_access_key=credentials.secret_key,
        aws_session_token=credentials.token,
        profile_name=credentials.profile,
        region_name=credentials.region,
    )
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        # A proxy of the environment cannot reach this machine's own loopback.
        proxies={} if url and url.startswith("http://127.") else None,
    )
    made = session.client(service, endpoint_url=url, config=config)
    made.meta.events.register("after-call", _refused)
    made.meta.events.register("after-call-error", _unanswered)
    return made


class AwsError(Exception):
    """A call that did not succeed. The message names it, and the mend."""


def _refused(event_name: str, http_response: Any, parsed: Mapping[str, Any], **_: Any) -> None:
    """Says how to mend what AWS refused, whichever of the client's ways to call was taken."""
    if http_response.status_code < 300:
        return
    code, reason = (parsed.get("Error", {}).get(key, "") for key in ("Code", "Message"))
    raise AwsError(
        f"{_call(event_name)}: AWS refused: {code}: {reason.rstrip('.')}. "
        f"Mend: {_mend(code, http_response.status_code)}"
    )


def _unanswered(event_name: str, exception: Exception, **_: Any) -> None:
    raise AwsError(
        f"{_call(event_name)}: no reply from AWS ({exception}). "
        f"Mend: check the network, aws:region and the credentials, then {AGAIN}"
    ) from None


def _call(event_name: str) -> str:
    """`ec2 RunInstances` of `after-call.ec2.RunInstances`."""
    return " ".join(event_name.split(".")[1:])


def _mend(code: str, status: int) -> str:
    if code in ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException"):
        return "give the credentials this permission"
    if code in ("AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException", "ExpiredToken"):
        return "give credentials that are valid (aws:profile, or AWS_ACCESS_KEY_ID and its secret)"
    if code.endswith("LimitExceeded"):
        return "raise the limit in Service Quotas"
    return AGAIN if status >= 500 else f"correct what AWS names, then {AGAIN}"
