"""What the APIs of the embedded Scaleway share: tables, look-ups, pages, names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import urlencode
from uuid import NAMESPACE_URL, uuid5

from simcloud.cloud import Json, Received, Reply, Simulation, node_name
from simcloud.scaleway import errors
from simcloud.scaleway.catalog import ZONES
from simcloud.scaleway.model import (
    GatewayNetwork,
    Ip,
    PrivateNetwork,
    PrivateNic,
    PublicGateway,
    SecurityGroup,
    Server,
    SshKey,
    Volume,
)
from simcloud.store import Document

CLOUD = "scaleway"
DEFAULT_PER_PAGE = 50
MAX_PER_PAGE = 100

NO_CONTENT = Reply(204, headers={"Content-Type": "application/json"})

D = TypeVar("D", bound=Document)


class Resources:
    """Everything one project owns."""

    def __init__(self, simulation: Simulation, *, project: str) -> None:
        store = simulation.store
        self.simulation = simulation
        self.project = project
        self.servers = store.table("scaleway/server", Server)
        self.volumes = store.table("scaleway/volume", Volume)
        self.security_groups = store.table("scaleway/security_group", SecurityGroup)
        self.ips = store.table("scaleway/ip", Ip)
        self.private_networks = store.table("scaleway/private_network", PrivateNetwork)
        self.private_nics = store.table("scaleway/private_nic", PrivateNic)
        self.gateways = store.table("scaleway/public_gateway", PublicGateway)
        self.gateway_networks = store.table("scaleway/gateway_network", GatewayNetwork)
        self.ssh_keys = store.table("scaleway/ssh_key", SshKey)

    def server(self, received: Received) -> Server:
        found = self.servers.get(received.params["server_id"])
        return _in_zone(found, received, "instance_server", "server_id")

    def volume(self, received: Received) -> Volume:
        return _in_zone(self.volumes.get(received.params["volume_id"]), received, "volume", "volume_id")

    def ip(self, received: Received) -> Ip:
        return _in_zone(self.ips.get(received.params["ip_id"]), received, "instance_ip", "ip_id")

    def security_group(self, received: Received) -> SecurityGroup:
        found = self.security_groups.get(received.params["security_group_id"])
        return _in_zone(found, received, "instance_security_group", "security_group_id")

    def default_security_group(self, zone: str) -> SecurityGroup:
        """The group a zone's servers get when none is named; every project has one."""
        group_id = str(uuid5(NAMESPACE_URL, f"{self.project}/{zone}/default"))
        group = self.security_groups.get(group_id)
        if group is None:
            group = SecurityGroup(
                id=group_id,
                zone=zone,
                project=self.project,
                name="Default security group",
                description="Auto generated security group.",
                project_default=True,
            )
            self.security_groups.put(group)
        return group

    def ips_of(self, server: Server) -> list[Ip]:
        return [ip for ip in self.ips if ip.server == server.id]

    def free_address(self) -> str:
        used = {server.address for server in self.servers} | {ip.address for ip in self.ips}
        return self.simulation.machines.free_address({address for address in used if address})

    def node_of(self, server: Server) -> str:
        return node_name(server.name, server.tags)

    def event(self, kind: str, thing: Document, what: str, node: str | None) -> None:
        self.simulation.journal.event(cloud=CLOUD, kind=kind, id=thing.id, what=what, node=node)

    def seen(self, thing: Document) -> None:
        """A client looked at this object."""
        self.simulation.timers.seen(CLOUD, thing.id)

    def after(self, thing: Document, action: str, seconds: float) -> None:
        self.simulation.timers.after(CLOUD, thing.id, action, seconds)

    def names(self, received: Received) -> Iterable[str]:
        """Names of what a request is about, the node's own first."""
        params = received.params
        if server := self.servers.get(params.get("server_id", "")):
            return _names(server.name, server.tags)
        if group := self.security_groups.get(params.get("security_group_id", "")):
            return _names(group.name, group.tags)
        if volume := self.volumes.get(params.get("volume_id", "")):
            return (volume.node, volume.name)
        if ip := self.ips.get(params.get("ip_id", "")):
            server = self.servers.get(ip.server or "")
            return (*_names("", ip.tags), *(_names(server.name, server.tags) if server else ()))
        if received.call.method == "POST":
            return _names(str(received.json.get("name") or ""), _texts(received.json.get("tags")))
        return _names(received.query.get("name", ""), received.query.get("tags", "").split(","))


def _names(name: str, tags: Sequence[str]) -> tuple[str, ...]:
    return (node_name(name, tags), name)


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


Z = TypeVar("Z", Server, Volume, SecurityGroup, Ip)


def _in_zone(found: Z | None, received: Received, resource: str, parameter: str) -> Z:
    if found is None or found.zone != received.params["zone"]:
        raise errors.not_found(resource, received.params[parameter])
    return found


def zone_of(received: Received) -> str:
    zone = received.params["zone"]
    if zone not in ZONES:
        raise errors.invalid("zone", f"{zone} is not one of {', '.join(sorted(ZONES))}")
    return zone


def with_tags(items: Iterable[Z], received: Received) -> list[Z]:
    """Objects of the request's zone that carry every tag of its `tags` filter."""
    wanted = {tag for tag in received.query.get("tags", "").split(",") if tag}
    return [item for item in items if item.zone == received.params["zone"] and wanted <= set(item.tags)]


def page(received: Received, items: Sequence[D], size_parameter: str) -> tuple[list[D], int, int]:
    """One page of a list, its number and its size."""
    query = received.query
    number = max(1, int(query.get("page") or 1))
    size = min(MAX_PER_PAGE, max(1, int(query.get(size_parameter) or DEFAULT_PER_PAGE)))
    return list(items[(number - 1) * size : number * size]), number, size


def instance_list(received: Received, key: str, items: Sequence[D], render: Callable[[D], Json]) -> Reply:
    """A list as the Instance API sends it: the total and the other pages are in headers."""
    shown, number, size = page(received, items, "per_page")
    last = max(1, -(-len(items) // size))
    others = {k: v for k, v in received.query.items() if k not in ("page", "per_page")}
    path = "/" + received.path.rpartition("/")[2]

    def link(target: int, relation: str) -> str:
        return f'<{path}?{urlencode({"page": target, "per_page": size, **others})}>; rel="{relation}"'

    links = [link(number + 1, "next")] if number < last else []
    headers = {"X-Total-Count": str(len(items)), "Link": ",".join([*links, link(last, "last")])}
    return Reply(200, {key: [render(item) for item in shown]}, headers)


def counted_list(received: Received, key: str, items: Sequence[D], render: Callable[[D], Json]) -> Reply:
    """A list as the newer APIs send it: the total is in the body."""
    shown, _, _ = page(received, items, "page_size")
    return Reply(200, {key: [render(item) for item in shown], "total_count": len(items)})


def instance_time(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")


def newer_time(moment: datetime | None) -> str | None:
    """As the newer APIs write it: Z instead of +00:00."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z") if moment else None
