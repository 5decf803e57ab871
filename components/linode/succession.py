"""What becomes of a node's machines and firewalls that are there when another one is about to be made.

Linode's provider cannot take up what is there already: neither what an interrupted run left nor what state
has lost. So a machine carries the tags of its owner, of its node and of the boot it was made for; and once
the engine has stored it, a note in the comments of its configuration profile, which the provider does not
manage.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from components.linode.errors import LinodeError
from components.linode.owned import node_tag
from components.ownership import NotOurs, not_ours
from components.tags import BOOT_TAG, OWNER_TAG, value_of

if TYPE_CHECKING:
    from components.linode.api import Instance, LinodeClient, Profile

NOTE = "vllm-fleet: in state"
"""On a line of its own in the comments, and the machine's public host key on the next."""
ANY_BOOT = "any"
"""Instead of the boots of former machines: whatever is noted was in state."""


@dataclass(frozen=True)
class Wanted:
    """What is about to be made for a node."""

    node: str
    label: str
    """`stack/node`."""
    owner: str
    name: str
    """Linode's label of it."""


@dataclass(frozen=True)
class WantedMachine(Wanted):
    """A machine that is about to be made for a node."""

    boot: str
    former_boots: Sequence[str]
    """Of the machines that state knew before."""
    made_from: tuple[str, str, str]
    """Region, type and image."""
    protect: bool


class LostMachine(Exception):
    """State has lost a machine that served. The message names it and the ways out."""


def make_way_for_machine(api: LinodeClient, wanted: WantedMachine) -> None:
    """Remove what an interrupted creation left; have the predecessor, which still serves, give up its label.

    Raises NotOurs or LostMachine where a machine would be bought beside one that nobody accounts for.
    """
    found = api.instances(node_tag(wanted.label), or_label=wanted.name)
    if strangers := [each for each in found if value_of(each.tags, OWNER_TAG) != wanted.owner]:
        raise _strangers(wanted, strangers)
    left = [each for each in found if each.status == "deleting" or not _is_noted(api.profile(each.id))]
    known = [each for each in found if each not in left]
    if lost := [each for each in known if not _is_predecessor(each, wanted)]:
        raise LostMachine(
            f"{wanted.node}: {_named(lost)} has served this node and carries this stack's owner id, but the "
            "state does not know it. Nothing was created. "
            f"Fix: `fleet adopt {wanted.node}` takes it into the stack; `fleet destroy {wanted.node}` "
            "removes it; to replace it on purpose, run `pulumi up` with --replace and the URN of "
            f"{wanted.node}-first-boot"
        )
    if left and wanted.protect:
        raise LostMachine(
            f"{wanted.node}: protected, and {_named(left)} carries its owner's id but is not in the state. "
            f"Fix: delete it, or take it in with `fleet adopt {wanted.node}`; then run this again"
        )
    for each in left:
        api.delete_instance(each.id)
    for each in known:
        if each.label == wanted.name:
            api.update_instance(each.id, label=_replaced(each.id))


def make_way_for_firewall(api: LinodeClient, wanted: Wanted) -> None:
    """Delete the node's firewalls that nothing is behind, an interrupted run's.

    One with a machine behind it is about to be replaced. It gives up its label, and keeps the machine until
    that is behind the new one.
    """
    for firewall in api.firewalls(node_tag(wanted.label)):
        if value_of(firewall.tags, OWNER_TAG) != wanted.owner:
            continue
        if not api.behind_firewall(firewall.id):
            api.delete_firewall(firewall.id)
        elif firewall.label == wanted.name:
            api.update_firewall(firewall.id, label=_replaced(firewall.id))


def note(api: LinodeClient, instance_id: int, host_key: str) -> str:
    """Note beside a machine that it is in state, and by which host key it is known; return the key.

    One that was noted before keeps its key: it was made with that one, whatever state says now. Raises
    LinodeError.
    """
    profile = api.profile(instance_id)
    if profile is None:
        raise LinodeError(
            f"GET /linode/instances/{instance_id}/configs",
            "the machine has no configuration profile, so it could not start again",
            "rebuild it in Linode's Cloud Manager, or have it replaced",
            status=None,
            passing=False,
        )
    if _is_noted(profile):
        return host_key_in(profile) or host_key
    parts = (profile.comments.strip(), NOTE, host_key)
    api.annotate(instance_id, profile, "\n".join(part for part in parts if part))
    return host_key


def is_noted(api: LinodeClient, instance_id: int) -> bool:
    """Whether the engine is known to have stored a machine."""
    return _is_noted(api.profile(instance_id))


def host_key_in(profile: Profile) -> str | None:
    """The public host key in a machine's note."""
    found = re.search(r"^ssh-\S+ [A-Za-z0-9+/=]+$", profile.comments, re.MULTILINE)
    return found.group() if found else None


def _is_noted(profile: Profile | None) -> bool:
    return profile is not None and NOTE in profile.comments.splitlines()


def _is_predecessor(machine: Instance, wanted: WantedMachine) -> bool:
    """Whether state knew a machine before the one that is wanted."""
    boot = value_of(machine.tags, BOOT_TAG)
    if boot in wanted.former_boots or ANY_BOOT in wanted.former_boots:
        return True
    # Somebody has moved or resized it by hand, which is why another one is made for the same boot.
    return boot == wanted.boot and (machine.region, machine.type, machine.image) != wanted.made_from


def _strangers(wanted: Wanted, found: Sequence[Instance]) -> Exception:
    tagged = [each for each in found if node_tag(wanted.label) in each.tags]
    if tagged:
        return not_ours(wanted.node, wanted.label, [f"instance {each.id}" for each in tagged])
    return NotOurs(
        f"{wanted.node}: {_named(found)} has the label that its machine is to get, and labels are unique in "
        "an account. Nothing was created. Fix: give that instance another label in Linode's Cloud Manager, "
        "or use another stack name: pulumi stack init ANOTHER-NAME"
    )


def _named(found: Sequence[Instance]) -> str:
    return " and ".join(f"instance {each.id} ({each.label})" for each in found)


def _replaced(id_: int) -> str:
    """A label for what has a successor: short enough for firewalls, and unique."""
    return f"replaced-{id_}"
