"""What the embedded Scaleway stores."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from simcloud.store import Document, utc_now


def new_id() -> str:
    return str(uuid4())


class ServerState(StrEnum):
    STOPPED = "stopped"
    STOPPED_IN_PLACE = "stopped in place"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class _Resource(Document):
    id: str = Field(default_factory=new_id)
    zone: str
    project: str
    created: datetime = Field(default_factory=utc_now)
    modified: datetime = Field(default_factory=utc_now)
    tags: list[str] = Field(default_factory=list)

    def touch(self) -> None:
        self.modified = utc_now()


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LocalVolume(_Part):
    """A volume on the hypervisor's own disk: it lives and dies with its server."""

    id: str = Field(default_factory=new_id)
    name: str
    volume_type: str
    size: int
    """Bytes."""


class DynamicIp(_Part):
    id: str = Field(default_factory=new_id)
    address: str


class Server(_Resource):
    name: str
    commercial_type: str
    image: str
    boot_type: str
    protected: bool
    dynamic_ip_required: bool
    security_group: str
    state: ServerState = ServerState.STOPPED
    state_detail: str = ""
    address: str | None = None
    """The machine's own address, kept from its first start on."""
    dynamic_ip: DynamicIp | None = None
    block_volumes: dict[str, str] = Field(default_factory=dict)
    """Slot to the id of a block volume."""
    local_volumes: dict[str, LocalVolume] = Field(default_factory=dict)
    user_data: dict[str, bytes] = Field(default_factory=dict)


class VolumeStatus(StrEnum):
    CREATING = "creating"
    AVAILABLE = "available"
    IN_USE = "in_use"
    UPDATING = "updating"


class Reference(_Part):
    id: str = Field(default_factory=new_id)
    server: str
    created: datetime = Field(default_factory=utc_now)
    status: str = "attached"


class Volume(_Resource):
    """A block (SBS) volume."""

    name: str
    size: int
    """Bytes."""
    growing_to: int | None = None
    """The size it will have when it is no longer updating."""
    status: VolumeStatus = VolumeStatus.CREATING
    iops: int = 5000
    snapshot: str | None
    reference: Reference | None
    detached: datetime | None = None
    node: str
    """Node of the server it was made for; the volume keeps it when the server is gone."""


class Rule(_Part):
    id: str = Field(default_factory=new_id)
    protocol: str
    direction: str
    action: str
    ip_range: str
    dest_port_from: int | None
    dest_port_to: int | None


class SecurityGroup(_Resource):
    name: str
    description: str | None = None
    stateful: bool = True
    inbound_default_policy: str = "accept"
    outbound_default_policy: str = "accept"
    enable_default_security: bool = True
    project_default: bool = False
    rules: list[Rule] = Field(default_factory=list)


class Ip(_Resource):
    """A flexible IP: it bills until it is deleted."""

    address: str
    server: str | None
    reverse: str | None = None


class PrivateNetwork(Document):
    id: str = Field(default_factory=new_id)
    region: str
    project: str
    name: str
    tags: list[str]
    subnet: str
    created: datetime = Field(default_factory=utc_now)


class PrivateNic(Document):
    """A server's interface in a private network, with the address that IPAM gave it."""

    id: str = Field(default_factory=new_id)
    server: str
    network: str
    address: str
    ip: str = Field(default_factory=new_id)
    """IPAM's id of the address."""
    created: datetime = Field(default_factory=utc_now)


class PublicGateway(_Resource):
    """A Public Gateway: it bills until it is deleted."""

    name: str
    type: str


class GatewayNetwork(Document):
    """A Public Gateway's place in a private network."""

    id: str = Field(default_factory=new_id)
    zone: str
    gateway: str
    network: str
    masquerade: bool
    default_route: bool
    ip: str = Field(default_factory=new_id)
    """IPAM's id of its address there."""
    created: datetime = Field(default_factory=utc_now)


class SshKey(Document):
    id: str = Field(default_factory=new_id)
    project: str
    name: str
    public_key: str
    created: datetime = Field(default_factory=utc_now)
