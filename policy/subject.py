"""What a policy looks at: a resource in plain values, and the documents inside it, whatever its cloud."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fleet import cloudconfig

if TYPE_CHECKING:
    # Settings are judged by the same policies without Pulumi, too.
    from pulumi_policy import PolicyResource, ResourceValidationArgs


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

    def configured(self, config: Mapping[str, Any]) -> Subject:
        """The same, for a policy with that configuration."""
        return replace(self, config=config)

    def user_data(self) -> str:
        """The text a machine boots with; empty where there is none, or none known yet."""
        return cloudconfig.find(self.props) or ""

    def services(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and definition of each container that user data or a rollout brings."""
        written = cloudconfig.written_files(self.user_data())
        texts = [content for path, content in written.items() if path.endswith("compose.yml")]
        if isinstance(stdin := self.props.get("stdin"), str):
            texts += _compose_files(stdin)
        for text in texts:
            services = cloudconfig.mapping(text).get("services")
            if isinstance(services, Mapping):
                yield from (
                    (name, dict(each)) for name, each in services.items() if isinstance(each, Mapping)
                )


def _plain(value: Any) -> Any:
    """The SDK's proxies raise where a value is unknown; a mark in its place lets a policy go on."""
    if isinstance(value, Mapping):
        return {key: _plain(_known(value, key)) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(_known(value, index)) for index in range(len(value))]
    return value


def _known(holder: Any, key: Any) -> Any:
    from pulumi_policy.proxy import UnknownValueError  # noqa: PLC0415  the policy pack alone has it

    try:
        return holder[key]
    except UnknownValueError:
        return UNKNOWN


def _compose_files(stdin: str) -> list[str]:
    """The compose files in a rollout's spec."""
    try:
        spec = json.loads(stdin)
    except ValueError:
        return []
    return [spec["compose"]] if isinstance(spec, dict) and isinstance(spec.get("compose"), str) else []
