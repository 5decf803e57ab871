"""Whether Scaleway has a server type left: asked by the preview of a server's creation, never binding."""

from __future__ import annotations

import asyncio

import pulumi

from components.scaleway.api import RetryPolicy, ScalewayClient, Timeouts
from components.scaleway.credentials import Credentials

TIMEOUT_S = 3.0

_asked: dict[str, asyncio.Task[dict[str, str]]] = {}
"""One answer a zone serves every node of it."""


def stock_check(name: str, zone: str, commercial_type: str, node: pulumi.Resource) -> pulumi.ResourceHook:
    """A hook for the creation of a server: in a preview it warns when the zone is short of its type."""

    async def hook(args: pulumi.ResourceHookArgs) -> None:
        if not pulumi.runtime.is_dry_run():
            return  # it is being created: Scaleway's own answer comes with it
        if zone not in _asked:
            _asked[zone] = asyncio.create_task(asyncio.to_thread(_availability, zone))
        try:
            word = (await _asked[zone]).get(commercial_type)
        except Exception as error:  # advice must never stop a preview
            pulumi.log.info(
                f"stock: Scaleway did not say whether {zone} has a {commercial_type}: {error}", node
            )
            return
        if word in ("scarce", "shortage"):
            pulumi.log.warn(_sentence(zone, commercial_type, word), node)

    return pulumi.ResourceHook(name, hook, pulumi.ResourceHookOptions(on_dry_run=True))


def _sentence(zone: str, commercial_type: str, word: str) -> str:
    if word == "scarce":
        return f"stock: Scaleway has few {commercial_type} left in {zone}; creating it may fail"
    return (
        f"stock: Scaleway has no {commercial_type} left in {zone} just now, so creating it would fail; "
        "choose another zone or type, or try again later"
    )


def _availability(zone: str) -> dict[str, str]:
    credentials = Credentials.of_stack(pulumi.Config("scaleway").get)
    once = RetryPolicy(attempts=1)
    with ScalewayClient(credentials, zone, timeouts=Timeouts(TIMEOUT_S, TIMEOUT_S), retry=once) as client:
        return client.list_availability()
