"""Whether the release of vLLM in an image can load a model, by the model's `config.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fleet.engine import registry, tasks
from fleet.engine.registry import Finding
from fleet.settings import Serving

FITTING = {
    "embed": frozenset({"embed"}),
    # Releases before 0.18 list models that score pairs apart from those that classify.
    "rerank": frozenset({"score", "classify"}),
    "score": frozenset({"score", "classify"}),
    "classify": frozenset({"score", "classify"}),
    "pooling": frozenset({"reward"}),
}
"""The tasks of models that do not generate, each with what those are registered for."""


def finding(serving: Serving, config: Mapping[str, Any]) -> Finding | None:
    """Why the image cannot load the model as it is served; None where nothing is known against it."""
    added = serving.added.values
    if added.get("--config-format") not in (None, "auto", "hf"):
        return None  # another file than config.json says what the model is
    found = registry.loading(
        registry.declared(_overridden(serving, config)),
        serving.vllm_version,
        implementation=str(added.get("--model-impl") or "auto"),
        trusted=added.get("--trust-remote-code") is True,
    )
    if found is None or "/vllm-openai:" in f"/{serving.image}":
        return found
    # An image of one's own may bring a newer Transformers, or models as a plugin.
    return found._replace(is_warning=True)


def doubts(serving: Serving, config: Mapping[str, Any]) -> Iterator[str]:
    """What a model is not made for that a node asks of it."""
    names = registry.declared(_overridden(serving, config)).architectures
    purposes = frozenset[str]().union(*(registry.purposes(each, serving.vllm_version) for each in names))
    if purposes and purposes <= registry.POOLING and serving.task in tasks.GENERATING:
        fitting = [task for task in tasks.TASKS if purposes & FITTING.get(task, frozenset())]
        yield (
            f"serving.model: {names[0]} is registered for {', '.join(sorted(purposes))} alone, so it does "
            f"not answer {tasks.PATHS[serving.task][0]}, which the health checks ask; set serving.task: "
            f"{' or '.join(fitting)}"
        )
    elif purposes == {"draft"}:
        yield (
            f"serving.model: {names[0]} drafts tokens for another model; serve that one, and name this one "
            "in speculative_config of serving.args"
        )


def _overridden(serving: Serving, config: Mapping[str, Any]) -> Mapping[str, Any]:
    overrides = serving.added.values.get("--hf-overrides")
    return {**config, **overrides} if isinstance(overrides, dict) else config
