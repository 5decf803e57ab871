"""What `pulumi refresh --preview-only` finds, as its event stream tells it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fleet.drift import Drift

UNCHANGED = {"same", "refresh"}
GONE = "delete"
INTERNAL = "__"
"""Begins names that an SDK keeps for itself, such as a dynamic resource's provider."""


def cloud_drift(events: Iterable[Mapping[str, Any]]) -> Iterator[Drift]:
    """Each property that a refresh found changed; a resource that is gone counts as one."""
    for event in events:
        found = event.get("resOutputsEvent", {}).get("metadata")
        if not found or found["op"] in UNCHANGED or found["type"].startswith("pulumi:"):
            continue
        name, node = found["urn"].rsplit("::", 1)[-1], _node(found)
        if found["op"] == GONE or not found.get("new"):
            yield Drift("cloud", node, name, "exists", "yes", "no")
            continue
        was, now = _outputs(found, "old"), _outputs(found, "new")
        # What the provider compared with the wish; without that, everything that it now reports otherwise.
        compared = {path.split(".")[0].split("[")[0] for path in found.get("detailedDiff") or ()}
        for key in sorted(compared or was.keys() | now.keys()):
            if was.get(key) != now.get(key) and not key.startswith(INTERNAL):
                yield Drift("cloud", node, name, key, shown(was.get(key)), shown(now.get(key)))


def shown(value: Any) -> str:
    """A property in one line."""
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _outputs(found: Mapping[str, Any], side: str) -> dict[str, Any]:
    return (found.get(side) or {}).get("outputs") or {}


def _node(found: Mapping[str, Any]) -> str:
    """The node the resource belongs to: on Scaleway it says so, elsewhere its component's name does."""
    for side in ("new", "old"):
        if isinstance(node := _outputs(found, side).get("node"), str):
            return node
    parent = (found.get("old") or found.get("new") or {}).get("parent", "")
    return parent.rsplit("::", 1)[-1] if ":GpuNode::" in parent else ""
