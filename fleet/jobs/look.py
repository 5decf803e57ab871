"""What became of jobs: from EC2, from the results in CloudWatch, and from the share where it is mounted.

EC2 forgets an instance about an hour after its end. Results stay as long as the log group keeps them, and
on the share for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from fleet.aws import code
from fleet.jobs import hostile
from fleet.jobs.hostile import LONGEST_MINUTES
from fleet.jobs.pipeline import JobError, Pipeline
from fleet.jobs.policies import PIPELINE_TAG
from fleet.jobs.price import cost

JOB_TAG = "vllm-fleet-job"
SCRIPT_TAG = "vllm-fleet-job-script"
MINUTES_TAG = "vllm-fleet-job-minutes"
PRICE_TAG = "vllm-fleet-job-price"
REQUEST_TAG = "vllm-fleet-job-request"
"""On a job's instance and volume: its id, and what it was started with."""

LIVING = ("pending", "running", "stopping", "stopped", "shutting-down")


class Status(StrEnum):
    """How a job is."""

    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    """Its machine is going off."""
    OVERDUE = "overdue"
    """Its machine lives longer than it may: run `fleet job reap`."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The result says why."""
    LOST = "lost"
    """The machine is gone and left no result."""

    @property
    def over(self) -> bool:
        """Nothing of it runs or bills any more."""
        return self in {Status.SUCCEEDED, Status.FAILED, Status.LOST}


@dataclass(frozen=True)
class Result:
    """What the machine wrote when the job ended."""

    reason: str
    """`succeeded`, `script-failed`, `timeout`, `cancelled`, `share-lost`, `mount-failed`, `script-missing`,
    `requirements-failed`, `runner-killed` or `restarted`."""
    detail: str
    exit_code: int | None
    seconds: float
    """From launch to end."""
    cost: float | None
    """In US dollars."""
    ended: datetime


@dataclass(frozen=True)
class Job:
    """One job."""

    id: str
    status: Status
    script: str
    launched: datetime
    type: str = ""
    instance_id: str = ""
    """Empty when EC2 has forgotten it."""
    minutes: int = LONGEST_MINUTES
    """Most that the machine may live."""
    price_per_hour: float | None = None
    result: Result | None = None
    request: str = ""
    """Names what it was started with."""
    why: str = ""
    """Why the instance ended, as EC2 says it."""

    @property
    def deadline(self) -> datetime:
        """When the machine is off at the latest."""
        return self.launched + timedelta(minutes=self.minutes)

    @property
    def at_most(self) -> float | None:
        """What it costs if it takes all its time, in US dollars; None where that is not known."""
        return None if self.price_per_hour is None else cost(self.price_per_hour, self.minutes * 60)

    def cost(self, now: datetime) -> float | None:
        """In US dollars: what it came to, or has come to by now. None where that is not known."""
        if self.result:
            return self.result.cost
        if self.price_per_hour is None or self.status == Status.LOST:
            return None
        return cost(self.price_per_hour, max(0.0, (now - self.launched).total_seconds()))


def jobs(pipeline: Pipeline, *, days: int = 7, now: datetime | None = None) -> list[Job]:
    """The jobs of the last `days`, the newest first. Raises JobError."""
    now = now or datetime.now(UTC)
    since = now - timedelta(days=days)
    known = {job.id: job for job in of_instances(instances(pipeline.ec2, pipeline.name), now)}
    streams = {each["logStreamName"].partition("/")[2]: each for each in _streams(pipeline, "log/")}
    for job_id, stream in streams.items():
        if job_id not in known:
            known[job_id] = _forgotten(job_id, stream)
    for job_id, written in _results(pipeline, since, known):
        if job_id in known:
            known[job_id] = _with_result(known[job_id], written)
    recent = (job for job in known.values() if job.launched >= since or not job.status.over)
    return sorted(recent, key=lambda job: job.launched, reverse=True)


def find(pipeline: Pipeline, job_id: str, *, now: datetime | None = None) -> Job | None:
    """A job by its id, or None if it was never started. Raises JobError."""
    now = now or datetime.now(UTC)
    found = of_instances(instances(pipeline.ec2, pipeline.name, job_id), now)
    job = found[0] if found else None
    if job is None:
        stream = _stream(pipeline, f"log/{job_id}")
        if stream is None:
            return None
        job = _forgotten(job_id, stream)
    written = _result_events(pipeline, job_id) or _shared_result(pipeline, job_id)
    return _with_result(job, written) if written else job


def instances(ec2: Any, pipeline: str | None, job_id: str | None = None) -> list[dict[str, Any]]:
    """The instances of a pipeline, or of all; of one job, or of all; with those that ended lately."""
    tags = {PIPELINE_TAG: pipeline, JOB_TAG: job_id}
    filters = [{"Name": f"tag:{key}", "Values": [value]} for key, value in tags.items() if value]
    pages = ec2.get_paginator("describe_instances").paginate(
        Filters=filters or [{"Name": "tag-key", "Values": [PIPELINE_TAG]}]
    )
    return [each for page in pages for one in page["Reservations"] for each in one["Instances"]]


def of_instances(found: Iterable[dict[str, Any]], now: datetime) -> list[Job]:
    """One job for each id: of several instances of one, the one that lives and came first."""
    jobs: dict[str, Job] = {}
    for each in sorted(found, key=_claim):
        job = _of_instance(each, now)
        jobs.setdefault(job.id, job)
    return list(jobs.values())


def _claim(instance: Mapping[str, Any]) -> tuple[bool, datetime, str]:
    return instance["State"]["Name"] not in LIVING, instance["LaunchTime"], instance["InstanceId"]


def _of_instance(instance: Mapping[str, Any], now: datetime) -> Job:
    tags = {tag["Key"]: tag.get("Value", "") for tag in instance.get("Tags", [])}
    minutes = hostile.minutes(tags.get(MINUTES_TAG, ""))
    malformed = f"its tag {MINUTES_TAG} is no number of minutes" if minutes is None else ""
    job = Job(
        # Somebody may have launched one from the template by hand.
        id=hostile.job_id(tags.get(JOB_TAG, "")) or instance["InstanceId"],
        status=Status.LOST,
        script=hostile.text(tags.get(SCRIPT_TAG, "")),
        launched=instance["LaunchTime"],
        type=instance["InstanceType"],
        instance_id=instance["InstanceId"],
        minutes=minutes or LONGEST_MINUTES,
        price_per_hour=hostile.amount(tags.get(PRICE_TAG, "")) or None,
        request=tags.get(REQUEST_TAG, ""),
        why=instance.get("StateReason", {}).get("Message", "") or malformed,
    )
    match instance["State"]["Name"]:
        case "terminated":
            status = Status.LOST
        case "shutting-down":
            status = Status.ENDING
        case _ if now > job.deadline:
            status = Status.OVERDUE
        case "pending":
            status = Status.STARTING
        case "running":
            status = Status.RUNNING
        case _:
            status = Status.ENDING
    return replace(job, status=status)


def _forgotten(job_id: str, stream: Mapping[str, Any]) -> Job:
    """A job of which only the log is left."""
    launched = datetime.fromtimestamp(stream["creationTime"] / 1000, UTC)
    return Job(job_id, Status.LOST, script="", launched=launched, why="EC2 has forgotten the instance")


def _with_result(job: Job, written: Sequence[str]) -> Job:
    """The job with the first of what was written as its result that is one."""
    document = next(filter(None, map(hostile.result, written)), None)
    if document is None:
        return replace(job, why=job.why or "its result cannot be read")
    ended, launched = (hostile.moment(document[name]) for name in ("ended", "launched"))
    assert ended and launched
    exit_code = document.get("exit_code")
    result = Result(
        reason=hostile.text(document["reason"]),
        detail=hostile.text(document.get("detail")),
        exit_code=exit_code if isinstance(exit_code, int) else None,
        seconds=hostile.amount(document["seconds"]) or 0.0,
        cost=hostile.amount(document.get("cost")),
        ended=ended,
    )
    job = replace(job, result=result)
    if not job.instance_id:
        # What it was launched with is known from nowhere else.
        job = replace(
            job,
            script=hostile.text(document.get("script")),
            type=hostile.text(document.get("type")),
            minutes=hostile.minutes(str(document.get("minutes"))) or LONGEST_MINUTES,
            price_per_hour=hostile.amount(document.get("price_per_hour")),
        )
    if job.status == Status.LOST:
        over = Status.SUCCEEDED if result.reason == "succeeded" else Status.FAILED
        return replace(job, status=over, launched=launched)
    return replace(job, status=job.status if job.status == Status.OVERDUE else Status.ENDING)


def _streams(pipeline: Pipeline, prefix: str) -> Iterator[dict[str, Any]]:
    pages = pipeline.logs.get_paginator("describe_log_streams").paginate(
        logGroupName=pipeline.log_group, logStreamNamePrefix=prefix
    )
    yield from (stream for page in _told(pipeline, pages) for stream in page["logStreams"])


def _stream(pipeline: Pipeline, name: str) -> dict[str, Any] | None:
    return next((each for each in _streams(pipeline, name) if each["logStreamName"] == name), None)


def _results(
    pipeline: Pipeline, since: datetime, known: Iterable[str]
) -> Iterator[tuple[str, Sequence[str]]]:
    """What was written as result of each job: in CloudWatch; else on the share, if it is mounted here."""
    pages = pipeline.logs.get_paginator("filter_log_events").paginate(
        logGroupName=pipeline.log_group,
        logStreamNamePrefix="result/",
        startTime=int(since.timestamp() * 1000),
    )
    found: dict[str, list[str]] = {}
    for page in _told(pipeline, pages):
        for event in page["events"]:
            kind, _, job_id = event["logStreamName"].partition("/")
            if kind == "result":
                found.setdefault(job_id, []).append(event["message"])
    yield from found.items()
    for job_id in set(known) - found.keys():
        if shared := _shared_result(pipeline, job_id):
            yield job_id, shared


def _result_events(pipeline: Pipeline, job_id: str) -> Sequence[str]:
    if not _stream(pipeline, f"result/{job_id}"):
        return ()
    events = pipeline.logs.get_log_events(
        logGroupName=pipeline.log_group, logStreamName=f"result/{job_id}", startFromHead=True
    )
    return [event["message"] for event in events["events"]]


def _shared_result(pipeline: Pipeline, job_id: str) -> Sequence[str]:
    if hostile.job_id(job_id) is None:
        return ()
    written = hostile.file(Path(pipeline.mount_path) / "jobs" / job_id / "result.json")
    return () if written is None else (written,)


def _told(pipeline: Pipeline, pages: Iterable[Any]) -> Iterator[Any]:
    try:
        yield from pages
    except Exception as error:
        if code(error) != "ResourceNotFoundException":
            raise
        raise JobError(
            f"{pipeline.log_group} does not exist in {pipeline.region}: the pipeline is not what its stack "
            "says; run `pulumi up`"
        ) from None
