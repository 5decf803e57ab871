"""Zones, images and instance types of the embedded Scaleway.

Figures are those of Scaleway's products API for fr-par-2, 2026-10-01.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GIB = 2**30
GB = 10**9
HOURS_A_MONTH = 730

ZONES = frozenset(
    [
        "fr-par-1",
        "fr-par-2",
        "fr-par-3",
        "nl-ams-1",
        "nl-ams-2",
        "nl-ams-3",
        "pl-waw-1",
        "pl-waw-2",
        "pl-waw-3",
    ]
)


@dataclass(frozen=True)
class Image:
    id: str
    name: str
    root_snapshot: str
    root_gb: int
    local: bool = False
    """The root volume is local (`l_ssd`) instead of a block volume."""


IMAGES = {
    image.id: image
    for image in [
        Image(
            "5c3d28db-33ce-4997-8572-f49506339283",
            "Ubuntu Noble GPU OS 13 passthrough",
            "0d1b5a52-6a7b-4b0e-9d59-5f4d3c0f2a61",
            root_gb=20,
        ),
        Image(
            "8063548b-7ade-4faa-8be1-f48f8d3ba3ea",
            "Ubuntu Jammy GPU OS 12 passthrough",
            "50b9f839-d0e3-4029-8ea4-49c29131e639",
            root_gb=20,
        ),
        Image(
            "4481c662-2357-432f-b0fd-dd6470c08c49",
            "Ubuntu 22.04 Jammy Jellyfish",
            "c75ef419-9a29-4fda-bd73-5de42af425b0",
            root_gb=10,
        ),
        Image(
            "08176977-2d0e-4db0-a604-f81daa390f81",
            "Ubuntu 24.04 Noble Numbat",
            "e4824435-84cc-4704-9702-bfc33e8fd6dc",
            root_gb=10,
            local=True,
        ),
    ]
}


@dataclass(frozen=True)
class ServerType:
    """One commercial type."""

    name: str
    ncpus: int
    ram_gib: int
    hourly_price: float
    """EUR."""
    block_mib_s: int
    internet_gbit_s: float
    zones: tuple[str, ...]
    file_systems: int = 0
    gpus: int = 0
    gpu: str = ""
    gpu_gib: int = 0
    driver_mib: int = 0
    """Memory of one GPU as nvidia-smi reports it, MiB."""
    scratch_gb: int = 0
    default_scratch: bool = False
    """A server made from an image alone gets the scratch volume too: seen with H100 only."""
    local_gb: int = 0
    """Largest sum of local volumes; 0 accepts none."""

    @property
    def quota(self) -> str:
        return f"cp_servers_type_{self.name.replace('-', '_')}"

    def product(self) -> dict[str, Any]:
        """The entry of `GET /products/servers`."""
        internet = int(self.internet_gbit_s * GB)
        gpu_info = {"gpu_manufacturer": "NVIDIA", "gpu_name": self.gpu, "gpu_memory": self.gpu_gib * GIB}
        local_volume = (
            {"min_size": GB, "max_size": 800 * GB} if self.local_gb else {"min_size": 0, "max_size": 0}
        )
        return {
            "alt_names": [],
            "arch": "x86_64",
            "ncpus": self.ncpus,
            "ram": self.ram_gib * GIB,
            "gpu": self.gpus,
            "gpu_info": gpu_info if self.gpus else None,
            "mig_profile": None,
            "volumes_constraint": {"min_size": 0, "max_size": self.local_gb * GB},
            "per_volume_constraint": {"l_ssd": local_volume},
            "scratch_storage_max_size": self.scratch_gb * GB,
            "scratch_storage_max_volumes_count": int(self.scratch_gb > 0),
            "monthly_price": round(self.hourly_price * HOURS_A_MONTH, 6),
            "hourly_price": self.hourly_price,
            "capabilities": {
                "boot_types": ["local", "rescue"],
                "placement_groups": True,
                "block_storage": True,
                "hot_snapshots_local_volume": bool(self.local_gb),
                "private_network": 8,
                "max_file_systems": self.file_systems,
            },
            "network": {
                "ipv6_support": True,
                "sum_internal_bandwidth": internet,
                "sum_internet_bandwidth": internet,
                "interfaces": [{"internal_bandwidth": internet, "internet_bandwidth": internet}],
            },
            "block_bandwidth": self.block_mib_s * 2**20,
            "end_of_service": False,
        }


def _l4(gpus: int, block_mib_s: int) -> ServerType:
    return ServerType(
        f"L4-{gpus}-24G", 8 * gpus, 48 * gpus, 0.7875 * gpus, block_mib_s, 2.5 * gpus,
        ("fr-par-1", "fr-par-2", "pl-waw-2"),
        file_systems=2 * gpus, gpus=gpus, gpu="L4", gpu_gib=24, driver_mib=23034,
    )  # fmt: skip


def _l40s(gpus: int, block_mib_s: int) -> ServerType:
    return ServerType(
        f"L40S-{gpus}-48G", 8 * gpus, 96 * gpus, round(1.469916 * gpus, 6), block_mib_s, 2.5 * gpus,
        ("fr-par-2", "pl-waw-2"),
        file_systems=2 * gpus, gpus=gpus, gpu="L40S", gpu_gib=48, driver_mib=46068, scratch_gb=1600 * gpus,
    )  # fmt: skip


def _h100(gpus: int) -> ServerType:
    return ServerType(
        f"H100-{gpus}-80G", 24 * gpus, 240 * gpus, 2.8665 * gpus, 2000 * gpus, 10 * gpus,
        ("fr-par-2", "pl-waw-2"),
        file_systems=2 * gpus, gpus=gpus, gpu="H100-PCIe", gpu_gib=80, driver_mib=81559,
        scratch_gb=3000 * gpus, default_scratch=True,
    )  # fmt: skip


def _h100_sxm(gpus: int, hourly_price: float) -> ServerType:
    return ServerType(
        f"H100-SXM-{gpus}-80G", 16 * gpus, 120 * gpus, hourly_price, 5000, 20,
        ("fr-par-2",),
        file_systems=2 * gpus, gpus=gpus, gpu="H100-SXM", gpu_gib=80, driver_mib=81559,
        scratch_gb=1600 * gpus, default_scratch=True,
    )  # fmt: skip


TYPES = {
    server_type.name: server_type
    for server_type in [
        ServerType("DEV1-S", 2, 2, 0.008976, 100, 0.2, tuple(sorted(ZONES)), local_gb=20),
        _l4(1, 1000),
        _l4(2, 1500),
        _l4(4, 2500),
        _l4(8, 5000),
        _l40s(1, 1000),
        _l40s(2, 1500),
        _l40s(4, 2500),
        _l40s(8, 5000),
        _h100(1),
        _h100(2),
        _h100_sxm(2, 6.6198),
        _h100_sxm(4, 12.771),
        _h100_sxm(8, 25.3308),
    ]
}
