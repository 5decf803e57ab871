"""The public half of an SSH key that is a file."""

from __future__ import annotations

from pathlib import Path


class NoPublicKey(ValueError):
    """The public half cannot be told. The message says how to mend it."""


def public_key(private_key_path: Path) -> str:
    """The public key that belongs to a private key file, as one line of OpenSSH's, without comment.

    Read from the file of the same name with `.pub` where there is one, else from the private key itself.
    Raises NoPublicKey.
    """
    private = private_key_path.expanduser()
    beside = private.with_name(f"{private.name}.pub")
    if beside.exists():
        words = beside.read_text(encoding="utf-8").split()
        if len(words) < 2 or not words[0].startswith(("ssh-", "ecdsa-", "sk-")):
            raise NoPublicKey(
                f"{beside}: is not an OpenSSH public key; run: ssh-keygen -y -f {private} > {beside}"
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
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode()
