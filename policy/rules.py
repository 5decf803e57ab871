"""The policies, one function each: it yields what is wrong with a resource, and how to mend it.

A function's name, with hyphens, is the policy's name; the first line of its docstring is what users read.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import TypeAdapter, ValidationError

from fleet.settings.values import PinnedImage
from policy.subject import Subject

_PINNED_IMAGE: TypeAdapter[str] = TypeAdapter(PinnedImage)


def image_pinned(subject: Subject) -> Iterator[str]:
    """Container images are pinned by a release tag or a digest."""
    for name, service in subject.services():
        image = service.get("image", "")
        try:
            _PINNED_IMAGE.validate_python(image)
        except ValidationError as error:
            yield f"{name}: image {image!r} {error.errors()[0]['msg']}"


RESOURCE_RULES = (image_pinned,)
