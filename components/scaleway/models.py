"""The parts of Scaleway's objects that this program uses. Sizes are in bytes, prices in euros an hour.

`parse` takes a decoded reply, ignores what it does not know, and raises `KeyError`, `TypeError`,
`AttributeError` or `ValueError` where the reply lacks what it must have.
Plain dataclasses: they load in no time, which counts in a provider process started for every command.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from components.scaleway.errors import PreconditionFailed

Json = Mapping[str, Any]


def text(data: Json, key: str) -> str:
    """A field that a reply must have. Raises ValueError where it is something else than text."""
    value = data[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r}")
    return value


def texts(data: Json, key: str) -> tuple[str, ...]:
    """A list that may be left out. Raises ValueError where it holds something else than text."""
    values = data.get(key) or ()
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{key} is {values!r}")
    return tuple(values)


@dataclass(frozen=True)
class ServerVolume:
    """A volume as its server lists it. An SBS volume shows no size there: ask `get_volume`."""

    slot: str
    id: str
    volume_type: str


@dataclass(frozen=True)
class Server:
    """An instance."""

    id: str
    name: str
    zone: str
    project: str
    commercial_type: str
    state: str
    """`stopped`, `stopped in place`, `starting`, `running`, `stopping` or `locked`."""
    state_detail: str
    tags: tuple[str, ...]
    protected: bool
    """Whether Scaleway refuses to stop or terminate it."""
    dynamic_ip_required: bool
    """Whether it gets a public address while it runs."""
    image_id: str | None
    security_group_id: str | None
    volumes: tuple[ServerVolume, ...]
    public_ip: str | None
    """The first public IPv4 address; a dynamic one is there only while the server runs."""
    created: str
    """ISO 8601, UTC."""

    @classmethod
    def parse(cls, data: Json) -> Self:
        addresses = data.get("public_ips") or [ip for ip in (data.get("public_ip"),) if ip]
        return cls(
            id=text(data, "id"),
            name=text(data, "name"),
            zone=text(data, "zone"),
            project=text(data, "project"),
            commercial_type=text(data, "commercial_type"),
            state=text(data, "state"),
            state_detail=data.get("state_detail") or "",
            tags=texts(data, "tags"),
            protected=bool(data.get("protected")),
            dynamic_ip_required=data.get("dynamic_ip_required") is not False,
            image_id=(data.get("image") or {}).get("id"),
            security_group_id=(data.get("security_group") or {}).get("id"),
            volumes=tuple(
                ServerVolume(slot, text(volume, "id"), text(volume, "volume_type"))
                for slot, volume in sorted((data.get("volumes") or {}).items(), key=lambda item: int(item[0]))
            ),
            public_ip=next(
                (text(ip, "address") for ip in addresses if ip.get("family", "inet") == "inet"), None
            ),
            created=data.get("creation_date") or "",
        )

    @property
    def root_volume_id(self) -> str | None:
        """The SBS volume in the lowest slot, None if there is none."""
        return next((volume.id for volume in self.volumes if volume.volume_type == "sbs_volume"), None)


@dataclass(frozen=True)
class Volume:
    """A Block Storage (SBS) volume."""

    id: str
    name: str
    zone: str
    size: int
    status: str
    """`creating`, `available`, `in_use`, `updating`, `resizing`, `deleting`, `error`, `locked`, …"""
    tags: tuple[str, ...]
    server_ids: tuple[str, ...]
    created: str

    @classmethod
    def parse(cls, data: Json) -> Self:
        return cls(
            id=text(data, "id"),
            name=text(data, "name"),
            zone=text(data, "zone"),
            size=int(data["size"]),
            status=text(data, "status"),
            tags=texts(data, "tags"),
            server_ids=tuple(
                text(reference, "product_resource_id")
                for reference in data.get("references") or ()
                if reference.get("product_resource_type") == "instance_server"
            ),
            created=data.get("created_at") or "",
        )


@dataclass(frozen=True)
class Image:
    """What a server is made from."""

    id: str
    name: str
    zone: str
    arch: str
    state: str
    root_volume_type: str
    """`sbs_snapshot` for the images that GPU types can start from."""

    @classmethod
    def parse(cls, data: Json) -> Self:
        return cls(
            id=text(data, "id"),
            name=text(data, "name"),
            zone=text(data, "zone"),
            arch=text(data, "arch"),
            state=text(data, "state"),
            root_volume_type=text(data["root_volume"], "volume_type"),
        )


@dataclass(frozen=True)
class SecurityGroup:
    """A stateful firewall that servers share. Policies are `accept` or `drop`."""

    id: str
    name: str
    zone: str
    project: str
    tags: tuple[str, ...]
    stateful: bool
    inbound_default_policy: str
    outbound_default_policy: str
    enable_default_security: bool
    """Whether Scaleway's own rules against outgoing mail apply."""
    project_default: bool
    server_ids: tuple[str, ...]
    created: str

    @classmethod
    def parse(cls, data: Json) -> Self:
        return cls(
            id=text(data, "id"),
            name=text(data, "name"),
            zone=text(data, "zone"),
            project=text(data, "project"),
            tags=texts(data, "tags"),
            stateful=data["stateful"],
            inbound_default_policy=text(data, "inbound_default_policy"),
            outbound_default_policy=text(data, "outbound_default_policy"),
            enable_default_security=data["enable_default_security"],
            project_default=bool(data.get("project_default")),
            server_ids=tuple(server["id"] for server in data.get("servers") or ()),
            created=data.get("creation_date") or "",
        )


@dataclass(frozen=True)
class Rule:
    """One rule of a security group, in one spelling whatever spelling it came in.

    The API drops `/32` and `/128` from the ranges it returns, and a single port has no upper port.
    """

    ip_range: str
    dest_port_from: int | None = None
    dest_port_to: int | None = None
    protocol: str = "TCP"
    """`TCP`, `UDP`, `ICMP` or `ANY`."""
    direction: str = "inbound"
    action: str = "accept"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ip_range", str(ipaddress.ip_network(self.ip_range, strict=False)))
        object.__setattr__(self, "protocol", self.protocol.upper())
        if self.dest_port_to == self.dest_port_from:
            object.__setattr__(self, "dest_port_to", None)

    @classmethod
    def parse(cls, data: Json) -> Self:
        return cls(
            ip_range=text(data, "ip_range"),
            dest_port_from=data.get("dest_port_from"),
            dest_port_to=data.get("dest_port_to"),
            protocol=text(data, "protocol"),
            direction=text(data, "direction"),
            action=text(data, "action"),
        )

    def request(self, position: int) -> dict[str, object]:
        """The rule as `set_rules` sends it; `position` counts from 1."""
        return {
            "protocol": self.protocol,
            "direction": self.direction,
            "action": self.action,
            "ip_range": self.ip_range,
            "dest_port_from": self.dest_port_from,
            "dest_port_to": self.dest_port_to,
            "position": position,
        }


@dataclass(frozen=True)
class ListedRule:
    """A rule as a security group lists it."""

    rule: Rule
    position: int
    editable: bool
    """False for Scaleway's own rules against outgoing mail, which cannot be removed one by one."""

    @classmethod
    def parse(cls, data: Json) -> Self:
        return cls(Rule.parse(data), int(data.get("position") or 0), data.get("editable") is not False)


def editable_rules(listed: Iterable[ListedRule]) -> tuple[Rule, ...]:
    """The rules people can edit, in the order they apply."""
    return tuple(row.rule for row in sorted(listed, key=lambda row: row.position) if row.editable)


def same_rules(left: Iterable[Rule], right: Iterable[Rule]) -> bool:
    """Whether two lists let the same traffic through.

    The first rule that matches decides, so order counts, but only in a direction where accept and drop mix.
    """
    one, other = tuple(dict.fromkeys(left)), tuple(dict.fromkeys(right))
    if set(one) != set(other):
        return False
    for direction in {rule.direction for rule in one}:
        here = [rule for rule in one if rule.direction == direction]
        there = [rule for rule in other if rule.direction == direction]
        if here != there and len({rule.action for rule in here}) > 1:
            return False
    return True


@dataclass(frozen=True)
class Ip:
    """A flexible public address; it bills while it exists, attached or not."""

    id: str
    address: str
    zone: str
    type: str
    tags: tuple[str, ...]
    server_id: str | None

    @classmethod
    def parse(cls, data: Json) -> Self:
        return cls(
            id=text(data, "id"),
            # An IPv6 range has a prefix instead of an address.
            address=text(data, "address" if data["address"] else "prefix"),
            zone=text(data, "zone"),
            type=text(data, "type"),
            tags=texts(data, "tags"),
            server_id=(data.get("server") or {}).get("id"),
        )


@dataclass(frozen=True)
class PrivateNetwork:
    """A network of a region's VPC; it costs nothing."""

    id: str
    name: str
    tags: tuple[str, ...]

    @classmethod
    def parse(cls, data: Json) -> Self:
        return cls(id=text(data, "id"), name=text(data, "name"), tags=texts(data, "tags"))


@dataclass(frozen=True)
class PrivateNic:
    """A server's place in a private network. Its address is IPAM's to tell."""

    id: str
    server_id: str
    private_network_id: str

    @classmethod
    def parse(cls, data: Json) -> Self:
        return cls(
            id=text(data, "id"),
            server_id=text(data, "server_id"),
            private_network_id=text(data, "private_network_id"),
        )


@dataclass(frozen=True)
class GatewayNetwork:
    """A Public Gateway's place in a private network."""

    id: str
    private_network_id: str
    status: str
    """`created`, `attaching`, `configuring`, `ready` or `detaching`."""
    push_default_route: bool
    """Whether machines in the network get it as their default route; it then does NAT for them."""

    @classmethod
    def parse(cls, data: Json) -> Self:
        return cls(
            id=text(data, "id"),
            private_network_id=text(data, "private_network_id"),
            status=text(data, "status"),
            push_default_route=bool(data["push_default_route"]),
        )


@dataclass(frozen=True)
class SshKey:
    """A public key of the project; Scaleway installs it on every server it starts."""

    id: str
    name: str
    public_key: str
    organization_id: str = ""

    @classmethod
    def parse(cls, data: Json) -> Self:
        return cls(
            id=text(data, "id"),
            name=text(data, "name"),
            public_key=text(data, "public_key"),
            organization_id=data.get("organization_id") or "",
        )


def sbs_root_volume_id(server: Server) -> str:
    """The id of the server's SBS root volume, the one in its lowest slot.

    Raises `PreconditionFailed` if the server has none: it was then not made from an image alone, or from an
    image whose root is local.
    """
    if server.root_volume_id is not None:
        return server.root_volume_id
    seen = (
        ", ".join(f"{volume.slot}: {volume.volume_type}" for volume in server.volumes) or "no volume at all"
    )
    raise PreconditionFailed(
        "get_server",
        server.name,
        server.zone,
        f"the server has no volume of type sbs_volume, but {seen}",
        fix="create it without a `volumes` field, from an image whose root volume is of type sbs_snapshot",
    )
