"""What the parts of the embedded Linode share: tables, look-ups, pages, names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any

from simcloud.cloud import Json, Received, Reply, Simulation, node_name
from simcloud.linode import errors, filters
from simcloud.linode.model import Event, Firewall, Instance
from simcloud.store import Document

CLOUD = "linode"
DEFAULT_PAGE_SIZE = 100
PAGE_SIZES = range(25, 501)
TAG_LENGTHS = range(3, 51)

EMPTY = Reply(200, {})
"""What Linode answers where other APIs answer 204."""


class Resources:
    """Everything one account owns."""

    def __init__(self, simulation: Simulation) -> None:
        store = simulation.store
        self.simulation = simulation
        self.instances = store.table("linode/instance", Instance)
        self.firewalls = store.table("linode/firewall", Firewall)
        self.events = store.table("linode/event", Event)

    def instance(self, received: Received) -> Instance:
        found = self.instances.get(received.params["instance_id"])
        if found is None:
            raise errors.not_found()
        return found

    def firewall(self, received: Received) -> Firewall:
        found = self.firewalls.get(received.params["firewall_id"])
        if found is None:
            raise errors.not_found()
        return found

    def firewalls_of(self, instance: Instance) -> list[Firewall]:
        return [
            firewall
            for firewall in self.firewalls
            if any(device.instance == instance.id for device in firewall.devices)
        ]

    def free_address(self) -> str:
        return self.simulation.machines.free_address({instance.address for instance in self.instances})

    def node_of(self, thing: Instance | Firewall) -> str:
        return node_name(thing.label, thing.tags)

    def event(self, kind: str, thing: Instance | Firewall, what: str) -> None:
        self.simulation.journal.event(
            cloud=CLOUD, kind=kind, id=thing.id, what=what, node=self.node_of(thing)
        )

    def seen(self, thing: Document) -> None:
        """A client looked at this object."""
        self.simulation.timers.seen(CLOUD, thing.id)

    def after(self, object_id: str, action: str, seconds: float) -> None:
        self.simulation.timers.after(CLOUD, object_id, action, seconds)

    def names(self, received: Received) -> Iterable[str]:
        """Names of what a request is about, the node's own first."""
        params = received.params
        thing: Instance | Firewall | None = self.instances.get(params.get("instance_id", ""))
        thing = thing or self.firewalls.get(params.get("firewall_id", ""))
        if thing:
            return (self.node_of(thing), thing.label)
        label, tags = str(received.json.get("label") or ""), texts(received.json.get("tags"))
        return (node_name(label, tags), label) if received.call.method == "POST" else ()


def texts(value: Any) -> list[str]:
    """The value as a list of texts; anything that is no list is none."""
    return [str(item) for item in value] if isinstance(value, list) else []


def tags_of(body: Json) -> list[str]:
    """The tags of a request. Raises ApiError for one that is too short or too long."""
    tags = texts(body.get("tags"))
    if not all(len(tag) in TAG_LENGTHS for tag in tags):
        raise errors.invalid("tags", f"Length must be {TAG_LENGTHS[0]}-{TAG_LENGTHS[-1]} characters")
    return tags


def check_label(
    label: str, *, longest: int, taken: Iterable[str], taken_reason: str = "Label must be unique"
) -> None:
    """Raises ApiError unless the label is well-formed and free in the account."""
    if not 3 <= len(label) <= longest:
        raise errors.invalid("label", f"Length must be 3-{longest} characters")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?", label) or re.search(
        r"--|__|\.\.", label
    ):
        raise errors.invalid(
            "label",
            "Must begin and end with an alphanumeric character and hold only alphanumeric characters, "
            "dashes, underscores and periods, none of these twice in a row",
        )
    if label in taken:
        raise errors.invalid("label", taken_reason)


def listed(received: Received, rows: list[Json], fields: Collection[str]) -> Reply:
    """One page of the rows that the request's filter lets through; a page after the last one is empty."""
    rows = filters.apply(received, rows, fields)
    number = int(received.query.get("page") or 1)
    size = int(received.query.get("page_size") or DEFAULT_PAGE_SIZE)
    if size not in PAGE_SIZES:
        raise errors.invalid("page_size", f"Must be {PAGE_SIZES[0]}-{PAGE_SIZES[-1]}")
    pages = max(1, -(-len(rows) // size))
    if number < 1:
        raise errors.invalid("page", "Must be 1 or greater")
    shown = rows[(number - 1) * size : number * size]
    return Reply(200, {"data": shown, "page": number, "pages": pages, "results": len(rows)})


def linode_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S")
