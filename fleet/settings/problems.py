"""What is wrong with a configuration, in sentences to act on: field, value, what is wrong, the fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from fleet.settings.nodes import CHEAPEST, CLOUDS, BaseNode
from fleet.settings.stack import StackSettings
from fleet.settings.values import REFUSED

Path = Sequence[int | str]

SENTENCES = {
    "greater_than_equal": "{value} is below the minimum of {ge}; use {ge} or more",
    "greater_than": "{value} must be above {gt}; use a larger number",
    "less_than_equal": "{value} is above the maximum of {le}; use {le} or less",
    "less_than": "{value} must be below {lt}; use a smaller number",
    "finite_number": "{value} is not a finite number; write digits",
    "literal_error": "{value} is not one of the choices; use {expected}",
    "union_tag_not_found": "has no cloud; add one of: {clouds}",
    "union_tag_invalid": "cloud: {tag!r} is not supported; use one of: {clouds}",
    "too_short": "is empty; give at least one",
    "string_too_short": "is empty; write something or leave the key out",
    "string_pattern_mismatch": "{value} is malformed; it must match {pattern}",
    "int_type": "{value} is not a whole number; write digits, without quotes or unit",
    "int_parsing": "{value} is not a whole number; write digits, without quotes or unit",
    "int_parsing_size": "{value} is far too large; write a smaller number",
    "int_from_float": "{value} is not a whole number; write digits, without quotes or unit",
    "float_type": "{value} is not a number; write for example 0.9",
    "float_parsing": "{value} is not a number; write for example 0.9",
    "bool_type": "{value} is neither true nor false; write one of them",
    "bool_parsing": "{value} is neither true nor false; write one of them",
    "date_type": "{value} is not a day; write it like 2026-11-01",
    "date_parsing": "{value} is not a day; write it like 2026-11-01",
    "date_from_datetime_parsing": "{value} is not a day; write it like 2026-11-01",
    "date_from_datetime_inexact": "{value} is not a day; write it like 2026-11-01",
    "string_type": "{value} is not text; put it in quotes",
    "string_unicode": "{value} holds characters that are not text; remove them",
    "path_type": "{value} is not a path; write it in quotes",
    "tuple_type": "{value} is not a list; write it as [first, second]",
    "model_type": "{value} is not a set of keys; write it as key: value lines",
    "model_attributes_type": "{value} is not a set of keys; write it as key: value lines",
    "dict_type": "{value} is not a set of keys; write it as key: value lines",
    "invalid_key": "{value} has a key that is not text; put the key in quotes",
}
"""What to say, by the type of pydantic's error: what is wrong and, after the semicolon, the fix."""

OTHERWISE = "{value} is wrong: {message}; docs/stack.schema.json has what is accepted"

INHERITED = (("serving",), ("fit",), ("provision",))
"""Sections of the stack that each node has too, with its own keys put over them."""

EXAMPLES = {
    "architecture.config": "config.json",
    "cidrs": "0.0.0.0/0",
    "domain": "llm.example.com",
    "environments.name": "base-tools",
    "files.destination": "/opt/data",
    "files.source": "data",
    "host": "bastion.example.com",
    "host_keys": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "model": "Qwen/Qwen3-8B-AWQ",
    "name": "l4-a",
    "pinned.cloud": "scaleway",
    "pinned.location": "fr-par-2",
    "pinned.type": "L4-1-24G",
    "region": "us-ord",
    "scripts.path": "setup.sh",
    "ssh_cidrs": "203.0.113.7/32",
    "ssh_private_key_path": "~/.ssh/id_ed25519",
}
"""A value for each key that has no default, to show how it is set: by the key, or by its section and it."""


def how_to_encrypt(key: str) -> str:
    """How a secret gets into a stack's file encrypted, and into no shell's history."""
    return f"put it in again: pulumi config set --secret --path vllm-fleet:secrets.{key}, which asks for it"


SECRET = re.compile(r"\bhf_[A-Za-z0-9]{8,}|-----BEGIN|\bAKIA[0-9A-Z]{12,}|://[^\s/]+@")
"""A secret that strayed into another field is not shown either."""

URLS = {"http_proxy", "https_proxy", "registry_mirrors"}
"""Keys whose values may carry a login, even one that makes them no URL."""


@dataclass(frozen=True)
class Problem:
    """One wrong value: where, what is wrong with it, and what to do about it."""

    path: str
    problem: str
    fix: str = ""
    value: str | None = None
    """As it was written; None where nothing was, or where it may be a secret."""

    @classmethod
    def said(cls, path: str, sentence: str, value: str | None = None) -> Problem:
        """From a sentence in which a semicolon, or `Fix:`, separates what is wrong from the fix."""
        problem, *fix = re.split(r"; |\. Fix: ", sentence, maxsplit=1)
        return cls(path, problem, "".join(fix), value)

    @property
    def message(self) -> str:
        """What is wrong and how to fix it, in one sentence."""
        return f"{self.problem}; {self.fix}" if self.fix else self.problem

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


def missing(path: Path) -> Problem:
    """A key that has to be there and is not."""
    return Problem(dotted(path), "is missing", f"set it: {' && '.join(_how_to_set(path))}")


def problems_of(errors: Sequence[ErrorDetails]) -> list[tuple[tuple[int | str, ...], Problem]]:
    """Each distinct problem once, in the order of the configuration, with the path of the value."""
    paths = [place_of(error) for error in errors]
    found: dict[tuple[tuple[int | str, ...], Problem], None] = {}
    for error, path in zip(errors, paths, strict=True):
        # A list whose every entry is wrong is not an empty list.
        if error["type"] == "too_short" and any(
            len(other) > len(path) and other[: len(path)] == path for other in paths
        ):
            continue
        # A wrong value in a section of the stack comes back once for each node that inherits it: say it once.
        if not is_inherited(error, errors):
            found[tuple(path), _problem(path, error)] = None
    return list(found)


def is_inherited(error: ErrorDetails, errors: Sequence[ErrorDetails]) -> bool:
    """Whether a node has the error from a section of the stack."""
    place = place_of(error)
    shared = tuple(place[2:])
    return place[:1] in (["nodes"], ["ray"]) and any(
        other["loc"] == shared and other["type"] == error["type"]
        for other in errors
        if other["loc"][:1] in INHERITED
    )


def place_of(error: ErrorDetails) -> list[int | str]:
    """The path of a value, without pydantic's steps of a union (`nodes.0.scaleway.zone` → `nodes.0.zone`)."""
    path = list(error["loc"])
    if error["type"] == "missing" and path[:1] in (["nodes"], ["ray"]) and path[-1] == "serving":
        return ["serving"]  # it is the stack's to give
    if path[:1] in (["nodes"], ["ray"]) and path[2:3] and path[2] in (*CLOUDS, CHEAPEST):
        del path[2]
    # Steps such as `function-after[…]` are pydantic's; a key that is no setting may hold anything.
    own = path[-1:] if error["type"] == "extra_forbidden" else []
    rest = path[: len(path) - len(own)]
    return [step for step in rest if not (isinstance(step, str) and re.search(r"[\[(]", step))] + own


def _problem(path: list[int | str], error: ErrorDetails) -> Problem:
    given = error.get("input")
    words, value = _shown(path, given), None if _hidden(path, given) else printable(given)
    match error["type"]:
        case kind if kind == REFUSED:
            problem, fix = (str(error["ctx"][part]) for part in ("problem", "fix"))
            key, separator, rest = problem.partition(": ")
            if separator and re.fullmatch(r"[a-z0-9_.]+", key):
                # The check of a whole section names the key itself.
                named = dotted([*path, *(key.split(".") if key != "nodes" else [])]) if path else key
                return Problem(named, rest, fix)
            return Problem(dotted(path), f"{words} {problem}", fix, value)
        case "missing":
            return missing(path)
        case "extra_forbidden":
            return Problem(dotted(path), *_unknown_key(error["loc"], path))
        case kind:
            sentence = SENTENCES.get(kind, OTHERWISE)
            context = {
                "value": words,
                "message": error["msg"],
                "clouds": ", ".join((*CLOUDS, CHEAPEST)),
                **error.get("ctx", {}),
            }
            problem, _, fix = (part.format_map(context) for part in sentence.partition("; "))
            return Problem(dotted(path), problem, fix, value)


# --- keys that are not settings, and keys that are missing ------------------------------------------------


def _unknown_key(loc: Path, path: Path) -> tuple[str, str]:
    """What is wrong with a key that is no setting, and what was probably meant."""
    key = str(path[-1])
    section = section_at(loc[:-1])
    if section is None:
        return "is not a setting", "remove it"
    if path[:1] == ["nodes"] and section.__name__.endswith("Node") and len(path) == 3:
        others = [_cloud_of(kind) for kind in _node_kinds() if key in kind.model_fields]
        if others:
            return (
                f"is not a setting of a {_cloud_of(section)} node, only of {' and '.join(others)}",
                "remove it",
            )
    if ":" in key:
        return "is in a namespace that nothing reads", f"did you mean vllm-fleet:{key.rpartition(':')[2]}?"
    inside, _, rest = key.partition(".")
    if inside in section.model_fields and rest:
        where = dotted([*path[:-1], inside])
        return (
            "is not a setting",
            f"write {rest} as a key under {where}; pulumi config set does it with --path",
        )
    near = difflib.get_close_matches(key, section.model_fields, n=1)
    if near:
        return "is not a setting", f"did you mean {near[0]}?"
    homes = [name for name, kinds in _children(section) if any(key in kind.model_fields for kind in kinds)]
    return "is not a setting", f"did you mean {homes[0]}.{key}?" if homes else "remove it"


def section_at(loc: Path) -> type[BaseModel] | None:
    """The section that a pydantic location leads to; None where it is none."""
    kinds: list[type[BaseModel]] = [StackSettings]
    for step in loc:
        if isinstance(step, int):
            continue
        tagged = [kind for kind in kinds if len(kinds) > 1 and step in get_args(_annotation(kind, "cloud"))]
        kinds = tagged or [found for kind in kinds for found in _models(_annotation(kind, step))]
    return kinds[0] if kinds else None


def _annotation(kind: type[BaseModel], key: str) -> Any:
    return kind.model_fields[key].annotation if key in kind.model_fields else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _children(section: type[BaseModel]) -> Iterator[tuple[str, list[type[BaseModel]]]]:
    """The sections within a section, lists of sections left out."""
    for name, field in section.model_fields.items():
        kinds = list(_models(field.annotation))
        if kinds and not any(issubclass(kind, BaseNode) for kind in kinds):
            yield name, kinds


def _node_kinds() -> list[type[BaseModel]]:
    return list(_models(StackSettings.model_fields["nodes"].annotation))


def _cloud_of(kind: type[BaseModel]) -> str:
    return str(next(iter(get_args(_annotation(kind, "cloud"))), ""))


def _how_to_set(path: Path) -> Iterator[str]:
    """Commands that set a key; of a section, all its keys that have no default."""
    key = f"vllm-fleet:{dotted(path)}"
    if path[0] == "secrets":
        if path[-1] in ("secrets", "api_key"):
            yield "openssl rand -hex 32 | pulumi config set --secret --path vllm-fleet:secrets.api_key"
        else:
            yield f"pulumi config set --secret --path {key}"
        return
    section = section_at(path)
    if path == ["nodes"]:
        yield "pulumi config set --path 'vllm-fleet:nodes[0].name' l4-a"
        yield "pulumi config set --path 'vllm-fleet:nodes[0].cloud' scaleway"
    elif section is None:
        names = [str(step) for step in path if isinstance(step, str)]
        example = EXAMPLES.get(".".join(names[-2:])) or EXAMPLES.get(names[-1], "VALUE")
        place = f"{key}[0]" if names[-1].endswith(("cidrs", "_keys")) else key
        yield f"pulumi config set --path '{place}' '{example}'"
    else:
        for name, field in section.model_fields.items():
            if field.is_required():
                yield from _how_to_set([*path, name])


# --- how paths and values are shown ------------------------------------------------------------------------


def dotted(path: Path) -> str:
    """`nodes[0].zone`, as Pulumi's own paths are written."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    named = printable(text.removeprefix("."))
    return named if named.strip() else repr(named) if path else "configuration"


def printable(value: Any) -> str:
    """A value on a line that every terminal takes: cut to 60 characters, without control characters."""
    text = value if isinstance(value, str) else str(value)
    text = "".join(
        each if each.isprintable() else each.encode("unicode-escape", "surrogatepass").decode()
        for each in text[:200]
    )
    return text if len(text) <= 60 else f"{text[:57]}…"


def _shown(path: Path, value: Any) -> str:
    """The value as a sentence may begin with it: never a secret, never a page."""
    if _hidden(path, value):
        return "the value"
    return f"'{printable(value)}'" if isinstance(value, str) else printable(value)


def _hidden(path: Path, value: Any) -> bool:
    secret = set(path) & {"secrets", "environment", "args", "extra_args"} and path[-1] != "delivery"
    login = bool(set(path) & URLS) and "@" in str(value)
    return bool(secret) or login or bool(SECRET.search(str(value)))
