"""From plain values to settings, with every problem found at once.

Pydantic stops where it meets something wrong: a bad port would hide a key file that is missing. So what is
wrong is left out, and the rest is read again for the checks that need settings.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fleet.catalog import LOCATION_KEY
from fleet.settings import stand_ins
from fleet.settings.agreement import disagreements
from fleet.settings.files import file_problems
from fleet.settings.nodes import CHEAPEST, BaseNode, CheapestNode, Pin
from fleet.settings.problems import Problem, dotted, is_inherited, missing, place_of, problems_of
from fleet.settings.stack import StackSettings

Raw = dict[str, Any]
Place = tuple[int | str, ...]

LISTS = ("nodes", "ray")
"""Sections that list what costs money: a wrong entry is left out, the others are read."""
SHARED = ("serving", "fit", "provision")
"""Sections that nodes inherit."""
STAND_INS: Raw = {
    "ssh_cidrs": ["127.0.0.1/32"],
    "ssh_private_key_path": "",
    # One that is there and wrong is no jump host that is missing.
    "jump_host": {"host": "unknown", "host_keys": [f"ssh-ed25519 {'A' * 68}"]},
}
"""For keys of `access` that are wrong: there is no stack without that section."""

COMPOUND = (".args", ".environment", ".extra_args", ".files", ".tags", ".visible_devices")
"""Values of several parts that are judged as one."""

LONGEST_TEXT = 1_000_000
DEEPEST = 40


@dataclass(frozen=True)
class Reading:
    """What a configuration says."""

    settings: StackSettings | None
    """What is left without the parts that are wrong; None where that is too little."""
    problems: tuple[Problem, ...]
    positions: Mapping[str, Sequence[int]]
    """Where the nodes and clusters in `settings` stand in the lists as they were given."""
    complete: bool
    """Whether nothing was left out."""
    shared_are_right: bool
    """Whether what nodes inherit is as it was given."""


def read(
    raw: Mapping[str, Any], pins: Mapping[str, Pin] | None = None, unknown: Collection[str] = ()
) -> Reading:
    """Check a configuration given as plain values.

    A node with `cloud: cheapest` becomes one of the cloud that is pinned in it or, by its name, in `pins`.
    Values at the paths in `unknown` are stand-ins: they are there, and whether they are right is not known.
    """
    unreadable = list(_unreadable(raw))
    rest = copy.deepcopy(
        {key: value for key, value in raw.items() if key not in {at for at, _ in unreadable}}
    )
    early = [*(problem for _, problem in unreadable), *_absent(raw)]
    if any(raw.get(key) for key in LISTS) and not rest.get("secrets"):
        rest["secrets"] = {"api_key": stand_ins.SECRETS["api_key"]}
    settings, errors = _validated(rest, pins or {})
    positions = {key: list(range(len(rest[key]))) for key in LISTS if isinstance(rest.get(key), list)}
    wrong = [(place, _of_empty(problem, raw)) for place, problem in problems_of(errors)]
    if raw.get("serving") not in (None, {}):
        # It is there and no section; that its nodes have none follows.
        wrong = [each for each in wrong if each[1] != missing(["serving"])]
    if errors:
        rest, positions = _without(rest, errors)
        settings, _ = _validated(rest, pins or {})
    gone = {at for at, _ in unreadable}
    wrong = [(place, problem) for place, problem in wrong if place[0] not in gone]
    touched = {str(place[0]) for place, _ in wrong} | gone
    touched |= {problem.path for problem in early}
    problems = [*early, *(problem for place, problem in wrong if not _is_unknown(place, unknown))]
    if settings is not None:
        names = [name for node in _listed(raw, "nodes") if isinstance(name := node.get("name"), str)]
        later = [*disagreements(settings, names, unknown), *file_problems(settings, positions)]
        # Of these, what was right is left.
        sections = touched - {*LISTS, "access", "provision"}
        problems += [problem for problem in later if problem.path.partition(".")[0] not in sections]
    return Reading(
        settings,
        tuple(dict.fromkeys(problems)),
        positions,
        settings is not None and not touched,
        not touched & set(SHARED),
    )


def _validated(raw: Raw, pins: Mapping[str, Pin]) -> tuple[StackSettings | None, list[ErrorDetails]]:
    try:
        return StackSettings.model_validate(with_choices(_with_shared_sections(raw), pins)), []
    except ValidationError as error:
        return None, error.errors()


def _is_unknown(place: Place, unknown: Collection[str]) -> bool:
    """Whether the value there is a stand-in, or within one, or a plain value made of some."""
    path = dotted(place)
    if any(path == each or path.startswith((f"{each}.", f"{each}[")) for each in unknown):
        return True
    return path.endswith(COMPOUND) and any(each.startswith((f"{path}.", f"{path}[")) for each in unknown)


def _of_empty(problem: Problem, raw: Mapping[str, Any]) -> Problem:
    """Of a section that is there and empty, what is missing is in it."""
    empty_serving = problem == missing(["serving"]) and raw.get("serving") == {}
    return missing(["serving", "model"]) if empty_serving else problem


def _unreadable(raw: Mapping[str, Any]) -> Iterator[tuple[str, Problem]]:
    """Sections that hold what cannot be passed on, each once, with what is wrong in them."""
    for key, value in raw.items():
        if found := next(_oddities(value, (key,)), None):
            yield key, found


def _oddities(value: Any, place: Place) -> Iterator[Problem]:
    if len(place) > DEEPEST:
        yield Problem(
            dotted(place[:3]), "is nested far too deep", "write it as docs/stack.schema.json has it"
        )
    elif isinstance(value, str):
        if len(value) > LONGEST_TEXT:
            yield Problem(
                dotted(place), f"has {len(value)} characters", "name a file instead, or leave it out"
            )
        elif not _is_text(value):
            yield Problem(
                dotted(place), "holds a lone surrogate, which is not text", "write the character itself"
            )
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str) or not _is_text(key):
                yield Problem(dotted((*place, str(key))), "is not a key of letters", "put it in quotes")
            yield from _oddities(entry, (*place, str(key)))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _oddities(entry, (*place, index))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _absent(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Sections that no stack does without, or none that serves."""
    serves = any(raw.get(key) for key in LISTS)
    if not serves and not raw.get("jobs"):
        empty = Problem("nodes", "is empty", "give at least one, or jobs, or a Ray cluster")
        yield empty if raw.get("nodes") == [] else missing(["nodes"])
    if serves and not raw.get("secrets"):
        yield missing(["secrets"])


def _without(raw: Raw, errors: Sequence[ErrorDetails]) -> tuple[Raw, dict[str, list[int]]]:
    """The configuration without what is wrong, and where the rest of its lists stood."""
    rest = dict(raw)
    dropped: set[tuple[str, int]] = set()
    for error in errors:
        section, *inside = place_of(error)
        if section in LISTS and inside and isinstance(inside[0], int):
            if not is_inherited(error, errors):
                dropped.add((str(section), inside[0]))
        elif section in ("access", *SHARED) and inside and isinstance(rest.get(str(section)), dict):
            rest[str(section)] = _repaired(rest[str(section)], str(inside[0]))
        else:
            rest.pop(str(section), None)
    rest.setdefault("access", STAND_INS)
    rest.setdefault("secrets", {"api_key": stand_ins.SECRETS["api_key"]})
    positions: dict[str, list[int]] = {}
    for key in LISTS:
        if isinstance(rest.get(key), list):
            positions[key] = [index for index in range(len(rest[key])) if (key, index) not in dropped]
            rest[key] = [rest[key][index] for index in positions[key]]
    return rest, positions


def _repaired(section: Raw, key: str) -> Raw:
    return {**{name: value for name, value in section.items() if name != key}, **_stand_in(key)}


def _stand_in(key: str) -> Raw:
    return {key: STAND_INS[key]} if key in STAND_INS else {}


def _listed(raw: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    entries = raw.get(key)
    return [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []


# --- what nodes have from the stack, and from the catalog --------------------------------------------------


def _with_shared_sections(raw: Mapping[str, Any]) -> Raw:
    """Give each node the stack's serving, fit and provision with its own keys put over them."""
    return {
        **raw,
        **{
            key: [_inheriting(each, raw) for each in raw[key]]
            for key in LISTS
            if isinstance(raw.get(key), list)
        },
    }


def _inheriting(node: Any, stack: Mapping[str, Any]) -> Any:
    if not isinstance(node, Mapping):
        return node
    merged = dict(node)
    for section in SHARED:
        shared, own = stack.get(section), node.get(section) or {}
        if isinstance(shared, Mapping) and isinstance(own, Mapping) and (shared or own):
            merged[section] = {**shared, **own}
    return merged


def with_choices(raw: Raw, pins: Mapping[str, Pin]) -> Raw:
    """Give each node with `cloud: cheapest` and a pin the cloud, place and type of that pin."""
    nodes = raw.get("nodes")
    return {**raw, "nodes": [chosen(node, pins) for node in nodes]} if isinstance(nodes, list) else raw


def chosen(node: Any, pins: Mapping[str, Pin]) -> Any:
    """The same of one node."""
    if not isinstance(node, Mapping) or node.get("cloud") != CHEAPEST:
        return node
    try:
        found = CheapestNode.model_validate(node)
    except ValidationError:
        return node  # the check of the whole configuration names what is wrong
    pin = found.pinned or pins.get(found.name)
    if pin is None:
        return node
    own = {key: value for key, value in node.items() if key in BaseNode.model_fields}
    serving = {**own["serving"], "tensor_parallel_size": pin.tensor_parallel_size}
    place = {"cloud": pin.cloud, LOCATION_KEY[pin.cloud]: pin.location, "type": pin.type}
    return {**own, **place, "root_volume_gb": found.root_volume_gb, "serving": serving}
