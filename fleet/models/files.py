"""What planning needs of a model's repository."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fleet.weights import Source, chosen, index_of


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's `config.json` and the size of its weights."""

    config: dict[str, Any]
    weights_gib: float | None
    """Size of its weights in GiB, as vLLM loads them; None where it is to be counted from the config."""
    sizes: Mapping[str, int] | None = None
    """Every file of the repository's branch `main`, with its bytes; None where the hub did not list them."""
    listed: Mapping[str, list[str]] | None = None
    """The shards in each of its indexes that could be read."""

    def downloaded_bytes(self, sources: Iterable[Source], model: str) -> int | None:
        """What vLLM downloads of this repository for these sources; None where that is not known."""
        ours = [each for each in sources if each.repo == model and each.takes != "small"]
        if self.sizes is None or len(ours) != 1 or ours[0].revision != "main":
            return None
        index = index_of(ours[0], self.sizes)
        if index and index not in (self.listed or {}):
            return None
        shards = frozenset((self.listed or {})[index]) if index else None
        return sum(self.sizes[name] for name in chosen(ours[0], self.sizes, shards).downloaded)
