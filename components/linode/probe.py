"""Linode's part of `fleet check`: may this token do what the stack needs, and is there room for it?

Nothing is changed. Whether the token may write is tried with requests that cannot take effect: on an id that
no object has, or without what a new object must have. Who may, gets 404 or 400; who may not, 401 or 403.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

from components.linode.api import LinodeClient
from components.linode.credentials import Credentials, CredentialsError
from components.linode.errors import NO_SCOPE, LinodeError
from fleet.check import CloudRequest, Finding, Status, latency
from fleet.settings import LinodeNode

CLOUD = "linode"
STATUS_PAGE = "status.linode.com"

PATIENCE_S = 8.0
READ_TIMEOUT_S = 10.0
"""A check says what is; a deployment waits longer."""

UNTOLD_LIMIT = "Linode tells an account's limit on servers only when a creation exceeds it"

NEEDED: Mapping[str, tuple[str, str]] = {
    "read servers": ("GET", "/linode/instances"),
    "read firewalls": ("GET", "/networking/firewalls"),
    # Linode's own provider follows what it started by its events.
    "read events": ("GET", "/account/events"),
    "create servers": ("POST", "/linode/instances"),
    "change servers": ("PUT", "/linode/instances/0"),
    "start servers": ("POST", "/linode/instances/0/boot"),
    "create firewalls": ("POST", "/networking/firewalls"),
    "change firewalls": ("PUT", "/networking/firewalls/0"),
}
"""What a deployment does, and a request that tells whether it may: no object has the id 0."""


def probe(request: CloudRequest) -> list[Finding]:
    """See `fleet.check.CloudProbe`."""
    nodes = [node for node in request.nodes if isinstance(node, LinodeNode)]
    try:
        credentials = Credentials.resolve(request.config.get)
    except CredentialsError as error:
        seen, _, fix = str(error).partition("; ")
        return [Finding(CLOUD, "credentials", Status.FAILED, seen, fix)]
    client = LinodeClient(credentials, patience_s=PATIENCE_S, read_timeout_s=READ_TIMEOUT_S)
    started = time.monotonic()
    try:
        client.may(*NEEDED["read servers"])
        took_ms = (time.monotonic() - started) * 1000
    except LinodeError as error:
        return [_wrong("credentials" if error.status == 401 else "API", error)]
    wanted = Counter((str(node.region), node.type) for node in nodes if node.name not in request.existing)
    return [
        Finding(CLOUD, "credentials", Status.OK, "the token is valid"),
        latency(CLOUD, credentials.api_url, took_ms, STATUS_PAGE),
        _guarded("permissions", _permissions, client),
        *(_guarded("image", _image, client, image) for image in dict.fromkeys(node.image for node in nodes)),
        *(_guarded("stock", _stock, client, *place, count) for place, count in wanted.items()),
        *([Finding(CLOUD, "quota", Status.UNKNOWN, UNTOLD_LIMIT)] if wanted else []),
    ]


def _wrong(name: str, error: LinodeError) -> Finding:
    return Finding(CLOUD, name, Status.FAILED, error.seen, error.fix)


def _guarded(name: str, look: Callable[..., Finding], client: LinodeClient, *at: object) -> Finding:
    try:
        return look(client, *at)
    except LinodeError as error:
        return _wrong(name, error)


def _permissions(client: LinodeClient) -> Finding:
    denied = [what for what, call in NEEDED.items() if not client.may(*call)]
    if not denied:
        return Finding(CLOUD, "permissions", Status.OK, f"may {', '.join(NEEDED)}")
    return Finding(CLOUD, "permissions", Status.FAILED, f"the token may not {', '.join(denied)}", NO_SCOPE)


def _image(client: LinodeClient, image: str) -> Finding:
    capabilities = client.capabilities(image)
    if capabilities is None:
        fix = "set the node's image to one of: linode-cli images list"
        return Finding(CLOUD, "image", Status.FAILED, f"there is no image {image}", fix)
    if "cloud-init" in capabilities:
        return Finding(CLOUD, "image", Status.OK, f"{image} has cloud-init")
    fix = "remove the node's image to get Ubuntu 24.04, or choose one whose capabilities name cloud-init"
    return Finding(CLOUD, "image", Status.FAILED, f"{image} has no cloud-init, so it would stay bare", fix)


def _stock(client: LinodeClient, region: str, plan: str, count: int) -> Finding:
    subject, wanted = f"{CLOUD} {region}", f"{count} wanted"
    match client.available(region, plan):
        case True:
            return Finding(subject, "stock", Status.OK, f"{plan}: available, {wanted}")
        case False:
            fix = f"choose another region or type (fleet catalog list {CLOUD}), or try again later"
            return Finding(subject, "stock", Status.FAILED, f"{plan}: none left, {wanted}", fix)
        case None:
            return Finding(subject, "stock", Status.UNKNOWN, f"{plan}: Linode does not say, {wanted}")
