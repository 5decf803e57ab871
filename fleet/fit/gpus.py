"""Graphics cards: the memory the driver reports, and the compute capability.

A card's marketing number is not what a process can use: `torch.cuda.mem_get_info` of an L4 "24 GB" says 22.0
GiB. `gpus.json` holds the totals seen in published vLLM logs and out-of-memory messages; compute capabilities
are NVIDIA's (https://developer.nvidia.com/cuda-gpus).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card model. `reported_gib` are totals the driver was seen to report, the most usual first."""

    name: str
    nominal_gb: int
    reported_gib: tuple[float, ...]
    compute_capability: float

    @property
    def memory_gib(self) -> float:
        """Total memory in GiB as the driver reports it."""
        return self.reported_gib[0]

    @property
    def is_a100(self) -> bool:
        return "A100" in self.name


@cache
def gpus() -> dict[str, Gpu]:
    """Every known card by name."""
    table = json.loads(resources.files(__package__).joinpath("gpus.json").read_text(encoding="utf-8"))
    return {
        row["name"]: Gpu(
            row["name"], row["nominal_gb"], tuple(row["reported_gib"]), row["compute_capability"]
        )
        for row in table
    }


def gpu(name: str) -> Gpu:
    """The card of that name, upper and lower case and spaces apart.

    Raises ValueError naming the known cards.
    """
    wanted = name.lower().replace(" ", "").replace("-", "")
    for card in gpus().values():
        if card.name.lower().replace(" ", "").replace("-", "") == wanted:
            return card
    raise ValueError(f"gpu: {name!r} is not known; give one of {', '.join(gpus())}, or its memory in GiB")


def gpu_from_memory(memory_gib: float) -> Gpu:
    """The card that memory size speaks of, with that size.

    A whole number that is a marketing size (24, 48, 80 …) stands for the smallest total a card sold as such
    reports; any other number is taken as the driver's own. The name is that of the card with the nearest
    known total.
    """
    if memory_gib == int(memory_gib):
        sold_as = [card for card in gpus().values() if card.nominal_gb == int(memory_gib)]
        if sold_as:
            # Both 80 GB cards report the same; the H100 is given the larger batch, so it is the careful
            # guess.
            return min(sold_as, key=lambda card: (card.is_a100, card.memory_gib))
    nearest = min(
        gpus().values(), key=lambda card: min(abs(memory_gib - total) for total in card.reported_gib)
    )
    return Gpu(nearest.name, nearest.nominal_gb, (memory_gib,), nearest.compute_capability)
