"""Values in the place of those that are there but not known: encrypted ones, and other stacks' outputs."""

from __future__ import annotations

UNKNOWN = "unknown"

SECRETS = {
    "api_key": "stand-in-for-the-api-key",
    "previous_api_key": "stand-in-for-the-one-before",
    "tls_key": "-----BEGIN PRIVATE KEY-----\nunknown\n-----END PRIVATE KEY-----\n",
    "hf_token": "hf_unknown",
    "delivery": "ssh",
}
"""Each is one that settings accept."""
