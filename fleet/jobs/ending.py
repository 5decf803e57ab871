"""Ending jobs from outside: one that is not wanted any more, and those that should long be over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fleet.aws import code
from fleet.jobs import look
from fleet.jobs.look import Job
from fleet.jobs.pipeline import JobError, Pipeline

GRACE = timedelta(minutes=2)
"""Time for a machine to go off by itself, and for EC2 to say so."""


def cancel(pipeline: Pipeline, job_id: str) -> Job:
    """End a job's machine; it still writes its result.

    Raises JobError if there is no such job, or it is over.
    """
    job = look.find(pipeline, job_id)
    if job is None:
        raise JobError(f"there is no job {job_id} in {pipeline.name}; see `fleet job list`")
    if job.status.over:
        raise JobError(f"{job_id} is over already: {job.status}")
    pipeline.ec2.terminate_instances(InstanceIds=[job.instance_id])
    return job


@dataclass(frozen=True)
class Reaped:
    """A job whose machine lives longer than it may."""

    job: Job
    late: timedelta
    error: str = ""
    """Why it could not be ended."""


def reap(
    ec2: Any, *, pipeline: str | None = None, end: bool = False, now: datetime | None = None
) -> Sequence[Reaped]:
    """Find the machines of jobs that outlived their deadlines, and end them if `end`.

    What counts are the tags that they were launched with: neither stack nor control instance is needed, nor
    is any other right than to describe and to terminate instances. Run twice, it finds nothing the second
    time. `pipeline` limits it to one; `ec2` is boto3's client of the region.
    """
    now = now or datetime.now(UTC)
    living = [each for each in look.instances(ec2, pipeline) if each["State"]["Name"] in look.LIVING]
    # Each instance by itself: a job that was launched twice has two.
    found = [job for each in living for job in look.of_instances([each], now)]
    due = [job for job in found if now > job.deadline + GRACE and job.status != look.Status.ENDING]
    return [Reaped(job, now - job.deadline, _end(ec2, job) if end else "") for job in due]


def _end(ec2: Any, job: Job) -> str:
    """One by one: that one cannot be ended must not keep the others. Empty, or the reason why not."""
    try:
        ec2.terminate_instances(InstanceIds=[job.instance_id])
    except Exception as error:
        if not code(error):
            raise
        return str(error)
    return ""
