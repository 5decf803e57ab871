"""The embedded Linode: the calls of API v4 that this project and its provider make."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from simcloud.cloud import Cloud, Json, Received, Reply, Simulation
from simcloud.faults import FaultKind, Lag
from simcloud.linode import errors
from simcloud.linode.firewalls import Firewalls
from simcloud.linode.instances import Instances
from simcloud.linode.power import Power
from simcloud.linode.resources import CLOUD, Resources

__all__ = ["DEV_TOKEN", "Linode"]

# Shaped like a real one, known to everybody, good for nothing but the embedded cloud.
DEV_TOKEN = "1" * 64

VERSIONS = ("v4", "v4beta")
PUBLIC_CALLS = frozenset(
    {"list_types", "get_type", "list_regions", "get_region", "list_linode_images", "get_linode_image"}
)
"""Calls that need no token; a wrong one is refused all the same."""


class Linode(Cloud):
    """One account on Linode, below `/linode/v4`."""

    name = CLOUD
    prefix = "/linode/{version}"

    def __init__(self, simulation: Simulation, *, tokens: Iterable[str] = (DEV_TOKEN,)) -> None:
        self._simulation = simulation
        self._tokens = [token.encode() for token in tokens]
        self._resources = Resources(simulation)
        self._power = Power(self._resources)
        firewalls = Firewalls(self._resources)
        self.calls = [*Instances(self._resources, firewalls, self._power).calls, *firewalls.calls]

    def authorize(self, received: Received) -> None:
        if received.params["version"] not in VERSIONS:
            raise errors.not_found()
        scheme, _, token = received.headers.get("authorization", "").partition(" ")
        known = any(hmac.compare_digest(token.encode(), key) for key in self._tokens)
        anonymous = not scheme and received.call.name in PUBLIC_CALLS
        if not anonymous and not (scheme.lower() == "bearer" and known):
            raise errors.invalid_token()
        if received.call.name in self._simulation.conditions.denied_calls:
            raise errors.unauthorized()

    def names(self, received: Received) -> Iterable[str]:
        return self._resources.names(received)

    def refusal(self, kind: FaultKind, received: Received) -> Reply:
        match kind:
            case FaultKind.RATE_LIMITED:
                error = errors.rate_limited()
            case FaultKind.UNAVAILABLE:
                error = errors.unavailable()
            case FaultKind.FORBIDDEN:
                error = errors.unauthorized()
            case FaultKind.NOT_FOUND:
                error = errors.not_found()
            case FaultKind.CONFLICT:
                error = errors.busy()
            case FaultKind.QUOTA:
                error = errors.limit_reached()
            case FaultKind.OUT_OF_STOCK:
                error = errors.no_stock()
            case _:
                error = errors.internal()
        return error.reply

    def not_found(self, received: Received) -> Reply:
        return errors.not_found().reply

    def inventory(self) -> Iterable[Json]:
        resources = self._resources
        for instance in resources.instances:
            yield {
                **_thing("server", instance.id, instance.label, instance.region),
                "node": resources.node_of(instance),
                "state": instance.status,
                # An instance that is off bills like one that runs.
                "bills": True,
            }
        for firewall in resources.firewalls:
            yield {
                **_thing("firewall", firewall.id, firewall.label, None),
                "node": resources.node_of(firewall),
                "state": firewall.status,
                "bills": False,
            }

    def objects(self) -> frozenset[str]:
        return self._simulation.store.ids(f"{CLOUD}/")

    def hiding(self, lags: Sequence[Lag]) -> AbstractContextManager[None]:
        return self._simulation.store.hiding(lags)

    async def start(self) -> None:
        await self._power.resume()
        self._simulation.timers.serve(CLOUD, self._power.due)


def _thing(kind: str, id: str, name: str, zone: str | None) -> Json:
    return {"cloud": CLOUD, "kind": kind, "id": id, "name": name, "zone": zone}
