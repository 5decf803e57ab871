"""Turns validation errors into sentences a person can act on: path, value, mend."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from fleet.settings.expose import Expose
from fleet.settings.jobs import ControlInstance, Jobs
from fleet.settings.nodes import CHEAPEST, CLOUDS, AmiSource, Pin, ScalewayNode, Spot
from fleet.settings.provision import SECTIONS as PROVISION_SECTIONS
from fleet.settings.serving import Fit, ModelArchitecture, Serving
from fleet.settings.stack import Access, Budget, Health, Rollout, Secrets, StackSettings

Path = Sequence[int | str]

SENTENCES = {
    "greater_than_equal": "{value} is below the minimum of {ge}; use {ge} or more",
    "greater_than": "{value} must be above {gt}",
    "less_than_equal": "{value} is above the maximum of {le}; use {le} or less",
    "less_than": "{value} must be below {lt}",
    "literal_error": "{value} is not one of the choices; use {expected}",
    "union_tag_not_found": "has no cloud; add one of: {clouds}",
    "union_tag_invalid": "cloud: {tag!r} is not supported; use one of: {clouds}",
    "too_short": "is empty; give at least one",
    "string_too_short": "is empty; write something or leave the key out",
    "string_pattern_mismatch": "{value} is malformed; it must match {pattern}",
    "int_type": "{value} is not a whole number; write digits, without quotes or unit",
    "int_parsing": "{value} is not a whole number; write digits, without quotes or unit",
    "int_from_float": "{value} is not a whole number; write digits, without quotes or unit",
    "float_type": "{value} is not a number; write for example 0.9",
    "float_parsing": "{value} is not a number; write for example 0.9",
    "bool_type": "{value} is neither true nor false; write one of them",
    "bool_parsing": "{value} is neither true nor false; write one of them",
    "date_parsing": "{value} is not a day; write it like 2026-11-01",
    "date_from_datetime_parsing": "{value} is not a day; write it like 2026-11-01",
    "string_type": "{value} is not text; put it in quotes",
    "tuple_type": "{value} is not a list; write it as [first, second]",
    "model_type": "{value} is not a set of keys; write it as key: value lines",
    "model_attributes_type": "{value} is not a set of keys; write it as key: value lines",
    "dict_type": "{value} is not a set of keys; write it as key: value lines",
}
"""What to say, by the type of pydantic's error."""


INHERITED = (("serving",), ("fit",), ("provision",))
"""Sections of the stack that each node has too, with its own keys put over them."""


@dataclass(frozen=True)
class Problem:
    """One wrong value: where, and what to do about it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class SettingsError(Exception):
    """The configuration is wrong; `problems` lists everything that is, most outward key first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        lines = [f"{count} wrong value{'s' if count > 1 else ''} in the stack configuration:"]
        lines += [f"  {problem}" for problem in self.problems]
        super().__init__("\n".join(lines))


def problems_of(errors: Sequence[ErrorDetails]) -> list[Problem]:
    """Each distinct problem once, in the order of the configuration."""
    shared = {(error["loc"], error["type"]) for error in errors if error["loc"][:1] in INHERITED}
    paths = [_path(error["loc"]) for error in errors]
    found: dict[Problem, None] = {}
    for error, path in zip(errors, paths, strict=True):
        # A list whose every entry is wrong is not an empty list.
        if error["type"] == "too_short" and any(
            len(other) > len(path) and other[: len(path)] == path for other in paths
        ):
            continue
        # A wrong value in a section of the stack comes back once for each node that inherits it: say it once.
        inherited = path[:1] in (["nodes"], ["ray"]) and (tuple(path[2:]), error["type"]) in shared
        if not inherited:
            found[_problem(path, error)] = None
    return list(found)


def _path(loc: tuple[int | str, ...]) -> list[int | str]:
    """A pydantic location without the steps of a union (`nodes.0.scaleway.zone` → `nodes.0.zone`)."""
    path = list(loc)
    if path[:1] in (["nodes"], ["ray"]) and path[2:3] and path[2] in (*CLOUDS, CHEAPEST):
        del path[2]
    return [step for step in path if not (isinstance(step, str) and re.search(r"[\[(]", step))]


def _problem(path: list[int | str], error: ErrorDetails) -> Problem:
    message, value = error["msg"], _shown(path, error.get("input"))
    match error["type"]:
        case "mend":
            key, separator, rest = message.partition(": ")
            if separator and re.fullmatch(
                r"[a-z0-9_.]+", key
            ):  # the check of a whole section names the key itself
                return Problem(
                    _dotted([*path, *(key.split(".") if key != "nodes" else [])]) if path else key, rest
                )
            return Problem(_dotted(path), f"{value} {message}")
        case "missing":
            secret = "--secret " if path[0] == "secrets" else ""
            key = f"vllm-fleet:{_dotted(path)}"
            return Problem(
                _dotted(path), f"is missing; set it: pulumi config set {secret}--path '{key}' VALUE"
            )
        case "extra_forbidden":
            near = _near_key(path)
            return Problem(
                _dotted(path), f"is not a setting; {f'did you mean {near}?' if near else 'remove it'}"
            )
        case kind:
            sentence = SENTENCES.get(kind, "{value} is wrong: {message}; see docs/configuration.md")
            words = {
                "value": value,
                "message": message,
                "clouds": ", ".join((*CLOUDS, CHEAPEST)),
                **error.get("ctx", {}),
            }
            return Problem(_dotted(path), sentence.format_map(words))


def _near_key(path: Path) -> str | None:
    """The key that was probably meant."""
    sections: dict[str, type[BaseModel]] = {
        "serving": Serving,
        "access": Access,
        "expose": Expose,
        "architecture": ModelArchitecture,
        "health": Health,
        "rollout": Rollout,
        "fit": Fit,
        "budget": Budget,
        "pinned": Pin,
        "secrets": Secrets,
        "ami_source": AmiSource,
        "spot": Spot,
        "jobs": Jobs,
        "control": ControlInstance,
        **PROVISION_SECTIONS,
    }
    parent = path[-2] if len(path) > 1 else None
    model = (
        sections.get(str(parent))
        if isinstance(parent, str)
        else ScalewayNode
        if parent is not None
        else StackSettings
    )
    near = difflib.get_close_matches(str(path[-1]), model.model_fields if model else [], n=1)
    return near[0] if near else None


def _dotted(path: Path) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".") or "configuration"


def _shown(path: Path, value: Any) -> str:
    """The value as an error may show it: never a secret, never a page."""
    if set(path) & {"secrets", "environment", "extra_args"} and path[-1] != "delivery":
        return "the value"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
