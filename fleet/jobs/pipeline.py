"""A pipeline of GPU jobs as its stack's outputs tell it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from fleet.aws import OWN_CHAIN, Credentials, client
from fleet.settings import DIRECT, Network


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
    credentials: Credentials = OWN_CHAIN
    network: Network = DIRECT

    @classmethod
    def of(cls, outputs: Mapping[str, Any], credentials: Credentials = OWN_CHAIN) -> Self:
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
                credentials=credentials,
                network=Network.model_validate(jobs.get("network") or {}),
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

    @cached_property
    def ec2(self) -> Any:
        """boto3's client of EC2."""
        return client("ec2", self.region, self.credentials)

    @cached_property
    def logs(self) -> Any:
        """boto3's client of CloudWatch Logs."""
        return client("logs", self.region, self.credentials)
