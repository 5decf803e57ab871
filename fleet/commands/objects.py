"""What a stack has in its clouds, by its owner id: also what its state does not know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fleet.commands import pulumi

if TYPE_CHECKING:
    from components.owned import Owned

FLEET_OWNER = "pulumi-python:dynamic/fleet:FleetOwner"


@dataclass(frozen=True)
class Ownership:
    """A stack's owner, and what is needed to find what it owns."""

    owner: str
    places: tuple[str, ...]
    """As `cloud/zone`."""
    labels: tuple[str, ...]
    """`stack/node` of every machine that was declared last."""
    config: Mapping[str, Any]
    """What `pulumi config --json --show-secrets` prints."""
    in_state: frozenset[str]
    """Ids of all objects that state knows."""

    def setting(self, key: str) -> str | None:
        """A setting of the stack by its whole key, such as `scaleway:secretKey`."""
        value = self.config.get(key, {}).get("value")
        return None if value is None else str(value)

    def label_of(self, node: str) -> str | None:
        """The label of a node that was declared last."""
        return next((label for label in self.labels if label.rpartition("/")[2] == node), None)

    def everything(self) -> list[Owned]:
        """Every object that carries the owner id. Raises what a cloud's client raises."""
        owned = import_module("components.owned")
        found: list[Owned] = owned.everything(self.setting, map(owned.Place.parse, self.places), self.owner)
        return found

    def of_node(self, node: str) -> list[Owned]:
        """What a node has of it."""
        return [each for each in self.everything() if each.node == node]

    def surplus(self) -> list[Owned]:
        """Those that state does not know."""
        return [
            each
            for each in self.everything()
            if each.id not in self.in_state and each.belongs_to not in self.in_state
        ]

    def remove(self, found: list[Owned]) -> None:
        """Delete these. Raises `components.owned.StillThere`."""
        import_module("components.owned").remove(self.setting, found)


def ownership(state: Mapping[str, Any], config: Mapping[str, Any]) -> Ownership | None:
    """The owner in the document of `pulumi stack export`; None of a stack that has none yet."""
    resources = [
        entry for entry in (state["deployment"] or {}).get("resources", []) if not entry.get("delete")
    ]
    for entry in resources:
        if entry["type"] == FLEET_OWNER:
            outputs = entry["outputs"]
            return Ownership(
                owner=entry["id"],
                places=tuple(outputs["places"]),
                labels=tuple(outputs["labels"]),
                config=config,
                in_state=frozenset(_ids(resources)),
            )
    return None


def of_stack(stack: str | None) -> Ownership | None:
    """The owner of a stack. Raises PulumiError."""
    return ownership(pulumi.read("stack", "export", stack=stack), pulumi.config(stack))


def _ids(resources: list[Mapping[str, Any]]) -> set[str]:
    ids = {str(entry["id"]) for entry in resources if entry.get("id")}
    # A disk that came with its server is known by what the server says of it.
    for entry in resources:
        outputs = entry.get("outputs") or {}
        disk = outputs.get("rootBlockDevice") or {}
        ids |= {str(outputs.get("root_volume_id") or ""), str(disk.get("volumeId") or "")}
    return ids - {""}
