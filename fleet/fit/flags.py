"""What `vllm serve` understands in which release, so that a pinned image is given only flags it knows."""

from __future__ import annotations

from fleet.engine import history, releases
from fleet.fit.versions import VllmVersion


def supported(flag: str, version: VllmVersion) -> bool:
    """Whether that release takes the flag, by its long name."""
    return flag in releases.release(version).spellings


def unsupported_flag(flag: str, version: VllmVersion) -> str | None:
    """Why that release refuses the flag, with the fix; None if it takes it, or if no release has it."""
    found = history.unsupported(flag, version)
    return None if found is None else "; ".join(found)
