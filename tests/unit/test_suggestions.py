"""What a message suggests is followed word for word: then that problem is gone, and no other has come."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from stack_files import DELETE, WRONG, Wrong, base, folder_with_files, put, write
from test_validate import OTHERS, changed

from fleet.catalog import catalog
from fleet.settings import Problem
from fleet.validation import validate

Config = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with_files(tmp_path_factory.mktemp("stack"))


def problems(folder: Path, config: Config) -> dict[str, Problem]:
    return {problem.path: problem for problem in validate(write(folder, config)).problems}


def steps(field: str) -> str:
    """A field as `put` takes it: `nodes[0].zone` → `nodes.0.zone`."""
    return re.sub(r"\[(\d+)\]", r".\1", field)


def followed(config: Config, problem: Problem) -> Iterator[Config]:
    """The configuration after each thing that the fix names; nothing where it leaves the choice to people."""
    at, fix = steps(problem.path), problem.fix
    if found := re.fullmatch(r"did you mean ([\w.]+)\?", fix):
        if problem.problem.endswith("is not a setting"):
            parent, _, _ = at.rpartition(".")
            yield put(put(config, at, DELETE), f"{parent}.{found[1]}".lstrip("."), value_at(config, at))
        else:
            yield put(config, at, found[1])
    elif found := re.fullmatch(r"write (\S+) for th(?:is|at) one address(?: or (\S+) for the range)?", fix):
        yield from (put(config, at, cidr) for cidr in found.groups() if cidr)
    elif found := re.fullmatch(r"use (\d[\d.]*) or (?:more|less)|make it (\d+), or .*", fix):
        yield put(config, at, yaml.safe_load(found[1] or found[2]))
    elif found := re.match(r"(?:raise it to|allow at least|give) ([\d.]+)(?:, or| or less|$)", fix):
        yield put(config, at, yaml.safe_load(found[1]))
    elif re.fullmatch(r"use ('?[\w-]+'?, )*'?[\w-]+'? or '?[\w-]+'?", fix):
        yield from (put(config, at, yaml.safe_load(word)) for word in re.findall(r"'[\w-]+'", fix))
    elif fix == "remove it":
        yield put(config, at, DELETE)
    elif found := re.match(r"name one of (\w[\w-]*)", fix):
        yield put(config, at, found[1])
    elif found := re.match(r"it fits (.*), or say in fit\.override", fix):
        for way in re.split(r" or (?=on )", found[1]):
            yield fitted(config, at, way)
    elif at.startswith("serving.extra_args") and re.match(r"set [\w.]+ instead|leave it out|write --", fix):
        instead = [fix.removeprefix("write ")] if fix.startswith("write --") else DELETE
        yield put(config, "serving.extra_args", instead)
    elif at == "serving.environment" and re.match(r"set [\w.]+ instead|leave it out", fix):
        yield put(config, at, DELETE)
    elif fix.startswith("set it: pulumi config set --path"):
        yield commanded(config, fix)


def value_at(config: Config, at: str) -> Any:
    value: Any = config
    for step in at.split("."):
        value = value[int(step)] if step.isdigit() else value[step]
    return value


def fitted(config: Config, at: str, way: str) -> Config:
    """With the type and the serving keys that a model is said to fit with."""
    node = at.removesuffix(".serving")
    if found := re.search(r"on (\S+)", way):
        config = put(config, f"{node}.type", found[1])
    for key, value in re.findall(r"(\w+): ([\w.]+)", way.partition("with ")[2]):
        config = put(config, f"{node}.serving.{key}", yaml.safe_load(value))
    return config


def commanded(config: Config, fix: str) -> Config:
    """What `pulumi config set --path` does to the file."""
    for command in fix.removeprefix("set it: ").split(" && "):
        *_, path, value = shlex.split(command)
        at = steps(path.removeprefix("vllm-fleet:"))
        parent, _, last = at.rpartition(".")
        if last == "0":
            config = put(config, parent, [])
            config = put(config, parent, [yaml.safe_load(value)])
        elif parent.endswith(".0") and parent.removesuffix(".0") not in config:
            config = put(config, parent.removesuffix(".0"), [{last: value}])
        else:
            config = put(config, at, yaml.safe_load(value))
    return config


# A key that holds brackets itself is spelt by no path of `put`.
CASES = [case for case in [*WRONG, *OTHERS] if "(" not in case.path]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.path}={case.value!r:.40}" for case in CASES])
def test_a_suggestion_that_is_followed_does_what_it_says(folder: Path, case: Wrong) -> None:
    config = changed(case)
    if case.named == "nodes[0].zone" and "pinned" in case.value:
        return  # the program's own choice, which is spoilt here
    before = problems(folder, config)
    for problem in before.values():
        for after in followed(config, problem):
            left = problems(folder, after)
            assert problem not in left.values()
            if not LEAVES_MORE.match(problem.fix):
                # The commands name examples of files, which are people's own.
                left.pop("access.ssh_private_key_path", None)
                left.pop("serving.architecture.config", None)
                assert problem.path not in left, left
                assert left.keys() <= before.keys(), left


LEAVES_MORE = re.compile(r"did you mean|use '")
"""A key's right name says nothing of its value, and a value that is allowed may not go with others."""


def test_most_fixes_can_be_followed_word_for_word(folder: Path) -> None:
    tried = [
        case
        for case in CASES
        for each in problems(folder, changed(case)).values()
        if [*followed(changed(case), each)]
    ]
    assert len(tried) >= 110


MODELS = ["Qwen/Qwen3-32B", "Qwen/Qwen3-32B-AWQ", "Qwen/Qwen2.5-72B-Instruct", "Qwen/Qwen3-8B"]
PLACES = [
    {"cloud": "scaleway", "type": "L4-1-24G"},
    {"cloud": "scaleway", "type": "L40S-2-48G", "zone": "fr-par-2"},
    {"cloud": "linode", "region": "us-ord"},
    {"cloud": "aws", "type": "g6.xlarge"},
    {"cloud": "aws", "type": "g5.12xlarge", "region": "eu-west-3"},
]


@pytest.mark.parametrize(("model", "place", "length"), list(product(MODELS, PLACES, (4096, 40960))))
def test_what_a_model_is_said_to_fit_on_it_fits_on(
    folder: Path, model: str, place: dict[str, Any], length: int
) -> None:
    assert catalog().find(place["cloud"], place.get("type", "g2-gpu-rtx4000a1-s"))
    config = put(base(), "nodes", [{"name": "a", **place}])
    config = put(config, "serving", {"model": model, "max_model_len": length})
    for field, problem in problems(folder, config).items():
        for after in followed(config, problem):
            left = problems(folder, after)
            assert field not in left, (problem.fix, left)
