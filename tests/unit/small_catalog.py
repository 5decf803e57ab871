"""Small catalogs for tests: two types of one cloud, priced as a test needs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fleet.catalog import DATA, Catalog

ONE = {"gpu": "L4", "gpu_count": 1, "vcpus": 8, "ram_gib": 48}
TWO = {"gpu": "L40S", "gpu_count": 2, "vcpus": 16, "ram_gib": 192}


def document(cloud: str = "scaleway", **changes: Any) -> dict[str, Any]:
    """A cloud's file with the types `one` (an L4) and `two` (two L40S), and `changes` on top."""
    return {
        "cloud": cloud,
        "currency": "EUR" if cloud == "scaleway" else "USD",
        "deployable": cloud in ("scaleway", "aws", "linode"),
        "facts_source": "https://facts",
        "root_volume": "billed",
        "types": {"one": ONE, "two": TWO},
        "price_lists": [],
        "volumes": [],
        "addresses": [],
    } | changes


def write(directory: Path, *documents: dict[str, Any]) -> Catalog:
    """A catalog of just these clouds, with the real table of GPUs."""
    shutil.copy(DATA / "gpus.json", directory)
    for entry in documents:
        (directory / f"{entry['cloud']}.json").write_text(json.dumps(entry), encoding="utf-8")
    return Catalog(directory)
