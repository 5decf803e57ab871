"""Starting a job: once for each token, wherever there is capacity."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_exponential

from fleet.aws import code
from fleet.jobs import look
from fleet.jobs.look import Job
from fleet.jobs.pipeline import JobError, NoCapacity, Pipeline
from fleet.jobs.policies import PIPELINE_TAG
from fleet.jobs.price import LimitError, Limits, check_cost, check_minutes, limits_of
from fleet.jobs.userdata import JobSpec
from fleet.userdata import UserDataTooLarge

ELSEWHERE = {
    "InsufficientInstanceCapacity": "is out of stock there",
    "InsufficientFreeAddressesInSubnet": "has no free address there",
    "Unsupported": "is not offered there",
    "VcpuLimitExceeded": "is beyond the account's quota",
    "MaxSpotInstanceCountExceeded": "is beyond the account's quota for spare capacity",
    "SpotMaxPriceTooLow": "has no spare capacity there",
}
"""Refusals after which another subnet or type may do."""

NO_SPOT_ROLE = (
    "jobs.spot: this account has never used spare capacity, and lacks the role that EC2 needs for it. Fix: "
    "once, with an administrator's rights: aws iam create-service-linked-role "
    "--aws-service-name spot.amazonaws.com"
)

SEEN_DEADLINE_S = 60.0
"""EC2 shows what it has launched within seconds."""


def submit(
    pipeline: Pipeline,
    *,
    script: str | None = None,
    args: Sequence[str] = (),
    token: str | None = None,
    timeout_minutes: int | None = None,
    max_cost: float | None = None,
) -> Job:
    """Start a job, or return the one that this token started before.

    Args:
        pipeline: where; what is left out below is as it says.
        script: path on the share, below the mount path.
        args: its arguments. They are in the instance's user data: no secrets.
        token: any text. However often it is sent, by whomever, and whatever crashes in between, there is one
            job. A random one if left out.
        timeout_minutes: the machine is off that many minutes after its launch, or after the pipeline's own
            if those are fewer; its script is ended half a minute before.
        max_cost: most that the run may cost, in US dollars, or the pipeline's own if that is less; the
            machine is off at the minute it pays for.

    Raises NoCapacity where no type is to be had in any subnet, and JobError where the token stands for
    another job or a limit cannot be held.
    """
    token = token or uuid.uuid4().hex
    job_id = id_of(pipeline, token)
    wanted = script or pipeline.script, *args
    allowed = limits(pipeline, timeout_minutes=timeout_minutes, max_cost=max_cost)
    request = hashlib.sha256(json.dumps([wanted, timeout_minutes, max_cost]).encode()).hexdigest()[:16]
    if found := look.find(pipeline, job_id):
        return _same(found, request, token)
    specs = {type_: _spec(pipeline, job_id, type_, limit, *wanted) for type_, limit in allowed.items()}
    try:
        _launch(pipeline, token, request, specs)
    except UserDataTooLarge as error:
        raise JobError(str(error)) from None
    return _same(_one_of(pipeline, job_id), request, token)


def limits(
    pipeline: Pipeline, *, timeout_minutes: int | None = None, max_cost: float | None = None
) -> dict[str, Limits]:
    """How long a job may take on each type, and what it then costs. Raises JobError where that is too little.

    The pipeline's own limits hold for every job: of two, the smaller counts.
    """
    costs = [each for each in (max_cost, pipeline.max_cost) if each is not None]
    try:
        if max_cost is not None:
            check_cost(max_cost)
        if timeout_minutes is not None:
            check_minutes(timeout_minutes)
    except LimitError as error:
        raise JobError(str(error)) from None
    try:
        return {
            type_: limits_of(
                type_,
                pipeline.region,
                timeout_minutes=min(timeout_minutes or pipeline.timeout_minutes, pipeline.timeout_minutes),
                max_cost=min(costs, default=None),
                spot=pipeline.spot,
            )
            for type_ in pipeline.types
        }
    except LimitError as error:
        raise JobError(f"{'jobs.' if max_cost is None else ''}{error}") from None


def id_of(pipeline: Pipeline, token: str) -> str:
    """The id of the job that a token stands for."""
    return f"job-{hashlib.sha256(f'{pipeline.name}/{token}'.encode()).hexdigest()[:12]}"


def _spec(pipeline: Pipeline, job_id: str, type_: str, limit: Limits, script: str, *args: str) -> JobSpec:
    return JobSpec(
        id=job_id,
        pipeline=pipeline.name,
        script=script,
        args=args,
        minutes=limit.minutes,
        type=type_,
        price_per_hour=limit.price_per_hour,
        region=pipeline.region,
        file_system=pipeline.file_system,
        mount_path=pipeline.mount_path,
        log_group=pipeline.log_group,
        network=pipeline.network,
    )


def _same(job: Job, request: str, token: str) -> Job:
    if job.request and job.request != request:
        raise JobError(
            f"token: {token} has started {job.id} with {job.script} and other arguments or limits; "
            "use a token of its own for each job"
        )
    return job


def _launch(pipeline: Pipeline, token: str, request: str, specs: Mapping[str, JobSpec]) -> None:
    """In the first subnet that has the first type, and so on."""
    refused = []
    for type_, spec in specs.items():
        for subnet in pipeline.subnets:
            try:
                _run(pipeline, token, request, spec, subnet)
            except Exception as error:
                refusal = code(error)
                if refusal == "IdempotentParameterMismatch":
                    raise JobError(
                        f"token: {token} has just started another job; use a token of its own for each job"
                    ) from None
                if refusal == "AuthFailure.ServiceLinkedRoleCreationNotPermitted":
                    raise JobError(NO_SPOT_ROLE) from None
                if refusal not in ELSEWHERE:
                    raise
                refused.append(f"{type_} in {subnet} {ELSEWHERE[refusal]} ({refusal})")
            else:
                return
    raise NoCapacity(
        f"no machine for the job: {'; '.join(refused)}. Add to jobs.fallback_types, or subnets of other "
        "zones to jobs.subnets, or try again later with the same token"
    )


def _run(pipeline: Pipeline, token: str, request: str, spec: JobSpec, subnet: str) -> None:
    tags = {
        PIPELINE_TAG: pipeline.name,
        look.JOB_TAG: spec.id,
        look.SCRIPT_TAG: spec.script,
        look.MINUTES_TAG: str(spec.minutes),
        look.PRICE_TAG: "" if spec.price_per_hour is None else f"{spec.price_per_hour:g}",
        look.REQUEST_TAG: request,
        "Name": f"{pipeline.name}-{spec.id}",
    }
    marks = [{"Key": key, "Value": value} for key, value in tags.items()]
    # Another token for another request, as EC2 wants it; the same one for the same.
    attempt = hashlib.sha256(f"{pipeline.name}/{token}/{spec.type}/{subnet}".encode()).hexdigest()
    pipeline.ec2.run_instances(
        LaunchTemplate={"LaunchTemplateId": pipeline.launch_template, "Version": "$Default"},
        InstanceType=spec.type,
        SubnetId=subnet,
        MinCount=1,
        MaxCount=1,
        UserData=spec.user_data(),
        ClientToken=attempt,
        TagSpecifications=[{"ResourceType": kind, "Tags": marks} for kind in ("instance", "volume")],
    )


def _one_of(pipeline: Pipeline, job_id: str) -> Job:
    """The job that was just launched; another instance, of a submission at the same moment, is ended.

    EC2 holds a client token to one request. Two submissions that found capacity in two subnets are two.
    """
    looking = Retrying(
        retry=retry_if_result(lambda found: not found),
        wait=wait_exponential(multiplier=0.5, max=5),
        stop=stop_after_delay(SEEN_DEADLINE_S),
    )
    try:
        found = looking(look.instances, pipeline.ec2, pipeline.name, job_id)
    except RetryError:
        raise JobError(
            f"{job_id} was launched, but EC2 did not show it within {SEEN_DEADLINE_S:.0f} s; "
            "look with `fleet job list`"
        ) from None
    (job,) = look.of_instances(found, datetime.now(UTC))
    living = {each["InstanceId"] for each in found if each["State"]["Name"] in look.LIVING}
    if extra := living - {job.instance_id}:
        pipeline.ec2.terminate_instances(InstanceIds=sorted(extra))
    return job
