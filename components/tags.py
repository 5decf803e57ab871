"""The marks on every object of a stack, by which it is found again in its cloud."""

from __future__ import annotations

from collections.abc import Iterable

OWNER_TAG = "vllm-fleet-owner"
"""Carries the stack's random id, which is in state before anything is created: whatever a crash, a lost state
or a failed update leaves behind is found by it."""
NODE_TAG = "vllm-fleet-node"
"""Carries stack/node, or stack/cluster for what a Ray cluster shares."""
HOST_TAG = "vllm-fleet-host"
"""Carries the digest of the host part that a server was created with, where user data cannot be read back."""
BOOT_TAG = "vllm-fleet-boot"
"""Carries the mark of the first boot that a machine was made for: another one for each machine of a node."""
PENDING_TAG = "vllm-fleet-pending"
"""On a server that is not in state yet: created by an update that has not finished with it."""


def given_to(owner: str, tags: Iterable[str]) -> list[str]:
    """The tags with another owner."""
    return [*(tag for tag in tags if not tag.startswith(f"{OWNER_TAG}=")), f"{OWNER_TAG}={owner}"]


def value_of(tags: Iterable[str], tag: str) -> str:
    """The value of a `tag=value` among plain tags; empty where there is none."""
    return next((each.partition("=")[2] for each in tags if each.startswith(f"{tag}=")), "")
