"""The node of each cloud. A cloud's module, with its provider's SDK, is loaded where it is used."""

from __future__ import annotations

from pulumi import Alias, ResourceOptions

from components.node import GpuNode, GpuNodeArgs
from fleet import settings


def gpu_node(args: GpuNodeArgs, opts: ResourceOptions | None = None) -> GpuNode:
    """A node of its cloud's kind, under its own name; one that was renamed keeps its resources."""
    if args.node.renamed_from:
        opts = ResourceOptions.merge(opts, ResourceOptions(aliases=[Alias(name=args.node.renamed_from)]))
    match args.node:
        case settings.ScalewayNode():
            from components.scaleway.node import ScalewayGpuNode  # noqa: PLC0415

            return ScalewayGpuNode(args.node.name, args, opts)
        case settings.LinodeNode():
            from components.linode.node import LinodeGpuNode  # noqa: PLC0415

            return LinodeGpuNode(args.node.name, args, opts)
        case settings.AwsNode():
            from components.aws.node import AwsGpuNode  # noqa: PLC0415

            return AwsGpuNode(args.node.name, args, opts)
    raise NotImplementedError(args.node.cloud)
