"""Everything that can be known of a stack without a cloud: settings, keys, files, flags, fit, cost, policies.

`examine` is what a preview asks too; `validate` asks it about a stack's file, without engine, account or
network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet import settings, stackfile
from fleet.checks import NodeCheck, UnknownModelError, judge
from fleet.settings import CheapestNode, Pin, Problem, StackSettings


@dataclass(frozen=True)
class Examination:
    """What was found out about a configuration."""

    reading: settings.Reading
    checks: Mapping[str, NodeCheck]
    """By node; of a wrong configuration, of those nodes that could be judged."""
    problems: tuple[Problem, ...]

    @property
    def settings(self) -> StackSettings:
        """The configuration. Raises SettingsError where anything is wrong with it."""
        if self.problems or self.reading.settings is None:
            raise settings.SettingsError(self.problems)
        return self.reading.settings

    @property
    def unpinned(self) -> dict[int, CheapestNode]:
        """Nodes whose cloud is not chosen yet, by their place in the list."""
        found = self.reading.settings.nodes if self.reading.settings else ()
        places = self.reading.positions.get("nodes", ())
        return {at: node for at, node in zip(places, found, strict=False) if isinstance(node, CheapestNode)}


def examine(
    raw: Mapping[str, Any],
    pins: Mapping[str, Pin] | None = None,
    unknown: Collection[str] = (),
    *,
    ask_hub: bool = True,
) -> Examination:
    """Judge a configuration given as plain values, all of it at once. See `fleet.settings.read`.

    What the bundled table of models lacks is asked of the Hugging Face hub, unless `ask_hub` is False.
    """
    reading = settings.read(raw, pins, unknown)
    if reading.settings is None or not reading.shared_are_right:
        return Examination(reading, {}, reading.problems)
    checks, problems = judge(reading.settings, reading.positions, complete=reading.complete, ask_hub=ask_hub)
    return Examination(reading, checks, (*reading.problems, *problems))


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a stack's file."""

    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether a preview would find nothing wrong either."""
        return not self.problems


def validate(path: Path, policy_folder: Path | None = None) -> Verdict:
    """Judge a stack's file.

    Paths in it count from its folder, as for Pulumi. The policies are as strict as `config.<stack>.json` in
    `policy_folder` says; that of the file's own project if left out.
    """
    try:
        file = stackfile.read(path)
    except stackfile.StackFileError as error:
        return Verdict((error.problem,), ())
    strictness = _strictness(policy_folder or path.absolute().parent / "policy", file.stack)
    with contextlib.chdir(path.absolute().parent):
        found, warnings = _examined(file)
        config, reading = found.reading.settings, found.reading
        problems = [*file.problems, *found.problems]
        if config is not None and reading.shared_are_right:
            broken = _policies(config, reading, found.checks, file.stack, strictness)
            problems += [problem for mandatory, problem in broken if mandatory]
            warnings += [str(problem) for mandatory, problem in broken if not mandatory]
    warnings += [f"{name}: {warning}" for name, check in found.checks.items() for warning in check.warnings]
    return Verdict(tuple(dict.fromkeys(problems)), tuple(dict.fromkeys(warnings)))


def _examined(file: stackfile.StackFile) -> tuple[Examination, list[str]]:
    """What was found out, and what could not be, of nodes whose cloud had to be chosen first."""
    from fleet.cheapest import NoChoiceError, choose  # noqa: PLC0415  loads the whole catalog

    found = examine(file.values, None, file.unknown, ask_hub=False)
    config, pins, warnings = found.reading.settings, dict[str, Pin](), list[str]()
    problems: list[Problem] = []
    for at, node in found.unpinned.items():
        assert config is not None, "it has nodes"
        try:
            pins[node.name] = choose(node, config.keys, config.budget, ask_hub=False).pin
        except UnknownModelError as error:
            warnings.append(f"{node.name}: {error}")
        except NoChoiceError as error:
            problems.append(Problem.said(f"nodes[{at}]", str(error)))
    if pins:
        found = examine(file.values, pins, file.unknown, ask_hub=False)
    return Examination(found.reading, found.checks, (*found.problems, *problems)), warnings


def _strictness(folder: Path, stack: str) -> Mapping[str, Any]:
    from policy.stack import strictness  # noqa: PLC0415  the policies are built on this package

    return strictness(folder, stack)


def _policies(
    config: StackSettings,
    reading: settings.Reading,
    checks: Mapping[str, NodeCheck],
    stack: str,
    strictness: Mapping[str, Any],
) -> Sequence[tuple[bool, Problem]]:
    from policy.stack import broken  # noqa: PLC0415  the policies are built on this package

    return list(broken(config, reading, checks, stack, strictness))
