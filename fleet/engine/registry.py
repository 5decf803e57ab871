"""The models and parsers of each release of vLLM, from `registry.json`, which `tools/vllm_flags.py` makes.

vLLM first reads a model's configuration, by a class of its own for its `model_type` or by Transformers, then
looks up its architecture in its registry (`vllm/model_executor/models/registry.py`). Since 0.7.2 a model that
is not there is given to the Transformers backend, if Transformers or the model's repository has code for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fleet.engine import releases
from fleet.fit.versions import VllmVersion

FALLBACK = "fallback"
"""What a model is for that only Transformers knows: its backend may load it."""
GENERATIVE = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
"""Endings of the classes that were read off Transformers. Of others it is not known whether it has them."""
POOLING = frozenset({"embed", "score", "classify", "reward"})
"""What models are for that answer no completions."""


class Declared(NamedTuple):
    """What a model's `config.json` says about who can load it."""

    architectures: tuple[str, ...]
    model_type: str | None
    own_code: bool
    """Whether its repository brings code of its own, which `--trust-remote-code` allows."""


class Finding(NamedTuple):
    """Why a release cannot load a model. `str` is a sentence: the problem, and after a semicolon the fix."""

    problem: str
    fix: str
    is_warning: bool
    """Whether it is not certain."""

    def __str__(self) -> str:
        return f"{self.problem}; {self.fix}"


@cache
def _data() -> Mapping[str, Any]:
    """What the file holds. Read when it is first asked for: not every command does."""
    return dict(json.loads(Path(__file__).with_name("registry.json").read_text()))


def parsers(flag: str, version: VllmVersion | None) -> frozenset[str]:
    """The names that `--reasoning-parser` or `--tool-call-parser` may have in a release without a plugin."""
    at = releases.release(version).version
    return frozenset(name for name, changes in _data()[flag].items() if releases.as_of(changes, at))


def parser_life(flag: str, name: str) -> tuple[VllmVersion, VllmVersion | None] | None:
    """The first release that has a parser, and the first that has it no more; None for one of no release."""
    return releases.life_of(_data()[flag].get(name))


def purposes(architecture: str, version: VllmVersion | None) -> frozenset[str]:
    """What a release registers a model for: generate, multimodal, embed, score, classify, reward, draft,
    transformers; nothing for a model that it does not register."""
    found = _purpose(architecture, releases.release(version).version)
    return frozenset(found.split()) - {FALLBACK}


def declared(config: Mapping[str, Any]) -> Declared:
    """What a configuration says; what is not of the expected shape counts as not said."""
    names, type_, code = config.get("architectures"), config.get("model_type"), config.get("auto_map")
    return Declared(
        tuple(str(each) for each in names) if isinstance(names, list) else (),
        type_ if isinstance(type_, str) else None,
        isinstance(code, dict) and any(key.startswith("Auto") for key in code),
    )


def loading(
    model: Declared, version: VllmVersion | None, *, implementation: str = "auto", trusted: bool = False
) -> Finding | None:
    """Why that release cannot load the model; None where it can, or where nothing is known against it.

    `implementation` is the value of `--model-impl`, `trusted` that of `--trust-remote-code`.
    """
    if not model.architectures or implementation == "terratorch":
        return None
    at = releases.release(version).version
    certain = at == version
    name = model.architectures[0]
    listed = implementation == "transformers" or _is_listed(model.architectures, at)
    readable = _is_readable(model, at, trusted)
    if listed and readable:
        return None
    if not readable and model.own_code and not trusted and (listed or not _ever_listed(model)):
        problem = (
            f"vLLM {at}, the image's release, has no class for model_type {model.model_type}, so that {name} "
            "needs the code in its repository"
        )
        return Finding(problem, "set trust_remote_code: true in serving.args", not certain)
    if not listed and readable and implementation != "vllm" and _may_fall_back(model, at):
        problem = f"vLLM {at} does not register {name}: the Transformers backend serves it slower, if at all"
        return Finding(problem, _way_out(model, at, trusted), is_warning=True)
    if not _ever_listed(model):
        problem = f"no release of vLLM up to {releases.newest()} registers {name}"
        return Finding(problem, "see whether the image brings a plugin for it", is_warning=True)
    known_type = model.model_type is None or model.model_type in _data()["model_types"]
    problem = f"vLLM {at}, the image's release, cannot load {name}"
    if listed:
        problem += f": the Transformers in it has no class for model_type {model.model_type}"
    # A model whose configuration nothing reads cannot fall back either.
    complete = not readable or implementation == "vllm" or _is_complete(model, at)
    return Finding(problem, _way_out(model, at, trusted), not (certain and complete and known_type))


def _way_out(model: Declared, at: VllmVersion, trusted: bool) -> str:
    """The first release after that one that can load the model, or the last before it."""

    def able(trusting: bool) -> list[VllmVersion]:
        return [
            each
            for each in releases.known()
            if _is_listed(model.architectures, each) and _is_readable(model, each, trusting)
        ]

    # Code of its own reads a model in earlier releases than Transformers does.
    for trusting in sorted({model.own_code or trusted, trusted}, reverse=True):
        found = able(trusting)
        extra = ", with trust_remote_code: true in serving.args" if trusting and not trusted else ""
        if later := [each for each in found if each > at]:
            return f"pin an image of vLLM {later[0]} or later{extra}"
        if found and found[-1] < at:
            return f"pin an image of vLLM {found[-1]}, the last release that could{extra}"
    return "choose another model"


def _is_listed(architectures: tuple[str, ...], at: VllmVersion) -> bool:
    return any(
        purpose and purpose != FALLBACK
        for name in architectures
        for each in (name, *_converted(name, at))
        if (purpose := _purpose(each, at))
    )


def _converted(architecture: str, at: VllmVersion) -> Iterator[str]:
    """The names of models that the release would convert to that one."""
    suffixes = [name for name, changes in _data()["suffixes"].items() if releases.as_of(changes, at)]
    for suffix in suffixes:
        if architecture.endswith(suffix):
            yield from (architecture.removesuffix(suffix) + each for each in suffixes)


def _is_readable(model: Declared, at: VllmVersion, trusted: bool) -> bool:
    """Whether the release has a class for the model's configuration, or runs the repository's."""
    changes = _data()["model_types"].get(model.model_type, {})
    by_code = trusted and model.own_code
    return model.model_type is None or by_code or bool(releases.as_of(changes, at))


def _may_fall_back(model: Declared, at: VllmVersion) -> bool:
    # Only the first architecture is asked of Transformers.
    return model.own_code or _purpose(model.architectures[0], at) == FALLBACK


def _is_complete(model: Declared, at: VllmVersion) -> bool:
    """Whether it is known that the release has no backend for the model either."""
    has_backend = "--model-impl" in releases.release(at).options
    return not has_backend or (model.architectures[0].endswith(GENERATIVE) and not model.own_code)


def _ever_listed(model: Declared) -> bool:
    return any(_is_listed(model.architectures, each) for each in releases.known())


def _purpose(architecture: str, at: VllmVersion) -> str:
    return str(releases.as_of(_data()["architectures"].get(architecture, {}), at) or "")
