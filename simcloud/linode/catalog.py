"""Regions, images and plans of the embedded Linode.

Regions and their capabilities are those of `GET /regions`, 2026-08; plans and prices those of
`GET /linode/types`, 2026-06 to 2026-09, as far as they were published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simcloud.cloud import Json

SWAP_MB = 512
"""What a disk made from an image leaves for swap, unless told otherwise."""

RTX6000_REGIONS = ("ap-south", "ap-west", "us-southeast")
RTX4000_REGIONS = ("de-fra-2", "fr-par", "jp-osa", "sg-sin-2", "us-ord", "us-sea")


@dataclass(frozen=True)
class Region:
    id: str
    label: str
    gpus: bool = True
    metadata: bool = True

    def shape(self) -> Json:
        core = ["Linodes", "Disk Encryption", "Backups", "Block Storage", "Cloud Firewall", "VPCs"]
        capabilities = [
            *core,
            *(["GPU Linodes"] if self.gpus else []),
            *(["Metadata"] if self.metadata else []),
        ]
        return {
            "id": self.id,
            "label": self.label,
            "country": self.id.partition("-")[0],
            "capabilities": capabilities,
            "monitors": {"alerts": [], "metrics": []},
            "status": "ok",
            "resolvers": {"ipv4": "", "ipv6": ""},
            "placement_group_limits": {
                "maximum_pgs_per_customer": None,
                "maximum_linodes_per_pg": 5,
                "maximum_linodes_per_flexible_pg": 5,
            },
            "site_type": "core",
        }


REGIONS = {
    region.id: region
    for region in [
        Region("de-fra-2", "Frankfurt 2, DE"),
        Region("fr-par", "Paris, FR"),
        Region("jp-osa", "Osaka, JP"),
        Region("sg-sin-2", "Singapore 2, SG"),
        Region("us-ord", "Chicago, IL"),
        Region("us-sea", "Seattle, WA"),
        Region("ap-south", "Singapore, SG"),
        Region("ap-west", "Mumbai, IN"),
        Region("us-southeast", "Atlanta, GA"),
        Region("us-iad", "Washington, DC", gpus=False),
        # No region has been without the metadata service since 2025; this one keeps the refusal testable.
        Region("us-west", "Fremont, CA", gpus=False, metadata=False),
    ]
}


@dataclass(frozen=True)
class Image:
    id: str
    label: str
    size_mb: int
    cloud_init: bool = True

    def shape(self) -> Json:
        return {
            "id": self.id,
            "label": self.label,
            "description": "",
            "type": "manual",
            "status": "available",
            "vendor": self.label.partition(" ")[0],
            "size": self.size_mb,
            "total_size": self.size_mb,
            "is_public": True,
            "is_shared": False,
            "deprecated": False,
            "created": "2024-04-25T17:17:06",
            "updated": "2026-05-13T07:00:00",
            "created_by": "linode",
            "expiry": None,
            "eol": "2029-04-25T04:00:00",
            "capabilities": ["cloud-init"] if self.cloud_init else [],
            "tags": [],
            "regions": [],
        }


IMAGES = {
    image.id: image
    for image in [
        Image("linode/ubuntu24.04", "Ubuntu 24.04 LTS", 3500),
        Image("linode/ubuntu22.04", "Ubuntu 22.04 LTS", 3000),
        Image("linode/debian12", "Debian 12", 2100),
        Image("linode/slackware15.0", "Slackware 15.0", 6000, cloud_init=False),
    ]
}


@dataclass(frozen=True)
class Plan:
    """One instance type."""

    id: str
    label: str
    vcpus: int
    memory_mb: int
    disk_mb: int
    """MiB, as everywhere in this API."""
    hourly: float | None
    """USD. None is a plan whose price the API gives as 0."""
    regions: tuple[str, ...]
    gpus: int = 0
    gpu: str = ""
    driver_mib: int = 0
    """Memory of one GPU as nvidia-smi reports it, MiB."""

    def shape(self) -> Json:
        hourly = self.hourly or 0.0
        price = {"hourly": hourly, "monthly": round(hourly * 2000 / 3, 2)}
        return {
            "id": self.id,
            "label": self.label,
            "price": price,
            "region_prices": [],
            "addons": {"backups": {"price": {"hourly": 0.0, "monthly": 0.0}, "region_prices": []}},
            "memory": self.memory_mb,
            "disk": self.disk_mb,
            "transfer": 0,
            "vcpus": self.vcpus,
            "gpus": self.gpus,
            "network_out": 10000,
            "class": "gpu" if self.gpus else "nanode",
            "successor": None,
            "accelerated_devices": 0,
        }


def _rtx6000(gpus: int, vcpus: int) -> Plan:
    return Plan(
        f"g1-gpu-rtx6000-{gpus}", f"Dedicated {32 * gpus}GB + RTX6000 GPU x{gpus}", vcpus, 32768 * gpus,
        655360 * gpus, 1.5 * gpus, RTX6000_REGIONS, gpus=gpus, gpu="Quadro RTX 6000", driver_mib=24576,
    )  # fmt: skip


def _rtx4000(gpus: int, size: str, vcpus: int, ram_gib: int, hourly: float) -> Plan:
    # The smallest plan's disk is published, 512 GiB; that others have as much for each GPU is a guess.
    return Plan(
        f"g2-gpu-rtx4000a{gpus}-{size}", f"RTX4000 Ada x{gpus} {size.upper()}", vcpus, ram_gib * 1024,
        524288 * gpus, hourly, RTX4000_REGIONS, gpus=gpus, gpu="NVIDIA RTX 4000 Ada Generation",
        driver_mib=20475,
    )  # fmt: skip


def _blackwell(gpus: int, hourly: float | None) -> Plan:
    return Plan(
        f"g3-gpu-rtxpro6000-blackwell-{gpus}", f"RTX PRO 6000 Blackwell x{gpus}", 16 * gpus,
        176 * 1024 * gpus, 1048576 * gpus, hourly, ("us-sea",), gpus=gpus,
        gpu="NVIDIA RTX PRO 6000 Blackwell Server Edition", driver_mib=97887,
    )  # fmt: skip


PLANS = {
    plan.id: plan
    for plan in [
        Plan("g6-nanode-1", "Nanode 1GB", 1, 1024, 25600, 0.0075, tuple(REGIONS)),
        *(_rtx6000(gpus, vcpus) for gpus, vcpus in ((1, 8), (2, 16), (3, 20), (4, 24))),
        _rtx4000(1, "s", 4, 16, 0.52),
        _rtx4000(1, "m", 8, 32, 0.67),
        _rtx4000(1, "l", 16, 64, 0.96),
        _rtx4000(1, "xl", 32, 128, 1.53),
        _rtx4000(2, "s", 8, 32, 1.05),
        _rtx4000(2, "m", 16, 64, 1.34),
        _rtx4000(2, "hs", 16, 64, 1.49),
        _rtx4000(4, "s", 32, 128, 2.96),
        _rtx4000(4, "m", 48, 196, 3.57),
        _blackwell(1, 3.0),
        _blackwell(2, None),
        _blackwell(4, None),
    ]
}


def specs(plan: Plan) -> dict[str, Any]:
    """What an instance says of its plan."""
    return {
        "disk": plan.disk_mb,
        "memory": plan.memory_mb,
        "vcpus": plan.vcpus,
        "gpus": plan.gpus,
        "transfer": 0,
        "accelerated_devices": 0,
    }
