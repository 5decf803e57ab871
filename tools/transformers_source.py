"""Which models the release of Transformers knows that an image of vLLM can hold.

vLLM reads a model's configuration by Transformers, unless it brings a class of its own for it, and gives a
model that its own registry lacks to the Transformers backend. An image is built with the newest Transformers
of its day that vLLM's requirement allows.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import cache
from typing import NamedTuple

import httpx
from packaging.requirements import Requirement
from packaging.version import Version

from tools import pypi
from tools.vllm_source import SourceError

PROJECT = "transformers"
SOURCES = (
    "transformers/models/auto/configuration_auto.py",
    "transformers/models/auto/auto_mappings.py",
    "transformers/models/*/modeling_*.py",
)
GENERATIVE = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
"""Endings of the classes that are kept. For others it is not known whether the backend loads them."""
LEAST = 100
"""Model types of any release; fewer mean that they were not found."""
LATER = timedelta(days=7)
"""An image may be built again that long after the wheel."""


class Known(NamedTuple):
    """What a release of Transformers knows."""

    release: str
    model_types: frozenset[str]
    """Values of `model_type` that it has a configuration class for."""
    classes: frozenset[str]
    """Names of its model classes with an ending of `GENERATIVE`."""


def newest(candidates: Iterable[pypi.Wheel], requirement: str, of: pypi.Wheel) -> pypi.Wheel:
    """The newest Transformers that vLLM's wheel requires and that its image can have been built with."""
    wanted = Requirement(requirement).specifier
    found = [
        each
        for each in candidates
        if not each.yanked
        and each.release in wanted
        and (each.uploaded is None or of.uploaded is None or each.uploaded <= of.uploaded + LATER)
    ]
    if not found:
        raise SourceError(f"no release on PyPI is {requirement}")
    return max(found, key=lambda each: Version(each.release))


class Reader:
    """Reads each release once: many of vLLM share one."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._candidates = cache(lambda: list(pypi.wheels(client, PROJECT)))
        self._known = cache(self._read)

    def of(self, requirement: str, vllm: pypi.Wheel) -> Known:
        """What the Transformers in an image of that release of vLLM knows."""
        return self._known(newest(self._candidates(), requirement, vllm))

    def _read(self, wheel: pypi.Wheel) -> Known:
        files = pypi.read(pypi.RemoteFile(self._client, wheel.url, wheel.size), SOURCES)
        return Known(wheel.release, frozenset(model_types(files)), frozenset(classes(files)))


def model_types(files: Mapping[str, str]) -> set[str]:
    """The keys of `CONFIG_MAPPING_NAMES`, which pairs and `update` fill."""
    found: set[str] = set()
    for path in SOURCES[:2]:
        for node in ast.walk(ast.parse(files.get(path, ""))):
            target: ast.expr | None = None
            value: ast.expr | None = None
            if isinstance(node, ast.Assign):
                target, value = node.targets[0], node.value
            elif isinstance(node, ast.AnnAssign):
                target, value = node.target, node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                target, value = node.func.value, node.args[0]
            if target and value and ast.unparse(target) == "CONFIG_MAPPING_NAMES":
                found |= set(_keys(value))
    if len(found) < LEAST:
        raise SourceError(f"only {len(found)} model types were found; Transformers lists them another way")
    return found


def _keys(table: ast.expr) -> Iterable[str]:
    for node in ast.walk(table):
        if isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.elts[0], ast.Constant):
            yield str(node.elts[0].value)
        elif isinstance(node, ast.Dict):
            yield from (str(key.value) for key in node.keys if isinstance(key, ast.Constant))


def classes(files: Mapping[str, str]) -> set[str]:
    """Model classes that generate, of those in PyTorch. They are found by their first line: a wheel has 10 MB
    of them."""
    generative = re.compile(rf"^class (?!TF|Flax)(\w+(?:{'|'.join(GENERATIVE)}))\b", re.MULTILINE)
    return {name for path in files if "/modeling_" in path for name in generative.findall(files[path])}
