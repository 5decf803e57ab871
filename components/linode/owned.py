"""What a stack owns on Linode, found by its owner tag."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from components.linode.credentials import Credentials
from components.owned import Config, Owned, Place, Removal
from components.tags import NODE_TAG, OWNER_TAG, given_to, value_of

if TYPE_CHECKING:
    from components.linode.api import Firewall, Instance, LinodeClient

CLOUD = "linode"
LONGEST_TAG = 50


def inventory(config: Config, region: str) -> LinodeInventory:
    """See `components.owned.inventory`. Raises CredentialsError."""
    return LinodeInventory(client(Credentials.resolve(lambda key: config(f"linode:{key}"))), region)


@lru_cache(maxsize=4)
def client(credentials: Credentials) -> LinodeClient:
    """The client of an account."""
    # The HTTP library is loaded at the first call: most runs make none.
    from components.linode.api import LinodeClient  # noqa: PLC0415

    return LinodeClient(credentials)


def owner_tag(owner: str) -> str:
    """The tag of what a stack owns: 49 characters, where Linode takes 50."""
    return f"{OWNER_TAG}={owner}"


def node_tag(label: str) -> str:
    """The tag that names a node by its `stack/node`; a stack's name that is too long ends in a digest."""
    stack, _, node = label.rpartition("/")
    room = LONGEST_TAG - len(f"{NODE_TAG}=/{node}")
    if len(stack) > room:
        digest = hashlib.sha256(stack.encode()).hexdigest()[: min(6, room)]
        stack = stack[: room - len(digest)] + digest
    return f"{NODE_TAG}={stack}/{node}"


class LinodeInventory:
    """The machines of one region, and the account's firewalls, which belong to no region."""

    def __init__(self, api: LinodeClient, region: str) -> None:
        self._api = api
        self._place = Place(CLOUD, region)

    def owned(self, owner: str) -> list[Owned]:
        tag = owner_tag(owner)
        return [
            *(self._server(each) for each in self._here(tag)),
            *(self._firewall(each) for each in self._api.firewalls(tag)),
        ]

    def labelled(self, labels: Sequence[str]) -> list[Owned]:
        return [self._server(each, label) for label in labels for each in self._here(node_tag(label))]

    def remove(self, found: Sequence[Owned]) -> None:
        removal = Removal(found)
        removal.of("server", lambda each: self._api.delete_instance(int(each.id)))
        removal.of("firewall", lambda each: self._api.delete_firewall(int(each.id)))
        removal.done()

    def adopt(self, found: Sequence[Owned], owner: str) -> None:
        for former in {each.owner for each in found}:
            ids = {int(each.id) for each in found if each.owner == former}
            for machine in self._api.instances(owner_tag(former)):
                if machine.id in ids:
                    self._api.update_instance(machine.id, tags=given_to(owner, machine.tags))
            for firewall in self._api.firewalls(owner_tag(former)):
                if firewall.id in ids:
                    self._api.update_firewall(firewall.id, tags=given_to(owner, firewall.tags))

    def _here(self, tag: str) -> list[Instance]:
        return [each for each in self._api.instances(tag) if each.region == self._place.zone]

    def _server(self, machine: Instance, label: str | None = None) -> Owned:
        return Owned(
            kind="server",
            id=str(machine.id),
            name=machine.label,
            label=value_of(machine.tags, NODE_TAG) if label is None else label,
            place=self._place,
            owner=value_of(machine.tags, OWNER_TAG),
            detail=f"{machine.type}, {machine.status}",
            type=machine.type,
            running=machine.status not in ("offline", "stopped"),
        )

    def _firewall(self, firewall: Firewall) -> Owned:
        return Owned(
            kind="firewall",
            id=str(firewall.id),
            name=firewall.label,
            label=value_of(firewall.tags, NODE_TAG),
            place=self._place,
            owner=value_of(firewall.tags, OWNER_TAG),
        )
