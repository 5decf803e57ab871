"""Light nodes: machines of an embedded cloud that live inside its process.

Each listens for SSH on its own loopback address and behaves, to whoever is connected, like an Ubuntu GPU host
that cloud-init has set up: files, units, containers, GPUs. Nothing needs root and a machine costs kilobytes.
"""

from simcloud.light.backend import LightNodes

__all__ = ["LightNodes"]
