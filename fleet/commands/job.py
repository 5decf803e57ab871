"""`fleet job`: GPU jobs on AWS, each on an instance of its own that ends by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleet.commands import output, pulumi
from fleet.commands.nodes import WRONG_CALL, StackName

if TYPE_CHECKING:
    from fleet.jobs import Job, Pipeline

app = typer.Typer(
    help="GPU jobs on AWS: each on an instance of its own that ends by itself.\n\n"
    "Example: fleet job run app/train.sh --max-cost 0.50 -- --epochs 3",
    no_args_is_help=True,
)

PipelineFile = Annotated[
    Path | None,
    typer.Option(
        "--pipeline",
        envvar="VLLM_FLEET_PIPELINE",
        help="What `pulumi stack output --json` printed, where there is no stack; else the stack is asked.",
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, as `fleet job list` shows it.")]


@app.command()
def run(
    script: Annotated[
        str | None, typer.Argument(help="Path on the share; the pipeline's own if left out.")
    ] = None,
    args: Annotated[list[str] | None, typer.Argument(help="Its arguments, after --. No secrets.")] = None,
    token: Annotated[
        str | None, typer.Option(help="Any text: sent again, it starts nothing and finds the same job.")
    ] = None,
    timeout: Annotated[
        int | None, typer.Option(min=1, max=2880, help="Minutes from launch to power-off.")
    ] = None,
    max_cost: Annotated[float | None, typer.Option(help="Most that the run may cost, in dollars.")] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say what it may cost.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Start it, and do not follow it.")] = False,
    pipeline: PipelineFile = None,
    stack: StackName = None,
) -> None:
    """Run a script of the share on a GPU instance, and follow it; the exit code is the script's.

    The job goes on if this command is interrupted, and ends by itself at its limit.

    Example: fleet job run app/train.sh --max-cost 0.50 -- --epochs 3
    """
    from fleet.jobs import limits, submit  # noqa: PLC0415  --help does without

    with told():
        place = find(pipeline, stack)
        if estimate:
            for type_, limit in limits(place, timeout_minutes=timeout, max_cost=max_cost).items():
                typer.echo(f"{type_}: off after {limit.minutes} min, {most(limit.at_most)}")
            return
        job = submit(
            place, script=script, args=args or (), token=token, timeout_minutes=timeout, max_cost=max_cost
        )
        told_of = f"{job.id}: {job.script} on {job.type}"
        typer.echo(f"{told_of}: off after {job.minutes} min, {most(job.at_most)}", err=True)
        if not detach:
            # What a job prints is not ours: it may hold any secret that the stack knows.
            guard_output(pipeline, stack)
            follow(place, job.id)


@app.command("list")
def list_jobs(
    days: Annotated[int, typer.Option(min=1, help="How far back.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    pipeline: PipelineFile = None,
    stack: StackName = None,
) -> None:
    """List jobs with what became of them and what they cost, from EC2 and from their results.

    Example: fleet job list --days 1 --json
    """
    from fleet.jobs import jobs  # noqa: PLC0415  --help does without

    now = datetime.now(UTC)
    with told():
        found = jobs(find(pipeline, stack), days=days)
    if as_json:
        rows = [{**asdict(job), "cost": job.cost(now), "deadline": job.deadline} for job in found]
        typer.echo(json.dumps(rows, indent=1, default=str))
        return
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table("job", "status", "reason", "script", "type", "launched (UTC)", "minutes", "cost", box=None)
    for job in found:
        ended = job.result.ended if job.result else now
        lived = f"{(ended - job.launched).total_seconds() / 60:.1f} of {job.minutes}"
        cost = job.cost(now)
        cells = (
            *(job.id, str(job.status), job.result.reason if job.result else job.why, job.script, job.type),
            *(f"{job.launched:%m-%d %H:%M}", lived, "unknown" if cost is None else f"${cost:.4f}"),
        )
        table.add_row(*map(Text, cells))  # a script's name may hold what Rich takes for markup
    if found:
        output.console().print(output.whole(table))
    else:
        typer.echo(f"no jobs in {days} days")


@app.command()
def logs(
    job: JobId,
    to_the_end: Annotated[bool, typer.Option("--follow", "-f", help="Until the job is over.")] = False,
    pipeline: PipelineFile = None,
    stack: StackName = None,
) -> None:
    """Print a job's log, from CloudWatch.

    Example: fleet job logs -f job-0123456789ab
    """
    from fleet.jobs import JobError  # noqa: PLC0415  --help does without
    from fleet.jobs import find as known  # noqa: PLC0415
    from fleet.jobs import logs as lines  # noqa: PLC0415

    with told():
        place = find(pipeline, stack)
        guard_output(pipeline, stack)
        if to_the_end:
            follow(place, job)
        if known(place, job) is None:
            raise JobError(f"there is no job {job} in {place.name}; see `fleet job list`")
        for line in lines(place, job):
            typer.echo(line)


@app.command()
def cancel(job: JobId, pipeline: PipelineFile = None, stack: StackName = None) -> None:
    """End a job now; its log and its result are kept.

    Example: fleet job cancel job-0123456789ab
    """
    from fleet.jobs import cancel as end  # noqa: PLC0415  --help does without

    with told():
        ended = end(find(pipeline, stack), job)
        typer.echo(f"{ended.id}: {ended.instance_id} is being ended")


@app.command()
def reap(
    region: Annotated[
        str | None, typer.Option(help="Look there, at every pipeline, without asking any stack.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="End them; else only say what would be.")] = False,
    pipeline: PipelineFile = None,
    stack: StackName = None,
) -> None:
    """End job instances that outlived their deadlines; without --yes only list them.

    Their own tags say when: neither the control instance nor, with --region, the stack is needed. Run twice,
    the second run finds nothing left to do. The exit code is 1 if one could not be ended.

    Example: fleet job reap --region us-east-1 --yes
    """
    from fleet.aws import client  # noqa: PLC0415  --help does without
    from fleet.jobs import reap as find_and_end  # noqa: PLC0415

    with told():
        place = None if region else find(pipeline, stack)
        ec2 = place.ec2 if place else client("ec2", str(region))
        due = find_and_end(ec2, pipeline=place.name if place else None, end=yes)
    for each in due:
        late = f"{each.job.id} on {each.job.instance_id}: {each.late.total_seconds() / 60:.0f} min late"
        if each.error:
            typer.echo(f"{late}, and could not be ended: {each.error}", err=True)
        else:
            typer.echo(f"{late}: {'ended' if yes else 'would be ended with --yes'}")
    if not due:
        typer.echo("No job instance has outlived its deadline")
    if any(each.error for each in due):
        raise typer.Exit(1)


def find(file: Path | None, stack: str | None) -> Pipeline:
    """The pipeline of a file, or of the stack. Raises JobError, CredentialsError, PulumiError."""
    from fleet.aws import Credentials  # noqa: PLC0415  --help does without
    from fleet.jobs import Pipeline  # noqa: PLC0415

    if file:
        return Pipeline.load(file)
    settings = {name: entry["value"] for name, entry in pulumi.config(stack).items() if "value" in entry}
    credentials = Credentials.of(lambda key: settings.get(f"aws:{key}"))
    return Pipeline.of(pulumi.outputs(stack), credentials)


def guard_output(file: Path | None, stack: str | None) -> None:
    """Mask what is printed from now on: a job's script may log anything. Raises PulumiError."""
    from fleet import masking  # noqa: PLC0415  --help does without

    # With a file there is no stack to ask, as on the control instance.
    known = set() if file else masking.of_config(pulumi.config(stack))
    masking.guard_output(known | masking.of_environment(os.environ))


def follow(pipeline: Pipeline, job_id: str) -> None:
    """Print a job's log and how it goes on, until it is over; then exit with its exit code."""
    from fleet.jobs import Status, find  # noqa: PLC0415  loaded by now
    from fleet.jobs import follow as events  # noqa: PLC0415

    try:
        for event in events(pipeline, job_id):
            if isinstance(event, str):
                typer.echo(event)
            else:
                typer.echo(f"{job_id}: {event.status}", err=True)
    except KeyboardInterrupt:
        typer.echo(f"{job_id} goes on; follow it again with: fleet job logs -f {job_id}", err=True)
        raise typer.Exit(130) from None
    job = find(pipeline, job_id)
    assert job is not None
    typer.echo(summary(job), err=True)
    failed = (job.result.exit_code if job.result else None) or 1
    raise typer.Exit(0 if job.status == Status.SUCCEEDED else min(max(1, failed), 255))


def most(cost: float | None) -> str:
    """A cost that is not exceeded, in words."""
    return "at a price nobody knows" if cost is None else f"${cost:.4f} at most"


def summary(job: Job) -> str:
    """How a job ended, in a line."""
    if job.result is None:
        return f"{job.id}: {job.status}: the machine left no result. {job.why}"
    result = job.result
    cost = "at a price nobody knows" if result.cost is None else f"${result.cost:.4f}"
    why = f"{result.reason}: {result.detail}" if result.detail else result.reason
    return f"{job.id}: {why}; {result.seconds / 60:.1f} of {job.minutes} min, {cost}"


@contextmanager
def told() -> Iterator[None]:
    """Ends the command with the message of what is wrong."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  --help does without

    from fleet.aws import CredentialsError  # noqa: PLC0415
    from fleet.jobs import JobError  # noqa: PLC0415

    try:
        yield
    except (JobError, CredentialsError, pulumi.PulumiError, BotoCoreError, ClientError) as error:
        typer.echo(f"fleet: {error}", err=True)
        raise typer.Exit(WRONG_CALL) from error
