"""AWS's own client, for a program and its providers: its errors name the call and the mend."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from fleet import aws
from fleet.aws import Credentials

READ_TIMEOUT_S = float(os.environ.get("AWS_READ_TIMEOUT_S", aws.READ_TIMEOUT_S))
ATTEMPTS = 6
AGAIN = "run the same command again"
NOT_PERMITTED = frozenset({"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"})
NOT_VALID = frozenset(
    {"AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException", "ExpiredToken", "NoCredentials"}
)
"""AWS's codes for credentials that are not good; the last one is ours, for none at all."""


class CredentialsError(ValueError):
    """The configuration of AWS is unusable. The message says how to mend it and never shows a secret."""


class AwsError(Exception):
    """A call that did not succeed. The message names it, and the mend. `code` is AWS's; empty: no reply."""

    def __init__(self, seen: str, mend: str, code: str = "") -> None:
        super().__init__(f"{seen}. Mend: {mend}")
        self.seen, self.mend, self.code = seen, mend, code


def client(
    config: Callable[[str], str | None],
    service: str,
    region: str,
    path: str = "",
    *,
    attempts: int = ATTEMPTS,
) -> Any:
    """The client of a service, configured as AWS's own provider is; its calls raise AwsError.

    `config` gives the value of a key of `aws:`. Raises CredentialsError if the provider works in another
    region; `path` is where the settings say this one.
    """
    configured = config("region")
    if configured and configured != region:
        raise CredentialsError(
            f"{path}region: {region} is not the {configured} of aws:region, where the provider works; "
            f"make them agree: pulumi config set aws:region {region}"
        )
    return _client(service, region, Credentials.of(config), attempts)


@lru_cache(maxsize=16)
def _client(service: str, region: str, credentials: Credentials, attempts: int) -> Any:
    made = aws.client(service, region, credentials, read_timeout_s=READ_TIMEOUT_S, attempts=attempts)
    made.meta.events.register("after-call", _refused)
    made.meta.events.register("after-call-error", _unanswered)
    return made


def _refused(event_name: str, http_response: Any, parsed: Mapping[str, Any], **_: Any) -> None:
    """Says how to mend what AWS refused, whichever of the client's ways to call was taken."""
    if http_response.status_code < 300:
        return
    code, reason = (parsed.get("Error", {}).get(key, "") for key in ("Code", "Message"))
    raise AwsError(
        f"{_call(event_name)}: AWS refused: {code}: {reason.rstrip('.')}",
        _mend(code, http_response.status_code),
        code,
    )


def _unanswered(event_name: str, exception: Exception, **_: Any) -> None:
    from botocore.exceptions import NoCredentialsError  # noqa: PLC0415  loaded by now

    if isinstance(exception, NoCredentialsError):
        raise AwsError("AWS's credentials are not set", _mend("NoCredentials", 0), "NoCredentials") from None
    mend = f"check the network, aws:region and the credentials, then {AGAIN}"
    raise AwsError(f"{_call(event_name)}: no reply from AWS ({exception})", mend) from None


def _call(event_name: str) -> str:
    """`ec2 RunInstances` of `after-call.ec2.RunInstances`."""
    return " ".join(event_name.split(".")[1:])


def _mend(code: str, status: int) -> str:
    if code in NOT_PERMITTED:
        return "give the credentials this permission"
    if code in NOT_VALID:
        return "give credentials that are valid (aws:profile, or AWS_ACCESS_KEY_ID and its secret)"
    if code.endswith("LimitExceeded"):
        return "raise the limit in Service Quotas"
    return AGAIN if status >= 500 else f"correct what AWS names, then {AGAIN}"
