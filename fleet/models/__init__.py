"""The shapes of common models: their `config.json` on the Hugging Face hub, for planning offline.

`table.json` keeps the fields the fit planner reads. A quantized checkpoint shares its base model's shape and
adds its `quantization_config`.
"""

from __future__ import annotations

import difflib
import json
from functools import cache
from importlib import resources
from typing import Any

from fleet.models.files import ModelFiles

__all__ = ["ModelFiles", "find_model", "model_config", "model_configs"]


@cache
def model_configs() -> dict[str, dict[str, Any]]:
    """The configuration of every bundled model by its hub name, quantized checkpoints included."""
    configs: dict[str, dict[str, Any]] = {}
    for row in json.loads(resources.files(__package__).joinpath("table.json").read_text(encoding="utf-8")):
        configs[row["name"]] = row["config"]
        for name, quantization in row.get("quantized", {}).items():
            configs[name] = {**row["config"], "quantization_config": quantization}
    return configs


def find_model(name: str, token: str | None = None, *, ask_hub: bool = True) -> ModelFiles:
    """The model of that name from the bundled table, else from the Hugging Face hub.

    With `ask_hub` False, of the hub only what it said before counts. Raises ValueError saying what the table
    has that is close, and why the hub did not help.
    """
    try:
        return ModelFiles(model_config(name), weights_gib=None)
    except ValueError as unknown:
        from fleet.models.hub import HubError, model_files, remembered  # noqa: PLC0415  rarely asked

        try:
            return model_files(name, token=token) if ask_hub else remembered(name)
        except HubError as error:
            raise ValueError(f"{unknown}; {error}") from None


def model_config(name: str) -> dict[str, Any]:
    """The configuration of that model.

    Raises ValueError for a model that is not bundled, naming the closest ones.
    """
    configs = model_configs()
    if name in configs:
        return configs[name]
    by_lower = {known.lower(): known for known in configs}
    if name.lower() in by_lower:
        return configs[by_lower[name.lower()]]
    close = difflib.get_close_matches(name, configs, n=3, cutoff=0.5)
    hint = f"; close are {', '.join(close)}" if close else ""
    raise ValueError(f"{name!r} is not in the bundled table{hint}")
