"""Watching a job: its log as it is written, and how it goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from fleet.aws import code
from fleet.jobs import hostile, look
from fleet.jobs.look import Job
from fleet.jobs.pipeline import JobError, Pipeline

LATE = timedelta(minutes=5)
"""EC2 takes its time to say that a machine is gone; a job that is later than this is not waited for."""


def logs(pipeline: Pipeline, job_id: str) -> Iterator[str]:
    """The lines of a job's log in CloudWatch, as far as it is written; none if it has none yet.

    Raises JobError if there is no such job.
    """
    empty = True
    for line in _Tail(pipeline, job_id).new():
        empty = False
        yield line
    if empty and look.find(pipeline, job_id) is None:
        raise JobError(f"there is no job {job_id} in {pipeline.name}. Fix: see `fleet job list`")


def follow(pipeline: Pipeline, job_id: str, *, every_s: float = 5.0) -> Iterator[str | Job]:
    """A job's log line by line and, each time its status is another, the job; at last the job that is over.

    Nothing depends on it: a job ends by itself, followed or not. Raises JobError if there is no such job, or
    if it is not over minutes after it should be.
    """
    tail = _Tail(pipeline, job_id)
    status = None
    while True:
        job = look.find(pipeline, job_id)
        if job is None:
            raise JobError(f"there is no job {job_id} in {pipeline.name}; see `fleet job list`")
        yield from tail.new()
        if job.status != status:
            status = job.status
            yield job
        if job.status.over:
            return
        if datetime.now(UTC) > job.deadline + LATE:
            raise JobError(
                f"{job_id} should have been over at {job.deadline:%H:%M} UTC, and its instance "
                f"{job.instance_id} is still there; end it with: fleet job reap --yes"
            )
        time.sleep(every_s)


class _Tail:
    """Where one has read a log to."""

    def __init__(self, pipeline: Pipeline, job_id: str) -> None:
        self._pipeline, self._stream = pipeline, f"log/{job_id}"
        self._next: str | None = None

    def new(self) -> Iterator[str]:
        """Lines that were not read before."""
        while True:
            at = {"nextToken": self._next} if self._next else {}
            try:
                page = self._pipeline.logs.get_log_events(
                    logGroupName=self._pipeline.log_group,
                    logStreamName=self._stream,
                    startFromHead=True,
                    **at,
                )
            except Exception as error:
                if code(error) == "ResourceNotFoundException":
                    return  # the machine has not begun to write it
                raise
            yield from (hostile.printable(event["message"]) for event in page["events"])
            # CloudWatch gives the same token again at the end.
            if page["nextForwardToken"] == self._next:
                return
            self._next = page["nextForwardToken"]
