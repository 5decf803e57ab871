"""What planning needs of a model's repository."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's `config.json` and the size of its weights."""

    config: dict[str, Any]
    weights_gib: float | None
    """Size of its weights in GiB, as vLLM loads them; None where it is to be counted from the config."""
