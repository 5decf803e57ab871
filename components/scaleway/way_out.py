"""Whether a machine without a public address gets out to the internet by its private network.

A network that does not exist is refused: the server and its volume would be there already. One without a way
out is only warned of: a route or proxy of one's own may lead out too, which the API does not show.
"""

from __future__ import annotations

from components.scaleway.api import ScalewayClient
from components.scaleway.errors import PermissionDenied

ATTACH = (
    "scw vpc-gw gateway-network create gateway-id=GATEWAY private-network-id={network} "
    "enable-masquerade=true push-default-route=true"
)
"""The command that gives a private network a way to the internet."""


class NoSuchNetwork(Exception):
    """A private network does not exist. The message names the setting and the fix."""


def way_out(client: ScalewayClient, network: str) -> str | None:
    """What is wrong with the way out, and the fix; None if nothing is.

    Raises NoSuchNetwork and ScalewayError.
    """
    if client.find_private_network(network) is None:
        region = client.zone.rpartition("-")[0]
        raise NoSuchNetwork(
            f"private_network: {network} does not exist in {region}. Fix: name one of: "
            f"scw vpc private-network list region={region}"
        )
    try:
        if client.leads_out(network):
            return None
    except PermissionDenied:
        return (
            f"whether a Public Gateway leads out of {network}, the key may not see. Fix: give it "
            "VPCGatewayReadOnly"
        )
    return (
        f"no Public Gateway gives {network} a default route, so a machine in it can install nothing, unless "
        f"a route or proxy of your own leads out. Fix: {ATTACH.format(network=network)}"
    )
