"""What watches a node, as a Command: put there when it is wanted or changed, taken away when it is not."""

from __future__ import annotations

from collections.abc import Sequence

import pulumi
from pulumi import Input, Output, ResourceOptions

from components.command import run_module
from fleet import observability, settings


class Watching(pulumi.ComponentResource):
    """Prometheus, NVIDIA's exporter and Grafana on one node."""

    def __init__(
        self,
        name: str,
        *,
        node: settings.Node,
        vllm_port: int | None,
        wanted: settings.Observability,
        health: settings.Health,
        target: Output[dict[str, object]],
        server_id: Input[str],
        after: Sequence[pulumi.Resource],
        opts: ResourceOptions | None = None,
    ) -> None:
        super().__init__("vllm-fleet:observability:Watching", name, None, opts)
        files = observability.described(observability.files(node.name, vllm_port, wanted))
        run_module(
            f"{name}-up",
            "fleet.observability",
            target.apply(lambda known: {"target": known}),
            {"node": node.name, "files": files, "timeouts": {"ssh_s": health.ssh_timeout_s}},
            {},
            [server_id],
            # What serves comes first: both fetch images over the same line.
            ResourceOptions(parent=self, depends_on=[*after]),
            undo="fleet.observability remove",
        )
        self.register_outputs({})
