"""Drift: where a cloud or a node is no longer what the stack's state says. Looking changes nothing.

`cloud` reads what a refresh would find; `node` looks inside the machines over SSH; `report` says it.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, order=True)
class Drift:
    """One property that is not what it should be."""

    where: Literal["cloud", "node"]
    node: str
    """Name of the node; empty for what belongs to none."""
    resource: str
    """The resource's name in the stack; inside a node a path, unit, container or package."""
    property: str
    was: str
    """What the state says."""
    now: str


def fingerprint(drift: Drift) -> str:
    """Names this very drift: the same tomorrow as long as nothing else changes."""
    content = "\0".join(asdict(drift).values())
    return hashlib.sha256(content.encode()).hexdigest()[:12]
