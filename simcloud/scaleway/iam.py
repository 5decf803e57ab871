"""Identity: the SSH keys of the project and the organization's quotas, below `/iam/v1alpha1`."""

from __future__ import annotations

import base64
import binascii
import hashlib

from simcloud.cloud import Call, Json, Received, Reply
from simcloud.scaleway import errors
from simcloud.scaleway.catalog import TYPES
from simcloud.scaleway.model import SshKey
from simcloud.scaleway.resources import NO_CONTENT, Resources, counted_list, newer_time


class Iam:
    """The SSH keys that every machine of the project installs at power-on."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        base = "/iam/v1alpha1/ssh-keys"
        self.calls = [
            Call("list_ssh_keys", "GET", base, self.list_ssh_keys, "ssh_key"),
            Call("create_ssh_key", "POST", base, self.create_ssh_key, "ssh_key"),
            Call("delete_ssh_key", "DELETE", base + "/{ssh_key_id}", self.delete_ssh_key, "ssh_key"),
            Call("list_quota", "GET", "/iam/v1alpha1/quota", self.list_quota, "quotum"),
        ]

    def list_ssh_keys(self, received: Received) -> Reply:
        name = received.query.get("name", "")
        keys = [key for key in self._resources.ssh_keys if name in key.name]
        return counted_list(received, "ssh_keys", keys, _shape)

    def create_ssh_key(self, received: Received) -> Reply:
        public_key = str(received.json.get("public_key") or "")
        try:
            _fingerprint(public_key)
        except (IndexError, binascii.Error) as error:
            raise errors.invalid("public_key", "is not an OpenSSH public key") from error
        key = SshKey(
            project=received.json.get("project_id") or self._resources.project,
            name=str(received.json.get("name") or "key"),
            public_key=public_key,
        )
        self._resources.ssh_keys.put(key)
        return Reply(200, _shape(key))

    def delete_ssh_key(self, received: Received) -> Reply:
        key_id = received.params["ssh_key_id"]
        if self._resources.ssh_keys.get(key_id) is None:
            raise errors.not_found("ssh_key", key_id)
        self._resources.ssh_keys.remove(key_id)
        return NO_CONTENT

    def list_quota(self, received: Received) -> Reply:
        if not received.query.get("organization_id"):
            raise errors.invalid("organization_id", "is required", reason="required")
        limits = self._resources.simulation.conditions.quotas
        wanted = received.query.get("quotum_names")
        names = [kind.quota for kind in TYPES.values() if wanted in {None, kind.quota}]
        quota = [_quotum(name, limits.get(name)) for name in names]
        return Reply(200, {"quota": quota, "total_count": len(quota)})


def _quotum(name: str, limit: int | None) -> Json:
    """A limit, or the word that there is none; in the place of the whole organization."""
    bound: Json = {"unlimited": True} if limit is None else {"limit": limit}
    return {
        "name": name,
        "pretty_name": name,
        "unit": "",
        "description": "",
        "locality_type": "global",
        "limits": [{"global": True, **bound}],
        **bound,
    }


def _shape(key: SshKey) -> Json:
    return {
        "id": key.id,
        "name": key.name,
        "public_key": key.public_key,
        "fingerprint": _fingerprint(key.public_key),
        "created_at": newer_time(key.created),
        "updated_at": newer_time(key.created),
        "organization_id": key.project,
        "project_id": key.project,
        "disabled": False,
    }


def _fingerprint(public_key: str) -> str:
    digest = hashlib.sha256(base64.b64decode(public_key.split()[1], validate=True)).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')} ({public_key.split(maxsplit=1)[0]})"
