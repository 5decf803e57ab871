"""AWS's own client, boto3: who we are, where the API is, and a limit on every call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from fleet import aws_replies

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 60.0
ATTEMPTS = 3


NOT_HONOURED = (
    *("assumeRoleWithWebIdentity", "sharedConfigFiles", "sharedCredentialsFiles", "customCaBundle"),
    *("ec2MetadataServiceEndpoint", "useFipsEndpoint", "useDualstackEndpoint", "insecure"),
    *("httpProxy", "httpsProxy", "noProxy"),
)
"""Settings of AWS's provider that our own client does not follow: it would ask elsewhere, or as another."""

ROLE_KEYS = {"roleArn", "sessionName", "externalId", "duration"}
"""Of a role that is taken on. Our own keys are renewed in time, whatever the duration."""


class SettingError(ValueError):
    """A setting of AWS's provider that our own client cannot follow. The message says what to do instead."""


@dataclass(frozen=True)
class Role:
    """A role to take on, as `aws:assumeRoles` names it."""

    arn: str
    session_name: str = "vllm-fleet"
    external_id: str | None = None


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
    roles: tuple[Role, ...] = ()
    """Taken on one after the other, each with the credentials of the one before."""

    @classmethod
    def of(cls, config: Callable[[str], str | None]) -> Self:
        """From what AWS's Pulumi provider is configured with: `config` gives the value of a key of `aws:`.

        Raises SettingError for what the provider would follow and our own client would not.
        """
        for key in NOT_HONOURED:
            if config(key) not in (None, "", "false", "[]", "{}"):
                raise SettingError(
                    f"aws:{key} is followed by AWS's provider but not by this program's own calls. "
                    "Fix: remove it, and say the same in the environment or in a profile of ~/.aws/config"
                )
        given: list[Mapping[str, str]] = json.loads(config("endpoints") or "[]")
        return cls(
            access_key=config("accessKey"),
            secret_key=config("secretKey"),
            token=config("token"),
            profile=config("profile"),
            endpoints=tuple(sorted(pair for each in given for pair in each.items())),
            roles=_roles(config("assumeRoles") or config("assumeRole") or "[]"),
        )


def _roles(setting: str) -> tuple[Role, ...]:
    """The roles of `aws:assumeRoles`, or the one of `aws:assumeRole`. Raises SettingError."""
    try:
        given = json.loads(setting)
        listed = [given] if isinstance(given, dict) else given
        unknown = sorted({key for each in listed for key in each} - ROLE_KEYS)
        roles = tuple(
            Role(each["roleArn"], each.get("sessionName") or "vllm-fleet", each.get("externalId"))
            for each in listed
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise SettingError(
            "aws:assumeRoles is not a list of roles. Fix: "
            "pulumi config set --path 'aws:assumeRoles[0].roleArn' ARN"
        ) from None
    if unknown:
        raise SettingError(
            f"aws:assumeRoles: {', '.join(unknown)} is followed by AWS's provider but not by this program's "
            f"own calls. Fix: use {', '.join(sorted(ROLE_KEYS))} alone, or aws:profile with a role_arn"
        )
    return roles


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
    for role in credentials.roles:
        session = _assumed(session, role, region, dict(credentials.endpoints).get("sts"), config)
    made = session.client(service, endpoint_url=url, config=config)
    aws_replies.guard(made, attempts)
    return made


def _assumed(session: Any, role: Role, region: str, sts_url: str | None, config: Any) -> Any:
    """A session in the role; its keys are renewed before they end."""
    import boto3  # noqa: PLC0415  loaded by now
    from botocore.credentials import DeferredRefreshableCredentials  # noqa: PLC0415
    from botocore.session import get_session  # noqa: PLC0415

    def keys() -> dict[str, Any]:
        sts = session.client("sts", region_name=region, endpoint_url=sts_url, config=config)
        external = {"ExternalId": role.external_id} if role.external_id else {}
        reply = sts.assume_role(RoleArn=role.arn, RoleSessionName=role.session_name, **external)
        given = reply["Credentials"]
        return {
            "access_key": given["AccessKeyId"],
            "secret_key": given["SecretAccessKey"],
            "token": given["SessionToken"],
            "expiry_time": given["Expiration"].isoformat(),
        }

    inner: Any = get_session()
    inner._credentials = DeferredRefreshableCredentials(refresh_using=keys, method="sts-assume-role")
    return boto3.Session(botocore_session=inner, region_name=region)


def code(error: Exception) -> str:
    """AWS's word for a refusal; empty if it is none."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
