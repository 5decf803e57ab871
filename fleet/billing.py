"""What a stack is billed for: nodes and what is left of them, jobs, the month to date, what is overdue.

Everything here is a function of the JSON that ``pulumi stack export`` writes, and of jobs that the caller
looked up; nothing asks a cloud.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fleet.cost import HOURS_PER_MONTH, Cost, ExchangeRate, Lifetime, default_rate, node_cost_per_hour

if TYPE_CHECKING:
    from fleet.jobs import Job

State = Mapping[str, Any]
"""The document of ``pulumi stack export``."""
Resource = Mapping[str, Any]
"""One entry of its ``deployment.resources``."""

STACK = "pulumi:pulumi:Stack"
NODE_TYPE = re.compile(r"^vllm-fleet:\w+:GpuNode$")


@dataclass(frozen=True, slots=True)
class Billed:
    """A server, or the volume that is left of one. ``root_volume_gb`` is in the cloud's own GB."""

    node: str
    urn: str
    cloud: str
    zone: str
    type: str | None
    """None when only the volume is left."""
    root_volume_gb: int
    running: bool
    spot: bool = False
    public_address: bool = True
    """Whether it has one that bills."""
    created: datetime | None = None
    in_state: bool = True
    """False for what only the cloud knows of: left by an interrupted update, or lost from the state."""

    @property
    def status(self) -> str:
        """Whether it runs or only bills, and whether the state knows of it."""
        if not self.in_state:
            return "not in the state, billed"
        if self.type is None:
            return "server gone, volume billed"
        return "running" if self.running else "stopped, still billed"

    def cost(self) -> Cost:
        """What it costs an hour as it is now."""
        return node_cost_per_hour(
            self.cloud,
            self.zone,
            self.type,
            self.root_volume_gb,
            spot=self.spot,
            running=self.running,
            public_address=self.public_address,
        )


def billed(state: State) -> list[Billed]:
    """Every server and orphaned root volume of the state, by node name."""
    resources = _resources(state)
    found = [
        READERS[entry["type"]](entry, _family(entry, resources), _node_name(entry, resources))
        for entry in resources.values()
        if entry["type"] in READERS
    ]
    with_server = {entry.node for entry in found if entry.type}
    return sorted(
        (entry for entry in found if entry.type or entry.node not in with_server),
        key=lambda entry: entry.node,
    )


@dataclass(frozen=True, slots=True)
class JobCost:
    """What a GPU job costs, in the report's currency: its instance, for the time since the month began."""

    id: str
    type: str
    status: str
    per_hour: float | None
    """0.0 when it is over; None where nobody knows its price."""
    month_to_date: float | None


def job_costs(
    jobs: Iterable[Job], now: datetime, *, currency: str = "EUR", rate: ExchangeRate | None = None
) -> list[JobCost]:
    """What each job that ran this month costs. A job that began before has its part of the month counted."""
    rate = rate or default_rate()
    month = _month(now)
    found: list[JobCost] = []
    for job in jobs:
        ended = job.result.ended if job.result else now
        if job.status.over and ended < month:
            continue
        lived = (ended - job.launched).total_seconds()
        share = (ended - max(job.launched, month)).total_seconds() / lived if lived > 0 else 1.0
        price = 0.0 if job.status.over else job.price_per_hour
        cost = job.cost(now)
        found.append(
            JobCost(
                job.id,
                job.type,
                str(job.status),
                None if price is None else rate.convert(price, "USD", currency),
                None if cost is None else rate.convert(cost * share, "USD", currency),
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Report:
    """A stack's bill. Amounts are in ``currency``, before tax; unknown costs are named, not guessed."""

    currency: str
    rows: tuple[tuple[Billed, Cost], ...]
    jobs: tuple[JobCost, ...]
    per_hour: float
    """What is known of the stack's cost an hour."""
    per_month: float
    """What is known of 730 hours of it; jobs end by themselves and do not count."""
    month_to_date: float
    """What is known since the first of the month, by the states the stack went through."""
    unknown: tuple[str, ...]
    """Node or job and reason, for each cost that is not in the sums."""


def report(
    history: Sequence[tuple[datetime, State]],
    now: datetime,
    *,
    jobs: Iterable[Job] = (),
    surplus: Iterable[Billed] = (),
    currency: str = "EUR",
    rate: ExchangeRate | None = None,
) -> Report:
    """The bill of a stack whose states, each with the moment it was reached, are ``history``, oldest first.

    ``jobs`` are those its pipeline ran, ``surplus`` is what its owner has beside the state: that counts an
    hour and a month, but not in the month to date, since nobody knows when it began. A state's cost runs
    until the next state. A change that a cloud made by itself counts from the refresh that saw it.
    Raises ValueError for an empty history.
    """
    if not history:
        raise ValueError("history: the stack has no state yet; bring it up first")
    rate = rate or default_rate()
    month = _month(now)
    to_date = 0.0
    rows: list[tuple[Billed, Cost]] = []
    unknown: dict[str, None] = {}
    ends = [reached for reached, _ in history[1:]] + [now]
    for (reached, state), end in zip(history, ends, strict=True):
        rows = [(entry, entry.cost().into(currency, rate)) for entry in billed(state)]
        for entry, cost in rows:
            begins = max(reached, month, entry.created or reached)
            to_date += max(0.0, (end - begins).total_seconds() / 3600) * (cost.total or 0.0)
            if cost.reason and end > month:
                unknown[f"{entry.node}: {cost.reason}"] = None
    rows += [(entry, entry.cost().into(currency, rate)) for entry in surplus]
    billed_jobs = job_costs(jobs, now, currency=currency, rate=rate)
    for job in billed_jobs:
        if job.month_to_date is None:
            unknown[f"{job.id}: nobody knows what this job ({job.status}) cost"] = None
    nodes = sum(cost.total or 0.0 for _, cost in rows)
    return Report(
        currency,
        tuple(rows),
        tuple(billed_jobs),
        nodes + sum(job.per_hour or 0.0 for job in billed_jobs),
        nodes * HOURS_PER_MONTH,
        to_date + sum(job.month_to_date or 0.0 for job in billed_jobs),
        tuple(unknown),
    )


def has_jobs(state: State) -> bool:
    """Whether the stack has a pipeline of GPU jobs, by its outputs."""
    entries = _resources(state).values()
    return any(entry["type"] == STACK and (entry.get("outputs") or {}).get("jobs") for entry in entries)


def lifetimes(state: State, ttl_hours: Mapping[str, float | None]) -> list[Lifetime]:
    """How long each node of the state may live, by the ``ttl_hours`` its stack configuration gives it."""
    return [
        Lifetime(entry.node, entry.created, ttl_hours.get(entry.node))
        for entry in billed(state)
        if entry.created
    ]


def node_urns(state: State, node: str) -> list[str]:
    """The URNs of a node and all that belongs to it, as ``pulumi destroy --target`` wants them."""
    resources = _resources(state)
    return [urn for urn, entry in resources.items() if _node_name(entry, resources) == node]


def protected(state: State, node: str) -> bool:
    """Whether anything of the node is protected against deletion."""
    resources = _resources(state)
    return any(resources[urn].get("protect", False) for urn in node_urns(state, node))


def _month(now: datetime) -> datetime:
    return now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _resources(state: State) -> dict[str, Resource]:
    return {
        entry["urn"]: entry for entry in state["deployment"].get("resources", []) if not entry.get("delete")
    }


def _node_name(entry: Resource, resources: Mapping[str, Resource]) -> str:
    """The name of the GPU node the resource belongs to, or its own where it belongs to none."""
    above: Resource | None = entry
    while above is not None:
        if NODE_TYPE.match(above["type"]):
            return _name(above)
        above = resources.get(above.get("parent", ""))
    return _name(entry)


def _name(entry: Resource) -> str:
    return str(entry["urn"]).rsplit("::", 1)[-1]


def _family(entry: Resource, resources: Mapping[str, Resource]) -> dict[str, Resource]:
    """The resource's siblings, itself included, by type."""
    parent = entry.get("parent")
    return {other["type"]: other for other in resources.values() if other.get("parent") == parent}


def _created(entry: Resource) -> datetime | None:
    return datetime.fromisoformat(entry["created"]) if entry.get("created") else None


def _scaleway_server(entry: Resource, family: Mapping[str, Resource], node: str) -> Billed:
    outputs = entry["outputs"]
    volume, power = family.get(SCALEWAY_VOLUME), family.get("pulumi-python:dynamic/scaleway:Power")
    return Billed(
        node,
        entry["urn"],
        "scaleway",
        outputs["zone"],
        outputs["commercial_type"],
        # An image's own root volume is 20 GB until it is grown.
        int(volume["outputs"]["size_gb"]) if volume else 20,
        # A server stopped in place keeps its machine and its price.
        power is not None and power["outputs"].get("state") in ("running", "starting", "stopped in place"),
        public_address=outputs.get("dynamic_ip_required") is not False,
        created=_created(entry),
    )


def _scaleway_volume(entry: Resource, family: Mapping[str, Resource], node: str) -> Billed:
    outputs = entry["outputs"]
    size = int(outputs["size_gb"])
    return Billed(
        node, entry["urn"], "scaleway", outputs["zone"], None, size, running=False, created=_created(entry)
    )


def _aws_instance(entry: Resource, family: Mapping[str, Resource], node: str) -> Billed:
    outputs = entry["outputs"]
    disk = outputs.get("rootBlockDevice") or {}
    boot = family.get("pulumi-python:dynamic/aws:FirstBoot")
    return Billed(
        node,
        entry["urn"],
        "aws",
        # us-east-1a is a zone of the region us-east-1, and prices are by region.
        outputs["availabilityZone"].rstrip("abcdefghijklmnopqrstuvwxyz"),
        outputs["instanceType"],
        # EBS counts and bills GiB.
        int(disk.get("volumeSize", 0)),
        outputs.get("instanceState", "running") in ("running", "pending"),
        spot=outputs.get("instanceLifecycle") == "spot",
        # The instance shows whether it has an address now, which one that is stopped has not.
        public_address=boot is None or boot["outputs"].get("public_ip") is not False,
        created=_created(entry),
    )


def _linode_instance(entry: Resource, family: Mapping[str, Resource], node: str) -> Billed:
    outputs = entry["outputs"]
    running = outputs.get("status", "running") not in ("offline", "stopped")
    return Billed(
        node, entry["urn"], "linode", outputs["region"], outputs["type"], 0, running, created=_created(entry)
    )


SCALEWAY_VOLUME = "pulumi-python:dynamic/scaleway:RootVolume"
READERS: dict[str, Callable[[Resource, Mapping[str, Resource], str], Billed]] = {
    "pulumi-python:dynamic/scaleway:Server": _scaleway_server,
    SCALEWAY_VOLUME: _scaleway_volume,
    "aws:ec2/instance:Instance": _aws_instance,
    "linode:index/instance:Instance": _linode_instance,
}
