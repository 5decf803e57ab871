"""Scaleway's part of `fleet check`: may this key do what the stack needs, and is there room for it?

Nothing is changed. Whether the key may write is tried on an id that no object has: who may, gets 404 or 400;
who may not, 403.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from components.scaleway.api import (
    AuthenticationFailed,
    Credentials,
    CredentialsError,
    InvalidArguments,
    NotFound,
    PermissionDenied,
    RetryPolicy,
    ScalewayClient,
    ScalewayError,
    SshKey,
    Timeouts,
    Unreachable,
)
from components.scaleway.way_out import NoSuchNetwork, way_out
from fleet.check import CloudRequest, Finding, Status, latency
from fleet.settings import ScalewayNode

CLOUD = "scaleway"
STATUS_PAGE = "status.scaleway.com"
NOWHERE = "00000000-0000-4000-8000-000000000000"
"""An id that no object has."""

PATIENCE = RetryPolicy(attempts=3, budget_s=8.0)
"""A check says what is; a deployment waits longer."""

CONFIG_KEYS = {
    "secret_key": "secretKey",
    "access_key": "accessKey",
    "project_id": "projectId",
    "api_url": "apiUrl",
}


def probe(request: CloudRequest) -> list[Finding]:
    """See `fleet.check.CloudProbe`."""
    given = {field: request.config.get(key) for field, key in CONFIG_KEYS.items()}
    nodes = [node for node in request.nodes if isinstance(node, ScalewayNode)]
    zones = list(dict.fromkeys(str(node.zone) for node in nodes))
    try:
        credentials = Credentials.resolve({"zone": zones[0], **given})
    except CredentialsError as error:
        return [_credential(line) for line in str(error).splitlines()]
    with _client(credentials, zones[0]) as client:
        access = _Access(client, credentials)
        findings = access.findings()
        if not access.keys_listed:
            return findings
        findings.append(_ssh_key(access.ssh_keys, request.public_key))
    for zone in zones:
        with _client(credentials, zone) as client:
            here = [node for node in nodes if node.zone == zone]
            findings += _Zone(client, here, request.existing, access.organization_id).findings()
    return findings


def _client(credentials: Credentials, zone: str) -> ScalewayClient:
    return ScalewayClient(credentials, zone, timeouts=Timeouts(connect_s=4.0, read_s=10.0), retry=PATIENCE)


def _credential(line: str) -> Finding:
    seen, _, fix = line.partition("; ")
    return Finding(CLOUD, "credentials", Status.FAILED, seen, fix)


def _wrong(name: str, error: ScalewayError, subject: str = CLOUD) -> Finding:
    return Finding(subject, name, Status.FAILED, f"{error.call}: {error.label}: {error.message}", error.fix)


class _Access:
    """Who we are, how fast the API answers, and the keys it would put on a server."""

    def __init__(self, client: ScalewayClient, credentials: Credentials) -> None:
        self._client = client
        self._credentials = credentials
        self.ssh_keys: tuple[SshKey, ...] = ()
        self.keys_listed = False

    @property
    def organization_id(self) -> str:
        """Empty where no key of the project tells."""
        return self.ssh_keys[0].organization_id if self.ssh_keys else ""

    def findings(self) -> list[Finding]:
        started = time.monotonic()
        try:
            self.ssh_keys = self._client.list_ssh_keys()
        except Unreachable as error:
            return [_wrong("API", error)]
        except AuthenticationFailed as error:
            return [_wrong("credentials", error)]
        except PermissionDenied as error:
            return [_wrong("permissions", error)]
        except ScalewayError as error:
            return [_wrong("API", error)]
        self.keys_listed = True
        took_ms = (time.monotonic() - started) * 1000
        whose = f"key {self._credentials.access_key or 'without a known id'}"
        return [
            Finding(CLOUD, "credentials", Status.OK, f"{whose}, project {self._credentials.project_id}"),
            latency(CLOUD, self._credentials.api_url, took_ms, STATUS_PAGE),
        ]


def _ssh_key(registered: Iterable[SshKey], public_key: str | None) -> Finding:
    if public_key is None:
        return Finding(CLOUD, "SSH key", Status.UNKNOWN, "access.ssh_private_key_path gives no public key")
    name = next(
        (key.name for key in registered if key.public_key.split()[:2] == public_key.split()[:2]), None
    )
    if name is not None:
        return Finding(CLOUD, "SSH key", Status.OK, f"registered as {name}")
    return Finding(
        CLOUD,
        "SSH key",
        Status.FAILED,
        "the public half of access.ssh_private_key_path is not among the project's SSH keys, so no new "
        "server would let us in",
        f"scw iam ssh-key create name=vllm-fleet public-key='{public_key}'",
    )


class _Zone:
    """What the stack needs in one zone."""

    def __init__(
        self,
        client: ScalewayClient,
        nodes: Sequence[ScalewayNode],
        existing: frozenset[str],
        organization: str,
    ) -> None:
        self._client = client
        self._nodes = nodes
        self._wanted = Counter(node.type for node in nodes if node.name not in existing)
        """Servers still to be created, by type."""
        self._organization = organization
        self._subject = f"{CLOUD} {client.zone}"

    def findings(self) -> list[Finding]:
        findings = [self._permissions()]
        networks = dict.fromkeys(node.private_network for node in self._nodes if node.private_network)
        findings += [self._guarded("private network", self._network, network) for network in networks]
        images = dict.fromkeys(node.image for node in self._nodes)
        findings += [self._guarded("image", self._image, image) for image in images]
        findings += [self._guarded("stock", self._stock, kind) for kind in self._wanted]
        return findings + [self._guarded("quota", self._quota, kind) for kind in self._wanted]

    def _guarded(self, name: str, look: Callable[[str], Finding], at: str) -> Finding:
        try:
            return look(at)
        except ScalewayError as error:
            return _wrong(name, error, self._subject)

    def _permissions(self) -> Finding:
        client = self._client
        needed: dict[str, Callable[[], object]] = {
            "read servers": client.list_servers,
            "read security groups": client.list_security_groups,
            "read volumes": client.list_volumes,
            "read addresses": client.list_ips,
            "change servers": lambda: client.update_server(NOWHERE, name="nowhere"),
            "start servers": lambda: client.server_action(NOWHERE, "poweron"),
            "write user data": lambda: client.set_user_data(NOWHERE, "nowhere", b""),
            "grow volumes": lambda: client.grow_volume(NOWHERE, 10**12),
            "change security groups": lambda: client.update_security_group(NOWHERE, name="nowhere"),
        }
        denied: dict[str, PermissionDenied] = {}
        for what, attempt in needed.items():
            try:
                attempt()
            except (NotFound, InvalidArguments):
                continue
            except PermissionDenied as error:
                denied[what] = error
            except ScalewayError as error:
                return _wrong("permissions", error, self._subject)
        if not denied:
            return Finding(self._subject, "permissions", Status.OK, f"may {', '.join(needed)}")
        fixes = dict.fromkeys(error.fix for error in denied.values())
        seen = f"the key may not {', '.join(denied)}"
        return Finding(self._subject, "permissions", Status.FAILED, seen, "; ".join(fixes))

    def _network(self, network: str) -> Finding:
        """Of nodes without a public address: whether it exists and leads to the internet."""
        status = Status.WARNING
        try:
            said = way_out(self._client, network)
        except NoSuchNetwork as error:
            said, status = str(error), Status.FAILED
        if said is None:
            seen = f"{network}, a Public Gateway leads out of it"
            return Finding(self._subject, "private network", Status.OK, seen)
        seen, _, fix = said.partition(". Fix: ")
        return Finding(self._subject, "private network", status, seen, fix)

    def _image(self, image_id: str) -> Finding:
        try:
            image = self._client.get_image(image_id)
        except NotFound:
            return Finding(
                self._subject,
                "image",
                Status.FAILED,
                f"there is no image {image_id} in this zone",
                "set the node's image to one of: scw instance image list zone=" + self._client.zone,
            )
        if image.root_volume_type == "sbs_snapshot":
            return Finding(self._subject, "image", Status.OK, f"{image.name}, root is an sbs_snapshot")
        return Finding(
            self._subject,
            "image",
            Status.FAILED,
            f"{image.name} has a root of type {image.root_volume_type}, but GPU types need sbs_snapshot",
            "remove the node's image to get the GPU image, or choose one whose root is an sbs_snapshot",
        )

    def _stock(self, kind: str) -> Finding:
        word = self._client.list_availability().get(kind, "not offered in this zone")
        seen = f"{kind}: {word}, {self._wanted[kind]} wanted"
        fix = f"choose another zone or type (fleet catalog list {CLOUD}), or try again later"
        if word == "available":
            return Finding(self._subject, "stock", Status.OK, seen)
        if word == "scarce":
            return Finding(self._subject, "stock", Status.WARNING, seen, f"be ready to {fix}")
        return Finding(self._subject, "stock", Status.FAILED, seen, fix)

    def _quota(self, kind: str) -> Finding:
        name = f"cp_servers_type_{kind.replace('-', '_')}"
        if not self._organization:
            return Finding(self._subject, "quota", Status.UNKNOWN, "the organization is not known")
        try:
            limit = self._client.get_quota(name, self._organization)
        except PermissionDenied:
            said = "the key may not read quotas; IAMReadOnly would let it"
            return Finding(self._subject, "quota", Status.UNKNOWN, said)
        if limit is None:
            return Finding(self._subject, "quota", Status.OK, f"{kind}: no limit known")
        used = sum(server.commercial_type == kind for server in self._client.list_servers())
        seen = f"{kind}: {used} of {limit} in use in this zone, {self._wanted[kind]} more wanted"
        if used + self._wanted[kind] <= limit:
            return Finding(self._subject, "quota", Status.OK, seen)
        fix = f"ask Scaleway support to raise {name}, or delete servers that are no longer needed"
        return Finding(self._subject, "quota", Status.FAILED, seen, fix)
