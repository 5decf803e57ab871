"""Drift told: as a table, as JSON, as markdown; and each distinct drift only once, where that is wanted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from fleet.drift import Drift, fingerprint

COLUMNS = ("where", "node", "resource", "property", "was", "now")


class Seen:
    """The drift that has been reported before: a JSON file of fingerprint → when it was first seen.

    What has gone is forgotten, so that it is reported again should it come back.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def new(self, drifts: Sequence[Drift]) -> list[Drift]:
        """Those that have not been reported."""
        return [drift for drift in drifts if fingerprint(drift) not in self._known]

    def keep(self, drifts: Sequence[Drift], now: datetime) -> None:
        """Take these as reported, and no others."""
        names = [fingerprint(drift) for drift in drifts]
        at = now.isoformat(timespec="seconds")
        self._known = {name: self._known.get(name, at) for name in names}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._known, indent=1, sort_keys=True) + "\n")


def document(stack: str, drifts: Sequence[Drift], new: Sequence[Drift]) -> dict[str, Any]:
    """For programs."""
    names = {fingerprint(drift) for drift in new}
    rows = [
        {**asdict(drift), "fingerprint": fingerprint(drift), "new": fingerprint(drift) in names}
        for drift in drifts
    ]
    return {"stack": stack, "drift": rows}


def markdown(stack: str, drifts: Sequence[Drift]) -> str:
    """For an issue or a comment; empty when there is nothing to say."""
    if not drifts:
        return ""
    rows = [" | ".join(_cell(asdict(drift)[column]) for column in COLUMNS) for drift in drifts]
    return "\n".join(
        [
            f"### Drift in `{stack}`",
            "",
            f"| {' | '.join(COLUMNS)} |",
            f"|{'---|' * len(COLUMNS)}",
            *(f"| {row} |" for row in rows),
            "",
            "What each means and how to fix it: `docs/runbooks/drift-found.md`.",
            "",
        ]
    )


def _cell(value: str) -> str:
    # A pipe ends a cell and a line break ends the row, whatever they stand in.
    return value.replace("|", "\\|").replace("\n", " ") or " "
