"""The options of `vllm serve` in each release, from `arguments.json`, which `tools/vllm_flags.py` makes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fleet.fit.versions import VllmVersion


class Option(NamedTuple):
    """One option of a release."""

    flag: str
    """Its long name, with hyphens."""
    also: tuple[str, ...] = ()
    """Its other names: short forms, and a second long one."""
    takes: str | int = "one"
    """How many values: `none`, `one`, `maybe` (one or none), `some` (one or more), `any`, or a number."""
    type: str = "text"
    """How each is read: text, lowered, int, float, size (8k), size_or_auto, json, json_or_text, adapter."""
    optional: bool = False
    """Whether `None` and an empty value stand for none at all."""
    choices: tuple[str | int, ...] = ()
    """The values that are taken; any of the type where there are none."""
    pair: bool = False
    """Whether `--no-…` switches it off."""
    repeats: bool = False
    """Whether it adds to what was given before."""
    deprecated: bool = False


@dataclass(frozen=True)
class Release:
    """What one release takes."""

    version: VllmVersion
    options: Mapping[str, Option]
    """By long name."""
    features: frozenset[str]
    """What its parser understands beside argparse: `dotted` keys and `lists` in them, `disable` pairs."""
    exact: bool = True
    """Whether it is the release that was asked for; else the nearest one that is known stands for it."""

    @cached_property
    def spellings(self) -> Mapping[str, tuple[Option, bool]]:
        """Every name of every option, and whether it switches the option on."""
        return {name: (option, on) for option in self.options.values() for name, on in self._names(option)}

    def _names(self, option: Option) -> Iterator[tuple[str, bool]]:
        for name in (option.flag, *option.also):
            yield name, True
            if option.pair and name.startswith("--"):
                yield f"--no-{name[2:]}", False
                opposite = re.sub("^--(en|dis)able-", _opposite, name)
                if "disable" in self.features and opposite != name:
                    yield opposite, False


def _opposite(prefix: re.Match[str]) -> str:
    return "--disable-" if prefix[1] == "en" else "--enable-"


class _Data(NamedTuple):
    numbers: Mapping[str, VllmVersion]
    """The releases that were read, by their names, the oldest first."""
    flags: Mapping[str, Mapping[str, Any]]
    parser: Mapping[str, Mapping[str, Any]]


@cache
def _data() -> _Data:
    """What the file holds. Read when it is first asked for: not every command does."""
    data = json.loads(Path(__file__).with_name("arguments.json").read_text())
    return _Data({name: VllmVersion.parse(name) for name in data["releases"]}, data["flags"], data["parser"])


def newest() -> VllmVersion:
    """The newest release that is known."""
    return known()[-1]


def known() -> tuple[VllmVersion, ...]:
    """The releases that were read, the oldest first."""
    return tuple(_data().numbers.values())


@cache
def release(version: VllmVersion | None) -> Release:
    """A release; of one that was never read the next older one, and without a version the newest."""
    data = _data()
    older = [each for each in known() if version is None or each <= version]
    found = older[-1] if older else known()[0]
    options = {name: _option(name, now) for name in data.flags if (now := as_of(data.flags[name], found))}
    features = frozenset(name for name, changes in data.parser.items() if as_of(changes, found))
    # A patch release takes what those before it take; of a later minor one nothing is known.
    exact = version is not None and bool(older) and version[:2] == found[:2]
    return Release(found, options, features, exact)


def life(flag: str) -> tuple[VllmVersion, VllmVersion | None] | None:
    """The first release that has the flag, and the first that has it no more; None for a flag of none."""
    return life_of(_data().flags.get(flag))


def life_of(changes: Mapping[str, Any] | None) -> tuple[VllmVersion, VllmVersion | None] | None:
    """The same of anything, from what changed in which release."""
    if changes is None:
        return None
    since = next(name for name, now in changes.items() if now is not None)
    last, now = list(changes.items())[-1]
    numbers = _data().numbers
    return numbers[since], None if now is not None else numbers[last]


def deprecated_since(flag: str, version: VllmVersion) -> VllmVersion:
    """The first release of those up to that one, without a break, in which the flag is deprecated."""
    since = version
    for name, now in reversed(list(_data().flags[flag].items())):
        at = _data().numbers[name]
        if at <= version:
            if not (now and now.get("deprecated")):
                break
            since = at
    return since


def as_of(changes: Mapping[str, Any], version: VllmVersion) -> Any:
    """What holds in a release, of what changed in which."""
    now, numbers = None, _data().numbers
    for name, then in changes.items():
        if numbers[name] > version:
            break
        # An option without anything to say of it is an empty mapping, and an option all the same.
        now = {"takes": "one", **then} if isinstance(then, dict) else then
    return now


def _option(name: str, now: Mapping[str, Any]) -> Option:
    given: dict[str, Any] = {
        key: tuple(each) if isinstance(each, list) else each for key, each in now.items()
    }
    return Option(name, **given)
