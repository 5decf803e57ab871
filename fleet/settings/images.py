"""Container image references, by the grammar of the OCI distribution specification.

`[host[:port]/]path[:tag][@digest]`, as github.com/distribution/reference parses it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from fleet.settings.values import wrong

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
# What comes first is a host where it could be nothing else: Docker takes vllm/openai from its own hub.
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})+(?::[0-9]+)?|{_LABEL}:[0-9]+|localhost|\[[0-9A-Fa-f:]+\](?::[0-9]+)?)"
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<name>(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>[A-Za-z][A-Za-z0-9.+_-]*:[0-9A-Fa-f]+))?",
    re.ASCII,
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
LONGEST_NAME = 255

_RELEASE = re.compile(r"v?\d+\.\d+\.\d+(?P<more>.*)", re.ASCII)
_MONTHLY = re.compile(r"\d\d\.(?:0[1-9]|1[0-2])-(?P<more>.+)", re.ASCII)
"""NVIDIA's own releases are months, as in 24.10-py3."""
_MOVING = {"latest", "nightly", "main", "master", "head", "edge", "dev", "devel", "develop", "snapshot"} | {
    *("stable", "unstable", "rolling", "canary", "preview", "current", "lts", "test", "testing", "next")
}

EXAMPLE = "vllm/vllm-openai:v0.33.0"


@dataclass(frozen=True)
class Image:
    """A reference to a container image."""

    name: str
    tag: str
    digest: str

    @property
    def released(self) -> bool:
        """Whether the tag is a release's.

        It begins with three numbers, as v0.9.2 and 2.10.2-alpine do, or is one of NVIDIA's months, and no
        word in it says that it moves.
        """
        found = _RELEASE.fullmatch(self.tag) or _MONTHLY.fullmatch(self.tag)
        if found is None:
            return False
        words = re.split(r"[._+-]|(?<=\d)(?=[a-z])|(?<=[a-z])(?=\d)", found["more"].lower())
        return not _MOVING & set(words)


def parse(text: str) -> Image:
    """The parts of a reference. Raises a refusal that says what to write."""
    found = _REFERENCE.fullmatch(text)
    if found is None or len(found["name"]) > LONGEST_NAME or re.fullmatch(r"[0-9a-f]{64}", found["name"]):
        raise wrong("is not an image reference; write it like {example}", example=EXAMPLE)
    digest = found["digest"] or ""
    if digest and not _DIGEST.fullmatch(digest):
        raise wrong("has a digest that is not sha256: and 64 hex digits; copy it from the registry")
    return Image(found["name"], found["tag"] or "", digest)


def pinned(text: str) -> str:
    """The reference, if it names the same image for ever. Raises a refusal that says what to write."""
    image = parse(text)
    if image.digest or image.released:
        return text
    digest = f"a digest: docker buildx imagetools inspect {text}"
    if not image.tag:
        raise wrong(
            "has no tag, so it would move under you; pin a release tag like that of {example}, or {digest}",
            example=EXAMPLE,
            digest=digest,
        )
    raise wrong(
        "moves under you; pin a release tag (three numbers, as in {example}) or {digest}",
        example=EXAMPLE,
        digest=digest,
    )


PinnedImage = Annotated[str, AfterValidator(pinned)]
