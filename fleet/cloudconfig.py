"""User data read back: what `userdata` renders, in whatever form a cloud's resource holds it."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from typing import Any

import yaml

KEYS = ("user_data", "userData", "userDataBase64")
"""Under which a resource's properties hold it: Scaleway's, AWS's and Linode's (inside `metadatas`), AWS's."""


def find(props: Mapping[str, Any]) -> str | None:
    """The user data among a resource's properties, as its machine will read it; None where there is none."""
    metadata = props.get("metadatas") or props.get("metadata")
    for box in (props, *(metadata if isinstance(metadata, list) else [metadata])):
        if isinstance(box, Mapping):
            for key in KEYS:
                if isinstance(text := box.get(key), str):
                    return decoded(text)
    return None


def decoded(text: str) -> str:
    """Clouds take it plain, in base64, or compressed in base64."""
    try:
        data = base64.b64decode(text, validate=True)
        return (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
    except (ValueError, OSError, EOFError):
        return text


def document(text: str) -> dict[str, Any]:
    """The cloud-config; empty where the text is something else."""
    return mapping(text) if text.startswith("#cloud-config") else {}


def written_files(text: str) -> dict[str, str]:
    """What the first boot writes: path → content."""
    entries = document(text).get("write_files") or []
    return {
        str(entry.get("path")): str(entry.get("content", ""))
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, Mapping)
    }


def mapping(text: str) -> dict[str, Any]:
    """A YAML mapping; empty where the text is none."""
    try:
        # By libyaml: policies read the user data of every machine.
        found = yaml.load(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
