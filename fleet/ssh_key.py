"""The operator's SSH key: a private key in a file, or a public one whose private half an agent holds."""

from __future__ import annotations

import base64
import binascii
import re
import subprocess
from pathlib import Path

PUBLIC_KEY_MARKS = ("ssh-", "ecdsa-", "sk-")
"""How OpenSSH's public keys begin."""

ASK_AGENT_S = 10
"""An agent that asks a person or a card before it lists its keys is given up on."""

_NEW_FORMAT = b"openssh-key-v1\0"


class NoPublicKey(ValueError):
    """The public half cannot be told. The message says how to fix it."""


def is_public(path: Path) -> bool:
    """Whether the file holds a public key. Raises OSError."""
    return path.expanduser().read_bytes()[:16].startswith(tuple(mark.encode() for mark in PUBLIC_KEY_MARKS))


def has_passphrase(path: Path) -> bool:
    """Whether the private key in the file is encrypted. Raises OSError."""
    text = path.expanduser().read_bytes()
    if b"ENCRYPTED" in text[:512]:
        return True
    body = re.search(rb"-----BEGIN OPENSSH PRIVATE KEY-----(.*?)-----END", text, re.DOTALL)
    if body is None:
        return False
    try:
        key = base64.b64decode(b"".join(body[1].split()))
    except binascii.Error:
        return False
    # Then the cipher's name, after its length in four bytes.
    return key.startswith(_NEW_FORMAT) and key[len(_NEW_FORMAT) + 4 :][:4] != b"none"


def agent_keys() -> frozenset[str]:
    """The public keys whose private halves the agent holds, without comments; none without an agent."""
    try:
        done = subprocess.run(
            ["ssh-add", "-L"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ASK_AGENT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    lines = [line.split() for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return frozenset(" ".join(words[:2]) for words in lines if len(words) >= 2)


def in_agent(path: Path) -> bool:
    """Whether the agent holds the key of the file, private or public."""
    try:
        return public_key(path) in agent_keys()
    except NoPublicKey:
        return False


def public_key(path: Path) -> str:
    """The public key of a key file, as one line of OpenSSH's, without comment.

    Read from the file if it is public, else from the one of the same name with `.pub`, else from the private
    key itself. Raises NoPublicKey.
    """
    private = path.expanduser()
    beside = private.with_name(f"{private.name}.pub")
    try:
        public = private if is_public(private) else beside
    except OSError:
        public = beside
    if public.exists():
        words = public.read_text(encoding="utf-8").split()
        if len(words) < 2 or not words[0].startswith(PUBLIC_KEY_MARKS):
            raise NoPublicKey(
                f"{public}: is not an OpenSSH public key; run: ssh-keygen -y -f {private} > {public}"
            )
        return " ".join(words[:2])

    # Loaded only where it is needed: it takes longer than all else here.
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    try:
        key = serialization.load_ssh_private_key(private.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        raise NoPublicKey(
            f"{private}: gives no public half (no OpenSSH key, or one with a passphrase); "
            f"put that beside it: ssh-keygen -y -f {private} > {beside}"
        ) from None
    own = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return own.decode()
