"""What a policy looks at: a resource in plain values, and the documents inside it, whatever its cloud."""

from __future__ import annotations

import base64
import binascii
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pulumi_policy import PolicyResource, ResourceValidationArgs
from pulumi_policy.proxy import UnknownValueError


class _Unknown:
    """A value that a preview cannot know yet."""


UNKNOWN = _Unknown()
"""It breaks no policy: it is looked at again during `up`, before anything is created."""


@dataclass(frozen=True)
class Subject:
    """A resource as the program declares it."""

    type: str
    name: str
    props: Mapping[str, Any]
    stack: str = ""
    protected: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    """The policy's own configuration, from the file given with `--policy-pack-config`."""

    @classmethod
    def of(cls, resource: ResourceValidationArgs | PolicyResource, config: Mapping[str, Any]) -> Subject:
        """From what the engine hands over. Its URN is `urn:pulumi:STACK::…`."""
        return cls(
            type=resource.resource_type,
            name=resource.name,
            props=_plain(resource.props),
            stack=resource.urn.split(":")[2],
            protected=resource.opts.protect,
            config=config,
        )

    def user_data(self) -> str | None:
        """The text a machine boots with; None where there is none, or none known yet."""
        metadata = self.props.get("metadatas") or self.props.get("metadata")
        boxes = [self.props, *(metadata if isinstance(metadata, list) else [metadata])]
        for box in boxes:
            if isinstance(box, Mapping):
                for key in ("user_data", "userData", "userDataBase64"):
                    if isinstance(box.get(key), str):
                        return _decoded(box[key])
        return None

    def cloud_config(self) -> dict[str, Any]:
        """The user data's cloud-config document; empty where it is something else."""
        text = self.user_data() or ""
        return _document(text) if text.startswith("#cloud-config") else {}

    def written_files(self) -> Iterator[tuple[str, str]]:
        """Path and content of each file that the user data writes."""
        for entry in self.cloud_config().get("write_files", []):
            yield entry.get("path", ""), entry.get("content", "")

    def services(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and definition of each container that user data or a rollout brings."""
        texts = [content for path, content in self.written_files() if path.endswith("compose.yml")]
        if isinstance(stdin := self.props.get("stdin"), str):
            texts += _compose_files(stdin)
        for text in texts:
            yield from (_document(text).get("services") or {}).items()


def _plain(value: Any) -> Any:
    """The SDK's proxies raise where a value is unknown; a mark in its place lets a policy go on."""
    if isinstance(value, Mapping):
        return {key: _plain(_known(value, key)) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(_known(value, index)) for index in range(len(value))]
    return value


def _known(holder: Any, key: Any) -> Any:
    try:
        return holder[key]
    except UnknownValueError:
        return UNKNOWN


def _decoded(text: str) -> str:
    """User data as cloud-init will see it: clouds take it plain, as base64, or compressed in base64."""
    try:
        data = base64.b64decode(text, validate=True)
        return (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return text


def _compose_files(stdin: str) -> list[str]:
    """The compose files in a rollout's spec."""
    try:
        spec = json.loads(stdin)
    except ValueError:
        return []
    return [spec["compose"]] if isinstance(spec, dict) and isinstance(spec.get("compose"), str) else []


def _document(text: str) -> dict[str, Any]:
    """A YAML mapping; empty where the text is none."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return document if isinstance(document, dict) else {}
