"""Whether Scaleway has a server type left: asked by the preview of a server's creation, never binding."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from functools import cache
from typing import Any

import pulumi

from components.scaleway.credentials import Credentials

TIMEOUT_S = 3.0
PAGE_SIZE = 100

_asked: dict[str, asyncio.Task[dict[str, str]]] = {}
"""One answer a zone serves every node of it."""


def stock_check(server: str, node: pulumi.Resource) -> pulumi.ResourceHook:
    """A hook for the creation of a server: in a preview it warns when the zone is short of its type.

    `server` is the server's resource name. All servers share one hook: the engine's way to call back is set
    up for each anew.
    """
    _nodes[server] = node
    return _hook()


_nodes: dict[str, pulumi.Resource] = {}
"""What to tell of a server, by the server's resource name."""


@cache
def _hook() -> pulumi.ResourceHook:
    def hook(args: pulumi.ResourceHookArgs) -> None:
        # When it is being created, Scaleway's own answer comes with it.
        if pulumi.runtime.is_dry_run():
            inputs = args.new_inputs or {}
            telling = _tell(inputs["zone"], inputs["commercial_type"], _nodes[args.name])
            # The rest of the preview does not wait for the answer, its end does: it awaits every output.
            _told: pulumi.Output[None] = pulumi.Output.from_input(telling)

    return pulumi.ResourceHook("scaleway-stock", hook, pulumi.ResourceHookOptions(on_dry_run=True))


async def _tell(zone: str, commercial_type: str, node: pulumi.Resource) -> None:
    if zone not in _asked:
        _asked[zone] = asyncio.create_task(asyncio.to_thread(_ask, zone))
    try:
        word = (await _asked[zone]).get(commercial_type)
    except Exception as error:  # advice must never stop a preview
        pulumi.log.info(f"stock: Scaleway did not say whether {zone} has a {commercial_type}: {error}", node)
        return
    if word in ("scarce", "shortage"):
        pulumi.log.warn(_sentence(zone, commercial_type, word), node)


def _sentence(zone: str, commercial_type: str, word: str) -> str:
    if word == "scarce":
        return f"stock: Scaleway has few {commercial_type} left in {zone}; creating it may fail"
    return (
        f"stock: Scaleway has no {commercial_type} left in {zone} just now, so creating it would fail; "
        "choose another zone or type, or try again later"
    )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key goes to Scaleway and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _ask(zone: str) -> dict[str, str]:
    return availability(zone, Credentials.of_stack(pulumi.Config("scaleway").get))


def availability(zone: str, credentials: Credentials) -> dict[str, str]:
    """Scaleway's own word for the stock of each server type of a zone.

    By the standard library, which Pulumi has loaded already: the client of `api` takes longer to load than
    the rest of a preview of one node. Raises OSError and ValueError.
    """
    # A proxy of the environment cannot reach this machine's own loopback.
    proxies = urllib.request.ProxyHandler({} if credentials.on_loopback else None)
    opener = urllib.request.build_opener(proxies, _NoRedirects)
    found: dict[str, str] = {}
    page = 0
    while len(found) == page * PAGE_SIZE:
        page += 1
        request = urllib.request.Request(  # noqa: S310  the credentials refuse any other scheme than http(s)
            f"{credentials.api_url}/instance/v1/zones/{zone}/products/servers/availability"
            f"?page={page}&per_page={PAGE_SIZE}",
            headers={"X-Auth-Token": credentials.secret_key},
        )
        with opener.open(request, timeout=TIMEOUT_S) as reply:
            servers = json.load(reply)["servers"]
        found |= {name: entry["availability"] for name, entry in servers.items()}
    return found
