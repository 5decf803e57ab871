"""What AWS's Pulumi provider is configured with (the keys of `aws:`), for this program's own client too.

Both have to be the same caller at the same place: what the provider holds and boto3 cannot is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

OWN_TAGS = "vllm-fleet-"
"""The keys of the tags by which this program finds what is its own begin like this."""

IN_THE_ENVIRONMENT = "leave it out and set {} in the environment, which the provider follows as well"
UNHELD: Mapping[str, str] = {
    "assumeRoleWithWebIdentity": IN_THE_ENVIRONMENT.format("AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE"),
    "httpProxy": IN_THE_ENVIRONMENT.format("HTTP_PROXY and HTTPS_PROXY"),
    "httpsProxy": IN_THE_ENVIRONMENT.format("HTTPS_PROXY"),
    "noProxy": IN_THE_ENVIRONMENT.format("NO_PROXY"),
    "ec2MetadataServiceEndpoint": IN_THE_ENVIRONMENT.format("AWS_EC2_METADATA_SERVICE_ENDPOINT"),
    "ec2MetadataServiceEndpointMode": IN_THE_ENVIRONMENT.format("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"),
    "insecure": "leave it out; name the certificate of your proxy or endpoint in aws:customCaBundle",
    "tokenBucketRateLimiterCapacity": "leave it out; limit the tries with aws:maxRetries",
    "userAgents": "leave it out",
}
"""Keys that boto3's client cannot hold, and what to do instead.

Not here, for they concern nothing that it does: the `s3…` and `skip…` keys and `tagPolicyCompliance`.
"""

ROLE_ARN = re.compile(r"arn:[a-z-]+:iam::\d{12}:role/\S+")
ACCOUNT = re.compile(r"\d{12}")
DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
"""As Go writes them: 1h30m."""
SHORTEST_S, LONGEST_S = 15 * 60, 12 * 60 * 60
"""AWS's limits of a role's session."""

ROLE_FIELDS: Mapping[str, str] = {
    "roleArn": "RoleArn",
    "sessionName": "RoleSessionName",
    "externalId": "ExternalId",
    "duration": "DurationSeconds",
    "durationSeconds": "DurationSeconds",
    "policy": "Policy",
    "policyArns": "PolicyArns",
    "sourceIdentity": "SourceIdentity",
    "tags": "Tags",
    "transitiveTagKeys": "TransitiveTagKeys",
}
"""What the provider knows of a role, and STS's names."""
SESSION_NAME = "vllm-fleet"

Config = Callable[[str], str | None]
"""Gives the value of a key of `aws:`; of a structure, its JSON."""
Pairs = tuple[tuple[str, str], ...]


class CredentialsError(ValueError):
    """The configuration of AWS is unusable. The message says how to fix it and never shows a secret."""


@dataclass(frozen=True)
class Role:
    """A role to take on before any call."""

    key: str
    """Where it is named: `aws:assumeRoles[0]`."""
    arn: str
    request: str = field(repr=False)
    """The arguments of STS's AssumeRole, as JSON."""


@dataclass(frozen=True)
class Credentials:
    """Who calls AWS, where, and for which accounts; `repr` leaves the secrets out.

    boto3's own chain counts for what is not given: environment, profile, instance metadata.
    """

    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    profile: str | None = None
    endpoints: Pairs = ()
    """(service, URL) where it is not AWS's own."""
    roles: tuple[Role, ...] = ()
    """Taken on one after the other."""
    config_file: str | None = None
    credentials_file: str | None = None
    allowed_accounts: frozenset[str] = frozenset()
    """Empty: any."""
    forbidden_accounts: frozenset[str] = frozenset()
    default_tags: Pairs = ()
    """(key, value) for whatever is made."""
    sts_region: str | None = None
    ca_bundle: str | None = None
    attempts: int | None = None
    retry_mode: str | None = None
    fips: bool = False
    dualstack: bool = False
    instance_metadata: bool = True
    """Whether an instance's own role may count."""

    @classmethod
    def of(cls, config: Config) -> Self:
        """From what AWS's Pulumi provider is configured with.

        Raises CredentialsError, before any call, for what this program's own client cannot hold.
        """
        given = _Given(config)
        given.refuse_unheld()
        given.refuse_ignored_marks()
        return cls(
            access_key=config("accessKey"),
            secret_key=config("secretKey"),
            token=config("token"),
            profile=config("profile"),
            endpoints=given.endpoints(),
            roles=given.roles(),
            config_file=given.file("sharedConfigFiles"),
            credentials_file=given.file("sharedCredentialsFiles"),
            allowed_accounts=given.accounts("allowedAccountIds"),
            forbidden_accounts=given.accounts("forbiddenAccountIds"),
            default_tags=given.default_tags(),
            sts_region=config("stsRegion"),
            ca_bundle=given.existing("customCaBundle", config("customCaBundle")),
            attempts=given.attempts(),
            retry_mode=given.retry_mode(),
            fips=given.switch("useFipsEndpoint"),
            dualstack=given.switch("useDualstackEndpoint"),
            instance_metadata=not given.switch("skipMetadataApiCheck"),
        )

    def check_account(self, account: str) -> None:
        """Raises CredentialsError for an account that must not be touched."""
        if account in self.forbidden_accounts:
            raise _wrong(
                "forbiddenAccountIds", f"the credentials are of {account}, which is forbidden", OTHERS
            )
        if self.allowed_accounts and account not in self.allowed_accounts:
            allowed = ", ".join(sorted(self.allowed_accounts))
            raise _wrong(
                "allowedAccountIds", f"the credentials are of {account}, which is not among {allowed}", OTHERS
            )


OTHERS = "use credentials of another account (aws:profile, aws:assumeRoles), or correct the list"


def _wrong(key: str, seen: str, fix: str) -> CredentialsError:
    return CredentialsError(f"aws:{key}: {seen}. Fix: {fix}")


@dataclass(frozen=True)
class _Given:
    """The provider's configuration, read key by key. Everything raises CredentialsError."""

    config: Config

    def refuse_unheld(self) -> None:
        for key, fix in UNHELD.items():
            value = self.config(key)
            if value not in (None, "", "false", "[]", "{}"):
                # A token may be in the structure, and a password in the URL.
                shown = value if value == "true" else "a value"
                raise _wrong(key, f"has {shown}, which this program's own calls cannot hold", fix)

    def endpoints(self) -> Pairs:
        pairs: dict[str, str] = {}
        for each in self._list("endpoints"):
            pairs.update(self._texts("endpoints", each))
        return tuple(sorted(pairs.items()))

    def roles(self) -> tuple[Role, ...]:
        if self.config("assumeRole") and self.config("assumeRoles"):
            raise _wrong("assumeRole", "is given beside aws:assumeRoles", "name all roles in aws:assumeRoles")
        key = "assumeRole" if self.config("assumeRole") else "assumeRoles"
        return tuple(self._role(f"{key}[{at}]", each) for at, each in enumerate(self._list(key)))

    def _role(self, key: str, given: object) -> Role:
        if not isinstance(given, dict):
            raise _wrong(key, f"{given!r} is no role", "give it as an object with roleArn")
        if unknown := sorted(set(given) - set(ROLE_FIELDS)):
            raise _wrong(f"{key}.{unknown[0]}", "is no setting of a role", f"use {', '.join(ROLE_FIELDS)}")
        arn = given.get("roleArn")
        if not isinstance(arn, str) or not ROLE_ARN.fullmatch(arn):
            raise _wrong(
                f"{key}.roleArn", f"{arn!r} is no ARN of a role", "arn:aws:iam::123456789012:role/NAME"
            )
        request: dict[str, Any] = {"RoleSessionName": SESSION_NAME}
        for name, value in given.items():
            if value not in (None, "", [], {}):
                request[ROLE_FIELDS[name]] = self._argument(f"{key}.{name}", name, value)
        return Role(f"aws:{key}", arn, json.dumps(request, sort_keys=True))

    def _argument(self, key: str, name: str, value: Any) -> object:
        match name:
            case "duration" | "durationSeconds":
                return _seconds(key, value)
            case "tags":
                return [{"Key": each, "Value": text} for each, text in self._texts(key, value).items()]
            case "policyArns" | "transitiveTagKeys":
                if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                    raise _wrong(key, f"{value!r} is no list of texts", "give it as a list")
                return [{"arn": each} for each in value] if name == "policyArns" else value
        if not isinstance(value, str):
            raise _wrong(key, f"{value!r} is no text", "put it in quotes")
        return value

    def file(self, key: str) -> str | None:
        """The one file that is named."""
        paths = self._list(key)
        if len(paths) > 1:
            raise _wrong(
                key, f"names {len(paths)} files, and this program's own calls read one", "name one file"
            )
        return self.existing(key, paths[0]) if paths else None

    def existing(self, key: str, path: object) -> str | None:
        if not path:
            return None
        found = Path(str(path)).expanduser()
        if not found.is_file():
            raise _wrong(key, f"{path} does not exist", "correct the path")
        return str(found)

    def accounts(self, key: str) -> frozenset[str]:
        ids = [str(each) for each in self._list(key)]
        for each in ids:
            if not ACCOUNT.fullmatch(each):
                raise _wrong(
                    key, f"{each!r} is no account", "an account's id has 12 digits; put it in quotes"
                )
        return frozenset(ids)

    def default_tags(self) -> Pairs:
        given = self._object("defaultTags")
        return tuple(sorted(self._texts("defaultTags.tags", given.get("tags") or {}).items()))

    def attempts(self) -> int | None:
        given = self.config("maxRetries")
        if not given:
            return None
        if not given.isdecimal() or int(given) > 100:
            raise _wrong("maxRetries", f"{given} is no number of tries", "give a whole number from 0 to 100")
        return max(1, int(given))

    def retry_mode(self) -> str | None:
        given = self.config("retryMode")
        if given and given not in ("standard", "adaptive"):
            raise _wrong("retryMode", f"{given} is no way to try again", "give standard or adaptive")
        return given

    def switch(self, key: str) -> bool:
        given = self.config(key)
        if given not in (None, "", "true", "false"):
            raise _wrong(key, f"{given} is neither true nor false", "give one of them")
        return given == "true"

    def refuse_ignored_marks(self) -> None:
        """The provider neither sets nor sees a tag that it is to ignore, and ours find what a stack owns."""
        given = self._object("ignoreTags")
        prefixes = [str(each) for each in given.get("keyPrefixes") or []]
        keys = [str(each) for each in given.get("keys") or []]
        ours = [each for each in prefixes if each.startswith(OWN_TAGS) or OWN_TAGS.startswith(each)]
        ours += [each for each in keys if each.startswith(OWN_TAGS)]
        if ours:
            raise _wrong(
                "ignoreTags",
                f"{ours[0]!r} covers the tags by which a stack finds what it owns",
                "leave it out",
            )

    def _list(self, key: str) -> list[Any]:
        """What is given as a list, or alone."""
        found = self._json(key)
        if found is None:
            return []
        return found if isinstance(found, list) else [found]

    def _object(self, key: str) -> dict[str, Any]:
        found = self._json(key)
        if found is not None and not isinstance(found, dict):
            raise _wrong(key, f"{found!r} is no object", "see the configuration of Pulumi's AWS provider")
        return found or {}

    def _json(self, key: str) -> Any:
        given = self.config(key)
        try:
            return json.loads(given) if given else None
        except ValueError:
            # One text, where the key takes several: pulumi config set aws:sharedConfigFiles PATH.
            return given

    def _texts(self, key: str, given: object) -> dict[str, str]:
        if not isinstance(given, dict) or not all(isinstance(each, str) for each in given.values()):
            raise _wrong(key, f"{given!r} is no object of texts", "give NAME: TEXT, numbers in quotes")
        return given


def _seconds(key: str, given: object) -> int:
    text = f"{given}s" if str(given).isdecimal() else str(given)
    found = DURATION.fullmatch(text)
    parts = [int(each or 0) for each in found.groups()] if found else [0]
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not SHORTEST_S <= seconds <= LONGEST_S:
        raise _wrong(
            key, f"{given} is no duration that AWS grants", "give one from 15m to 12h, such as 1h30m"
        )
    return seconds
