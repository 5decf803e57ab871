"""Where on the hub the files lie that vLLM is started with: its arguments as `fleet.weights.Source`s.

As vLLM 0.9.2 to 0.33.0 reads them: `vllm/config/model.py` (a tokenizer without a revision has the model's),
`vllm/lora/utils.py` (an adapter is a whole repository, at its newest commit), `vllm/config/speculative.py` (a
draft model's weights are found as the model's), `gguf_loader.py` (a single GGUF file is taken at its newest
commit).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

from fleet import weights as rule
from fleet.engine.values import adapters
from fleet.fit.versions import VllmVersion
from fleet.layout import MODELS_DIRECTORY
from fleet.weights import FORMATS, Source, is_safe

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
GGUF_FILE = re.compile(r"([\w.-]+/[\w.-]+)/([\w.-]+\.gguf)", re.ASCII)
GGUF_QUANTIZATION = re.compile(r"([\w.-]+/[\w.-]+):([\w.-]+)", re.ASCII)
READS_GGUF_FILES = VllmVersion(0, 10), VllmVersion(0, 24)
READS_GGUF_QUANTIZATIONS = VllmVersion(0, 12), VllmVersion(0, 24)
"""The first release with that spelling of a GGUF model, and the first without it."""


def gguf_releases(model: str) -> tuple[VllmVersion, VllmVersion] | None:
    """The first release that reads a model so spelt, and the first that does not; None for other models."""
    if GGUF_FILE.fullmatch(model):
        return READS_GGUF_FILES
    return READS_GGUF_QUANTIZATIONS if GGUF_QUANTIZATION.fullmatch(model) else None


def sources(
    model: str, quantization: str | None, added: Mapping[str, Any], version: VllmVersion
) -> tuple[Source, ...]:
    """What a release fetches from the hub for a model and its other arguments, the model first.

    Empty where it takes weights in a way that `fleet.weights` does not know.
    """
    load_format = added.get("--load-format") or "auto"
    if quantization == "bitsandbytes" and load_format == "auto":
        load_format = "bitsandbytes"
    if load_format not in FORMATS or "--download-dir" in added:
        return ()
    ignored = tuple(added.get("--ignore-patterns") or Source.ignore)
    revision = added.get("--revision") or Source.revision

    def weights(repo: str, at: str = Source.revision) -> Source:
        return Source(repo, version, at, load_format=load_format, ignore=ignored)

    def small(repo: str, at: str) -> Source:
        return Source(repo, version, at, takes="small")

    tokenizer = added.get("--tokenizer") or model
    tokenizer_revision = added.get("--tokenizer-revision") or revision
    found = [
        _gguf(model, version, revision, ignored) or weights(model, revision),
        small(tokenizer, tokenizer_revision),
        small(added.get("--hf-config-path") or model, revision),
        *(weights(repo, at) for repo, at in _drafts(added)),
        *(Source(path, version, takes="all") for _, path in adapters(added.get("--lora-modules"))),
    ]
    there: dict[tuple[str, str, str], Source] = {}
    for each in found:
        if REPOSITORY.fullmatch(each.repo) and (each.repo, each.revision, "model") not in there:
            there.setdefault((each.repo, each.revision, each.takes), each)
    return tuple(there.values())


def written(given: Iterable[Source]) -> str:
    """The sources as JSON, without what every source has by itself; empty for none."""
    usual = {field.name: field.default for field in fields(Source)}
    parts = [{name: value for name, value in asdict(each).items() if value != usual[name]} for each in given]
    return json.dumps(parts, separators=(",", ":")) if parts else ""


def refs(given: Iterable[Source]) -> dict[str, str]:
    """The branches and tags that are fetched, as owner/name@revision, each with the file on the node that
    holds its commit. The hub's client writes it whenever it asks the hub."""
    hub = f"{MODELS_DIRECTORY}/hub"
    return {
        f"{each.repo}@{each.revision}": f"{hub}/models--{each.repo.replace('/', '--')}/refs/{each.revision}"
        for each in given
        if is_safe(each.revision) and not re.fullmatch("[0-9a-f]{40}", each.revision)
    }


@cache
def script() -> str:
    """`fleet.weights` for a node: without docstrings and comments, since user data is short."""
    text = Path(rule.__file__).read_text(encoding="utf-8")
    left_out = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = [
        line
        for number, line in enumerate(text.splitlines(), start=1)
        if number not in left_out and line.strip() and not line.lstrip().startswith("#")
    ]
    return "\n".join(lines) + "\n"


def _gguf(model: str, version: VllmVersion, revision: str, ignored: tuple[str, ...]) -> Source | None:
    if named := GGUF_FILE.fullmatch(model):
        return Source(named[1], version, gguf=named[2])
    if named := GGUF_QUANTIZATION.fullmatch(model):
        return Source(named[1], version, revision, gguf=named[2], ignore=ignored)
    return None


def _drafts(added: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Models that guess tokens ahead, each with its revision."""
    config = added.get("--speculative-config")
    if isinstance(config, Mapping) and isinstance(config.get("model"), str):
        yield config["model"], str(config.get("revision") or Source.revision)
    for flag in ("--speculative-model", "--spec-model"):
        if isinstance(added.get(flag), str):
            yield added[flag], str(added.get("--speculative-model-revision") or Source.revision)
