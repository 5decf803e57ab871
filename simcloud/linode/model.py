"""What the embedded Linode stores."""

from __future__ import annotations

import hashlib
import json
import secrets
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from simcloud.store import Document, utc_now


def new_number() -> int:
    """An id as Linode gives them: eight digits, in no order a client may rely on."""
    return 10_000_000 + secrets.randbelow(89_999_999)


class Status(StrEnum):
    PROVISIONING = "provisioning"
    BOOTING = "booting"
    RUNNING = "running"
    REBOOTING = "rebooting"
    SHUTTING_DOWN = "shutting_down"
    OFFLINE = "offline"
    DELETING = "deleting"


PASSING = frozenset(Status) - {Status.RUNNING, Status.OFFLINE}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Disk(_Part):
    number: int = Field(default_factory=new_number)
    label: str
    filesystem: str
    size_mb: int
    """MiB."""


class _Resource(Document):
    id: str = Field(default_factory=lambda: str(new_number()))
    label: str
    tags: list[str] = Field(default_factory=list)
    created: datetime = Field(default_factory=utc_now)
    updated: datetime = Field(default_factory=utc_now)

    @property
    def number(self) -> int:
        return int(self.id)

    def touch(self) -> None:
        self.updated = utc_now()


class Instance(_Resource):
    region: str
    plan: str
    image: str | None
    address: str
    authorized_keys: list[str]
    user_data: bytes | None
    """Decoded."""
    booted: bool
    """Whether it boots by itself once it is provisioned."""
    status: Status = Status.PROVISIONING
    watchdog: bool = True
    disks: list[Disk]
    interfaces: list[dict[str, str]] = Field(default_factory=list)
    """As the request named them; one public interface where it named none."""
    config: int = Field(default_factory=new_number)
    """Its configuration profile."""
    config_label: str | None = None
    """None: the one that Linode gives."""
    config_comments: str = ""
    host_uuid: str = Field(default_factory=lambda: secrets.token_hex(20))

    @property
    def root_mb(self) -> int:
        """Size of the disk it boots from, in MiB; 0 with no image."""
        return self.disks[0].size_mb if self.disks else 0


class Device(_Part):
    """One instance behind a firewall."""

    number: int = Field(default_factory=new_number)
    instance: str
    created: datetime = Field(default_factory=utc_now)


class Rules(_Part):
    inbound: list[dict[str, Any]]
    inbound_policy: str
    outbound: list[dict[str, Any]]
    outbound_policy: str

    @property
    def fingerprint(self) -> str:
        text = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


class Firewall(_Resource):
    status: str = "enabled"
    rules: Rules
    version: int = 1
    devices: list[Device] = Field(default_factory=list)


class Event(Document):
    """A job of the account. Clients that wait for a job look here."""

    id: str = Field(default_factory=lambda: str(new_number()))
    action: str
    instance: str
    label: str
    status: str = "started"
    created: datetime = Field(default_factory=utc_now)
