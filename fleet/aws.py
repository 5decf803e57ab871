"""AWS's own client, boto3: who we are, where the API is, and a limit on every call."""

from __future__ import annotations

import json
import logging
from functools import lru_cache
from typing import Any

from fleet import aws_replies
from fleet.aws_settings import Credentials, CredentialsError, Role

__all__ = ["OWN_CHAIN", "Credentials", "CredentialsError", "client", "code"]

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 60.0
ATTEMPTS = 3


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
    """boto3's client of a service in a region. A call takes `attempts` × `read_timeout_s` at most.

    Raises CredentialsError where the credentials are of an account that must not be touched.
    """
    if credentials.allowed_accounts or credentials.forbidden_accounts:
        credentials.check_account(_account(region, credentials, read_timeout_s, attempts))
    return _client(service, region, credentials, _session(region, credentials), read_timeout_s, attempts)


def _client(
    service: str, region: str, credentials: Credentials, session: Any, read_timeout_s: float, attempts: int
) -> Any:
    from botocore.config import Config  # noqa: PLC0415

    # The provider's names of services have no hyphens.
    url = dict(credentials.endpoints).get(service.replace("-", ""))
    attempts = credentials.attempts or attempts
    retries: Any = {"mode": credentials.retry_mode or "standard", "total_max_attempts": attempts}
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=read_timeout_s,
        retries=retries,
        # Unset, these leave it to the environment, as the provider does.
        use_fips_endpoint=credentials.fips or None,
        use_dualstack_endpoint=credentials.dualstack or None,
        # A proxy of the environment cannot reach this machine's own loopback.
        proxies={} if url and url.startswith("http://127.") else None,
    )
    made = session.client(
        service, region_name=region, endpoint_url=url, config=config, verify=credentials.ca_bundle
    )
    aws_replies.guard(made, attempts)
    return made


def _session(region: str, credentials: Credentials) -> Any:
    """boto3's session of who is to call: the given keys, profile or chain, and then the roles."""
    import boto3  # noqa: PLC0415  takes longer to load than `--help` or a preview may
    from botocore.session import Session  # noqa: PLC0415

    inner: Any = Session()
    for name in ("config_file", "credentials_file"):
        if path := getattr(credentials, name):
            inner.set_config_variable(name, path)
    if credentials.profile:
        inner.set_config_variable("profile", credentials.profile)
    if not credentials.instance_metadata:
        inner.get_component("credential_provider").remove("iam-role")
    session: Any = boto3.Session(
        aws_access_key_id=credentials.access_key,
        aws_secret_access_key=credentials.secret_key,
        aws_session_token=credentials.token,
        profile_name=credentials.profile,
        region_name=region,
        botocore_session=inner,
    )
    for role in credentials.roles:
        session = _in_role(role, region, credentials, session)
    return session


def _in_role(role: Role, region: str, credentials: Credentials, source: Any) -> Any:
    """A session of the role, which the source session takes on at the first call and whenever it runs out."""
    import boto3  # noqa: PLC0415  loaded by now
    from botocore.credentials import DeferredRefreshableCredentials  # noqa: PLC0415
    from botocore.exceptions import ClientError, ParamValidationError  # noqa: PLC0415
    from botocore.session import Session  # noqa: PLC0415

    sts = _client("sts", credentials.sts_region or region, credentials, source, READ_TIMEOUT_S, ATTEMPTS)

    def take_on() -> dict[str, str]:
        try:
            given = sts.assume_role(**json.loads(role.request))["Credentials"]
        except ParamValidationError as error:
            raise CredentialsError(f"{role.key}: {error}. Fix: correct what is named") from None
        except ClientError as error:
            told = error.response["Error"]
            raise CredentialsError(
                f"{role.key}.roleArn: {role.arn} cannot be taken on: AWS refused: {told.get('Code')}: "
                f"{told.get('Message', '')}. Fix: let the role's trust policy name the caller, and give the "
                "caller sts:AssumeRole on it; check externalId"
            ) from None
        return {
            "access_key": given["AccessKeyId"],
            "secret_key": given["SecretAccessKey"],
            "token": given["SessionToken"],
            "expiry_time": given["Expiration"].isoformat(),
        }

    # It shows a stack trace of what is raised here, which is told in words.
    logging.getLogger("botocore.credentials").setLevel(logging.ERROR)
    inner: Any = Session()
    inner._credentials = DeferredRefreshableCredentials(take_on, "assume-role")  # there is no public way
    return boto3.Session(botocore_session=inner, region_name=region)


@lru_cache(maxsize=16)
def _account(region: str, credentials: Credentials, read_timeout_s: float, attempts: int) -> str:
    """The account that the credentials are of. Raises CredentialsError where AWS does not tell."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    session = _session(region, credentials)
    sts = _client("sts", credentials.sts_region or region, credentials, session, read_timeout_s, attempts)
    try:
        return str(sts.get_caller_identity()["Account"])
    except (BotoCoreError, ClientError) as error:
        key = "allowedAccountIds" if credentials.allowed_accounts else "forbiddenAccountIds"
        raise CredentialsError(
            f"aws:{key}: AWS does not tell the credentials' account: {error}. Fix: check the credentials, "
            "aws:endpoints and the network, or leave the key out"
        ) from None


def code(error: Exception) -> str:
    """AWS's word for a refusal; empty if it is none."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
