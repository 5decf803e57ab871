"""`fleet cost-report`: what a stack is billed for, by the hour and since the first of the month."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fleet.billing import Billed, Report, State, has_jobs, report
from fleet.commands import output, pulumi
from fleet.cost import ExchangeRate, default_rate

if TYPE_CHECKING:
    from fleet.jobs import Job

BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)
"""Before every stack: servers then count from when they were made."""


def cost_report(
    stack: Annotated[
        str | None, typer.Option("--stack", "-s", help="Stack; the selected one if left out.")
    ] = None,
    currency: Annotated[str, typer.Option(help="EUR or USD.")] = "EUR",
    usd_per_eur: Annotated[float | None, typer.Option(min=0.1, help="Exchange rate of today.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what nodes and jobs cost, running or stopped, and the month to date by the stack's history.

    Example: fleet cost-report --stack prod
    """
    rate = default_rate() if usd_per_eur is None else ExchangeRate(usd_per_eur, date.today(), "--usd-per-eur")
    now = datetime.now(UTC)
    try:
        current = pulumi.read("stack", "export", stack=stack)
        past, complete = history(stack, now, current)
        # What was done to the state by hand is in no history.
        past.append((now, current))
    except pulumi.PulumiError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    jobs, why_no_jobs = _jobs(stack, current, now)
    surplus, why_no_surplus = _surplus(stack, current)
    bill = report(past, now, jobs=jobs, surplus=surplus, currency=currency, rate=rate)
    missing = {"jobs": why_no_jobs, "what the state does not know": why_no_surplus}
    reasons = [f"{what}: {why}" for what, why in missing.items() if why]
    bill = replace(bill, unknown=(*bill.unknown, *reasons))
    if as_json:
        typer.echo(json.dumps(document(bill, complete=complete), indent=1))
    else:
        _show(bill, rate)
    if not complete:
        note = "this backend keeps no past states: what was destroyed this month is not in the month to date"
        typer.echo(note, err=True)


def history(stack: str | None, now: datetime, current: State) -> tuple[list[tuple[datetime, State]], bool]:
    """The stack's states of this month and the last one before it, oldest first; and whether that is all.

    Pulumi Cloud keeps every state by its version, a file backend as checkpoints. Of other backends there is
    the current state alone. Raises PulumiError.
    """
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    updates = pulumi.read("stack", "history", "--json", stack=stack)
    ended = [
        (datetime.fromisoformat(entry["endTime"]), entry["version"])
        for entry in updates
        if "endTime" in entry
    ]
    if ended and all(version for _, version in ended):
        past = [
            (end, pulumi.read("stack", "export", "--version", str(version), stack=stack))
            for end, version in _since(month, sorted(ended))
        ]
        return past, True
    url = str(pulumi.read("whoami", "--verbose", "--json")["url"])
    resources = current["deployment"].get("resources", [])
    if url.startswith("file://") and resources:
        # urn:pulumi:STACK::PROJECT::…
        name, project = resources[0]["urn"].removeprefix("urn:pulumi:").split("::")[:2]
        folder = Path(url.removeprefix("file://")).expanduser() / ".pulumi" / "history" / project / name
        files = sorted((_checkpoint_time(path), path) for path in folder.glob(f"{name}-*.checkpoint.json"))
        if files:
            return [(end, _checkpoint(path)) for end, path in _since(month, files)], True
    return [(BEGINNING, current)], False


def _jobs(stack: str | None, state: State, now: datetime) -> tuple[list[Job], str]:
    """The jobs of this month, of a stack that runs some; or why they cannot be told."""
    if not has_jobs(state):
        return [], ""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  only a stack with jobs has it

    from fleet.commands.job import find  # noqa: PLC0415
    from fleet.jobs import JobError, jobs  # noqa: PLC0415

    try:
        # One that began at the end of last month may have run into this one: two days is the longest.
        return jobs(find(None, stack), days=now.day + 2, now=now), ""
    except (JobError, pulumi.PulumiError, BotoCoreError, ClientError) as error:
        return [], f"AWS does not tell what they cost: {error}"


def _surplus(stack: str | None, state: State) -> tuple[list[Billed], str]:
    """What the stack's owner has in its clouds and the state does not know; or why nobody can say."""
    from fleet.commands.objects import ownership  # noqa: PLC0415  --help does without

    try:
        found = ownership(state, pulumi.config(stack))
        if found is None:
            return [], ""
        objects = found.surplus()
    except Exception as error:  # the bill of what is known is shown all the same
        return [], f"the clouds did not say: {error}"
    volumes = {each.belongs_to: each.size_gb for each in objects if each.kind == "volume"}
    servers = {each.id for each in objects if each.kind == "server"}
    return [
        Billed(
            node=each.node or each.name,
            urn=each.id,
            cloud=each.place.cloud,
            zone=each.place.zone,
            type=each.type,
            root_volume_gb=volumes.get(each.id, each.size_gb) if each.kind == "server" else each.size_gb,
            running=each.running,
            in_state=False,
        )
        for each in objects
        if each.kind == "server" or (each.kind == "volume" and each.belongs_to not in servers)
    ], ""


T = TypeVar("T")


def _since(month: datetime, past: list[tuple[datetime, T]]) -> list[tuple[datetime, T]]:
    """What ended in the month, and the last before it, which was in force when the month began."""
    before = [entry for entry in past if entry[0] < month]
    return before[-1:] + past[len(before) :]


def _checkpoint_time(path: Path) -> datetime:
    """A checkpoint's name ends in the nanoseconds of the epoch at which its update ended."""
    nanoseconds = path.name.removesuffix(".checkpoint.json").rsplit("-", 1)[-1]
    return datetime.fromtimestamp(int(nanoseconds) / 1e9, UTC)


def _checkpoint(path: Path) -> State:
    """The state in a checkpoint, in the shape of an export. One without resources has no such list."""
    return {"deployment": json.loads(path.read_bytes())["checkpoint"]["latest"] or {}}


def document(bill: Report, *, complete: bool) -> dict[str, Any]:
    """The bill as plain values, for ``--json``."""
    return {
        "currency": bill.currency,
        "per_hour": round(bill.per_hour, 6),
        "per_month": round(bill.per_month, 2),
        "month_to_date": round(bill.month_to_date, 2),
        "history_complete": complete,
        "unknown": list(bill.unknown),
        "nodes": [
            {
                "node": entry.node,
                "cloud": entry.cloud,
                "zone": entry.zone,
                "type": entry.type,
                "status": entry.status,
                "root_volume_gb": entry.root_volume_gb,
                "per_hour": cost.total and round(cost.total, 6),
                "reason": cost.reason,
                "parts": {part.name: round(part.per_hour, 6) for part in cost.parts},
                "prices_as_of": cost.as_of and cost.as_of.isoformat(),
            }
            for entry, cost in bill.rows
        ],
        "jobs": [
            {
                "job": job.id,
                "type": job.type,
                "status": job.status,
                "per_hour": job.per_hour and round(job.per_hour, 6),
                "month_to_date": job.month_to_date and round(job.month_to_date, 4),
            }
            for job in bill.jobs
        ],
    }


def _show(bill: Report, rate: ExchangeRate) -> None:
    from rich.table import Table  # noqa: PLC0415

    names = ("server", "root volume", "public address")
    table = Table("node", "where", "type", "status", *names, f"{bill.currency} / h")
    for entry, cost in bill.rows:
        parts = {part.name: f"{part.per_hour:.4f}" for part in cost.parts}
        total = "unknown" if cost.total is None else f"{cost.total:.4f}"
        where = f"{entry.cloud} {entry.zone}"
        shown = [parts.get(name, "-") for name in names]
        table.add_row(entry.node, where, entry.type or "-", entry.status, *shown, total)
    console = output.console()
    console.print(output.whole(table))
    if bill.jobs:
        listed = Table("job", "type", "status", f"{bill.currency} / h", "since the first")
        for job in bill.jobs:
            amounts = ("unknown" if it is None else f"{it:.4f}" for it in (job.per_hour, job.month_to_date))
            listed.add_row(job.id, job.type, job.status, *amounts)
        console.print(output.whole(listed))
    console.print(
        f"{bill.per_hour:.4f} {bill.currency} an hour, {bill.per_month:.2f} a month; "
        f"{bill.month_to_date:.2f} since the first of this month"
    )
    for line in bill.unknown:
        console.print(f"not in the sums: {line}", highlight=False)
    console.print(f"1 EUR = {rate.usd_per_eur} USD ({rate.as_of}); before tax")
