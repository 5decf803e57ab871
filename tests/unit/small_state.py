"""Small stack states for tests, in the shape `pulumi stack export` writes."""

from __future__ import annotations

from typing import Any

URN = "urn:pulumi:dev::vllm-fleet::"
NODE = "vllm-fleet:scaleway:GpuNode"


def resource(kind: str, name: str, parent: str = "", **more: Any) -> dict[str, Any]:
    """One entry of a state's resources."""
    return {"urn": f"{URN}{kind}::{name}", "type": kind, "parent": parent} | more


def node(
    name: str,
    *,
    power: str = "running",
    server: bool = True,
    protect: bool = False,
    created: str = "2026-11-06T00:00:00Z",
) -> list[dict[str, Any]]:
    """A Scaleway node with its parts; without its server only the volume is left."""
    top = f"{URN}{NODE}::{name}"
    dynamic = "pulumi-python:dynamic/scaleway"
    parts = [
        resource(
            f"{dynamic}:Server",
            f"{name}-server",
            top,
            created=created,
            protect=protect,
            outputs={"zone": "fr-par-2", "commercial_type": "L4-1-24G"},
        ),
        resource(
            f"{dynamic}:RootVolume", f"{name}-root-volume", top, outputs={"zone": "fr-par-2", "size_gb": 200}
        ),
        resource(f"{dynamic}:Power", f"{name}-power", top, outputs={"state": power}),
    ]
    return [resource(NODE, name), *(parts if server else parts[1:2])]


def state(*resources: dict[str, Any]) -> dict[str, Any]:
    """The document of `pulumi stack export` with these resources."""
    return {"version": 3, "deployment": {"resources": [resource("pulumi:pulumi:Stack", "dev"), *resources]}}
