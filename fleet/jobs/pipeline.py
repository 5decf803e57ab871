"""A pipeline of GPU jobs as its stack's outputs tell it, and the clients to speak to AWS with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

CONNECT_TIMEOUT_S, READ_TIMEOUT_S, ATTEMPTS = 10, 60, 3


class JobError(Exception):
    """A job cannot be started, found or told of. The message says why, and what to do."""


class NoCapacity(JobError):
    """No type is to be had in any subnet now. The same submission may succeed later."""


@dataclass(frozen=True)
class Pipeline:
    """What `GpuJobPipeline` made, and where jobs run."""

    name: str
    """Value of the tag that its instances carry."""
    region: str
    types: tuple[str, ...]
    """In the order in which they are tried."""
    subnets: tuple[str, ...]
    spot: bool
    timeout_minutes: int
    max_cost: float | None
    """In US dollars, for one run."""
    script: str
    mount_path: str
    launch_template: str
    file_system: str
    log_group: str
    aws: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Settings of the stack's `aws:` namespace, where they say how to reach AWS: access and secret key,
    token, profile, endpoints. boto3's own chain counts for what is not there."""

    @classmethod
    def of(cls, outputs: Mapping[str, Any], aws: Mapping[str, str] | None = None) -> Self:
        """From the output `jobs` of a stack. Raises JobError if there is none, or it is another version's."""
        jobs = outputs.get("jobs")
        if not jobs:
            raise JobError(
                "this stack has no GPU jobs: give it the key vllm-fleet:jobs, then run `pulumi up`; "
                "see docs/gpu-jobs.md"
            )
        try:
            return cls(
                name=jobs["pipeline"],
                region=jobs["region"],
                types=tuple(jobs["types"]),
                subnets=tuple(jobs["subnets"]),
                spot=jobs["spot"],
                timeout_minutes=int(jobs["timeout_minutes"]),
                max_cost=jobs["max_cost"],
                script=jobs["script"],
                mount_path=jobs["mount_path"],
                launch_template=jobs["launch_template_id"],
                file_system=jobs["file_system_id"],
                log_group=jobs["log_group"],
                aws=tuple(sorted((aws or {}).items())),
            )
        except KeyError as error:
            raise JobError(f"the stack's output `jobs` has no {error}: run `pulumi up`") from None

    @classmethod
    def load(cls, file: Path) -> Self:
        """From a file with what `pulumi stack output --json` printed: how a control instance knows it.

        Raises JobError.
        """
        try:
            return cls.of(json.loads(file.read_text()))
        except (OSError, ValueError) as error:
            raise JobError(
                f"{file}: {error}; write it with: pulumi stack output --json > {file.name}"
            ) from None

    @property
    def ec2(self) -> Any:
        """boto3's client of EC2."""
        return client("ec2", self.region, self.aws)

    @property
    def logs(self) -> Any:
        """boto3's client of CloudWatch Logs."""
        return client("logs", self.region, self.aws)


@lru_cache(maxsize=16)
def client(service: str, region: str, aws: tuple[tuple[str, str], ...] = ()) -> Any:
    """The vendor's client of a service, with a limit on every call."""
    import boto3  # noqa: PLC0415  takes longer to load than `--help` may
    from botocore.config import Config  # noqa: PLC0415

    given = dict(aws)
    endpoints = {name: url for each in json.loads(given.get("endpoints", "[]")) for name, url in each.items()}
    url = endpoints.get(service)
    session: Any = boto3.Session(
        aws_access_key_id=given.get("accessKey"),
        aws_secret_access_key=given.get("secretKey"),
        aws_session_token=given.get("token"),
        profile_name=given.get("profile"),
        region_name=region,
    )
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        # A proxy of the environment cannot reach this machine's own loopback.
        proxies={} if url and url.startswith("http://127.") else None,
    )
    return session.client(service, endpoint_url=url, config=config)


def code(error: Exception) -> str:
    """AWS's word for a refusal; empty if it is none."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
