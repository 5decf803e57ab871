"""The marks on every object of a node, by which it is found again in its cloud."""

OWNER_TAG = "vllm-fleet-owner"
"""Carries a random id that is in state before anything is created: what a crash leaves is found by it."""
NODE_TAG = "vllm-fleet-node"
"""Carries stack/node, for people."""
PENDING_TAG = "vllm-fleet-pending"
"""On a server that is not in state yet; only such a server is ever adopted."""
