"""AWS's own client, for a program and its providers: its errors name the call and the fix."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from fleet import aws
from fleet.aws import Credentials, CredentialsError
from fleet.aws_replies import UNREADABLE, problem

READ_TIMEOUT_S = float(os.environ.get("AWS_READ_TIMEOUT_S", aws.READ_TIMEOUT_S))
ATTEMPTS = 8
AGAIN = "run the same command again"
NOT_PERMITTED = frozenset({"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"})
NOT_VALID = frozenset(
    {"AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException", "ExpiredToken", "NoCredentials"}
)
"""AWS's codes for credentials that are not good; the last one is ours, for none at all."""
THROTTLED = frozenset({"RequestLimitExceeded", "Throttling", "ThrottlingException"})
NOT_FOUND = ("NotFound", "NoSuchEntity")
"""In AWS's codes for what does not exist, or what the server that answers has not heard of yet."""
FIXES: Mapping[str, str] = {
    "RequestLimitExceeded": f"AWS limits this account's calls for a while: wait a minute, then {AGAIN}",
    "InsufficientInstanceCapacity": "AWS has no such machine free there: try again later, or name another "
    "subnet (zone) or type in the node's settings, which makes a new machine",
    "OperationNotPermitted": "the machine is protected against termination: set protect: false in the node's "
    f"settings and run `pulumi up`, or lift the protection in the EC2 console; then {AGAIN}",
    "DependencyViolation": "something that is not this stack's still uses it: find it with `aws ec2 "
    f"describe-network-interfaces --filters Name=group-id,Values=GROUP`, take it away, then {AGAIN}",
    "IncorrectInstanceState": f"wait until the machine is running or stopped, then {AGAIN}",
    "VolumeInUse": "it is attached to a machine that is not this stack's: detach it in the EC2 console, "
    f"then {AGAIN}",
    UNREADABLE: "check proxies (HTTPS_PROXY, NO_PROXY) and aws:endpoints: something else answers in AWS's "
    f"place; then {AGAIN}",
}
"""What helps against a refusal, by AWS's code, where it is more than the reason AWS gives."""


class AwsError(Exception):
    """A call that did not succeed. The message names it, and the fix. `code` is AWS's; empty: no reply."""

    def __init__(self, seen: str, fix: str, code: str = "", *, passing: bool = False) -> None:
        super().__init__(f"{seen}. Fix: {fix}")
        self.seen, self.fix, self.code = seen, fix, code
        self.passing = passing
        """Whether the same call may well succeed later: no reply, a server's error, too many calls."""

    @property
    def not_found(self) -> bool:
        """AWS does not know what the call is about: it is gone, or too new for the server that answered."""
        return any(word in self.code for word in NOT_FOUND)


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
    region, the profile is unknown, or its configuration cannot be held; `path` is where the settings say the
    region.
    """
    configured = config("region")
    if configured and configured != region:
        raise CredentialsError(
            f"{path}region: {region} is not the {configured} of aws:region, where the provider works; "
            f"make them agree: pulumi config set aws:region {region}"
        )
    return client_of(config, service, region, attempts=attempts)


def client_of(
    config: Callable[[str], str | None], service: str, region: str, *, attempts: int = ATTEMPTS
) -> Any:
    """The same for a region that the provider need not work in: one that the stack has left.

    Raises CredentialsError.
    """
    return _client(service, region, Credentials.of(config), attempts)


@lru_cache(maxsize=16)
def _client(service: str, region: str, credentials: Credentials, attempts: int) -> Any:
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415  loaded with the client

    try:
        made = aws.client(service, region, credentials, read_timeout_s=READ_TIMEOUT_S, attempts=attempts)
    except BotoCoreError as error:  # a profile that does not exist
        raise CredentialsError(f"{error}; correct aws:profile, or log in again: aws sso login") from None
    made.meta.events.register_first("after-call", _refused)
    made.meta.events.register("after-call-error", _unanswered)
    return made


def _refused(event_name: str, model: Any, http_response: Any, parsed: Mapping[str, Any], **_: Any) -> None:
    """Says how to fix what AWS refused, whichever of the client's ways to call was taken."""
    status = http_response.status_code
    if wrong := problem(model, status, parsed):
        raise AwsError(f"{_call(event_name)}: {wrong}", FIXES[UNREADABLE], UNREADABLE, passing=True)
    if status < 300:
        return
    code, reason = (parsed.get("Error", {}).get(key, "") for key in ("Code", "Message"))
    raise AwsError(
        f"{_call(event_name)}: AWS refused: {code}: {reason.rstrip('.')}",
        _fix(code, status),
        code,
        passing=status >= 500 or code in THROTTLED,
    )


def _unanswered(event_name: str, exception: Exception, **_: Any) -> None:
    from botocore.exceptions import (  # noqa: PLC0415  loaded by now
        CredentialRetrievalError,
        NoCredentialsError,
        PartialCredentialsError,
        SSOError,
        TokenRetrievalError,
    )

    if isinstance(exception, CredentialsError):  # of a role that cannot be taken on
        seen, how = str(exception).split(". Fix: ", 1)
        raise AwsError(seen, how, "NoCredentials") from None
    if isinstance(exception, NoCredentialsError):
        raise AwsError("AWS's credentials are not set", _fix("NoCredentials", 0), "NoCredentials") from None
    logins = (PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError, SSOError)
    if isinstance(exception, logins):
        fix = f"correct aws:profile, or log in again: aws sso login; then {AGAIN}"
        raise AwsError(f"AWS's credentials cannot be used: {exception}", fix, "NoCredentials") from None
    fix = f"check the network, aws:region and the credentials, then {AGAIN}"
    raise AwsError(f"{_call(event_name)}: no reply from AWS ({exception})", fix, passing=True) from None


def _call(event_name: str) -> str:
    """`ec2 RunInstances` of `after-call.ec2.RunInstances`."""
    return " ".join(event_name.split(".")[1:])


def _fix(code: str, status: int) -> str:
    if code in NOT_PERMITTED:
        return "give the credentials this permission"
    if code in NOT_VALID:
        return "give credentials that are valid (aws:profile, or AWS_ACCESS_KEY_ID and its secret)"
    if code in THROTTLED:
        return FIXES["RequestLimitExceeded"]
    if code in FIXES:
        return FIXES[code]
    if code.endswith("LimitExceeded"):
        return "raise the limit in Service Quotas"
    return AGAIN if status >= 500 else f"correct what AWS names, then {AGAIN}"
