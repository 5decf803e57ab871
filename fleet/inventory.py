"""The nodes of a stack as its outputs tell them: what they are called and how they are reached."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from fleet.spec import SpecError
from fleet.ssh import Target

UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
"""What the engine writes for a value that a failed resource never gave (pulumi's UnknownStringValue)."""


class InventoryError(Exception):
    """The nodes asked for cannot be told; the message says why and what to do."""


@dataclass(frozen=True)
class FleetNode:
    """One node of a stack."""

    name: str
    cloud: str
    zone: str
    type: str
    target: Target | None
    """None until the node has an address and its host key is known."""
    container: str
    """Name of its vLLM container; empty for a machine of a Ray cluster, where units run all there is."""
    ports: Mapping[str, int]
    """On its loopback: `vllm`, `webui` where it runs, `ray` for a cluster's dashboard."""
    model: str
    server_id: str
    task: str = "generate"
    """What the model is served for."""
    more_served: tuple[str, ...] = ()
    """Names beside the model's that have to answer."""
    certificate_name: str | None = None
    """Whom the certificate on its port 443 is for; None where nothing listens there."""

    def reachable(self) -> Target:
        """Where SSH answers. Raises InventoryError if that is not known yet."""
        if self.target is None:
            raise InventoryError(
                f"{self.name} has no address or host key in the stack's outputs: its creation did not get "
                "that far; run `pulumi up` and read what it says of this node"
            )
        return self.target


def nodes_of(outputs: Mapping[str, Any]) -> tuple[FleetNode, ...]:
    """The nodes of the outputs that `pulumi stack output --json` prints. Raises InventoryError."""
    nodes = outputs.get("nodes")
    if not nodes:
        raise InventoryError("the stack has no nodes yet; bring it up first: pulumi up")
    try:
        return tuple(_node(name, entry) for name, entry in nodes.items())
    except (KeyError, SpecError) as error:
        raise InventoryError(
            f"the stack's outputs were written by another version of this program ({error}); run `pulumi up`"
        ) from None


def _node(name: str, entry: Mapping[str, Any]) -> FleetNode:
    ssh = entry["ssh"]
    known = isinstance(ssh, Mapping) and ssh["host"] != UNKNOWN and isinstance(ssh["host_keys"], list)
    return FleetNode(
        name=name,
        cloud=entry["cloud"],
        zone=entry["zone"],
        type=entry["type"],
        target=Target.parse(ssh) if known else None,
        container=entry["container"],
        ports=entry["ports"],
        model=entry["model"],
        server_id=entry["id"],
        task=entry.get("task", FleetNode.task),
        more_served=tuple(entry.get("more_served", ())),
        certificate_name=entry.get("certificate_name"),
    )


def select(nodes: Sequence[FleetNode], wanted: str) -> tuple[FleetNode, ...]:
    """The nodes that `wanted` names, in the stack's order.

    It is `all`, or a list with commas of names, patterns (`l4-*`) and clouds (`@scaleway`). Raises
    InventoryError for a part that names no node.
    """
    chosen: set[str] = set()
    for word in filter(None, wanted.split(",")):
        found = {node.name for node in nodes if _matches(node, word)}
        if not found:
            raise InventoryError(_no_such(word, nodes))
        chosen |= found
    if not chosen:
        raise InventoryError(f"no node named; name some of {_names(nodes)}, or all")
    return tuple(node for node in nodes if node.name in chosen)


def only(nodes: Sequence[FleetNode], wanted: str) -> FleetNode:
    """The one node that `wanted` names. Raises InventoryError if it names more."""
    found = select(nodes, wanted)
    if len(found) > 1:
        raise InventoryError(f"{wanted} names {len(found)} nodes ({_names(found)}); name one")
    return found[0]


def _matches(node: FleetNode, word: str) -> bool:
    if word.startswith("@"):
        return node.cloud == word[1:]
    return word == "all" or fnmatchcase(node.name, word)


def _no_such(word: str, nodes: Sequence[FleetNode]) -> str:
    if word.startswith("@"):
        clouds = ", ".join(sorted({node.cloud for node in nodes}))
        return f"no node is on {word[1:]!r}; this stack has nodes on {clouds}"
    near = difflib.get_close_matches(word, [node.name for node in nodes], n=1)
    fix = f"did you mean {near[0]}?" if near else f"there are {_names(nodes)}"
    return f"no node is called {word!r}; {fix}"


def _names(nodes: Iterable[FleetNode]) -> str:
    return ", ".join(node.name for node in nodes)
