"""Drift: where a cloud or a node is no longer what the stack's state says. Looking changes nothing.

`cloud` reads what a refresh would find; `node` looks inside the machines over SSH; `report` says it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, replace
from typing import Literal

from fleet.masking import HIDDEN, Mask, names_secret


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

    def masked(self, mask: Mask) -> Drift:
        """The same, fit to be shown: what the state or the node says may hold any secret."""
        was, now = mask(self.was), mask(self.now)
        if names_secret(re.split(r"[. ]", self.property)[-1]):
            was, now = (_hidden(value) for value in (was, now))
        return replace(self, resource=mask(self.resource), property=mask(self.property), was=was, now=now)


def _hidden(value: str) -> str:
    """The value of a property that holds a secret, whichever that is."""
    return value if value in {"not set", "none", "yes", "no", "[secret]"} else HIDDEN


def fingerprint(drift: Drift) -> str:
    """Names this very drift: the same tomorrow as long as nothing else changes."""
    content = "\0".join(asdict(drift).values())
    return hashlib.sha256(content.encode()).hexdigest()[:12]
